/** What one reply to a pull can carry: leases are granted only as far as they go into it, whatever they look like. */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { TASK_STATE_CODE } from '../../shared/lifecycle.ts'
import { pack } from '../../shared/protocol/codec.ts'
import type { Message, Result } from '../../shared/protocol/messages.ts'
import { countRanges, indices, parseRanges } from '../../shared/ranges.ts'
import { seeded } from '../seeded.ts'
import { TestHolder } from './store-holder.ts'
import { GROUP, openStoreLab, planOf, type StoreLab, startRedisForTests } from './store-lab.ts'

const BASE = `indraft:{${GROUP}}`
const REPLY_BYTES = 40 * 1024

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

const random = seeded(1)
const randomText = (length: number, first: number, letters: number) =>
  Array.from({ length }, () => String.fromCodePoint(first + random.below(letters))).join('')
/** Text that hardly gets smaller. */
const noise = (length: number) => randomText(length, 0x30, 75).replaceAll(/[^\w]/g, '-')
/** As long as a name may be, and in letters that hardly get smaller. */
const longName = () => randomText(200, 0x4e00, 20_000)

/** A step of which some tasks have failed once, here and there; all others are cancelled, so that only these are to do. */
async function scattered(name: string, failed: number, record: object = {}): Promise<string> {
  const size = 10 * failed
  const plan = planOf(name, { a: { size } })
  await lab.store.create(plan)
  await lab.settle()
  const step = `${plan.id}:a`
  for (const bundle of await lab.redis.smembers(`${BASE}:bundles:${step}`))
    await lab.redis.del(`${BASE}:bundle:${bundle}`)
  for (const queue of await lab.redis.smembers(`${BASE}:queues`)) await lab.redis.del(`${BASE}:queue:${queue}`)
  await lab.redis.del(`${BASE}:bundles:${step}`, `${BASE}:queues`, `${BASE}:ready:${step}`, `${BASE}:counts:${step}`)
  const states = Buffer.alloc(size / 2, TASK_STATE_CODE.cancelled * 17)
  const records: (string | Buffer)[] = []
  const kept = Buffer.from(
    pack({ attempts: 1, payload: 1, infrastructure: 0, fences: '1', reason: 'payload.exit', ...record }),
  )
  for (let i = 0; i < failed; i++) {
    const index = 10 * i + ((i * 7919) % 10)
    const shift = index % 2 === 0 ? 4 : 0
    const other = TASK_STATE_CODE.cancelled << (4 - shift)
    states[index >> 1] = (TASK_STATE_CODE.failed << shift) | other
    records.push(String(index), kept)
  }
  await lab.redis.set(`${BASE}:state:${step}`, states)
  await lab.redis.hset(`${BASE}:counts:${step}`, { failed, cancelled: size - failed })
  await lab.redis.hset(`${BASE}:tasks:${step}`, ...records)
  await lab.redis.hset(`${BASE}:step:${step}`, { wallMs: 100, wallCount: 1 })
  expect(await lab.store.retry(plan.id, { states: ['failed'], request: 'request-1' })).toEqual({ tasks: failed })
  for (let waiting = failed; waiting > 0; waiting = await lab.redis.zcard(`${BASE}:retry:${step}`)) await lab.settle()
  return plan.id
}

/** A pull that wants as much as there is. */
const pullAll = (holder: TestHolder, more: Partial<Message<'pull'>> = {}) => {
  const { node, timeLeftMs: _left, labels: _labels, ...shape } = holder.facts
  const offer = [{ shape: { ...shape, cores: 1 }, count: 1, timeLeftMs: null, aheadMs: 1e12, node }]
  return holder.pull(0, { offer, ...more })
}

test('reply - retries scattered over a step come in as many pulls as they need', async () => {
  const failed = 20_000
  const id = await scattered('scattered', failed)
  const holder = await new TestHolder(lab.dispatcher, { role: 'relay' }).hello()
  const seen = new Set<number>()
  while (seen.size < failed) {
    const { grants, templates } = await pullAll(holder)
    expect(pack({ grants, templates }).length).toBeLessThan(REPLY_BYTES)
    const tasks = grants.flatMap(({ lease }) => [...indices(parseRanges(lease.tasks))])
    expect(tasks.length).toBeGreaterThan(0)
    for (const index of tasks) seen.add(index)
    for (const { tries, lease } of grants)
      expect(Object.keys(tries)).toHaveLength(countRanges(parseRanges(lease.tasks)))
  }
  expect((await lab.store.find(id, [GROUP]))!.counts).toMatchObject({ assigned: failed, queued: 0, failed: 0 })
  expect(await lab.store.verify()).toEqual([])
})

/** Results of campaigns that are unknown here: refused, each with a verdict in the reply. */
const strangers = (holder: TestHolder, count: number, name: () => string): Result[] => {
  const lease = { bundle: 'b1', campaign: 'c', step: 'a', fences: [1], tasks: '0' }
  return Array.from({ length: count }, (_, i) => ({ ...holder.result(lease, i), campaign: name(), step: name() }))
}

test('reply - a bundle that is too heavy for what room there is is granted in parts', async () => {
  const nodes = Array.from({ length: 64 }, () => noise(199)).join(',')
  await scattered('heavy', 600, { nodes })
  const holder = await new TestHolder(lab.dispatcher, { role: 'relay' }).hello()
  const finished = strangers(holder, 230, () => 'x')
  let granted = 0
  while (granted < 600) {
    const reply = await pullAll(holder, { finished })
    expect([reply.verdicts.length, reply.grants.length]).toEqual([230, 1])
    expect(pack(reply).length).toBeLessThan(REPLY_BYTES)
    granted += countRanges(parseRanges(reply.grants[0]!.lease.tasks))
  }
  expect(await lab.store.verify()).toEqual([])
})

test('reply - where verdicts are longer than thought it carries fewer grants, and what has no room is free again', async () => {
  const rows = Array.from({ length: 40 }, () => ({ text: noise(3500) }))
  const plan = planOf('rows', { a: { size: 40, rows } })
  await lab.store.create(plan)
  await lab.settle()
  await lab.redis.hset(`${BASE}:step:${plan.id}:a`, { wallMs: 100, wallCount: 1 })
  const holder = await new TestHolder(lab.dispatcher, { role: 'relay' }).hello()
  const finished = strangers(holder, 40, longName)
  const { verdicts, grants } = await pullAll(holder, { finished })
  expect(verdicts.map(({ verdict }) => verdict)).toEqual(finished.map(() => 'refused'))
  expect(grants.length).toBeGreaterThan(0)
  const { counts } = (await lab.store.find(plan.id, [GROUP]))!
  expect(counts).toMatchObject({ assigned: grants.length, queued: 40 - grants.length })
  expect((await pullAll(holder)).grants.length).toBeGreaterThan(grants.length)
  expect(await lab.store.verify()).toEqual([])
})
