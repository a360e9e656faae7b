/**
 * What a site's own policy refuses is done elsewhere: at once for the whole step, at no cost, and where no site is left it
 * ends with its reason and the sites' names. Over a real Redis.
 */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest'
import type { Result } from '../../shared/protocol/messages.ts'
import { TestHolder } from './store-holder.ts'
import { GROUP, openStoreLab, planOf, type StoreLab, startRedisForTests } from './store-lab.ts'

let redis: { url: string; stop(): Promise<void> }
let lab: StoreLab
beforeAll(async () => {
  redis = await startRedisForTests()
})
afterAll(() => redis.stop())
beforeEach(async () => {
  // Not so short that a site that refused could be asked again while a test looks that it is not.
  lab = await openStoreLab(redis.url, { timeScale: 0.2 })
  lab.sites.set('BETA', { labels: {}, state: 'enabled' })
})
afterEach(async () => {
  expect(await lab.store.verify()).toEqual([])
  await lab.end()
})

const REFUSED: Partial<Result> = { end: 'failed', reason: 'policy.refused', detail: 'not here', exitCode: null }
const NO_CREDIT = { payload: 0, infrastructure: 0, holdExitCodes: [], exhausted: 'failed' as const }
const at = (site: string, more = {}) => new TestHolder(lab.dispatcher, { site, name: `p-${site}`, ...more }).hello()
const view = async (id: string) => (await lab.store.find(id, [GROUP]))!
const counts = async (id: string) =>
  Object.fromEntries(Object.entries((await view(id)).counts).filter(([, tasks]) => tasks > 0))
const failures = async (id: string) =>
  (await view(id)).failures.map(({ reason, detail, count }) => `${count} x ${reason} ${detail}`).sort()

/** Pulls once more than it has to, and says how many tasks came. */
async function taken(pilot: TestHolder, tasks = 8): Promise<number> {
  await lab.settle()
  const reply = await pilot.pull(tasks)
  return reply.grants.length
}
/** Pulls until so many came; then all of them end so. */
async function end(pilot: TestHolder, tasks: number, change: Partial<Result> = {}): Promise<void> {
  await vi.waitFor(async () => {
    await lab.settle()
    await pilot.pull(tasks - pilot.leases.size)
    expect(pilot.leases.size).toBe(tasks)
  }, 30_000)
  for (const verdict of await pilot.verdicts(pilot.allResults(change))) expect(verdict).toBe('accepted')
}

test('refused - what one site refuses the other does, and none of the step is offered to the first any more', async () => {
  const plan = planOf('elsewhere', { run: { size: 20, retries: NO_CREDIT } })
  await lab.store.create(plan)
  const [alpha, beta] = [await at('ALPHA'), await at('BETA')]
  await end(alpha, 3, REFUSED)
  expect(await counts(plan.id)).toEqual({ queued: 20 })
  expect(await taken(alpha)).toBe(0)
  await end(beta, 8)
  await end(beta, 8)
  await end(beta, 4)
  expect(await counts(plan.id)).toEqual({ done: 20 })
  expect(await failures(plan.id)).toEqual(['3 x policy.refused at ALPHA'])
})

test('refused - the other site need not be there yet; other steps go on at the first', async () => {
  const plan = planOf('later', { run: { retries: NO_CREDIT }, other: { retries: NO_CREDIT } })
  await lab.store.create(plan)
  const alpha = await at('ALPHA')
  await lab.settle()
  await alpha.pull(2)
  const [run, other] = [...alpha.leases.values()].sort((a, b) => (a.step > b.step ? -1 : 1))
  await alpha.verdicts([...alpha.results(run!, REFUSED), ...alpha.results(other!)])
  expect(await taken(alpha)).toBe(0)
  await end(await at('BETA'), 1)
  expect(await counts(plan.id)).toEqual({ done: 2 })
})

test('refused - every site refuses: failed, with the reason and the names, each task asked once at each', async () => {
  const plan = planOf('nowhere', { run: { size: 2 } })
  await lab.store.create(plan)
  const [alpha, beta] = [await at('ALPHA'), await at('BETA')]
  await end(alpha, 2, REFUSED)
  await end(beta, 2, REFUSED)
  await lab.settle()
  expect(await counts(plan.id)).toEqual({ failed: 2 })
  expect((await view(plan.id)).state).toBe('done with failures')
  expect(await failures(plan.id)).toEqual(['2 x policy.refused at ALPHA', '2 x policy.refused at BETA'])
  expect(await lab.store.task(plan.id, 'run', 1)).toMatchObject({
    reason: 'policy.refused',
    attempts: 2,
    history: [
      { site: 'ALPHA', detail: 'not here' },
      { site: 'BETA', detail: 'not here' },
    ],
  })
  expect([await taken(alpha), await taken(beta)]).toEqual([0, 0])
  // A person who asked the second site: the first is not the last one left.
  await lab.store.retry(plan.id, { states: ['failed'], request: 'r1' })
  await end(alpha, 2, REFUSED)
  await end(beta, 2)
  expect(await counts(plan.id)).toEqual({ done: 2 })
})

test('refused - where every site has refused the step, the rest of it ends as fast as it comes', async () => {
  const plan = planOf('many', { run: { size: 12, retries: { ...NO_CREDIT, exhausted: 'held' } } })
  lab.sites.delete('BETA')
  await lab.store.create(plan)
  const alpha = await at('ALPHA')
  await end(alpha, 4, REFUSED)
  await end(alpha, 8, REFUSED)
  expect(await counts(plan.id)).toEqual({ held: 12 })
  // A person who knows better: nothing is remembered.
  await lab.store.retry(plan.id, { states: ['held'], request: 'r1' })
  await end(alpha, 8)
  await end(alpha, 4)
  expect(await counts(plan.id)).toEqual({ done: 12 })
})

test('refused - sites that may not run it are not waited for', async () => {
  const needs = planOf('x', { run: {} }).steps[0]!.needs
  const plan = planOf('alone', { run: { needs: { ...needs, denySites: ['BETA'] } } })
  await lab.store.create(plan)
  await end(await at('ALPHA'), 1, REFUSED)
  expect(await counts(plan.id)).toEqual({ failed: 1 })
})

test('refused - a site whose pilots of now serve others is waited for: it may send pilots for this group', async () => {
  const plan = planOf('later', { run: {} })
  await lab.store.create(plan)
  const others = await at('BETA', { facts: { groups: ['/others'] } })
  expect(await taken(others)).toBe(0)
  await end(await at('ALPHA', { facts: { groups: ['/others', GROUP] } }), 1, REFUSED)
  expect(await counts(plan.id)).toEqual({ queued: 1 })
  await end(await at('BETA', { facts: { groups: [GROUP] } }), 1)
  expect(await counts(plan.id)).toEqual({ done: 1 })
})

test('refused - one task of many: the site goes on with the rest, and does not get that one again', async () => {
  const plan = planOf('one', { run: { size: 3, retries: NO_CREDIT } })
  await lab.store.create(plan)
  const alpha = await at('ALPHA')
  await lab.settle()
  await alpha.pull(2)
  const [bad, good] = [...alpha.leases.values()]
  await alpha.verdicts(alpha.results(bad!, REFUSED))
  expect(await taken(alpha)).toBe(0)
  await alpha.verdicts(alpha.results(good!))
  await end(alpha, 1)
  expect(await counts(plan.id)).toEqual({ queued: 1, done: 2 })
  expect(await taken(alpha)).toBe(0)
  await end(await at('BETA'), 1)
  expect(await counts(plan.id)).toEqual({ done: 3 })
})

test('refused - the site is asked again later: its policy may have changed', async () => {
  const plan = planOf('changed', { run: { size: 3, retries: NO_CREDIT } })
  await lab.store.create(plan)
  const alpha = await at('ALPHA')
  await end(alpha, 1, REFUSED)
  expect(await taken(alpha)).toBe(0)
  const name = `indraft:{${GROUP}}:refused:${plan.id}:run`
  const until = async () => Number.parseInt((await lab.redis.hget(name, 'ALPHA'))!, 10)
  const firstMs = await until()
  // As if the quarter of an hour were over, twice. The tasks that it refused wait longer.
  await lab.redis.hset(name, 'ALPHA', '1|1')
  await end(alpha, 1, REFUSED)
  expect((await until()) - firstMs).toBeGreaterThan(15 * 60_000 * 0.2)
  await lab.redis.hset(name, 'ALPHA', '1|2')
  await end(alpha, 1)
  expect(await counts(plan.id)).toEqual({ queued: 2, done: 1 })
})

test('refused - a signature that does not hold at one site is an attempt like others that fail there', async () => {
  const plan = planOf('trust', { run: { retries: { ...NO_CREDIT, infrastructure: 1 } } })
  await lab.store.create(plan)
  const [alpha, beta] = [await at('ALPHA'), await at('BETA')]
  await end(alpha, 1, { ...REFUSED, reason: 'signature.invalid' })
  expect(await taken(alpha)).toBe(0)
  await end(beta, 1)
  expect(await counts(plan.id)).toEqual({ done: 1 })
})
