/** A person's retry: once per request, with fresh credit, and what was skipped for the failure waits again. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest'
import { enableFailpoints } from '../../shared/failpoint.ts'
import type { StepName } from '../../shared/ids.ts'
import { EXIT_3, TestHolder } from './store-holder.ts'
import { GROUP, openStoreLab, planOf, type StoreLab, startRedisForTests } from './store-lab.ts'

let redis: { url: string; stop(): Promise<void> }
let lab: StoreLab
beforeAll(async () => {
  redis = await startRedisForTests()
})
afterAll(() => redis.stop())
beforeEach(async () => {
  // A pilot is lost after 3.6 s: the centre forgives pauses of 3 s.
  lab = await openStoreLab(redis.url, { timeScale: 0.06 })
  await lab.settle()
})
afterEach(() => lab.end())

const RETRIES = { payload: 0, infrastructure: 0, holdExitCodes: [2], exhausted: 'failed' as const }
const after = (step: string) => [{ step: step as StepName, accept: 1 }]
const view = async (id: string) => (await lab.store.find(id, [GROUP]))!
const counts = async (id: string) => {
  const { steps } = await view(id)
  const some = (all: object) => Object.fromEntries(Object.entries(all).filter(([, n]) => n > 0))
  return Object.fromEntries(steps.map((step) => [step.name, some(step.counts)]))
}
const clean = async () => expect(await lab.store.verify()).toEqual([])
const retry = (id: string, request: string, states: ('failed' | 'held')[] = ['failed', 'held'], step?: string) =>
  lab.store.retry(id as never, { states, request, ...(step && { step }) })

/** Pulls until so many tasks came, and ends them all so. */
async function work(pilot: TestHolder, tasks: number, change = {}): Promise<void> {
  for (let done = 0; done < tasks; ) {
    await vi.waitFor(async () => {
      await lab.settle()
      await pilot.pull(1)
      expect(pilot.leases.size).toBeGreaterThan(0)
    }, 30_000)
    done += (await pilot.verdicts(pilot.allResults(change))).length
  }
  await lab.settle()
}

test('retry of a failed task - its dependents were skipped, wait again, and the campaign ends well', async () => {
  const plan = planOf('again', {
    a: { size: 3, retries: RETRIES },
    b: { size: 2, after: after('a') },
    c: { size: 1, after: after('b') },
  })
  await lab.store.create(plan)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await work(pilot, 2)
  await work(pilot, 1, EXIT_3)
  expect(await counts(plan.id)).toEqual({ a: { done: 2, failed: 1 }, b: { skipped: 2 }, c: { skipped: 1 } })
  expect((await view(plan.id)).state).toBe('done with failures')
  expect((await view(plan.id)).endedAtMs).not.toBeNull()

  expect(await retry(plan.id, 'request-1')).toEqual({ tasks: 1 })
  await lab.settle()
  expect(await counts(plan.id)).toEqual({ a: { done: 2, queued: 1 }, b: { blocked: 2 }, c: { blocked: 1 } })
  expect(await view(plan.id)).toMatchObject({ state: 'running', endedAtMs: null })
  await clean()
  await work(pilot, 1, EXIT_3)
  expect(await counts(plan.id)).toMatchObject({ a: { failed: 1 }, b: { skipped: 2 }, c: { skipped: 1 } })
  // Repeated by a client whose answer was lost: the task was retried under this request already.
  expect(await retry(plan.id, 'request-1')).toEqual({ tasks: 0 })
  expect(await retry(plan.id, 'request-2', ['held'])).toEqual({ tasks: 0 })
  expect(await retry(plan.id, 'request-3', ['failed'], 'b')).toEqual({ tasks: 0 })
  expect(await retry(plan.id, 'request-4', ['failed'])).toEqual({ tasks: 1 })
  // Done before anybody looked at what follows it.
  const [task] = (await lab.store.task(plan.id, 'a', 2))!.history.slice(-1)
  expect(task).toMatchObject({ reason: 'payload.exit' })
  await work(pilot, 4)
  expect(await counts(plan.id)).toEqual({ a: { done: 3 }, b: { done: 2 }, c: { done: 1 } })
  expect((await view(plan.id)).state).toBe('done')
  await clean()
})

test('retry of held tasks - fresh credit; a late success of a held one makes it done and frees what waits', async () => {
  const plan = planOf('held', { a: { size: 2, retries: { ...RETRIES, payload: 1 } }, b: { after: after('a') } })
  await lab.store.create(plan)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  // They have used their credit when they are held.
  await work(pilot, 2, EXIT_3)
  await work(pilot, 2, { ...EXIT_3, exitCode: 2 })
  expect(await counts(plan.id)).toEqual({ a: { held: 2 }, b: { blocked: 1 } })
  expect((await view(plan.id)).state).toBe('held')
  expect(await retry(plan.id, 'request-1', ['held'])).toEqual({ tasks: 2 })
  // The payload credit is whole again: one more failure is retried, the next one is final.
  await work(pilot, 4, EXIT_3)
  expect(await counts(plan.id)).toEqual({ a: { failed: 2 }, b: { skipped: 1 } })
  await clean()
})

test('late success of a held task - it is done, and what waited for it goes on', async () => {
  const plan = planOf('late', {
    a: { retries: { ...RETRIES, exhausted: 'held' } },
    b: { after: after('a') },
  })
  await lab.store.create(plan)
  const slow = await new TestHolder(lab.dispatcher, { name: 'slow' }).hello()
  await vi.waitFor(async () => {
    await lab.settle()
    await slow.pull(1)
    expect(slow.leases.size).toBe(1)
  }, 30_000)
  await slow.startAll()
  const old = [...slow.leases.values()]
  await vi.waitFor(
    async () => {
      await lab.settle()
      expect(await counts(plan.id)).toMatchObject({ a: { held: 1 } })
    },
    { timeout: 30_000, interval: 50 },
  )
  await slow.hello()
  expect(await slow.verdicts(old.flatMap((lease) => slow.results(lease)))).toEqual(['accepted'])
  await work(slow, 1)
  expect(await counts(plan.id)).toEqual({ a: { done: 1 }, b: { done: 1 } })
  await clean()
})

test('retry cut off half-way - repeating it finishes it, and no task is retried twice', async () => {
  const plan = planOf('halves', { a: { size: 2, retries: RETRIES }, b: { size: 2, retries: RETRIES } })
  await lab.store.create(plan)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await work(pilot, 4, EXIT_3)
  expect(await counts(plan.id)).toEqual({ a: { failed: 2 }, b: { failed: 2 } })
  const folder = mkdtempSync(join(tmpdir(), 'indraft-failpoint-'))
  try {
    enableFailpoints(folder)
    writeFileSync(join(folder, 'tasks.partRetried'), 'throw EIO')
    await expect(retry(plan.id, 'request-1')).rejects.toMatchObject({ code: 'EIO' })
    await lab.settle()
    expect(await counts(plan.id)).toEqual({ a: { queued: 2 }, b: { failed: 2 } })
    expect(await retry(plan.id, 'request-1')).toEqual({ tasks: 2 })
  } finally {
    enableFailpoints(null)
    rmSync(folder, { recursive: true, force: true })
  }
  await work(pilot, 4)
  expect(await counts(plan.id)).toEqual({ a: { done: 2 }, b: { done: 2 } })
  await clean()
})

test('retry of a cancelled campaign - refused, for cancelled is for ever', async () => {
  const plan = planOf('gone', { a: { retries: RETRIES } })
  await lab.store.create(plan)
  await lab.store.setDesired(plan.id, 'cancelled')
  await expect(retry(plan.id, 'request-1')).rejects.toMatchObject({ code: 'request.invalid', path: 'campaign' })
})
