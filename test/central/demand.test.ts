/** What central answers to "what would such nodes be given now", over a real Redis. */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { sampleNeeds } from '../sample-messages.ts'
import { TestHolder } from './store-holder.ts'
import { openStoreLab, planOf, type StoreLab, startRedisForTests } from './store-lab.ts'

let redis: { url: string; stop(): Promise<void> }
let lab: StoreLab
beforeAll(async () => {
  redis = await startRedisForTests()
})
afterAll(() => redis.stop())
beforeEach(async () => {
  // Nothing here waits for time to pass, and nobody is to be lost.
  lab = await openStoreLab(redis.url, { timeScale: 1 })
})
afterEach(() => lab.end())

const ask = async (cores = 8, site = 'ALPHA') => {
  const { holder, facts } = new TestHolder(lab.dispatcher, { site })
  const { node: _node, timeLeftMs: _left, labels: _labels, ...shape } = facts
  const offer = [{ shape: { ...shape, cores }, count: 1, timeLeftMs: 86_400_000, aheadMs: 0, node: null }]
  return holder.demand(offer, 5000)
}

test('demand - what is queued and fits is told with how much of it a node takes, without a session', async () => {
  expect(await ask()).toEqual({ fits: [], idlePilots: 0, isWhole: true, reason: 'noWork', nowMs: expect.any(Number) })
  const needs = { ...sampleNeeds, arch: [], denySites: [], memoryBytes: 0, cores: 2, gpus: 0 }
  const plan = planOf('wanted', {
    run: { size: 500, needs },
    later: { size: 3, after: [{ step: 'run' as never, accept: 1 }] },
  })
  await lab.store.create(plan)
  await lab.settle()
  const { fits } = await ask()
  expect(fits).toEqual([
    { entry: 0, group: plan.group, work: `${plan.id}/run`, tasks: 500, perNode: 4, estimateMs: null },
  ])
  expect(await ask(1)).toMatchObject({ fits: [], reason: 'nothingFits' })

  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(8)
  expect(pilot.leases.size).toBe(4)
  await lab.settle()
  expect((await ask()).fits[0]!.tasks).toBe(496)
  expect(await lab.store.verify()).toEqual([])
})

test('demand - a site that is disabled or unknown is told to start nothing', async () => {
  await lab.store.create(planOf('wanted', { run: { size: 5 } }))
  await lab.settle()
  lab.sites.set('ALPHA', { labels: {}, state: 'draining' })
  expect(await ask()).toMatchObject({ fits: [], reason: 'draining' })
  expect(await ask(8, 'NOWHERE')).toMatchObject({ fits: [], reason: 'draining' })
})
