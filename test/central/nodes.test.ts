/**
 * Central and pilots of a direct site, all real, in this process: who gets what by the nodes' facts, and who gets nothing
 * any more by a ban.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { Redis } from 'ioredis'
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest'
import type { Client } from '../../central/api/client.ts'
import { loadPilotConfig, readBatchEnvironment } from '../../pilot/config.ts'
import type { Gpus } from '../../pilot/gpus.ts'
import { type Pilot, startPilot } from '../../pilot/main.ts'
import { architecture } from '../../pilot/processor.ts'
import { readTrace } from '../../pilot/trace-reader.ts'
import { type PilotCredential, writeCredential } from '../../shared/credentials.ts'
import { silentLog } from '../../shared/log.ts'
import { type CentralLab, startCentralLab } from './central-lab.ts'

let lab: CentralLab
let folder: string
let redis: Redis
let pilots: Pilot[] = []
beforeAll(async () => {
  lab = await startCentralLab()
  redis = new Redis(lab.redisUrl)
  folder = mkdtempSync(join(tmpdir(), 'indraft-nodes-'))
  const { joinToken } = await lab.admin.call('addSite', { body: { name: 'HERE', direct: true } })
  const { credential } = await lab.as(null).call('joinSite', { body: { token: joinToken } })
  writeCredential(join(folder, 'pilot.json'), credential as unknown as PilotCredential)
})
afterEach(async () => {
  for (const pilot of pilots) {
    void pilot.stop()
    await pilot.stop()
  }
  pilots = []
  await redis.del('indraft:bans')
})
afterAll(async () => {
  redis?.disconnect()
  await lab?.stop()
  if (folder) rmSync(folder, { recursive: true, force: true })
})

async function startNode(node: string, settings: Record<string, unknown> = {}, gpus?: Gpus): Promise<Pilot> {
  const args = {
    ...{ credential: join(folder, 'pilot.json'), scratch: join(folder, node), node, name: node, cores: 2 },
    ...{ memory: '2GiB', containerRuntime: 'none', watchEvery: '100ms', payloadGrace: '300ms', drainGrace: '4s' },
    ...{ cvmfs: join(folder, 'none'), ...settings },
  }
  const batch = readBatchEnvironment({ PATH: '/usr/local/bin:/usr/bin:/bin' })
  const pilot = await startPilot(loadPilotConfig(args, undefined, {}), silentLog, { batch, ...(gpus ? { gpus } : {}) })
  pilots.push(pilot)
  return pilot
}

const gpusOf = (gibibytes: number): Gpus => ({
  vendor: 'nvidia',
  driver: '550.1',
  devices: ['a', 'b'].map((name) => ({ id: `GPU-${name}`, model: 'NVIDIA X', memoryBytes: gibibytes * 2 ** 30 })),
})

async function submit(client: Client, name: string, command: string[], more = ''): Promise<string> {
  const source = `
indraft: 1
name: ${name}
group: /vo/prod
defaults: {image: host, resources: {memory: 64MiB, walltime: 10min}}
steps:
  sim:
    command: ${JSON.stringify(command.map((part) => part.replaceAll('$(', () => '$$(')))}
${more}`
  return (await client.call('submitCampaign', { body: { source } })).id
}

async function reaches(campaign: string, state: string): Promise<void> {
  await vi.waitFor(
    async () => expect((await lab.admin.call('showCampaign', { params: { campaign } })).state).toBe(state),
    { timeout: 30_000, interval: 50 },
  )
}
const taskOf = (campaign: string) => lab.admin.call('showTask', { params: { campaign, step: 'sim', index: 0 } })

describe('nodes - who gets what', () => {
  test('a step that asks for a GPU of 16 GiB runs where there is one, with one to see', async () => {
    const ada = await lab.person('ada', ['/vo/prod'])
    await startNode('plain')
    await startNode('small', {}, gpusOf(8))
    const campaign = await submit(
      ada,
      'gpus',
      ['sh', '-c', 'test "$CUDA_VISIBLE_DEVICES" = GPU-a'],
      '    resources: {gpus: 1, gpu_memory: 16GiB}\n',
    )
    // Both nodes were offered work after it came, and did not get it.
    await reaches(await submit(ada, 'no-gpu', ['true']), 'done')
    const eight = '    resources: {gpus: 1, gpu_memory: 8GiB}\n'
    await reaches(await submit(ada, 'small-gpu', ['true'], eight), 'done')
    expect((await taskOf(campaign)).state).toBe('queued')
    await startNode('large', {}, gpusOf(16))
    await reaches(campaign, 'done')
    expect((await taskOf(campaign)).node).toBe('large')
  })

  test('a step that asks for EESSI runs where it is, with its modules', async () => {
    const ada = await lab.person('ada', ['/vo/prod'])
    const stack = join(folder, 'cvmfs/software.eessi.io/versions/2025.06')
    const put = (path: string, text: string) => {
      mkdirSync(dirname(join(stack, path)), { recursive: true })
      writeFileSync(join(stack, path), text, { mode: 0o755 })
    }
    // A folder of the same form; no mount is involved.
    put(`compat/linux/${architecture()}/startprefix`, '')
    put('init/bash', `module() { export PATH=${stack}/$2:$PATH; }\n`)
    put('ROOT/root', '#!/bin/sh\necho from the stack\n')
    await startNode('without')
    const campaign = await submit(
      ada,
      'eessi',
      ['root'],
      '    software: {eessi: {version: "2025.06", modules: [ROOT]}}\n',
    )
    await reaches(await submit(ada, 'no-stack', ['true']), 'done')
    expect((await taskOf(campaign)).state).toBe('queued')
    await startNode('with', { cvmfs: join(folder, 'cvmfs') })
    await reaches(campaign, 'done')
    expect((await taskOf(campaign)).node).toBe('with')
  })
})

describe('nodes - who gets nothing any more', () => {
  test('a ban: payloads of the subject end, their campaigns are cancelled, others go on, the trace names who it was', async () => {
    const ada = await lab.person('ada', ['/vo/prod'])
    const eve = await lab.person('eve', ['/vo/prod'])
    await startNode('banned', { traceLog: join(folder, 'trace') })
    const mark = join(folder, 'ran')
    const bad = await submit(eve, 'bad', ['sh', '-c', `echo x >${mark}; sleep 600`])
    await vi.waitFor(() => expect(rmSync(mark)).toBeUndefined(), { timeout: 30_000, interval: 50 })
    expect(await lab.admin.call('addBan', { body: { subject: 'eve', reason: 'token on a page' } })).toEqual({
      cancelled: [bad],
    })
    await reaches(bad, 'cancelled')
    await expect(eve.call('whoami', {})).rejects.toMatchObject({
      code: 'auth.forbidden',
      message: expect.stringContaining('token on a page'),
    })
    const good = await submit(ada, 'good', ['true'])
    await reaches(good, 'done')
    const traced = await readTrace(join(folder, 'trace'), { subject: 'eve' })
    expect(traced).toMatchObject([
      { campaign: 'bad', subject: 'eve', group: '/vo/prod', issuer: lab.central.apiUrl, node: 'banned' },
    ])
    expect(traced[0]).toMatchObject({ reason: 'attempt.cancelled', endedAt: expect.any(String) })
    expect((await lab.admin.call('listBans', {})).bans).toMatchObject([{ subject: 'eve', by: 'admin' }])
    expect(await lab.admin.call('liftBan', { body: { subject: 'eve' } })).toEqual({ lifted: true })
    expect(await lab.admin.call('liftBan', { body: { subject: 'eve' } })).toEqual({ lifted: false })
    await reaches(await submit(eve, 'better', ['true']), 'done')
    expect((await lab.admin.call('verify', {})).findings).toEqual([])
  })

  test('a campaign of a banned subject that nobody cancelled yet is not granted', async () => {
    const mallory = await lab.person('mallory', ['/vo/prod'])
    const ban = { subject: 'mallory', reason: '', by: 'admin', atMs: 1 }
    const campaign = await submit(mallory, 'slipped', ['true'])
    await redis.hset('indraft:bans', 'mallory', JSON.stringify(ban))
    await startNode('waiting')
    const ada = await lab.person('ada', ['/vo/prod'])
    await reaches(await submit(ada, 'after', ['true']), 'done')
    expect((await taskOf(campaign)).state).toBe('queued')
    await redis.del('indraft:bans')
    await reaches(campaign, 'done')
  })

  test('only administrators ban, and nobody themselves', async () => {
    const ada = await lab.person('ada', ['/vo/prod'])
    const body = { subject: 'bob', reason: '' }
    await expect(ada.call('addBan', { body })).rejects.toMatchObject({ code: 'auth.forbidden' })
    await expect(lab.admin.call('addBan', { body: { ...body, subject: 'admin' } })).rejects.toMatchObject({
      code: 'request.invalid',
      path: 'subject',
    })
  })
})
