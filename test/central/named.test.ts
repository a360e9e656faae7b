/** What central remembers for relays that lost their journal: which accepted outputs a relay names, by site. */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { NAMED_KEPT } from '../../central/leases/named.ts'
import { attemptPath } from '../../shared/ids.ts'
import type { Result } from '../../shared/protocol/messages.ts'
import { EXIT_3, TestHolder } from './store-holder.ts'
import { GROUP, openStoreLab, planOf, type StoreLab, startRedisForTests } from './store-lab.ts'

let redis: { url: string; stop(): Promise<void> }
let lab: StoreLab
beforeAll(async () => {
  redis = await startRedisForTests()
})
afterAll(() => redis.stop())
beforeEach(async () => {
  lab = await openStoreLab(redis.url, { timeScale: 0.06 })
})
afterEach(() => lab.end())

const KEY = `indraft:{${GROUP}}:named:ALPHA`

/** Results as a relay hands them up, each with a file on the shared file system. */
async function byRelay(size: number) {
  const plan = planOf('named', { a: { size } })
  await lab.store.create(plan)
  await lab.settle()
  const holder = await new TestHolder(lab.dispatcher, { name: 'relay', role: 'relay' }).hello()
  await holder.pull(size)
  const results = holder.allResults().map((result): Result => {
    const fences = [...result.fences, 7]
    const url = `file:///shared/${result.index}.txt.attempt-${fences.join('-')}`
    const outputs = [{ path: 'out.txt', sizeBytes: 1, checksum: `sha256:${'0'.repeat(64)}`, url }]
    return { ...result, fences, outputs }
  })
  return { id: plan.id, holder, results }
}

test('named - a success with a file that its relay names is told to its own site, others are not', async () => {
  const { id, holder, results } = await byRelay(4)
  const [named, failed, direct, stored] = results as [Result, Result, Result, Result]
  const kept = { ...stored, outputs: [{ ...stored.outputs[0]!, url: `store:${attemptPath(stored as never)}/out.txt` }] }
  const ofPilot = `file:///shared/2.txt.attempt-${direct.fences[0]}`
  const plain = { ...direct, fences: [direct.fences[0]!], outputs: [{ ...direct.outputs[0]!, url: ofPilot }] }
  const given = [named, { ...failed, ...EXIT_3, outputs: [] }, plain, kept]
  expect(await holder.verdicts(given)).toEqual(given.map(() => 'accepted'))
  const { index, fences, outputs } = named
  const told = { campaign: id, step: 'a', index, fences, outputs: [{ path: 'out.txt', url: outputs[0]!.url }] }
  expect(await lab.named('ALPHA', null)).toEqual({ results: [told], next: null })
  expect(await lab.named('BETA', null)).toEqual({ results: [], next: null })
  await expect(lab.named('ALPHA', 'nowhere')).rejects.toMatchObject({ code: 'request.invalid' })
  // What another attempt has won since is not told.
  await lab.redis.zadd(KEY, Date.now(), `${id}|a|${index}|1-2`)
  await lab.redis.zrem(KEY, `${id}|a|${index}|${fences.join('-')}`)
  expect((await lab.named('ALPHA', null)).results).toEqual([])
})

test('named - the oldest and the too many are forgotten, the newest come first, page by page', async () => {
  const { id, holder, results } = await byRelay(1)
  const now = Date.now()
  const old = ['c1|a|0|1-2', 'c1|a|1|1-2']
  for (const name of old) await lab.redis.zadd(KEY, now - NAMED_KEPT.ms - 60_000, name)
  for (let first = 0; first < NAMED_KEPT.most; first += 10_000) {
    const some = Array.from({ length: 10_000 }, (_, i) => [now - 60_000 + (first + i) / 10, `c2|a|${first + i}|1-2`])
    await lab.redis.zadd(KEY, ...(some.flat() as string[]))
  }
  await holder.verdicts(results)
  expect(await lab.redis.zcard(KEY)).toBe(NAMED_KEPT.most)
  for (const name of [...old, 'c2|a|0|1-2']) expect(await lab.redis.zscore(KEY, name)).toBeNull()
  expect(await lab.redis.pttl(KEY)).toBeGreaterThan(NAMED_KEPT.ms - 60_000)
  const page = await lab.named('ALPHA', null)
  expect(page.results).toMatchObject([{ campaign: id, index: 0 }])
  let pages = 1
  for (let next = page.next; next !== null; pages++) ({ next } = await lab.named('ALPHA', next))
  // One more, because only an empty page says that there is no more.
  expect(pages).toBe(NAMED_KEPT.most / 500 + 1)
})
