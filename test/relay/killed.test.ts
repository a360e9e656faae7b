/** A relay's process killed at its worst moments, and drained: with a real centre and a real pilot. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { execa } from 'execa'
import { describe, expect, it } from 'vitest'
import { loadPilotConfig } from '../../pilot/config.ts'
import { startAtRelays } from '../../pilot/relays.ts'
import type { Failpoint } from '../../shared/failpoint.ts'
import { silentLog } from '../../shared/log.ts'
import { joinedRelay } from './joined.ts'
import { until } from './relay-in-parts.ts'

const LAUNCHER = fileURLToPath(new URL('../../central/cli/indraft.mjs', import.meta.url))

const at = joinedRelay('ENDS', { timeScale: 0.05 })

async function pilot() {
  const credential = at.state('pilot.json')
  const room = { scratch: join(at.folder, 'scratch'), name: 'p', cores: 4, memory: '1GB', containerRuntime: 'none' }
  const patience = { idleBefore: '60s', idleAfter: '60s', leastTimeLeft: '0s' }
  const running = await startAtRelays(loadPilotConfig({ credential, ...room, ...patience }, undefined, {}), silentLog)
  at.onEnd(() => running.stop())
  return running
}

async function submit(count: number, command: string) {
  const group = `/${at.site.toLowerCase()}`
  const source = `
indraft: 1
name: c
group: ${group}
defaults: {image: host}
sites: {allow: [${at.site}]}
steps:
  run:
    count: ${count}
    command: ${command}
    resources: {cores: 1, memory: 50MB, walltime: 5min}
    outputs: [{path: out.txt}, {path: more.txt}]
`
  const person = await at.lab.person(at.site.toLowerCase(), [group])
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
      writeFileSync(join(at.folder, moment), 'kill')
      const counts = await submit(6, WRITES)
      expect(await at.relay.exited).toBe(null)
      at.start()
      await until('all are done', async () => (await counts()).done === 6)
      expect((await at.lab.admin.call('verify', {})).findings).toEqual([])
    },
    240_000,
  )
})

describe('relay - drained', () => {
  it.each([
    ['a signal', () => at.relay.kill('SIGUSR1')],
    ['the command', () => execa(process.execPath, [LAUNCHER, 'relay', 'drain', '--state', at.state('')])],
  ])(
    'relay - drained by %s it lets pilots finish, gives back the rest, says bye and ends with 0',
    async (_how, drain) => {
      const one = await pilot()
      const counts = await submit(30, `[sh, -c, 'sleep 1; echo 1 > out.txt; echo 2 > more.txt']`)
      await until('some run', async () => (await counts()).running > 0)
      await drain()
      expect(await at.relay.exited).toBe(0)
      expect(await one.finished).toBe(200)
      const left = await counts()
      // What ran ended; what did not goes to whoever comes next; nothing is lost in between.
      expect(left.done).toBeGreaterThan(0)
      expect(left.done + left.queued).toBe(30)
      const { holders } = await at.lab.admin.call('listHolders', { query: { role: 'relay' } })
      expect(holders.find((holder) => holder.site === at.site)!.state).toBe('left')
    },
    240_000,
  )
})
