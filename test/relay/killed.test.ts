/** A relay's process killed at its worst moments, and drained: with a real centre and a real pilot. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { execa } from 'execa'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { loadPilotConfig } from '../../pilot/config.ts'
import { startAtRelays } from '../../pilot/relays.ts'
import { relayCredentialSchema, writeCredential } from '../../shared/credentials.ts'
import type { Failpoint } from '../../shared/failpoint.ts'
import { silentLog } from '../../shared/log.ts'
import { type CentralLab, startCentralLab } from '../central/central-lab.ts'
import { until } from './relay-in-parts.ts'
import { type RelayProcess, spawnRelay } from './relay-process.ts'

const LAUNCHER = fileURLToPath(new URL('../../central/cli/indraft.mjs', import.meta.url))

let folder: string
let lab: CentralLab
let relay: RelayProcess
let site = 0
const ends: (() => unknown)[] = []
beforeAll(async () => {
  lab = await startCentralLab()
})
afterAll(() => lab?.stop())
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-relay-ends-'))
  const name = `ENDS-${++site}`
  const { joinToken } = await lab.admin.call('addSite', { body: { name } })
  const { credential } = await lab.as(null).call('joinSite', { body: { token: joinToken } })
  mkdirSync(join(folder, 'state'))
  writeCredential(join(folder, 'state/relay.json'), relayCredentialSchema.parse(credential))
  start()
  await relay.said('relay.ready')
})
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end()
  relay.kill('SIGKILL')
  await relay.exited
  rmSync(folder, { recursive: true, force: true })
})

const settings = () => ['--state', join(folder, 'state'), '--time-scale', '0.05', '--failpoints', folder]

function start(...more: string[]): void {
  relay = spawnRelay([...settings(), ...more])
}

async function pilot() {
  const credential = join(folder, 'state/pilot.json')
  const room = { scratch: join(folder, 'scratch'), name: `p${site}`, cores: 4, memory: '1GB', containerRuntime: 'none' }
  const patience = { idleBefore: '60s', idleAfter: '60s', leastTimeLeft: '0s' }
  const running = await startAtRelays(loadPilotConfig({ credential, ...room, ...patience }, undefined, {}), silentLog)
  ends.push(() => running.stop())
  return running
}

async function submit(count: number, command: string) {
  const source = `
indraft: 1
name: c${site}
group: /g${site}
defaults: {image: host}
sites: {allow: [ENDS-${site}]}
steps:
  run:
    count: ${count}
    command: ${command}
    resources: {cores: 1, memory: 50MB, walltime: 5min}
    outputs: [{path: out.txt}, {path: more.txt}]
`
  const person = await lab.person(`p${site}`, [`/g${site}`])
  const { id } = await person.call('submitCampaign', { body: { source } })
  return async () => (await person.call('showCampaign', { params: { campaign: id } })).steps[0]!.counts
}

const WRITES = `[sh, -c, 'echo 1 > out.txt; echo 2 > more.txt']`

describe('relay - killed', () => {
  // The others are the fault suite's (npm run fault).
  const moments: Failpoint[] = [
    ...(['changes.committed', 'sublease.persisted', 'results.acknowledged'] as const),
    ...(['upload.halfway', 'verdict.received'] as const),
  ]
  it.each(moments)(
    'relay - killed at %s and started again, the campaign ends whole',
    async (moment) => {
      await pilot()
      writeFileSync(join(folder, moment), 'kill')
      const counts = await submit(6, WRITES)
      expect(await relay.exited).toBe(null)
      start()
      await until('all are done', async () => (await counts()).done === 6)
      expect((await lab.admin.call('verify', {})).findings).toEqual([])
    },
    240_000,
  )
})

describe('relay - drained', () => {
  it.each([
    ['a signal', () => relay.kill('SIGUSR1')],
    ['the command', () => execa(process.execPath, [LAUNCHER, 'relay', 'drain', '--state', join(folder, 'state')])],
  ])(
    'relay - drained by %s it lets pilots finish, gives back the rest, says bye and ends with 0',
    async (_how, drain) => {
      const one = await pilot()
      const counts = await submit(30, `[sh, -c, 'sleep 1; echo 1 > out.txt; echo 2 > more.txt']`)
      await until('some run', async () => (await counts()).running > 0)
      await drain()
      expect(await relay.exited).toBe(0)
      expect(await one.finished).toBe(200)
      const left = await counts()
      // What ran ended; what did not goes to whoever comes next; nothing is lost in between.
      expect(left.done).toBeGreaterThan(0)
      expect(left.done + left.queued).toBe(30)
      const { holders } = await lab.admin.call('listHolders', { query: { role: 'relay' } })
      expect(holders.find((holder) => holder.site === `ENDS-${site}`)!.state).toBe('left')
    },
    240_000,
  )
})
