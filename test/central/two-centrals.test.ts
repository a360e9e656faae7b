/**
 * Two replicas of central on one Redis, each message of a holder answered by either: nothing is granted twice, what one
 * did the other knows, and one may vanish at any moment.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { execa } from 'execa'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest'
import { makeClient } from '../../central/api/client.ts'
import type { OpenStore } from '../../central/leases/open.ts'
import { relayCredentialSchema } from '../../shared/credentials.ts'
import { type Dispatcher, frameHandler } from '../../shared/dispatcher.ts'
import { IndraftError } from '../../shared/errors.ts'
import type { FrameHandler } from '../../shared/link.ts'
import { silentLog } from '../../shared/log.ts'
import type { Message } from '../../shared/protocol/messages.ts'
import { startNats } from '../../shared/servers/nats.ts'
import { startRedis } from '../../shared/servers/redis.ts'
import { spawnIndraft } from '../relay/relay-process.ts'
import { EXIT_3, TestHolder } from './store-holder.ts'
import { GROUP, openStoreLab, planOf, type StoreLab, startRedisForTests } from './store-lab.ts'

const LAUNCHER = fileURLToPath(new URL('../../central/cli/indraft.mjs', import.meta.url))

let redis: { url: string; stop(): Promise<void> }
let lab: StoreLab
let both: [OpenStore, OpenStore]
beforeAll(async () => {
  redis = await startRedisForTests()
})
afterAll(() => redis.stop())
beforeEach(async () => {
  lab = await openStoreLab(redis.url, { timeScale: 0.1 })
  both = [lab, await lab.reopen()]
})
afterEach(() => lab.end())

const clean = async () => expect(await lab.store.verify()).toEqual([])
const counts = async (id: string) =>
  Object.fromEntries(Object.entries((await lab.store.find(id, ['*']))!.counts).filter(([, count]) => count > 0))
const handlers = () =>
  both.map(({ dispatcher }) => frameHandler(dispatcher as Dispatcher, silentLog)) as [FrameHandler, FrameHandler]

/** One message to the one, the next to the other. */
function alternating(): { around: () => FrameHandler } {
  const [one, two] = handlers()
  let n = 0
  return { around: () => (peer, frame) => (n++ % 2 === 0 ? one : two)(peer, frame) }
}

test('both at work - many holders, failures too: every task ends once, and both see the same', async () => {
  await Promise.all(both.map(({ work }) => work.start()))
  const plan = planOf('both', { a: { size: 60 }, b: { size: 5, after: [{ step: 'a' as never, accept: 1 }] } })
  await both[1].store.create(plan)
  const pilots = await Promise.all(
    [0, 1, 2, 3].map((i) => new TestHolder(both[0].dispatcher, { name: `p${i}`, ...alternating() }).hello()),
  )
  const verdicts: Record<string, number> = {}
  let failed = 0
  await vi.waitFor(
    async () => {
      await Promise.all(
        pilots.map(async (pilot) => {
          await pilot.pull(3)
          await pilot.startAll()
          const results = pilot.allResults(failed < 5 ? EXIT_3 : {})
          if (results.length === 0) return
          if (failed < 5) failed += results.length
          for (const verdict of await pilot.verdicts(results)) verdicts[verdict] = (verdicts[verdict] ?? 0) + 1
        }),
      )
      expect(await counts(plan.id)).toEqual({ done: 65 })
    },
    { timeout: 40_000, interval: 20 },
  )
  expect(verdicts).toEqual({ accepted: 65 + failed })
  await vi.waitFor(async () => {
    expect((await both[1].store.find(plan.id, [GROUP]))!.endedAtMs).not.toBeNull()
  }, 30_000)
  expect(await both[0].store.find(plan.id, [GROUP])).toEqual(await both[1].store.find(plan.id, [GROUP]))
  await clean()
})

test('two that feed the same campaign at once - every task waits in one bundle, is granted once, and no more wait than should', async () => {
  const plan = planOf('fed', { a: { size: 500 }, b: { size: 3, after: [{ step: 'a' as never, accept: 1 }] } })
  await lab.store.create(plan)
  const feedAtOnce = () => Promise.all([...both, ...both].map(({ work }) => work.sweep()))
  await feedAtOnce()
  const pilot = await new TestHolder(both[0].dispatcher, alternating()).hello()
  const granted: string[] = []
  for (let round = 0; round < 3; round++) {
    await feedAtOnce()
    await clean()
    const window = await lab.redis.zcard(`indraft:{${GROUP}}:queue:${plan.id}|a|class0000001|`)
    expect(window).toBe(64)
    granted.push(...(await pilot.pull(30)).grants.map(({ lease }) => lease.tasks))
  }
  expect(new Set(granted).size).toBe(90)
  expect(await counts(plan.id)).toEqual({ queued: 410, assigned: 90, blocked: 3 })
})

test('a pull that waits at one - is woken by a campaign that the other takes in', async () => {
  await Promise.all(both.map(({ work }) => work.start()))
  const pilot = await new TestHolder(both[0].dispatcher).hello()
  const waiting = pilot.pull(1, { waitMs: 20_000 })
  await both[1].store.create(planOf('wakes', { a: {} }))
  expect((await waiting).grants).toHaveLength(1)
})

test('the same pull at both at once - one set of leases, or what the holder did not hear of comes back', async () => {
  const groups = [GROUP, '/vo.example/other']
  const plans = groups.map((group) => planOf('same', { a: { size: 4 } }, { group }))
  for (const plan of plans) await lab.store.create(plan)
  await lab.settle()
  const pilot = await new TestHolder(both[0].dispatcher, alternating()).hello()
  const { timeLeftMs: _left, labels: _labels, node, ...shape } = pilot.facts
  const pull: Message<'pull'> = {
    session: pilot.holder.welcome!.session,
    sequence: 1,
    processed: 0,
    seen: null,
    offer: [{ shape: { ...shape, cores: 3 }, count: 1, timeLeftMs: null, aheadMs: 0, node }],
    finished: [],
    returned: [],
    waitMs: 0,
    knows: [],
  }
  const [heard] = await Promise.all(both.map(({ dispatcher }) => dispatcher.onPull({ site: 'ALPHA' }, pull)))
  await clean()
  const held = heard!.grants.map(({ lease }) => lease)
  const beat = () =>
    both[0].dispatcher.onBeat({ site: 'ALPHA' }, { ...BEAT, session: pull.session, processed: 1, held })
  await beat()
  await beat()
  const total = await Promise.all(plans.map(({ id }) => counts(id)))
  expect(total.reduce((sum, one) => sum + (one.assigned ?? 0), 0)).toBe(held.length)
  await clean()
})

test('one vanishes with a reply under way - the other gives the same leases and takes the results', async () => {
  const plan = planOf('vanish', { a: { size: 4 } })
  await lab.store.create(plan)
  await lab.settle()
  const [one, two] = handlers()
  let isGone = false
  const pilot = await new TestHolder(both[0].dispatcher, {
    around: () => async (peer, frame) => {
      if (isGone) return two(peer, frame)
      const reply = await one(peer, frame)
      if ((await counts(plan.id)).assigned === undefined) return reply
      isGone = true
      throw new IndraftError('link.timeout', 'gone with the reply')
    },
  }).hello()
  await pilot.pull(2)
  expect(isGone).toBe(true)
  expect(await counts(plan.id)).toEqual({ queued: 2, assigned: 2 })
  expect(await pilot.verdicts(pilot.allResults())).toEqual(['accepted', 'accepted'])
  await both[0].close()
  expect((await both[1].store.find(plan.id, [GROUP]))!.counts).toMatchObject({ queued: 2, done: 2 })
  expect(await both[1].store.verify()).toEqual([])
})

test('two processes that start at once on an empty folder - agree on every key and token, and both serve', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'indraft-two-'))
  const state = join(folder, 'central')
  const ends: (() => unknown)[] = [() => rmSync(folder, { recursive: true, force: true })]
  try {
    const accounts = await Promise.all(
      [1, 2].map(() => execa(process.execPath, [LAUNCHER, 'central', 'nats-config', '--state', state])),
    )
    const [one, two] = accounts.map(({ stdout }) => stdout)
    expect(one).toBe(two)
    const store = await startRedis({ dir: join(folder, 'redis') })
    ends.push(() => store.stop())
    const nats = await startNats({ dir: join(folder, 'nats'), configText: one! })
    ends.push(() => nats.stop())
    const settings = {
      '--state': state,
      '--redis': store.url,
      '--nats': nats.url,
      '--api-port': '0',
      '--metrics-port': '0',
    }
    const args = ['central', 'run', ...Object.entries(settings).flat()]
    const centrals = [spawnIndraft(args), spawnIndraft(args)]
    ends.push(async () => {
      for (const central of centrals) central.kill('SIGKILL')
      await Promise.all(centrals.map(({ exited }) => exited))
    })
    const ready = await Promise.all(centrals.map((central) => central.said('central.ready')))
    const authorization = `Bearer ${readFileSync(join(state, 'admin.token'), 'utf8').trim()}`
    const keys: unknown[] = []
    for (const [i, { apiUrl }] of ready.entries()) {
      expect((await fetch(`${apiUrl}/v1/whoami`, { headers: { authorization } })).status).toBe(200)
      const client = makeClient({ url: apiUrl as string, token: authorization.slice('Bearer '.length), ca: null })
      const { joinToken } = await client.call('addSite', { body: { name: `SITE-${i}` } })
      keys.push(
        relayCredentialSchema.parse((await client.call('joinSite', { body: { token: joinToken } })).credential).keys,
      )
      await client.close()
    }
    expect(keys[0]).toEqual(keys[1])
    for (const central of centrals) central.kill('SIGTERM')
    expect(await Promise.all(centrals.map(({ exited }) => exited))).toEqual([0, 0])
    // Nothing half-made is left beside what was made.
    expect(readdirSync(state).filter((name) => /\.(tmp|made)$/.test(name))).toEqual([])
  } finally {
    for (const end of ends.reverse()) await end()
  }
})

test('an inventory in parts, each to another - what it does not name is taken back', async () => {
  const plan = planOf('parts', { a: { size: 4 } })
  await lab.store.create(plan)
  await lab.settle()
  const pilot = await new TestHolder(both[0].dispatcher, alternating()).hello()
  await pilot.pull(4)
  const [kept, ...lost] = [...pilot.leases.values()]
  expect(lost).toHaveLength(3)
  await pilot.beat()
  const part = { session: pilot.holder.welcome!.session, processed: 1, parts: 2 }
  await both[0].dispatcher.onInventory({ site: 'ALPHA' }, { ...part, part: 0, leases: [kept!] })
  await both[1].dispatcher.onInventory({ site: 'ALPHA' }, { ...part, part: 1, leases: [lost[0]!] })
  expect(await counts(plan.id)).toEqual({ assigned: 2, queued: 2 })
  await clean()
})

const BEAT = {
  seen: null,
  incarnation: 'i',
  draining: false,
  started: [],
  counters: {},
  gauges: {},
  pilots: [],
  usage: [],
} satisfies Partial<Message<'beat'>>
