/**
 * A centre that dies half-way, at each named moment of submit, pause, cancel, release, feed, grant, result, the end of a
 * session, publishing and compaction: whoever comes next goes on where it was, and nothing is done twice. Dying is an
 * error thrown at that moment: what is in the store then is what a killed process leaves.
 */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest'
import type { OpenStore } from '../../central/leases/open.ts'
import { enableFailpoints, type Failpoint } from '../../shared/failpoint.ts'
import { attemptPath, type StepName } from '../../shared/ids.ts'
import type { OutputRecord, Result } from '../../shared/protocol/messages.ts'
import { digestOf } from '../../shared/signing.ts'
import { EXIT_3, TestHolder } from './store-holder.ts'
import { GROUP, openStoreLab, planOf, type StoreLab, startRedisForTests } from './store-lab.ts'

let redis: { url: string; stop(): Promise<void> }
let failpoints: string
let lab: StoreLab
/** Another process on the same store: it knows only what is written. */
let next: OpenStore
beforeAll(async () => {
  redis = await startRedisForTests()
})
afterAll(() => redis.stop())
beforeEach(async () => {
  failpoints = mkdtempSync(join(tmpdir(), 'indraft-half-way-'))
  enableFailpoints(failpoints)
  lab = await openStoreLab(redis.url, { timeScale: 0.06 })
  next = await lab.reopen()
})
afterEach(async () => {
  enableFailpoints(null)
  await lab.end()
  rmSync(failpoints, { recursive: true, force: true })
})

const base = `indraft:{${GROUP}}`
const clean = async () => expect(await next.store.verify()).toEqual([])
const view = async (id: string) => (await next.store.find(id, [GROUP]))!
const counts = async (id: string, step = 'a') => {
  const { counts } = (await view(id)).steps.find(({ name }) => name === step)!
  return Object.fromEntries(Object.entries(counts).filter(([, count]) => count > 0))
}
const after = (step: string) => [{ step: step as StepName, accept: 1 }]

/** Whoever passes the moment next dies there. */
function arm(moment: Failpoint): void {
  writeFileSync(join(failpoints, moment), 'throw EIO')
}
const isDead = () => readdirSync(failpoints).some((name) => name.includes('.hit.'))

/** Whoever does this dies at the moment; a sweep says so and has done nothing more for that campaign. */
async function diesAt(moment: Failpoint, doing: () => Promise<unknown>): Promise<void> {
  arm(moment)
  await doing().catch((error) => expect(error).toMatchObject({ code: 'EIO' }))
  expect(isDead()).toBe(true)
}

/** Asks the first process until it is dead, then the next. */
async function pilotOf(name = 'p1'): Promise<TestHolder> {
  const whoever = new Proxy(lab.dispatcher, {
    get: (_, method: keyof typeof lab.dispatcher) => {
      const { dispatcher } = isDead() ? next : lab
      return dispatcher[method].bind(dispatcher)
    },
  })
  return new TestHolder(whoever, { name }).hello()
}

/** A campaign of one step, queued. */
async function seed(size: number) {
  const plan = planOf('half', { a: { size } })
  await lab.store.create(plan)
  await lab.settle()
  return plan.id
}

test('submit - dead before the campaign exists: it does not; sent again it does', async () => {
  const plan = planOf('half', { a: { size: 3 } })
  await diesAt('campaign.written', () => lab.store.create(plan))
  expect(await next.store.find(plan.id, [GROUP])).toBeNull()
  expect(await next.store.list([GROUP])).toEqual([])
  await next.work.sweep()
  expect(await next.store.create(plan)).toEqual({ created: true })
  await next.work.sweep()
  expect(await counts(plan.id)).toEqual({ queued: 3 })
  await clean()
})

test('submit - dead before it was answered: sent again it is the same campaign, and nobody had to ask for its tasks', async () => {
  const plan = planOf('half', { a: { size: 3 } })
  await diesAt('campaign.created', () => lab.store.create(plan))
  await next.work.sweep()
  expect(await counts(plan.id)).toEqual({ queued: 3 })
  expect(await next.store.create(plan)).toEqual({ created: false })
  expect(await counts(plan.id)).toEqual({ queued: 3 })
  await clean()
})

test.each(['step.prepared', 'step.partReleased'] as const)(
  'release - dead at %s: the rest is released, nothing twice',
  async (moment) => {
    // More than one script releases.
    const plan = planOf('half', { a: { size: 262_144 + 11 } })
    await lab.store.create(plan)
    await diesAt(moment, () => lab.work.sweep())
    const released = moment === 'step.prepared' ? 0 : 262_144
    expect((await counts(plan.id)).queued ?? 0).toBe(released)
    await next.work.sweep()
    expect(await counts(plan.id)).toEqual({ queued: 262_144 + 11 })
    const pilot = await new TestHolder(next.dispatcher).hello()
    expect((await pilot.pull(5)).grants).toHaveLength(5)
    await clean()
  },
)

test('feed - dead between retries and ready tasks: each is bundled once', async () => {
  const id = await seed(3)
  const pilot = await pilotOf()
  await pilot.pull(2)
  await pilot.verdicts(pilot.allResults(EXIT_3))
  // Due now.
  await lab.redis.zadd(`${base}:retry:${id}:a`, 'XX', 0, '0', 0, '1')
  await diesAt('retries.fed', () => lab.work.sweep())
  for (let i = 0; i < 2; i++) await next.work.sweep()
  await clean()
  const { grants } = await pilot.pull(8)
  expect(grants.map(({ lease }) => lease.tasks).sort()).toEqual(['0', '1', '2'])
  await clean()
})

test('grant - dead before the answer: the pull repeated gets the same leases, and no more', async () => {
  const id = await seed(9)
  const pilot = await pilotOf()
  arm('grant.persisted')
  expect((await pilot.pull(3)).grants).toHaveLength(3)
  expect(isDead()).toBe(true)
  expect(await counts(id)).toEqual({ queued: 6, assigned: 3 })
  expect(await pilot.verdicts(pilot.allResults())).toEqual(['accepted', 'accepted', 'accepted'])
  await clean()
})

test('result - dead before the answer: told again each is a duplicate, counted and charged once', async () => {
  const id = await seed(4)
  const pilot = await pilotOf()
  await pilot.pull(3)
  const [good, other, bad] = pilot.allResults()
  arm('results.persisted')
  expect(await pilot.verdicts([good!, other!, { ...bad!, ...EXIT_3 }])).toEqual(Array(3).fill('duplicate'))
  expect(isDead()).toBe(true)
  expect(await counts(id)).toEqual({ queued: 2, done: 2 })
  expect((await view(id)).failures).toMatchObject([{ count: 1 }])
  expect(await lab.redis.hget(`${base}:step:${id}:a`, 'wallCount')).toBe('2')
  expect(await next.store.task(id, 'a', bad!.index)).toMatchObject({ attempts: 1 })
  await clean()
})

test.each(['session.ended', 'lease.expired'] as const)(
  'end of a session - dead at %s: the sweep ends the leases that stand, each charged once',
  async (moment) => {
    const id = await seed(4)
    const pilot = await pilotOf()
    await pilot.pull(3)
    await pilot.startAll()
    const bye = { session: pilot.holder.welcome!.session, code: 700, reason: 'test', returned: [] }
    await diesAt(moment, () => lab.dispatcher.onBye({ site: 'ALPHA' }, bye))
    expect((await counts(id)).running).toBe(moment === 'session.ended' ? 3 : 2)
    await next.work.sweep()
    expect(await counts(id)).toEqual({ queued: 4 })
    for (const index of [0, 1, 2]) expect(await next.store.task(id, 'a', index)).toMatchObject({ attempts: 1 })
    await clean()
    // Nothing of it is left to be looked at for ever.
    expect(await lab.redis.smembers('indraft:{site:ALPHA}:sessions')).toEqual([])
  },
)

test('pause - dead before anybody was told: nothing more is granted, and it can be resumed', async () => {
  const id = await seed(4)
  await diesAt('campaign.desiredSet', () => lab.store.setDesired(id, 'paused'))
  const pilot = await pilotOf()
  expect(await pilot.pull(2)).toMatchObject({ grants: [] })
  expect(await next.store.setDesired(id, 'paused')).toMatchObject({ desired: 'paused', desiredVersion: 2 })
  expect(await next.store.setDesired(id, 'run')).toMatchObject({ desired: 'run', desiredVersion: 3 })
  expect((await pilot.pull(8)).grants).toHaveLength(4)
  await clean()
})

test.each(['campaign.desiredSet', 'campaign.partCancelled'] as const)(
  'cancel - dead at %s: the rest is cancelled by whoever looks next, what runs is ordered to end',
  async (moment) => {
    const plan = planOf('half', { a: { size: 5 }, b: { size: 3, after: after('a') } })
    await lab.store.create(plan)
    await lab.settle()
    const pilot = await pilotOf()
    await pilot.pull(2)
    await pilot.startAll()
    if (moment === 'campaign.desiredSet') await diesAt(moment, () => lab.store.setDesired(plan.id, 'cancelled'))
    else {
      await lab.store.setDesired(plan.id, 'cancelled')
      await diesAt(moment, () => lab.work.sweep())
    }
    expect(await counts(plan.id, 'b')).toEqual({ blocked: 3 })
    await next.work.sweep()
    expect(await counts(plan.id)).toEqual({ cancelled: 3, running: 2 })
    expect(await counts(plan.id, 'b')).toEqual({ cancelled: 3 })
    expect((await pilot.beat()).orders).toEqual([{ kind: 'campaign.cancel', campaign: plan.id, version: 2 }])
    await pilot.verdicts(pilot.allResults({ end: 'failed', reason: 'attempt.cancelled' }))
    await next.work.sweep()
    expect((await view(plan.id)).endedAtMs).not.toBeNull()
    await clean()
  },
)

/** Two outputs of a task: what the centre keeps, as its file service puts it there, and a file of a shared file system. */
function outputsOf(result: Result): OutputRecord[] {
  const place = `${attemptPath(result as never)}/kept.txt`
  const kept = join(lab.folder, 'outputs', 'attempt', place)
  const written = `${join(lab.folder, `shared-${result.index}.txt`)}.attempt-${result.fences[0]}`
  mkdirSync(dirname(kept), { recursive: true })
  for (const file of [kept, written]) writeFileSync(file, 'x')
  const about = { sizeBytes: 1, checksum: digestOf(Buffer.from('x')) }
  return [
    { ...about, path: 'shared.txt', url: pathToFileURL(written).href },
    { ...about, path: 'kept.txt', url: `store:${place}` },
  ]
}

test.each(['kept.txt', 'shared.txt'])(
  'publishing - dead after %s of two: all of every task get their names',
  async (first) => {
    const id = await seed(3)
    const pilot = await pilotOf()
    await pilot.pull(3)
    const inOrder = (outputs: OutputRecord[]) => (first === 'kept.txt' ? outputs.reverse() : outputs)
    await pilot.verdicts(pilot.allResults().map((result) => ({ ...result, outputs: inOrder(outputsOf(result)) })))
    const published = () => {
      const folder = join(lab.folder, 'outputs', 'published', id, 'a')
      return {
        'kept.txt': [0, 1, 2].filter((index) => isFile(join(folder, String(index), 'kept.txt'))),
        'shared.txt': [0, 1, 2].filter((index) => isFile(join(lab.folder, `shared-${index}.txt`))),
      }
    }
    const all = { 'kept.txt': [0, 1, 2], 'shared.txt': [0, 1, 2] }
    arm('output.published')
    await lab.work.sweep()
    expect(isDead()).toBe(true)
    expect(published()).not.toEqual(all)
    expect(published()).toMatchObject({ [first]: [0, 1, 2] })
    for (let i = 0; i < 3; i++) await next.work.sweep()
    expect(published()).toEqual(all)
    expect(await lab.redis.scard(`${base}:publish`)).toBe(0)
    await clean()
    rmSync(join(lab.folder, 'outputs/published', id, 'a/1/kept.txt'))
    expect(await next.store.verify()).toMatchObject([
      { invariant: "a winner's outputs are there", where: `${id}/a/1 kept.txt` },
    ])
  },
)

function isFile(path: string): boolean {
  try {
    return readFileSync(path, 'utf8') === 'x'
  } catch {
    return false
  }
}

test('compaction - dead with the block written: no result is lost, and it is written once more', async () => {
  const id = await seed(3)
  const pilot = await pilotOf()
  await pilot.pull(3)
  await pilot.verdicts(pilot.allResults())
  arm('block.written')
  await lab.work.start()
  await vi.waitFor(() => expect(isDead()).toBe(true), 30_000)
  await clean()
  await vi.waitFor(async () => {
    expect(await lab.redis.hlen(`${base}:results:${id}:a`)).toBe(0)
    expect(await lab.redis.hlen(`${base}:blocks:${id}:a`)).toBe(1)
  }, 30_000)
  await clean()
})
