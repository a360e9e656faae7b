/** The life of campaigns in the store, over a real Redis: what holders do, and what the invariants say after each step. */
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest'
import { attemptPath } from '../../shared/ids.ts'
import { unpack } from '../../shared/protocol/codec.ts'
import type { OutputRecord, Result } from '../../shared/protocol/messages.ts'
import type { Manifest } from '../../shared/protocol/work.ts'
import { countRanges, indices, parseRanges } from '../../shared/ranges.ts'
import { digestOf, importKeys, verifyBundle, verifyTemplate } from '../../shared/signing.ts'
import { testSigner } from '../sample-messages.ts'
import { EXIT_3, NODE_LOST, TestHolder } from './store-holder.ts'
import { GROUP, openStoreLab, planOf, type StoreLab, startRedisForTests } from './store-lab.ts'

let redis: { url: string; stop(): Promise<void> }
let lab: StoreLab
beforeAll(async () => {
  redis = await startRedisForTests()
})
afterAll(() => redis.stop())
beforeEach(async () => {
  lab = await openStoreLab(redis.url, { timeScale: 0.1 })
})
afterEach(() => lab.end())

const clean = async () => expect(await lab.store.verify()).toEqual([])
const view = async (id: string) => (await lab.store.find(id, [GROUP]))!
const counts = async (id: string, step: string) =>
  Object.fromEntries(
    Object.entries((await view(id)).steps.find((one) => one.name === step)!.counts).filter(([, count]) => count > 0),
  )

/** Puts an output where the centre keeps it, as the file service does. */
function store(result: Result, path: string, content: string): OutputRecord {
  const place = `${attemptPath(result as never)}/${path}`
  const file = join(lab.folder, 'outputs', 'attempt', place)
  mkdirSync(dirname(file), { recursive: true })
  writeFileSync(file, content)
  return { path, sizeBytes: content.length, checksum: digestOf(Buffer.from(content)), url: `store:${place}` }
}

test('story - two steps, a failure retried, a merge released with a manifest, outputs published', async () => {
  const plan = planOf('story', {
    run: { size: 50, outputs: [{ path: 'out.txt', url: null, optional: false }] },
    merge: {
      size: 1,
      after: [{ step: 'run' as never, accept: 0.9 }],
      inputs: [{ url: null, from: 'run', output: 'out.txt', path: 'in/', list: null, checksum: null }],
    },
  })
  expect(await lab.store.create(plan)).toEqual({ created: true })
  expect(await counts(plan.id, 'run')).toEqual({ blocked: 50 })
  await clean()
  await lab.settle()
  expect(await counts(plan.id, 'run')).toEqual({ queued: 50 })
  expect(await counts(plan.id, 'merge')).toEqual({ blocked: 1 })
  await clean()

  const pilot = await new TestHolder(lab.dispatcher).hello()
  const first = await pilot.pull(8)
  expect(first.grants).toHaveLength(8)
  const keys = importKeys(testSigner.keys)
  const body = verifyBundle(first.grants[0]!.bundle, keys, Date.now())
  expect(body).toMatchObject({ campaign: plan.id, step: 'run', site: 'ALPHA', rows: null, manifests: {} })
  expect(verifyTemplate(first.templates[0]!, keys).command).toEqual(plan.steps[0]!.template.command)
  expect(await counts(plan.id, 'run')).toEqual({ queued: 42, assigned: 8 })
  await clean()
  await pilot.startAll()
  expect(await counts(plan.id, 'run')).toEqual({ queued: 42, running: 8 })
  await clean()

  const [unlucky, ...others] = pilot.allResults()
  const withOutput = (result: Result): Result => ({ ...result, outputs: [store(result, 'out.txt', `${result.index}`)] })
  const reply = await pilot.pull(0, { finished: [{ ...unlucky!, ...EXIT_3 }, ...others.map(withOutput)] })
  expect(reply.verdicts.map((one) => one.verdict)).toEqual(Array(8).fill('accepted'))
  expect(await counts(plan.id, 'run')).toEqual({ queued: 43, done: 7 })
  expect((await view(plan.id)).failures).toEqual([{ step: 'run', reason: 'payload.exit', detail: 'exit 3', count: 1 }])
  await clean()

  await vi.waitFor(async () => {
    await lab.settle()
    await pilot.pull(8)
    await pilot.startAll()
    const results = pilot.allResults()
    if (results.length > 0) await pilot.verdicts(results.map(withOutput))
    await clean()
    expect(await counts(plan.id, 'run')).toEqual({ done: 50 })
  }, 30_000)
  await lab.settle()
  expect(await counts(plan.id, 'merge')).toEqual({ queued: 1 })
  await clean()

  const merge = await pilot.pull(1)
  const mergeBody = verifyBundle(merge.grants[0]!.bundle, keys, Date.now())
  const digest = mergeBody.manifests['0']!.replace('sha256:', '')
  const manifest = unpack(readFileSync(join(lab.folder, 'blobs', digest.slice(0, 2), digest))) as Manifest
  expect(manifest.entries).toHaveLength(50)
  expect(manifest.entries[0]).toMatchObject({ index: 0, output: 'out.txt', sizeBytes: 1 })
  await pilot.verdicts(pilot.allResults())
  await lab.settle()
  expect(await view(plan.id)).toMatchObject({ state: 'done', desired: 'run', endedAtMs: expect.any(Number) })
  await clean()

  const retried = (await lab.store.task(plan.id, 'run', unlucky!.index))!
  expect(retried).toMatchObject({ state: 'done', attempts: 2, site: 'ALPHA' })
  expect(retried.history.map((one) => one.end)).toEqual(['failed', 'done'])
  expect(retried.history[0]).toMatchObject({ reason: 'payload.exit', exitCode: 3, tail: 'it failed' })
  const [output] = retried.outputs
  const kept = join(lab.folder, 'outputs', 'attempt', output!.url.slice('store:'.length))
  const published = join(lab.folder, 'outputs', 'published', plan.id, 'run', String(unlucky!.index), 'out.txt')
  expect(statSync(published).ino).toBe(statSync(kept).ino)
})

test('create - the same content again is the same campaign, other content is refused', async () => {
  const plan = planOf('once', { a: { size: 2 } })
  expect(await Promise.all([lab.store.create(plan), lab.store.create(plan)])).toContainEqual({ created: true })
  expect(await lab.store.create(plan)).toEqual({ created: false })
  await expect(lab.store.create(planOf('once', { a: { size: 3 } }))).rejects.toMatchObject({
    code: 'campaign.conflict',
  })
  expect(await lab.store.find('once', [GROUP])).toMatchObject({ id: plan.id, name: 'once' })
  expect(await lab.store.find('once', ['/other'])).toBeNull()
  expect(await lab.store.find(plan.id, ['/other'])).toBeNull()
  expect(await lab.store.source(plan.id)).toBe('name: once\n')
})

test('create - a name that has the id of a campaign of another group is refused, and that campaign goes on', async () => {
  const theirs = planOf('theirs', { a: {} })
  await lab.store.create(theirs)
  await lab.settle()
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(1)
  const again = await lab.reopen()
  const found = planOf('found by trying', { a: {} }, { group: '/other', id: theirs.id })
  await expect(again.store.create(found)).rejects.toMatchObject({
    code: 'campaign.conflict',
    message: expect.stringContaining('choose another name'),
  })
  expect(await again.store.create(theirs)).toEqual({ created: false })
  expect(await again.store.list(['/other'])).toEqual([])
  // At a centre that knows of the campaign only what the store says.
  const elsewhere = await new TestHolder(again.dispatcher, { name: 'p2' }).hello()
  expect(await elsewhere.verdicts(pilot.allResults())).toEqual(['accepted'])
  expect(await counts(theirs.id, 'a')).toEqual({ done: 1 })
  await clean()
})

test('store - a name that two groups use is not guessed: the group or the id decides', async () => {
  const here = planOf('twice', { only: { size: 1 } })
  const there = planOf('twice', { only: { size: 1 } }, { group: '/other' })
  await lab.store.create(here)
  await lab.store.create(there)
  await expect(lab.store.find('twice', [GROUP, '/other'])).rejects.toMatchObject({
    code: 'request.ambiguous',
    message: expect.stringContaining(there.id),
  })
  expect(await lab.store.find('twice', [GROUP])).toMatchObject({ id: here.id })
  expect(await lab.store.find('/other/twice', [GROUP, '/other'])).toMatchObject({ id: there.id })
  expect(await lab.store.find('/other/twice', [GROUP])).toBeNull()
})

test('steps - one whose share is not reached skips what follows, and the campaign ends', async () => {
  const plan = planOf('skipping', {
    a: { size: 3, retries: { payload: 0, infrastructure: 0, holdExitCodes: [], exhausted: 'failed' } },
    b: { size: 5, after: [{ step: 'a' as never, accept: 1 }] },
    c: { size: 3, after: [{ step: 'b' as never, accept: 0.5 }] },
  })
  await lab.store.create(plan)
  await lab.settle()
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(3)
  const [bad, ...good] = pilot.allResults()
  await pilot.verdicts([{ ...bad!, ...EXIT_3 }, ...good])
  await lab.settle()
  expect(await counts(plan.id, 'a')).toEqual({ done: 2, failed: 1 })
  expect(await counts(plan.id, 'b')).toEqual({ skipped: 5 })
  expect(await counts(plan.id, 'c')).toEqual({ skipped: 3 })
  expect((await view(plan.id)).state).toBe('done with failures')
  await clean()
})

test.each([
  ['payload credit used up', EXIT_3, 2, {}, 'failed'],
  ['infrastructure credit used up', NODE_LOST, 4, {}, 'failed'],
  ['used up where a person shall decide', EXIT_3, 2, { exhausted: 'held' as const }, 'held'],
  ['an exit code that waits for a person', EXIT_3, 1, { holdExitCodes: [3] }, 'held'],
  ['an end that no retry can help', { ...EXIT_3, reason: 'payload.noCommand' as const }, 1, {}, 'failed'],
])('retries - %s', async (_title, end, attempts, change, state) => {
  const plan = planOf('retried', {
    a: { retries: { payload: 1, infrastructure: 3, holdExitCodes: [], exhausted: 'failed', ...change } },
  })
  await lab.store.create(plan)
  const pilot = await new TestHolder(lab.dispatcher).hello()
  for (let attempt = 1; attempt <= attempts; attempt++) {
    await vi.waitFor(async () => {
      await lab.settle()
      const { grants } = await pilot.pull(1)
      expect(grants).toHaveLength(1)
      expect(grants[0]!.tries).toEqual(attempt === 1 ? {} : { '0': attempt - 1 })
    }, 30_000)
    expect(await pilot.verdicts(pilot.allResults(end))).toEqual(['accepted'])
    await clean()
  }
  expect(await counts(plan.id, 'a')).toEqual({ [state]: 1 })
  const task = (await lab.store.task(plan.id, 'a', 0))!
  expect(task.attempts).toBe(attempts)
  expect(task.history).toHaveLength(attempts)
})

test('cancel - what waits is over at once, what runs is ordered to end, and then all is over', async () => {
  const plan = planOf('cancelled', {
    a: { size: 301, retries: { payload: 1, infrastructure: 3, holdExitCodes: [3], exhausted: 'failed' } },
    b: { size: 7, after: [{ step: 'a' as never, accept: 1 }] },
  })
  await lab.store.create(plan)
  await lab.settle()
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(6)
  await pilot.startAll()
  const [held, retried, ...rest] = pilot.allResults()
  await pilot.verdicts([
    { ...held!, ...EXIT_3 },
    { ...retried!, ...NODE_LOST },
  ])
  for (const result of rest) pilot.leases.set(result.bundle, { ...result, tasks: `${result.index}` })
  expect(await counts(plan.id, 'a')).toEqual({ queued: 296, held: 1, running: 4 })
  expect(await lab.store.setDesired(plan.id, 'cancelled')).toMatchObject({ desired: 'cancelled', desiredVersion: 2 })
  await lab.settle()
  expect(await counts(plan.id, 'a')).toEqual({ cancelled: 297, running: 4 })
  expect(await counts(plan.id, 'b')).toEqual({ cancelled: 7 })
  expect((await view(plan.id)).state).toBe('cancelling')
  await clean()
  expect((await pilot.beat()).orders).toEqual([{ kind: 'campaign.cancel', campaign: plan.id, version: 2 }])
  const [winner, failed, cancelled, late] = pilot.allResults()
  const verdicts = await pilot.verdicts([
    winner!,
    { ...failed!, ...NODE_LOST },
    { ...cancelled!, end: 'failed', reason: 'attempt.cancelled' },
    { ...late!, end: 'failed', reason: 'attempt.cancelled' },
  ])
  expect(verdicts).toEqual(Array(4).fill('accepted'))
  await lab.settle()
  expect(await counts(plan.id, 'a')).toEqual({ cancelled: 300, done: 1 })
  expect((await view(plan.id)).state).toBe('cancelled')
  await clean()
  await expect(lab.store.setDesired(plan.id, 'run')).rejects.toMatchObject({ code: 'request.invalid' })
})

test('pause - nothing more is granted until it is resumed, what runs goes on', async () => {
  const plan = planOf('paused', { a: { size: 4 } })
  await lab.store.create(plan)
  await lab.settle()
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(1)
  await lab.store.setDesired(plan.id, 'paused')
  expect(await pilot.pull(1)).toMatchObject({ grants: [] })
  expect((await pilot.beat()).orders).toEqual([])
  expect(await pilot.verdicts(pilot.allResults())).toEqual(['accepted'])
  await lab.store.setDesired(plan.id, 'run')
  expect((await pilot.pull(8)).grants).toHaveLength(3)
  await clean()
})

test('limits - a campaign and a group run no more than they may', async () => {
  const limited = planOf('limited', { a: { size: 20 } }, { maxRunning: 3 })
  await lab.store.create(limited)
  await lab.store.create(planOf('free', { a: { size: 20 } }))
  await lab.settle()
  const pilot = await new TestHolder(lab.dispatcher).hello()
  expect((await pilot.pull(8)).grants.filter(({ lease }) => lease.campaign === limited.id)).toHaveLength(3)
  await lab.setGroup(GROUP, { maxRunning: 10 })
  expect((await pilot.pull(8)).grants).toHaveLength(2)
  expect(await pilot.pull(8)).toMatchObject({ grants: [], reason: 'limits' })
  await clean()
})

test('groups - each has its own keys, and a pull may take from several', async () => {
  await lab.store.create(planOf('one', { a: { size: 20 } }))
  await lab.store.create(planOf('two', { a: { size: 20 } }, { group: '/other {group}' }))
  await lab.settle()
  const pilot = await new TestHolder(lab.dispatcher).hello()
  const { grants } = await pilot.pull(8)
  expect(new Set(grants.map(({ lease }) => lease.campaign)).size).toBe(2)
  await pilot.startAll()
  expect(await pilot.verdicts(pilot.allResults())).toEqual(Array(8).fill('accepted'))
  await clean()
  expect((await lab.store.list(['*'])).map((one) => one.name).sort()).toEqual(['one', 'two'])
})

test('tables - a row travels with its task, whatever way it was bundled', async () => {
  const rows = Array.from({ length: 2500 }, (_, i) => ({ run: `r${i}` }))
  await lab.store.create(planOf('rows', { a: { size: 2500, rows } }))
  await lab.settle()
  const pilot = await new TestHolder(lab.dispatcher).hello()
  for (const grant of (await pilot.pull(20)).grants) {
    const body = verifyBundle(grant.bundle, importKeys(testSigner.keys), Date.now())
    expect(body.rows).toEqual([{ run: `r${body.tasks}` }])
  }
  // With run times known, bundles hold many tasks; one pull with room for fewer splits them.
  await pilot.verdicts(pilot.allResults())
  await lab.redis.hset(`indraft:{${GROUP}}:step:${(await lab.store.list([GROUP]))[0]!.id}:a`, 'wallMs', '2000')
  await vi.waitFor(async () => {
    await lab.settle()
    const { grants } = await pilot.pull(300)
    for (const grant of grants) {
      const body = verifyBundle(grant.bundle, importKeys(testSigner.keys), Date.now())
      expect(body.rows!.map((row) => row.run)).toEqual(
        [...Array(body.rows!.length).keys()].map((i) => `r${Number(body.tasks.split('-')[0]) + i}`),
      )
    }
    await pilot.verdicts(pilot.allResults()).catch(() => [])
    await clean()
    expect(grants.some(({ lease }) => lease.tasks.includes('-'))).toBe(true)
  }, 30_000)
})

test('compaction - results of 256 tasks leave Redis and can still be looked up, and duplicates are still known', async () => {
  const plan = planOf('many', { a: { size: 600 } })
  await lab.store.create(plan)
  await lab.work.start()
  const pilot = await new TestHolder(lab.dispatcher).hello()
  const all: Result[] = []
  await vi.waitFor(async () => {
    await pilot.pull(100)
    const results = pilot.allResults()
    all.push(...results)
    for (let i = 0; i < results.length; i += 50) await pilot.verdicts(results.slice(i, i + 50))
    expect(await counts(plan.id, 'a')).toEqual({ done: 600 })
  }, 30_000)
  await vi.waitFor(async () => {
    expect(await lab.redis.hlen(`indraft:{${GROUP}}:results:${plan.id}:a`)).toBe(0)
    expect(await lab.redis.hlen(`indraft:{${GROUP}}:blocks:${plan.id}:a`)).toBe(3)
  }, 30_000)
  expect(await lab.store.task(plan.id, 'a', 555)).toMatchObject({ state: 'done', node: 'n-p1', attempts: 1 })
  const page = await lab.store.tasks(plan.id, { state: 'done' }, null, 500)
  expect(page.rows).toHaveLength(500)
  expect((await lab.store.tasks(plan.id, { state: 'done' }, page.next, 500)).rows).toHaveLength(100)
  expect((await lab.store.tasks(plan.id, { site: 'BETA' }, null, 500)).rows).toEqual([])
  expect(await pilot.verdicts([all[0]!, { ...all[1]!, fences: [all[1]!.fences[0]! + 1] }])).toEqual([
    'duplicate',
    'stale',
  ])
  await clean()
})

test('verify - says in words what is wrong', async () => {
  const plan = planOf('broken', { a: { size: 10 } })
  await lab.store.create(plan)
  await lab.settle()
  const pilot = await new TestHolder(lab.dispatcher).hello()
  await pilot.pull(2)
  const base = `indraft:{${GROUP}}`
  await lab.redis.hincrby(`${base}:counts:${plan.id}:a`, 'queued', 1)
  await lab.redis.call('BITFIELD', `${base}:state:${plan.id}:a`, 'SET', 'u4', '#9', '4')
  await lab.redis.hset(`indraft:{site:ALPHA}:session:${pilot.holder.welcome!.session}`, 'state', 'dead')
  await lab.redis.hincrby(`${base}:use`, `leased:${plan.id}`, 3)
  await lab.redis.srem(`${base}:active`, plan.id)
  const findings = await lab.store.verify()
  expect(findings).toContainEqual({
    invariant: 'limits go by what is leased',
    where: plan.id,
    found: '5 tasks in use',
    expected: '2',
  })
  const invariants = findings.map((finding) => `${finding.invariant}: ${finding.where}`)
  expect(invariants).toEqual(
    expect.arrayContaining([
      `counts are those of the tasks: ${plan.id}/a queued`,
      `queued tasks are those that wait: ${plan.id}/a`,
      `a done task has one winning result: ${plan.id}/a/9`,
      expect.stringContaining('every lease has a holder: '),
      `limits go by what is leased: ${GROUP}`,
      `a campaign that is not over is looked at: ${plan.id}`,
    ]),
  )
})

test('views - holders, pilots behind a relay, shapes of sites', async () => {
  const relay = await new TestHolder(lab.dispatcher, { name: 'relay-1', role: 'relay' }).hello()
  const { fences: _none, ...digest } = { count: 0, digest: 'none', fences: [] }
  await relay.beat({
    held: digest,
    gauges: { pilots: 1 },
    counters: { done: 5 },
    pilots: [{ pilot: 'p9', node: 'n9', state: 'active', cores: 8, coresBusy: 3, running: 3, upMs: 1000, code: null }],
  })
  await new TestHolder(lab.dispatcher, { name: 'p1' }).hello()
  const holders = await lab.store.holders()
  expect(holders.map((one) => [one.holder, one.role, one.state])).toEqual(
    expect.arrayContaining([
      ['relay-1', 'relay', 'active'],
      ['p1', 'pilot', 'active'],
    ]),
  )
  expect(holders.find((one) => one.holder === 'relay-1')).toMatchObject({
    gauges: { pilots: 1 },
    counters: { done: 5 },
  })
  expect((await lab.store.pilots()).map((one) => [one.pilot, one.relay, one.node])).toEqual(
    expect.arrayContaining([
      ['p9', 'relay-1', 'n9'],
      ['p1', null, 'n-p1'],
    ]),
  )
  expect(await lab.store.siteShapes()).toMatchObject([{ site: 'ALPHA', shapes: [{ cores: 8 }] }])
})

test('tasks - a running task says on which node it runs, for as long as its lease lasts', async () => {
  const plan = planOf('nodes', { a: { size: 400 } })
  await lab.store.create(plan)
  const relay = await new TestHolder(lab.dispatcher, { name: 'relay-1', role: 'relay' }).hello()
  const lease = await vi.waitFor(async () => {
    await lab.settle()
    await relay.pull(8)
    const large = [...relay.leases.values()].find((one) => countRanges(parseRanges(one.tasks)) >= 4)
    if (!large) await relay.verdicts(relay.allResults())
    expect(large).toBeDefined()
    return large!
  }, 30_000)
  const [first, second, third, fourth] = [...indices(parseRanges(lease.tasks))] as [number, number, number, number]
  const started = (index: number, node?: string) => ({ ...lease, tasks: `${index}`, ...(node && { node }) })
  const running = async () =>
    (await lab.store.tasks(plan.id, { state: 'running' }, null, 100)).rows.map((row) => [row.index, row.site, row.node])

  await relay.beat({ started: [started(first, 'n1'), started(second, 'n2')] })
  // A relay of before does not say where.
  await relay.beat({ started: [started(third, 'n1'), started(fourth)] })
  await relay.beat({ started: [started(first, 'n1')] })
  expect(await running()).toEqual([
    [first, 'ALPHA', 'n1'],
    [second, 'ALPHA', 'n2'],
    [third, 'ALPHA', 'n1'],
    [fourth, 'ALPHA', null],
  ])
  expect(await lab.store.task(plan.id, 'a', second)).toMatchObject({ state: 'running', node: 'n2' })
  await clean()

  await relay.verdicts([relay.result(lease, first, { node: 'n1' })])
  expect((await running()).map(([index]) => index)).toEqual([second, third, fourth])
  expect(await lab.store.task(plan.id, 'a', first)).toMatchObject({ state: 'done', node: 'n1' })
  await relay.holder.bye({ code: 600, reason: 'enough', returned: [] })
  expect(await running()).toEqual([])
  expect(await lab.redis.keys(`*:bundle:${lease.bundle}`)).toEqual([])
  await clean()
})
