/** The store under faults, each test named for its own: what is lost, late, doubled or dead, and what holds then. */
import { execFileSync } from 'node:child_process'
import { closeSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest'
import { taskViewSchema } from '../../central/api/views.ts'
import type { CampaignPlan } from '../../central/campaigns/model.ts'
import type { StoredStep } from '../../central/leases/plans.ts'
import { Scripts } from '../../central/leases/scripts.ts'
import { IndraftError } from '../../shared/errors.ts'
import { decode, unpack } from '../../shared/protocol/codec.ts'
import type { LeasePart, Message } from '../../shared/protocol/messages.ts'
import { EXIT_3, TestHolder } from './store-holder.ts'
import { GROUP, openStoreLab, planOf, type StoreLab, startRedisForTests } from './store-lab.ts'

/** A pilot is lost after 60 s, a grant taken back after 60 s: here after 3.6 s. The centre forgives pauses of 3 s. */
const TIME_SCALE = 0.06

let redis: { url: string; stop(): Promise<void> }
let lab: StoreLab
beforeAll(async () => {
  redis = await startRedisForTests()
})
afterAll(() => redis.stop())
beforeEach(async () => {
  lab = await openStoreLab(redis.url, { timeScale: TIME_SCALE })
  await lab.settle()
})
afterEach(() => lab.end())

const clean = async () => expect(await lab.store.verify()).toEqual([])
const counts = async (id: string) =>
  Object.fromEntries(Object.entries((await lab.store.find(id, [GROUP]))!.counts).filter(([, count]) => count > 0))

async function seed(size: number, name = 'faulty') {
  const plan = planOf(name, { a: { size } })
  await lab.store.create(plan)
  await lab.settle()
  return plan.id
}
/** The blob of a campaign's plan. */
async function planPath(id: string): Promise<string> {
  const hex = (await lab.redis.hget(`indraft:{${GROUP}}:campaign:${id}`, 'plan'))!.slice('sha256:'.length)
  return join(lab.folder, 'blobs', hex.slice(0, 2), hex)
}
/** Sweeps until so many tasks are queued again; `others` beat meanwhile. */
const queuedAgain = (id: string, queued: number, ...others: TestHolder[]) =>
  vi.waitFor(
    async () => {
      for (const other of others) await other.beat()
      await lab.settle()
      expect(await counts(id)).toMatchObject({ queued })
    },
    { timeout: 30_000, interval: 100 },
  )

test('lost grant reply - the repeated pull gets the same leases, and nothing is granted twice', async () => {
  const id = await seed(10)
  let lose = true
  const pilot = new TestHolder(lab.dispatcher, {
    around: (handler) => async (peer, frame) => {
      const reply = await handler(peer, frame)
      if (lose && decode(frame).type === 'pull') {
        lose = false
        throw new IndraftError('link.timeout')
      }
      return reply
    },
  })
  await pilot.hello()
  const { grants } = await pilot.pull(4)
  expect(grants).toHaveLength(4)
  expect(await counts(id)).toEqual({ queued: 6, assigned: 4 })
  expect(await pilot.verdicts(pilot.allResults())).toEqual(Array(4).fill('accepted'))
  await clean()
})

test('lost grant reply and a crash of the centre - another process gives the same leases', async () => {
  const id = await seed(10)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  const body = {
    session: pilot.holder.welcome!.session,
    sequence: 1,
    processed: 0,
    seen: null,
    offer: [],
    finished: [],
    returned: [],
    waitMs: 0,
    knows: [],
  }
  const { timeLeftMs: _left, labels: _labels, node, ...shape } = pilot.facts
  const offer = [{ shape, count: 1, timeLeftMs: null, aheadMs: 0, node }]
  const first = await lab.dispatcher.onPull({ site: 'ALPHA' }, { ...body, offer })
  // As if it had died before it kept the whole reply: the leases alone are enough.
  await lab.redis.del(`indraft:{site:ALPHA}:reply:${body.session}`)
  const other = await lab.reopen()
  const again = await other.dispatcher.onPull({ site: 'ALPHA' }, { ...body, offer })
  expect(again.grants.map((grant) => grant.lease)).toEqual(first.grants.map((grant) => grant.lease))
  expect(await counts(id)).toEqual({ queued: 2, assigned: 8 })
  await clean()
})

test('provisional grant never confirmed - it is taken back while the session lives on', async () => {
  const id = await seed(4)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  const session = pilot.holder.welcome!.session
  await pilot.pull(4)
  await vi.waitFor(
    async () => {
      await lab.dispatcher.onBeat(
        { site: 'ALPHA' },
        {
          session,
          processed: 0,
          seen: null,
          incarnation: 'i',
          draining: false,
          started: [],
          held: [],
          counters: {},
          gauges: {},
          pilots: [],
          usage: [],
        },
      )
      await lab.settle()
      expect(await counts(id)).toEqual({ queued: 4 })
    },
    { timeout: 30_000, interval: 100 },
  )
  expect((await lab.store.holders())[0]).toMatchObject({ state: 'active' })
  await clean()
})

test('dead session - its leases go to others, running tasks are charged, and it must say hello', async () => {
  const id = await seed(4)
  const dead = await new TestHolder(lab.dispatcher, { name: 'dead' }).hello()
  const alive = await new TestHolder(lab.dispatcher, { name: 'alive' }).hello()
  await dead.pull(4)
  await dead.beat({ started: [...dead.leases.values()].slice(0, 1) })
  await queuedAgain(id, 4, alive)
  await clean()
  expect((await lab.store.holders()).find((one) => one.holder === 'dead')).toMatchObject({ state: 'lost' })
  const task = (await lab.store.task(id, 'a', 0))!
  expect(task.history).toMatchObject([{ reason: 'node.lost', site: 'ALPHA' }])
  // However little is known of it, the API can show it.
  expect(taskViewSchema.safeParse(task).error).toBeUndefined()
  await expect(dead.beat()).rejects.toMatchObject({ code: 'session.unknown' })
  const tries: number[] = []
  await vi.waitFor(async () => {
    await lab.settle()
    for (const grant of (await alive.pull(8)).grants) tries.push(...Object.values(grant.tries))
    expect(tries).toEqual([1])
  }, 30_000)
  await clean()
})

test('late success after expiry - it wins over the retry, whose attempt is ordered to end', async () => {
  const id = await seed(3)
  const slow = await new TestHolder(lab.dispatcher, { name: 'slow' }).hello()
  const quick = await new TestHolder(lab.dispatcher, { name: 'quick' }).hello()
  await slow.pull(3)
  await slow.startAll()
  const old = [...slow.leases.values()]
  await queuedAgain(id, 3, quick)
  await vi.waitFor(async () => {
    await lab.settle()
    await quick.pull(2 - quick.leases.size)
    expect(quick.leases.size).toBe(2)
  }, 30_000)
  await quick.startAll()
  expect(await counts(id)).toEqual({ queued: 1, running: 2 })
  await slow.hello()
  // One waits, one runs anew, one runs anew and has another result later.
  expect(await slow.verdicts(old.flatMap((lease) => slow.results(lease)))).toEqual(Array(3).fill('accepted'))
  expect(await counts(id)).toEqual({ done: 3 })
  await clean()
  const { orders } = await quick.beat()
  expect(orders.map((order) => order.kind)).toEqual(['attempt.cancel', 'attempt.cancel'])
  expect(await quick.verdicts(quick.allResults())).toEqual(['stale', 'stale'])
  const { history, winner } = (await lab.store.task(id, 'a', 0))!
  expect(history.at(-1)).toMatchObject({ end: 'done', pilot: 'slow' })
  expect(winner!.fences).toEqual(old.find((lease) => lease.tasks === '0')!.fences)
  await clean()
})

test('late success of tasks that were given back - it is found wherever the task now is', async () => {
  const id = await seed(4)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(4)
  const old = [...pilot.leases.values()]
  await pilot.pull(0, { returned: old })
  expect(await counts(id)).toEqual({ queued: 4 })
  const results = old.flatMap((lease) => pilot.results(lease))
  // Two while they are only ready, two after they were bundled again.
  expect(await pilot.verdicts(results.slice(0, 2))).toEqual(['accepted', 'accepted'])
  await clean()
  await lab.settle()
  expect(await pilot.verdicts(results.slice(2))).toEqual(['accepted', 'accepted'])
  expect(await counts(id)).toEqual({ done: 4 })
  await clean()
})

test('late failure after expiry - only the cause of its own attempt is corrected', async () => {
  const id = await seed(1)
  const slow = await new TestHolder(lab.dispatcher, { name: 'slow' }).hello()
  await slow.pull(1)
  await slow.startAll()
  const [lease] = slow.leases.values() as unknown as [LeasePart]
  await queuedAgain(id, 1)
  await slow.hello()
  const late = slow.results(lease, EXIT_3)
  expect(await slow.verdicts(late)).toEqual(['stale'])
  expect(await slow.verdicts(late)).toEqual(['duplicate'])
  expect((await lab.store.task(id, 'a', 0))!).toMatchObject({
    state: 'queued',
    attempts: 1,
    history: [{ reason: 'payload.exit', exitCode: 3 }],
  })
  await clean()
})

test('duplicate result - in one message, in the next, and of a failure, it counts once', async () => {
  const id = await seed(2)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(2)
  const [good, bad] = pilot.allResults()
  const failed = { ...bad!, ...EXIT_3 }
  expect(await pilot.verdicts([good!, good!, failed, failed])).toEqual([
    'accepted',
    'duplicate',
    'accepted',
    'duplicate',
  ])
  expect(await pilot.verdicts([good!, failed])).toEqual(['duplicate', 'duplicate'])
  expect((await lab.store.find(id, [GROUP]))!.failures).toMatchObject([{ count: 1 }])
  await clean()
})

test('stale fence - a result under a fence that was never given, or of another site, changes nothing', async () => {
  lab.sites.set('BETA', { labels: {}, state: 'enabled' })
  const id = await seed(2)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  const thief = await new TestHolder(lab.dispatcher, { site: 'BETA', name: 'thief' }).hello()
  await pilot.pull(2)
  const results = [...pilot.leases.values()].flatMap((lease) => pilot.results(lease))
  const forged = results.map((result) => ({ ...result, fences: [result.fences[0]! + 1] }))
  expect(await pilot.verdicts(forged)).toEqual(['refused', 'refused'])
  expect(await thief.verdicts(results)).toEqual(['refused', 'refused'])
  expect(await counts(id)).toEqual({ assigned: 2 })
  expect(await pilot.verdicts(results)).toEqual(['accepted', 'accepted'])
  await clean()
})

test('two attempts under one lease of ours - a relay tried again, and only the one that won is a repeat', async () => {
  await seed(1)
  const relay = await new TestHolder(lab.dispatcher, { role: 'relay' }).hello()
  await relay.pull(1)
  const [result] = relay.allResults()
  const attempt = (own: number, more = {}) => [{ ...result!, fences: [result!.fences[0]!, own], ...more }]
  expect(await relay.verdicts(attempt(1))).toEqual(['accepted'])
  expect(await relay.verdicts(attempt(2))).toEqual(['stale'])
  // The same attempt told otherwise, as by a relay that read its journal again.
  expect(await relay.verdicts(attempt(1, { wallMs: 1001 }))).toEqual(['duplicate'])
  await clean()
})

test('cancel in flight - a lease that ends by silence is cancelled, not retried', async () => {
  const id = await seed(4)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(2)
  await pilot.beat({ started: [...pilot.leases.values()].slice(0, 1) })
  await lab.store.setDesired(id, 'cancelled')
  await vi.waitFor(
    async () => {
      await lab.settle()
      expect(await counts(id)).toEqual({ cancelled: 4 })
    },
    { timeout: 30_000, interval: 100 },
  )
  expect((await lab.store.find(id, [GROUP]))!.state).toBe('cancelled')
  await clean()
})

test('rollback - a holder that has seen more than the store knows stops granting until a person lifts it', async () => {
  const id = await seed(4)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(2)
  await lab.redis.hset('indraft:mark', 'sequence', 1)
  const reply = await pilot.pull(2, { finished: pilot.allResults() })
  expect(reply).toMatchObject({ grants: [], reason: 'halted' })
  expect(reply.verdicts.map((one) => one.verdict)).toEqual(['accepted', 'accepted'])
  const { offer, ...body } = { offer: [], finished: [], returned: [], waitMs: 0, knows: [], seen: null, processed: 0 }
  const pull = { ...body, offer, session: pilot.holder.welcome!.session, sequence: 99 }
  await expect(lab.dispatcher.onPull({ site: 'ALPHA' }, pull)).rejects.toMatchObject({ code: 'dispatcher.halted' })
  expect((await pilot.beat()).orders).toContainEqual({ kind: 'holder.inventory' })
  await lab.liftHalt()
  await lab.redis.hset('indraft:mark', 'sequence', 1_000_000)
  await expect(lab.dispatcher.onPull({ site: 'ALPHA' }, { ...pull, sequence: 100 })).resolves.toMatchObject({
    grants: [],
  })
  expect(await counts(id)).toEqual({ queued: 2, done: 2 })
  await clean()
})

test('store full - new campaigns and new bundles are refused, completions go on', async () => {
  const id = await seed(100)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(2)
  const used = Number(/used_memory:(\d+)/.exec(await lab.redis.info('memory'))![1])
  await lab.redis.config('SET', 'maxmemory', Math.round(used * 1.15))
  try {
    // What was measured a moment ago is believed for half a second.
    await vi.waitFor(
      async () => {
        await pilot.beat()
        await expect(lab.store.create(planOf('more', { a: {} }))).rejects.toMatchObject({ code: 'store.full' })
      },
      { timeout: 40_000, interval: 150 },
    )
    const before = await lab.redis.hget(`indraft:{${GROUP}}:counters`, 'bundle')
    await lab.settle()
    expect(await lab.redis.hget(`indraft:{${GROUP}}:counters`, 'bundle')).toBe(before)
    expect(await pilot.verdicts(pilot.allResults())).toEqual(['accepted', 'accepted'])
  } finally {
    await lab.redis.config('SET', 'maxmemory', '0')
  }
  expect(await counts(id)).toEqual({ queued: 98, done: 2 })
})

test('restart of the centre - nobody is dead for what we could not hear', async () => {
  const id = await seed(2)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(2)
  await pilot.beat()
  // The last sweep was long ago, and so was the last beat.
  await lab.redis.hset('indraft:mark', 'sweptMs', 1000, 'graceMs', 1000)
  await lab.redis.hset(`indraft:{site:ALPHA}:session:${pilot.holder.welcome!.session}`, 'seenMs', '1000')
  await lab.work.sweep()
  expect(await counts(id)).toEqual({ assigned: 2 })
  await queuedAgain(id, 2)
  await clean()
})

test('background work that never ran - the sweep alone finds all that is due', async () => {
  const id = await seed(200)
  await lab.redis.del('indraft-jobs:indraft-work:wait')
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await vi.waitFor(
    async () => {
      await lab.work.sweep()
      await pilot.pull(50)
      const results = pilot.allResults()
      if (results.length > 0) await pilot.verdicts(results)
      expect(await counts(id)).toEqual({ done: 200 })
    },
    { timeout: 30_000 },
  )
  await clean()
})

test('a node that fails everything - its retries go to another node, and it gets other work meanwhile', async () => {
  const bad = await new TestHolder(lab.dispatcher, { name: 'bad' }).hello()
  const good = await new TestHolder(lab.dispatcher, { name: 'good' }).hello()
  await lab.settle()
  const first = await seed(1, 'first')
  await bad.pull(1)
  await bad.verdicts(bad.allResults(EXIT_3))
  await vi.waitFor(async () => {
    await lab.settle()
    expect(await lab.redis.scard(`indraft:{${GROUP}}:queues`)).toBe(1)
  }, 30_000)
  const second = await seed(1, 'second')
  // What is known of live nodes may be a second old.
  await vi.waitFor(async () => {
    await good.beat()
    const { grants } = await bad.pull(1)
    expect(grants.map(({ lease }) => lease.campaign)).toEqual([second])
  }, 30_000)
  expect((await bad.pull(1)).grants).toEqual([])
  const { grants } = await good.pull(1)
  expect(grants.map(({ lease }) => lease.campaign)).toEqual([first])
  expect(grants[0]).toMatchObject({ tries: { '0': 1 }, avoidNodes: ['n-bad'] })
  await clean()
})

test('a task that failed on every node - is granted all the same, for there is nobody else', async () => {
  const one = await new TestHolder(lab.dispatcher, { name: 'one' }).hello()
  const two = await new TestHolder(lab.dispatcher, { name: 'two' }).hello()
  await lab.settle()
  await seed(1, 'unlucky')
  for (const holder of [one, two, one]) {
    await vi.waitFor(async () => {
      await lab.settle()
      await Promise.all([one.beat(), two.beat()])
      const { grants } = await holder.pull(1)
      expect(grants).toHaveLength(1)
    }, 30_000)
    await holder.verdicts(holder.allResults({ end: 'failed', reason: 'stage.inFailed' }))
  }
  await clean()
})

test('a grant that nobody ever confirms - from the third on it costs a retry, avoids the site, and ends', async () => {
  const plan = planOf('poison', {
    a: { retries: { payload: 0, infrastructure: 1, holdExitCodes: [], exhausted: 'held' } },
  })
  await lab.store.create(plan)
  // Each holder dies of what it is given: it is heard of no more.
  for (let i = 0; i < 4; i++) {
    const victim = await new TestHolder(lab.dispatcher, { name: `victim-${i}` }).hello()
    await vi.waitFor(
      async () => {
        await lab.settle()
        if (victim.grants.length === 0) await victim.pull(1).catch(() => victim.hello())
        expect(victim.grants).toHaveLength(1)
      },
      { timeout: 30_000, interval: 50 },
    )
    await vi.waitFor(
      async () => {
        await lab.settle()
        expect(await counts(plan.id)).toEqual(i < 3 ? { queued: 1 } : { held: 1 })
      },
      { timeout: 30_000, interval: 50 },
    )
    await clean()
  }
  const task = (await lab.store.task(plan.id, 'a', 0))!
  expect(task.attempts).toBe(2)
  expect(task.history.map(({ reason, site }) => [reason, site])).toEqual([
    ['grant.unconfirmed', 'ALPHA'],
    ['grant.unconfirmed', 'ALPHA'],
  ])
  expect((await lab.store.find(plan.id, [GROUP]))!.failures).toMatchObject([{ reason: 'grant.unconfirmed', count: 2 }])
})

test('starvation - work that fits a waiting holder and is granted to nobody is found and named', async () => {
  const pilot = await new TestHolder(lab.dispatcher, { name: 'hungry' }).hello()
  await pilot.pull(2)
  const id = await seed(3)
  const base = `indraft:{${GROUP}}`
  const session = `indraft:{site:ALPHA}:session:${pilot.holder.welcome!.session}`
  await clean()
  // Both wait since an hour ago, as a fault of matching would have it.
  const [queue] = (await lab.redis.keys(`${base}:queue:*`)) as [string]
  for (const bundle of await lab.redis.zrange(queue, '0', '-1')) await lab.redis.zadd(queue, 1000, bundle)
  await lab.redis.hset(session, 'unfedMs', 1000)
  expect(await lab.store.starved()).toMatchObject([
    { campaign: id, step: 'a', bundles: 3, site: 'ALPHA', holder: 'hungry', group: GROUP },
  ])
  expect(await lab.store.verify()).toMatchObject([
    { invariant: 'queued work is given to who waits for it', where: `${id}/a`, expected: 'granted, for it fits' },
  ])
  // What avoids the only node that waits is not starved, nor is anything once the holder has work.
  for (const bundle of await lab.redis.zrange(queue, '0', '-1')) {
    await lab.redis.hset(`${base}:bundle:${bundle}`, 'nodes', 'n-hungry')
  }
  await clean()
  await pilot.pull(2)
  expect(await lab.store.starved()).toEqual([])
})

test('a relay that is silent for less than its site may be cut off - keeps its leases, for longer it does not', async () => {
  const outageMs = 600_000
  lab.sites.set('ALPHA', { ...lab.sites.get('ALPHA')!, outageMs })
  const id = await seed(2)
  const relay = await new TestHolder(lab.dispatcher, { role: 'relay', name: 'edge' }).hello()
  expect(relay.holder.welcome!.timings).toMatchObject({ lostAfterMs: outageMs, leaseMs: outageMs })
  await relay.pull(2)
  await relay.startAll()
  const silentFor = async (ms: number) => {
    const [seconds] = await lab.redis.time()
    const seenMs = String(Number(seconds) * 1000 - ms)
    await lab.redis.hset(`indraft:{site:ALPHA}:session:${relay.holder.welcome!.session}`, 'seenMs', seenMs)
    await lab.redis.hset('indraft:mark', 'graceMs', 1000)
    await lab.settle()
  }
  await silentFor(outageMs - 60_000)
  expect(await counts(id)).toEqual({ running: 2 })
  await silentFor(outageMs + 1000)
  expect(await counts(id)).toEqual({ queued: 2 })
  await clean()
})

test('a centre that cannot hear holders - declares nobody dead, and gives them their time when it hears again', async () => {
  const id = await seed(2)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(2)
  await pilot.beat()
  lab.hearing.hears = false
  const session = `indraft:{site:ALPHA}:session:${pilot.holder.welcome!.session}`
  await lab.redis.hset(session, 'seenMs', '1000')
  const [seconds] = await lab.redis.time()
  await lab.redis.hset('indraft:mark', 'sweptMs', Number(seconds) * 1000, 'graceMs', 1000)
  await lab.work.sweep()
  expect(await counts(id)).toEqual({ assigned: 2 })
  // By now it has heard nobody for long.
  await lab.redis.hset('indraft:mark', 'sweptMs', 1000)
  lab.hearing.hears = true
  await lab.work.sweep()
  expect(await counts(id)).toEqual({ assigned: 2 })
  await queuedAgain(id, 2)
  await clean()
})

test('restart of the centre - a grant that could not be confirmed meanwhile is not taken back at once', async () => {
  const id = await seed(2)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(2)
  const base = `indraft:{${GROUP}}`
  for (const bundle of await lab.redis.zrange(`${base}:provisional`, '0', '-1')) {
    await lab.redis.zadd(`${base}:provisional`, 1000, bundle)
  }
  await lab.redis.hset('indraft:mark', 'sweptMs', 1000, 'graceMs', 1000)
  await lab.work.sweep()
  expect(await counts(id)).toEqual({ assigned: 2 })
  await pilot.beat()
  await lab.settle()
  expect(await pilot.verdicts(pilot.allResults())).toEqual(['accepted', 'accepted'])
  await clean()
})

test('a holder that drained and does not any more - is given work again', async () => {
  const id = await seed(2)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.beat({ draining: true })
  expect(await pilot.pull(2)).toMatchObject({ grants: [], reason: 'draining' })
  await pilot.beat()
  expect((await pilot.pull(2)).grants).toHaveLength(2)
  expect(await counts(id)).toEqual({ assigned: 2 })
  await clean()
})

test('a kept reply that another release wrote - is not read, and the same leases are given', async () => {
  await seed(2)
  const lost = new Map<string, unknown>()
  const pilot = await new TestHolder(lab.dispatcher, {
    around: (handler) => async (peer, frame) => {
      const reply = await handler(peer, frame)
      const { type, body } = decode(reply)
      if (type !== 'grants' || lost.has(type)) return reply
      lost.set(type, body)
      const session = pilot.holder.welcome!.session
      await lab.redis.set(`indraft:{site:ALPHA}:reply:${session}`, 'of another release')
      throw new IndraftError('link.timeout')
    },
  }).hello()
  const { grants } = await pilot.pull(2)
  expect(grants).toHaveLength(2)
  const first = (lost.get('grants') as Message<'grants'>).grants.map(({ lease }) => lease)
  expect(grants.map(({ lease }) => lease)).toEqual(first)
  await clean()
})

test('a wall clock an hour ahead for a while - sweeps go on when it is back', async () => {
  await lab.work.start()
  const sweptMs = async () => Number(await lab.redis.hget('indraft:mark', 'sweptMs'))
  const sweepsGoOn = async () => {
    const before = await sweptMs()
    await vi.waitFor(async () => expect(await sweptMs()).toBeGreaterThan(before), { timeout: 30_000 })
  }
  const now = Date.now
  const ahead = vi.spyOn(Date, 'now').mockImplementation(() => now() + 3600_000)
  try {
    for (let i = 0; i < 3; i++) await sweepsGoOn()
  } finally {
    ahead.mockRestore()
  }
  for (let i = 0; i < 3; i++) await sweepsGoOn()
})

test('blobs of a campaign that are gone - are said, and hold up neither other campaigns nor the ends of leases', async () => {
  const lost = await seed(4, 'lost')
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(3)
  await pilot.startAll()
  const mine = [...pilot.leases.values()]
  const [won, failed] = pilot.allResults()
  rmSync(await planPath(lost))
  // A process that has never read it.
  const next = await lab.reopen()
  const good = planOf('good', { a: { size: 1 } })
  await next.store.create(good)
  for (let i = 0; i < 3; i++) await next.work.sweep()
  const other = await new TestHolder(next.dispatcher, { name: 'other' }).hello()
  const { grants } = await other.pull(2)
  expect(grants.map(({ lease }) => lease.campaign)).toEqual([good.id])
  await other.beat({ started: [...mine, ...other.leases.values()] })
  const exit = { end: 'failed' as const, reason: 'payload.exit' as const, exitCode: 3 }
  const mixed = [won!, { ...failed!, ...exit }, ...other.allResults()]
  expect(await other.verdicts(mixed)).toEqual(['accepted', 'accepted', 'accepted'])
  expect((await next.store.list([GROUP])).map(({ name }) => name)).toEqual(['good'])
  const bye = { session: pilot.holder.welcome!.session, code: 700, reason: 'test', returned: [] }
  await next.dispatcher.onBye({ site: 'ALPHA' }, bye)
  // What failed waits too: nobody knows how often it may be tried.
  expect(await counts(lost)).toEqual({ done: 1, queued: 3 })
  expect(await next.store.verify()).toEqual([
    { invariant: 'a campaign has its plan', where: lost, found: 'no plan', expected: 'a plan in the blob store' },
  ])
})

const blobPath = (digest: string) => join(lab.folder, 'blobs', digest.slice(7, 9), digest.slice(7))
/** Creates a campaign and gives its first step as it is stored. */
async function storedStep(plan: CampaignPlan): Promise<StoredStep> {
  await lab.store.create(plan)
  return (unpack(readFileSync(await planPath(plan.id))) as { steps: StoredStep[] }).steps[0]!
}

test('a template and a block of a table that are gone - hold up no grants of other campaigns', async () => {
  rmSync(blobPath((await storedStep(planOf('no template', { a: { size: 2 } }))).templateBlob))
  const table = planOf('no rows', { a: { size: 2, rows: [{ x: '1' }, { x: '2' }] } })
  rmSync(blobPath((await storedStep(table)).rowBlocks![0]!))
  const good = planOf('good', { a: { size: 3 } })
  await lab.store.create(good)
  // A process that has never read them.
  const next = await lab.reopen()
  for (let i = 0; i < 3; i++) await next.work.sweep()
  const pilot = await new TestHolder(next.dispatcher).hello()
  const { grants } = await pilot.pull(8)
  expect(grants.map(({ lease }) => lease.campaign)).toEqual([good.id, good.id, good.id])
})

test('a block of a table that is gone - no lease of it is kept, and the younger campaign is granted', async () => {
  const rows = Array.from({ length: 100 }, (_, i) => ({ x: String(i) }))
  const bad = planOf('no rows', { a: { size: 100, rows } })
  const block = (await storedStep(bad)).rowBlocks![0]!
  const bytes = readFileSync(blobPath(block))
  rmSync(blobPath(block))
  const good = planOf('good', { a: { size: 4 } }, { priority: -1 })
  await lab.store.create(good)
  await lab.settle()
  const pilot = await new TestHolder(lab.dispatcher).hello()
  expect(await pilot.pull(2)).toMatchObject({ grants: [], templates: [], reason: 'noWork' })
  expect(await counts(bad.id)).toEqual({ queued: 100 })
  for (let i = 0; i < 2; i++) {
    const { grants } = await pilot.pull(2)
    expect(grants.map(({ lease }) => lease.campaign)).toEqual([good.id, good.id])
    await pilot.beat()
  }
  expect(await counts(bad.id)).toEqual({ queued: 100 })
  expect(await counts(good.id)).toEqual({ assigned: 4 })
  expect((await lab.store.task(bad.id, 'a', 0))!.history).toEqual([])
  await clean()
  writeFileSync(blobPath(block), bytes)
  await vi.waitFor(
    async () => {
      await lab.settle()
      expect((await pilot.pull(2)).grants.map(({ lease }) => lease.campaign)).toEqual([bad.id, bad.id])
    },
    { timeout: 30_000, interval: 100 },
  )
  await clean()
})

test('a block of results that is gone - what would be compared with it has no verdict yet, and holds up no other', async () => {
  const id = await seed(2)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(2)
  const results = pilot.allResults()
  await pilot.verdicts(results)
  await lab.work.start()
  const block = await vi.waitFor(async () => {
    const digest = await lab.redis.hget(`indraft:{${GROUP}}:blocks:${id}:a`, '0')
    expect(digest).toBeTruthy()
    return digest!.slice('sha256:'.length)
  }, 30_000)
  rmSync(join(lab.folder, 'blobs', block.slice(0, 2), block))
  await seed(1, 'good')
  await pilot.pull(1)
  expect(await pilot.verdicts([...results, ...pilot.allResults()])).toEqual(['accepted'])
})

test.each([
  ['appendonly', 'no', 'yes'],
  ['appendfsync', 'everysec', 'always'],
  ['maxmemory-policy', 'allkeys-lru', 'noeviction'],
])('a store that is set to forget (%s %s) - is said by verify', async (name, found, expected) => {
  await clean()
  await lab.redis.config('SET', name, found)
  const verified = await lab.store.verify()
  await lab.redis.config('SET', name, expected)
  expect(verified).toMatchObject([{ found: `${name} ${found}`, expected: `${name} ${expected}` }])
  await clean()
})

test('work whose processes died with it, again and again - is taken up by the next, and is no failure', async () => {
  await lab.redis.del('indraft-jobs:indraft-work:stalled-check')
  const jobs = 'indraft-jobs:indraft-work'
  await lab.store.create(planOf('died', { a: {} }))
  const [id] = await vi.waitFor(async () => {
    const waiting = await lab.redis.lrange(`${jobs}:wait`, 0, -1)
    expect(waiting).toHaveLength(1)
    return waiting as [string]
  }, 30_000)
  // As it stands when its third process is dead: taken, and its lock has run out.
  await lab.redis.multi().lrem(`${jobs}:wait`, 0, id).lpush(`${jobs}:active`, id).sadd(`${jobs}:stalled`, id).exec()
  await lab.redis.hset(`${jobs}:${id}`, 'stc', 3)
  await lab.work.start()
  await vi.waitFor(async () => expect(await lab.redis.exists(`${jobs}:${id}`)).toBe(0), 30_000)
  expect(await lab.redis.zcard(`${jobs}:failed`)).toBe(0)
})

test('a grant on its way - what a holder says of before it ends nothing of it', async () => {
  const id = await seed(2)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  const { grants, sequence } = await pilot.pull(2)
  // Said before the grant came: two beats, and an inventory.
  const session = pilot.holder.welcome!.session
  const before = { session, processed: sequence - 1, seen: null }
  const more = { incarnation: 'i', draining: false, started: [], counters: {}, gauges: {}, pilots: [], usage: [] }
  for (let i = 0; i < 3; i++) await lab.dispatcher.onBeat({ site: 'ALPHA' }, { ...before, ...more, held: [] })
  await lab.dispatcher.onInventory({ site: 'ALPHA' }, { ...before, part: 0, parts: 1, leases: [] })
  expect(await counts(id)).toEqual({ assigned: 2 })
  await pilot.beat()
  expect(grants).toHaveLength(2)
  expect(await pilot.verdicts(pilot.allResults())).toEqual(['accepted', 'accepted'])
  await clean()
})

test('an inventory whose part comes again - completes no later one', async () => {
  const id = await seed(4)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  const leasesOf = async () => (await pilot.pull(2)).grants.map(({ lease }) => lease)
  const [a, b] = (await leasesOf()) as [LeasePart, LeasePart]
  await pilot.beat()
  const session = pilot.holder.welcome!.session
  const take = (processed: number, part: number, leases: LeasePart[]) =>
    lab.dispatcher.onInventory({ site: 'ALPHA' }, { session, processed, part, parts: 2, leases })
  await take(1, 0, [a])
  await take(1, 1, [b])
  const [c, d] = (await leasesOf()) as [LeasePart, LeasePart]
  await pilot.beat()
  await take(2, 0, [c, d])
  await take(1, 1, [b])
  expect(await counts(id)).toEqual({ assigned: 4 })
  await take(2, 1, [a, b])
  expect(await counts(id)).toEqual({ assigned: 4 })
  await clean()
})

test('late success of a cancelled task - changes nothing, for cancelled is for ever', async () => {
  const id = await seed(2)
  const slow = await new TestHolder(lab.dispatcher, { name: 'slow' }).hello()
  await slow.pull(2)
  await slow.startAll()
  const late = slow.allResults()
  await slow.holder.bye({ code: 700, reason: 'test', returned: [] })
  expect(await counts(id)).toEqual({ queued: 2 })
  await lab.store.setDesired(id, 'cancelled')
  await lab.settle()
  expect(await counts(id)).toEqual({ cancelled: 2 })
  await slow.hello()
  expect(await slow.verdicts(late)).toEqual(['stale', 'stale'])
  expect(await counts(id)).toEqual({ cancelled: 2 })
  await clean()
})

test('a site where a task failed - is passed over for it while another site could take it', async () => {
  lab.sites.set('BETA', { ...lab.sites.get('ALPHA')! })
  const here = await new TestHolder(lab.dispatcher, { name: 'here' }).hello()
  const same = await new TestHolder(lab.dispatcher, { name: 'same' }).hello()
  const there = await new TestHolder(lab.dispatcher, { name: 'there', site: 'BETA' }).hello()
  const id = await seed(1)
  await here.pull(1)
  await here.verdicts(here.allResults({ end: 'failed', reason: 'stage.inFailed' }))
  const [queue] = await vi.waitFor(
    async () => {
      await lab.settle()
      const queues = await lab.redis.smembers(`indraft:{${GROUP}}:queues`)
      expect(queues).toHaveLength(1)
      return queues
    },
    { timeout: 30_000, interval: 50 },
  )
  expect(queue).toMatch(/\|ALPHA$/)
  for (const holder of [same, there]) await holder.beat()
  expect(await same.pull(1)).toMatchObject({ grants: [] })
  expect((await there.pull(1)).grants).toHaveLength(1)
  expect(await counts(id)).toEqual({ assigned: 1 })
  await clean()
})

test('a centre that stood still with a pull - grants nothing to it when its holder is further by then', async () => {
  const id = await seed(4)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(0)
  const { grants, sequence } = await pilot.pull(1)
  const pick = { campaign: id, step: 'a', class: 'class0000001', avoid: '', tasks: 1, bundles: 1, node: '', others: [] }
  const { session } = pilot.holder.welcome!
  // What it does last, having looked at everything before.
  const late = { session, site: 'ALPHA', holder: 'p1', sequence: sequence - 1, confirmMs: 60_000, picks: [pick] }
  expect(await new Scripts(lab.redis).run('grant', `indraft:{${GROUP}}`, late)).toEqual({ outcome: 4 })
  expect(grants).toHaveLength(1)
  expect(await counts(id)).toEqual({ queued: 3, assigned: 1 })
  await clean()
})

/** A centre at work whose disk does not answer: whoever reads this plan there waits until all is over. */
async function whileNobodyReads(id: string, during: () => Promise<void>): Promise<void> {
  const path = await planPath(id)
  const bytes = readFileSync(path)
  rmSync(path)
  execFileSync('mkfifo', [path])
  const started = (await lab.reopen()).work.start()
  try {
    await during()
  } finally {
    const waiting = openSync(path, 'w')
    rmSync(path)
    writeFileSync(path, bytes)
    closeSync(waiting)
    await started
  }
}

const soon = (check: () => Promise<void>) => vi.waitFor(check, { timeout: 30_000, interval: 50 })

test('a sweep that takes very long - puts off the end of nobody who is silent meanwhile', async () => {
  const id = await seed(2)
  const slow = await seed(1, 'slow')
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(2)
  await pilot.startAll()
  expect(await counts(id)).toEqual({ running: 2 })
  await whileNobodyReads(slow, () => soon(async () => expect(await counts(id)).toEqual({ queued: 2 })))
  await clean()
})

test('an end of leases that takes very long - is no silence of ours', async () => {
  const slow = await seed(1, 'slow')
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(1)
  await pilot.startAll()
  const heardMs = async () => Number(await lab.redis.hget('indraft:mark', 'sweptMs'))
  await whileNobodyReads(slow, async () => {
    await soon(async () => expect((await lab.store.holders())[0]).toMatchObject({ state: 'lost' }))
    for (let i = 0; i < 3; i++) {
      const before = await heardMs()
      await soon(async () => expect(await heardMs()).toBeGreaterThan(before))
    }
    expect(await counts(slow)).toEqual({ running: 1 })
  })
  await soon(async () => expect(await counts(slow)).toEqual({ queued: 1 }))
  await clean()
})
