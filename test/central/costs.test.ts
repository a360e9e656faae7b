/** What the store's work costs, counted in what Redis was asked: in proportion to what is done, not to what is there. */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest'
import { outputHandlers } from '../../central/api/outputs.ts'
import { groupBase, siteBase } from '../../central/leases/keys.ts'
import type { StepName } from '../../shared/ids.ts'
import { pack } from '../../shared/protocol/codec.ts'
import { EXIT_3, TestHolder } from './store-holder.ts'
import { GROUP, openStoreLab, planOf, type StoreLab, startRedisForTests } from './store-lab.ts'

let redis: { url: string; stop(): Promise<void> }
let lab: StoreLab
beforeAll(async () => {
  redis = await startRedisForTests()
})
afterAll(() => redis.stop())
beforeEach(async () => {
  lab = await openStoreLab(redis.url, { timeScale: 1 })
})
afterEach(() => lab.end())

const WRITING = ['set', 'setrange', 'bitfield', 'hset', 'hincrby', 'hdel', 'sadd', 'srem', 'zadd', 'zrem', 'del']
const NO_RETRIES = { payload: 0, infrastructure: 0, holdExitCodes: [], exhausted: 'failed' as const }

const clean = async () => expect(await lab.store.verify()).toEqual([])
const counts = async (id: string) => {
  const { steps } = (await lab.store.find(id, [GROUP]))!
  const some = (all: object) => Object.fromEntries(Object.entries(all).filter(([, n]) => n > 0))
  return Object.fromEntries(steps.map((step) => [step.name, some(step.counts)]))
}

/** What Redis was asked meanwhile, by scripts too: each command with its key. */
async function askedFor(run: () => Promise<unknown>): Promise<{ command: string; key: string }[]> {
  const asked: { command: string; key: string }[] = []
  const monitor = await lab.redis.monitor()
  const isOver = new Promise<void>((resolve) => {
    monitor.on('monitor', (_time: string, [command = '', key = '']: string[]) => {
      if (key === 'asked for all of it') resolve()
      else asked.push({ command: command.toLowerCase(), key })
    })
  })
  try {
    await run()
    await lab.redis.echo('asked for all of it')
    await isOver
    return asked
  } finally {
    monitor.disconnect()
  }
}

/** Pulls until so many tasks are in hand, with the background work between pulls. */
async function pullAll(holder: TestHolder, tasks: number): Promise<void> {
  await vi.waitFor(async () => {
    await lab.settle()
    await holder.pull(tasks - holder.leases.size)
    expect(holder.leases.size).toBe(tasks)
  }, 60_000)
}

test('skipped steps - once they are, looking at them again writes nothing', async () => {
  const after = [{ step: 'a' as StepName, accept: 1 }]
  const plan = planOf('skipped', { a: { retries: NO_RETRIES }, b: { size: 5, after }, open: {} })
  await lab.store.create(plan)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pullAll(pilot, 2)
  const failing = [...pilot.leases.values()].find(({ step }) => step === 'a')!
  expect(await pilot.verdicts(pilot.results(failing, EXIT_3))).toEqual(['accepted'])
  await lab.settle()
  expect(await counts(plan.id)).toEqual({ a: { failed: 1 }, b: { skipped: 5 }, open: { assigned: 1 } })

  const asked = await askedFor(() => lab.settle())
  const written = asked.filter(({ command, key }) => WRITING.includes(command) && key.includes(plan.id))
  expect(written).toEqual([])
  await clean()
})

test('cancelled campaigns - what still runs is neither written nor read with every look', async () => {
  const plan = planOf('cancelled', { a: { size: 9 } })
  await lab.store.create(plan)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pullAll(pilot, 3)
  await pilot.startAll()
  await lab.store.setDesired(plan.id, 'cancelled')
  await lab.settle()
  expect(await counts(plan.id)).toEqual({ a: { running: 3, cancelled: 6 } })

  const asked = await askedFor(() => lab.settle())
  const written = asked.filter(({ command, key }) => WRITING.includes(command) && key.includes(plan.id))
  expect(written).toEqual([])
  expect(asked.filter(({ command, key }) => command === 'hgetall' && key.includes(':bundle:'))).toEqual([])
  await clean()
})

test('late results - the bundles that their tasks went to are looked through once, however many results come', async () => {
  const [open, late] = [400, 40]
  const plan = planOf('late', { a: { size: open } })
  await lab.store.create(plan)
  const facts = { cores: 1000 }
  const slow = await new TestHolder(lab.dispatcher, { name: 'slow', role: 'relay', facts }).hello()
  await pullAll(slow, late)
  const old = [...slow.leases.values()]
  const results = slow.allResults()
  await slow.pull(0, { returned: old })
  expect(await counts(plan.id)).toEqual({ a: { queued: open } })
  const quick = await new TestHolder(lab.dispatcher, { name: 'quick', role: 'relay', facts }).hello()
  await pullAll(quick, open)

  const asked = await askedFor(async () => {
    expect(await slow.verdicts(results)).toEqual(Array(late).fill('accepted'))
  })
  const looks = asked.filter(({ key }) => key.includes(':bundle:'))
  expect(looks.length).toBeLessThan(open + late * 10)
  expect(await counts(plan.id)).toEqual({ a: { assigned: open - late, done: late } })
  await clean()
})

test('retries - no more of them are bundled than the queue is to hold, and all come to be', async () => {
  const size = 150
  const plan = planOf('again', { a: { size, retries: NO_RETRIES } })
  await lab.store.create(plan)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pullAll(pilot, size)
  await pilot.verdicts(pilot.allResults(EXIT_3))
  expect(await lab.store.retry(plan.id, { states: ['failed'], request: 'once' })).toEqual({ tasks: size })
  await lab.settle()
  // Eight slots: the least that a queue holds.
  expect(await lab.redis.scard(`${groupBase(GROUP)}:bundles:${plan.id}:a`)).toBe(64)
  await clean()
  await pullAll(pilot, size)
  expect(await counts(plan.id)).toEqual({ a: { assigned: size } })
  await clean()
})

test('retries - behind thousands whose queue is full, one with another queue is come to', async () => {
  const last = 2000
  const plan = planOf('behind', { a: { size: last + 1 } })
  await lab.store.create(plan)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await lab.settle()
  // All that is in no bundle yet as if it had failed at ALPHA, but for the last, which any site may have.
  const key = (kind: string) => `${groupBase(GROUP)}:${kind}:${plan.id}:a`
  const [first] = (await lab.redis.zrange(key('ready'), '0', '-1')).map((span) => Number(span.split('-')[0]))
  const record = pack({ attempts: 1, payload: 1, infrastructure: 0, fences: '1', avoid: 'ALPHA', until: 8e15 })
  const names = Array.from({ length: last - first! }, (_, i) => String(first! + i))
  await lab.redis.hset(key('tasks'), ...names.flatMap((name) => [name, Buffer.from(record)]))
  await lab.redis.del(key('ready'))
  const due = [...names.flatMap((name) => ['1', name]), '2', String(last)]
  await lab.redis.zadd(key('retry'), ...due)
  await clean()
  await pilot.pull(1)
  await lab.settle()
  expect(await lab.redis.zscore(key('retry'), String(last))).toBeNull()
  expect(await lab.redis.zcard(key('retry'))).toBe(names.length - 64)
  await clean()
})

test('lists - a page looks at so many tasks at most, and says where to go on', async () => {
  const plan = planOf('long', { a: { size: 150_001 }, b: { size: 3 } })
  await lab.store.create(plan)
  const pages: [number, string | null][] = []
  const asked = await askedFor(async () => {
    for (let from: { step: string; index: number } | null = null, more = true; more; ) {
      const page = await lab.store.tasks(plan.id, { site: 'NOBODY' }, from, 10)
      from = page.next
      more = from !== null
      pages.push([page.rows.length, from && `${from.step}/${from.index}`])
    }
  })
  expect(pages).toEqual([
    [0, 'a/65536'],
    [0, 'a/131072'],
    [0, null],
  ])
  expect(asked.length).toBeLessThan(150)
  const last = { step: 'a', index: 149_999 }
  const page = await lab.store.tasks(plan.id, {}, last, 4)
  expect(page.rows.map(({ step, index }) => `${step}/${index}`)).toEqual(['a/149999', 'a/150000', 'b/0', 'b/1'])
  expect(page.next).toEqual({ step: 'b', index: 2 })
})

test('lists - of outputs read each block of results once', async () => {
  const size = 600
  const plan = planOf('outputs', { a: { size, outputs: [{ path: 'o', url: null, optional: false }] } })
  await lab.store.create(plan)
  const facts = { cores: 1000 }
  const relay = await new TestHolder(lab.dispatcher, { name: 'relay', role: 'relay', facts }).hello()
  await pullAll(relay, size)
  // Named by their relay, under its fence too.
  const results = relay.allResults().map((one) => {
    const fences = [...one.fences, 1]
    const url = `file:///out/${one.index}.attempt-${fences.join('-')}`
    return { ...one, fences, outputs: [{ path: 'o', sizeBytes: 1, checksum: `sha256:${'0'.repeat(64)}`, url }] }
  })
  for (let i = 0; i < size; i += 100) await relay.verdicts(results.slice(i, i + 100) as never)
  const blocks = `${groupBase(GROUP)}:blocks:${plan.id}:a`
  await lab.work.start()
  await vi.waitFor(async () => expect(await lab.redis.hlen(blocks)).toBe(3), 30_000)
  await lab.work.stop()

  const { listOutputs } = outputHandlers({ store: lab.store } as never)
  const asked = await askedFor(async () => {
    const given = { params: { campaign: plan.id }, query: { limit: size } }
    const page = await listOutputs(given as never, { subject: 'ada', roles: ['read'], groups: [GROUP] } as never)
    const expected = results.map(({ index, outputs }) => ({ step: 'a', index, ...outputs[0] }))
    expected.sort((one, other) => one.index - other.index)
    expect(page).toEqual({ outputs: expected, next: null })
  })
  // For the rows, and for their outputs.
  expect(asked.filter(({ key }) => key === blocks)).toHaveLength(2 * 3)
})

test('holders and pilots - those that are long gone are no more read with every look at a site', async () => {
  const base = siteBase('ALPHA')
  const relay = await new TestHolder(lab.dispatcher, { name: 'relay-1', role: 'relay' }).hello()
  for (const name of ['left', 'forgotten']) {
    const pilot = await new TestHolder(lab.dispatcher, { name }).hello()
    await pilot.holder.bye({ code: 200, reason: 'done', returned: [] })
  }
  await lab.settle()
  // As Redis does a day after a session has ended.
  await lab.redis.del(`${base}:session:${await lab.redis.hget(`${base}:holders`, 'forgotten')}`)
  const summary = { node: 'n', state: 'active', cores: 8, coresBusy: 3, running: 3, upMs: 1000, code: null }
  await relay.beat({ pilots: [{ ...summary, pilot: 'now' }] as never })
  const day = 24 * 3600_000
  const seen = (pilot: string, state: string, by: string, days: number) => [
    pilot,
    JSON.stringify({ ...summary, pilot, state, relay: by, lastSeenMs: Date.now() - days * day }),
  ]
  const kept = [seen('idle', 'active', 'relay-1', 30), seen('left-lately', 'left', 'relay-1', 6)]
  const gone = [
    seen('left-long-ago', 'left', 'relay-1', 8),
    seen('lost-long-ago', 'lost', 'gone', 8),
    seen('with-its-relay', 'active', 'gone', 8),
  ]
  await lab.redis.hset(`${base}:pilots`, ...[...kept, ...gone].flat())
  const before = await lab.store.holders()
  expect(before.map(({ holder, state }) => `${holder} ${state}`).sort()).toEqual(['left left', 'relay-1 active'])

  const again = await lab.reopen()
  await again.work.sweep()
  expect((await lab.redis.hkeys(`${base}:holders`)).sort()).toEqual(['left', 'relay-1'])
  expect((await lab.redis.hkeys(`${base}:pilots`)).sort()).toEqual(['idle', 'left-lately', 'now'])
  expect(await lab.store.holders()).toEqual(before)
  // Once an hour is enough.
  const asked = await askedFor(() => again.work.sweep())
  expect(asked.filter(({ key }) => key === `${base}:pilots` || key === `${base}:holders`)).toEqual([])
})
