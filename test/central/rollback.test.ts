/** Redis comes back with less than it had acknowledged: noticed whoever speaks first, said, and lifted by a person. */
import { cpSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { startRedis } from '../../shared/servers/redis.ts'
import { TestHolder } from './store-holder.ts'
import { openStoreLab, planOf, type StoreLab } from './store-lab.ts'

let folder: string
let redis: Awaited<ReturnType<typeof startRedis>>
let lab: StoreLab
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-rollback-'))
  redis = await startRedis({ dir: join(folder, 'redis') })
  // Long enough that nobody is lost while Redis is away.
  lab = await openStoreLab(redis.url, { timeScale: 0.1 })
})
afterEach(async () => {
  await lab.end()
  await redis.stop()
  rmSync(folder, { recursive: true, force: true })
})

const kept = () => join(folder, 'kept')
const files = () => join(folder, 'redis', 'appendonlydir')

/** Ends Redis as a crash does, and starts it on the same data, or on those kept before. */
async function restartRedis(from?: string): Promise<void> {
  const { port } = redis
  process.kill(redis.pid, 'SIGKILL')
  await redis.stop()
  if (from !== undefined) {
    rmSync(files(), { recursive: true })
    cpSync(from, files(), { recursive: true })
  }
  redis = await startRedis({ dir: join(folder, 'redis'), port })
  await vi.waitFor(() => lab.redis.ping(), 30_000)
}

async function seed(name: string, size = 20) {
  const plan = planOf(name, { a: { size } })
  await lab.store.create(plan)
  await lab.settle()
  return plan.id
}

test('rollback - a holder that knows of lost writes stops granting though others wrote much meanwhile', async () => {
  const id = await seed('lost')
  const other = await new TestHolder(lab.dispatcher, { name: 'other' }).hello()
  const knows = await new TestHolder(lab.dispatcher, { name: 'knows' }).hello()
  await knows.pull(3)
  cpSync(files(), kept(), { recursive: true })
  expect(await knows.verdicts(knows.allResults())).toEqual(['accepted', 'accepted', 'accepted'])
  await knows.pull(1)
  await restartRedis(kept())

  // The other one has seen nothing of what was lost, and its writes take the sequence far past it.
  for (let i = 0; i < 10; i++) await other.pull(0, { returned: [] })
  await other.pull(1)
  expect((await other.beat()).orders).toEqual([])
  expect((await knows.beat()).orders).toContainEqual({ kind: 'holder.inventory' })
  expect(await other.pull(1, { finished: other.allResults() })).toMatchObject({ grants: [], reason: 'halted' })
  expect(await lab.store.verify()).toContainEqual({
    invariant: 'acknowledged writes are there',
    where: 'the store',
    found: expect.stringMatching(/^a holder has seen write \d+ of epoch \S+, known are \d+$/),
    expected: 'none lost; look at the inventories, then: indraft admin lift-halt',
  })

  await lab.liftHalt()
  expect((await knows.beat()).orders).not.toContainEqual({ kind: 'holder.inventory' })
  // One that comes back only now has seen what a person has looked at.
  await vi.waitFor(async () => {
    await lab.settle()
    expect((await other.pull(20)).grants.length).toBeGreaterThan(0)
  }, 30_000)
  expect((await lab.store.verify()).filter(({ where }) => where === 'the store')).toEqual([])
  expect(id).toBeDefined()
})

test('restart that loses nothing - granting goes on, and nobody is declared dead', async () => {
  const id = await seed('whole')
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(3)
  await pilot.startAll()
  for (let i = 0; i < 2; i++) {
    await restartRedis()
    await lab.settle()
    expect((await pilot.beat()).orders).toEqual([])
  }
  expect(await pilot.verdicts(pilot.allResults())).toEqual(['accepted', 'accepted', 'accepted'])
  expect((await pilot.pull(2)).grants.length).toBe(2)
  expect((await lab.store.find(id, ['/vo.example/prod']))!.counts).toMatchObject({ done: 3, assigned: 2 })
  expect(await lab.store.verify()).toEqual([])
})

test('rollback - a holder that makes up what it has seen of the store stops nobody', async () => {
  await seed('made-up')
  const liar = await new TestHolder(lab.dispatcher, { name: 'liar' }).hello()
  const other = await new TestHolder(lab.dispatcher, { name: 'other' }).hello()
  const { session, mark } = liar.holder.welcome!
  const { epoch, sequence } = mark
  for (const seen of [
    { ...mark, sequence: sequence + 1000 },
    { epoch, sequence: Number.MAX_SAFE_INTEGER },
    { ...mark, epoch: `${epoch}.of-no-start` },
  ]) {
    await lab.dispatcher.onReport({ site: 'ALPHA' }, { session, results: [], seen })
  }
  expect((await other.pull(1)).grants).toHaveLength(1)
  expect((await lab.store.verify()).filter(({ where }) => where === 'the store')).toEqual([])
})
