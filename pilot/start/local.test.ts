import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { writeCredential } from '../../shared/credentials.ts'
import type { Start } from './decide.ts'
import { foldersOf } from './files.ts'
import { localStarter } from './local.ts'
import { parseSiteFile } from './site-file.ts'
import { NotStarted, type Starter } from './tick.ts'

/** Says its words and stays; the end of the test at the latest ends it. */
const program = `process.on('SIGTERM', () => { console.log('told to end'); process.exit(0) })
console.log(process.argv.slice(2).join(' ')); setInterval(() => {}, 1000)`

let folder: string
let starter: Starter
let logs: string
let order: Start
const pids: number[] = []

const starterOf = (command: string[], credential = '/c', pilots = '{}') => {
  const site = parseSiteFile(
    `{indraft: 1, folder: ${folder}, credential: ${credential}, command: ${JSON.stringify(command)}, starter: local,
      pilots: ${pilots}, kinds: {cpu: {time: 12h, shape: {cores: 8}}}}`,
    'site.yaml',
  )
  logs = foldersOf(site).logs
  return localStarter(site, foldersOf(site), { PATH: '/usr/bin:/bin', INDRAFT_SCRATCH: join(folder, 'scratch') })
}
/** The program itself, for a relay that never answers: it stays, and asks again. */
const realPilot = (...before: string[]) => {
  const url = { url: 'nats://127.0.0.1:1', user: 'u', password: 'p', creds: null, ca: null, inboxPrefix: '_INBOX_p' }
  const credential = join(folder, 'pilot.json')
  writeCredential(credential, { kind: 'pilot', site: 'here', nats: url, files: { token: 't', ca: null }, keys: {} })
  const program = join(import.meta.dirname, '../indraft-pilot.mjs')
  order.timeMs = 3_600_000
  return starterOf([...before, process.execPath, program], credential, '{containerRuntime: none, gpus: 0}')
}
const wordsOf = (jobId: string) => readFile(`/proc/${jobId.split(':')[1]}/cmdline`, 'utf8').catch(() => '')
const untilItHasATitle = async () => {
  await vi.waitFor(async () => expect(await wordsOf((await mine())[0]!.jobId)).toMatch(/^indraft-pilot:/), 60_000)
}

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-local-'))
  writeFileSync(join(folder, 'pilot.mjs'), program)
  starter = starterOf([process.execPath, join(folder, 'pilot.mjs')])
  const id = `cpu.${Math.random().toString(16).slice(2, 10)}`
  order = { id, kind: 'cpu', nodes: 1, timeMs: 90_000, because: 'demand', canaryOf: null, exclude: [] }
})
afterEach(() => {
  for (const pid of pids.splice(0)) {
    try {
      process.kill(pid, 'SIGKILL')
    } catch {
      // It has ended.
    }
  }
  rmSync(folder, { recursive: true, force: true })
})

const start = async () => {
  const jobId = await starter.start(order)
  pids.push(Number(jobId.split(':')[1]))
  return jobId
}
const mine = async () => (await starter.queue()).filter(({ id }) => id === order.id)
const log = () => readFile(join(logs, `indraft:${order.id}.log`), 'utf8')

describe('local starter', () => {
  it('starts a process that is known again by its id, also by another tick', async () => {
    const jobId = await start()
    const known = { jobId, id: order.id, state: 'running', nodes: [hostname()], reason: '' }
    expect(await mine()).toEqual([known])
    starter = starterOf(['another'])
    expect(await mine()).toEqual([known])
    await vi.waitFor(async () => expect(await log()).toContain(`--start-id ${order.id}`), 60_000)
    expect(await log()).toMatch(/^run --credential \/c .*--runtime-limit 90s\n$/)
  })

  it('ends those that it is told, and no others', async () => {
    await start()
    await vi.waitFor(async () => expect(await log()).toContain('--start-id'), 60_000)
    const started = (id: string) => ({ id }) as Parameters<Starter['end']>[0][number]
    await starter.end([started('cpu.00000000')])
    expect(await mine()).toHaveLength(1)
    await starter.end([started(order.id)])
    await vi.waitFor(async () => expect(await mine()).toEqual([]), 60_000)
    expect(await log()).toMatch(/told to end\n$/)
  })

  it('the program itself is known again after it gave itself a title, and is what ends', async () => {
    starter = realPilot()
    const jobId = await start()
    // Seen from outside: the process by its number, so that one that is not found fails below.
    await vi.waitFor(async () => expect(await wordsOf(jobId)).toMatch(/^indraft-pilot:/), 60_000)
    expect(await wordsOf(jobId)).not.toContain('--start-id')
    // As a program looks that the pilot is about to start.
    const words = ['-c', `exec -a "indraft-pilot:${order.id}:x" sleep 600`]
    const copy = spawn('bash', words, { stdio: 'ignore' })
    pids.push(copy.pid!)
    await vi.waitFor(async () => expect(await wordsOf(`:${copy.pid}`)).toMatch(/^indraft-pilot:/), 60_000)
    expect(await mine()).toEqual([{ jobId, id: order.id, state: 'running', nodes: [hostname()], reason: '' }])
    copy.kill('SIGKILL')
    await once(copy, 'exit')
    await starter.end([{ id: order.id } as Parameters<Starter['end']>[0][number]])
    await vi.waitFor(async () => expect(await mine()).toEqual([]), 60_000)
    expect(await log()).toContain('SIGTERM was received')
  }, 120_000)

  it('of a pilot behind a program that hands no signals on, the pilot is ended', async () => {
    starter = realPilot('/bin/sh', '-c', '"$@"; echo "the pilot ended with $?"', 'wrapper')
    await start()
    await untilItHasATitle()
    pids.push(Number((await mine())[0]!.jobId.split(':')[1]))
    await starter.end([{ id: order.id } as Parameters<Starter['end']>[0][number]])
    await vi.waitFor(async () => expect(await log()).toContain('the pilot ended with 0'), 60_000)
  }, 120_000)

  it('a name that Slurm gave this node is used for it', async () => {
    const site = parseSiteFile(
      `{indraft: 1, folder: ${folder}, credential: /c, command: [${process.execPath}, ${join(folder, 'pilot.mjs')}],
        starter: local, kinds: {cpu: {time: 12h, shape: {cores: 8}}}}`,
      'site.yaml',
    )
    starter = localStarter(site, foldersOf(site), { PATH: '/usr/bin:/bin', SLURMD_NODENAME: 'n0042' })
    await start()
    expect(await mine()).toMatchObject([{ nodes: ['n0042'] }])
  })

  it('a program that is not there was certainly not started', async () => {
    starter = starterOf(['/nowhere/indraft-pilot'])
    await expect(starter.start(order)).rejects.toThrow(NotStarted)
    expect(await mine()).toEqual([])
  })
})
