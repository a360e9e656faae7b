/** What a pilot with very much in hand says of it: a pilot in this process, a scripted dispatcher, the real codec. */
import { join } from 'node:path'
import { expect, onTestFinished, test, vi } from 'vitest'
import { writeCredential } from '../shared/credentials.ts'
import { frameHandler } from '../shared/dispatcher.ts'
import { heldDigest } from '../shared/held.ts'
import { memoryLink } from '../shared/link.ts'
import { silentLog } from '../shared/log.ts'
import type { Grant } from '../shared/protocol/messages.ts'
import { loadPilotConfig, readBatchEnvironment } from './config.ts'
import { startPilot } from './main.ts'
import { ScriptedDispatcher } from './scripted-dispatcher.ts'
import { makeTemplate, PATH, TestSite } from './testbench.ts'

const TIMINGS = { beatMs: 50, lostAfterMs: 5000, leaseMs: 60_000, confirmMs: 1000, pullWaitMs: 300 }
const MANY = 600

test('beat - no list of what is held lacks anything, and every start is said, however many there are', async () => {
  const site = await new TestSite().open()
  onTestFinished(() => site.close())
  const script = new ScriptedDispatcher(site, TIMINGS)
  const credential = join(site.folder, 'pilot.json')
  const nats = { url: 'nats://unused', user: null, password: null, creds: null, ca: null, inboxPrefix: '_INBOX' }
  const keys = site.signer.keys
  writeCredential(credential, { kind: 'pilot', site: 'here', nats, files: { token: 'secret', ca: null }, keys })
  const settings = { credential, scratch: join(site.folder, 'scratch'), name: 'pilot1', node: 'node1', cores: MANY }
  const config = loadPilotConfig(
    { ...settings, memory: '1TiB', containerRuntime: 'none', drainGrace: '60s' },
    undefined,
    {},
  )
  const link = memoryLink({ site: 'here' }, frameHandler(script, silentLog))
  // Their results are not taken, so that all of them stay in hand; and no beat is answered before they have started.
  script.isDeaf = true
  const begun = Promise.withResolvers<void>()
  const beat = script.onBeat.bind(script)
  script.onBeat = (peer, message) => begun.promise.then(() => beat(peer, message))
  const pilot = await startPilot(config, silentLog, { batch: readBatchEnvironment({ PATH }), link })
  onTestFinished(async () => {
    script.isDeaf = false
    begun.resolve()
    await pilot.stop()
  })
  // Ends before any process: there is no value for its name.
  const template = { command: ['true', '$(nothing)'], needs: { ...makeTemplate().needs, memoryBytes: 2 ** 20 } }
  const grants: Grant[] = []
  for (let given = 0; given < MANY; given += 100) {
    const made = Array.from({ length: 100 }, () => script.grantOf(template, '0'))
    script.ready.push({ grants: made.map(({ grant }) => grant), templates: [made[0]!.template] })
    grants.push(...made.map(({ grant }) => grant))
  }
  const until = (look: () => void) => vi.waitFor(look, { timeout: 30_000, interval: 10 })
  await until(() => expect(script.pulls.at(-1)!.processed).toBeGreaterThanOrEqual(MANY / 100))
  begun.resolve()
  await until(() => expect(script.beats.at(-1)?.counters.tasks_failed).toBe(MANY))
  const { length } = script.beats
  await until(() => expect(script.beats.length).toBeGreaterThan(length + 2))
  const names = grants.map(({ lease }) => ({ bundle: lease.bundle, fence: lease.fences.at(-1)! }))
  const late = script.beats.slice(length).map(({ held }) => held)
  expect(new Set(late.map((held) => JSON.stringify(held)))).toEqual(
    new Set([JSON.stringify({ count: MANY, digest: heldDigest(names) })]),
  )
  for (const { held } of script.beats) if (Array.isArray(held)) expect(held.length).toBeLessThanOrEqual(512)
  const started = script.beats.flatMap((one) => one.started.map(({ bundle }) => bundle))
  expect(new Set(started).size).toBe(MANY)
})
