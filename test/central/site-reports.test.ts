/**
 * A site reports what it likes of its own attempts: it opens no other's files by it, and holds up nobody else's work.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest'
import { outputHandlers } from '../../central/api/outputs.ts'
import { AttemptFiles, attemptFolder } from '../../shared/files/attempt-files.ts'
import { pack, unpack } from '../../shared/protocol/codec.ts'
import type { OutputRecord, Result } from '../../shared/protocol/messages.ts'
import type { Manifest } from '../../shared/protocol/work.ts'
import { digestOf, importKeys, verifyBundle } from '../../shared/signing.ts'
import { testSigner } from '../sample-messages.ts'
import { NODE_LOST, TestHolder } from './store-holder.ts'
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

const SECRET = 'of the other group'
const outputsDir = () => join(lab.folder, 'outputs')
const record = (path: string, url: string): OutputRecord => ({
  path,
  url,
  sizeBytes: SECRET.length,
  checksum: digestOf(Buffer.from(SECRET)),
})

/** An output where the centre keeps it, as its file service puts it there. */
function keep(result: Result, path: string): OutputRecord {
  const place = `${attemptFolder(result)}/${path}`
  const file = join(outputsDir(), 'attempt', place)
  mkdirSync(dirname(file), { recursive: true })
  writeFileSync(file, SECRET)
  return record(path, `store:${place}`)
}

/** A task of each group, in hand; the other group's is done, with an output. */
async function twoGroups() {
  const theirs = planOf('theirs', { a: {} }, { group: '/vo.example/other' })
  const mine = planOf('mine', { a: {} })
  const holder = await new TestHolder(lab.dispatcher).hello()
  for (const plan of [theirs, mine]) {
    await lab.store.create(plan)
    await lab.settle()
    await holder.pull(1)
  }
  const results = holder.allResults()
  const of = (id: string) => results.find(({ campaign }) => campaign === id)!
  const secret = keep(of(theirs.id), 'out.txt')
  expect(await holder.verdicts([{ ...of(theirs.id), outputs: [secret] }])).toEqual(['accepted'])
  await lab.settle()
  return { holder, mine, result: of(mine.id), secret }
}

const getOutput = (campaign: string, path: string) =>
  outputHandlers({ store: lab.store, attempts: new AttemptFiles(outputsDir()), logRetryMs: 1 }).getOutput(
    { params: { campaign, step: 'a', index: 0, '*': path }, query: {}, body: {} } as never,
    { subject: 'ada', groups: [GROUP], roles: ['read'] },
  )

test('outputs - a result that names a file of another attempt is refused, its own is taken', async () => {
  const { holder, mine, result, secret } = await twoGroups()
  const own = `store:${attemptFolder(result)}`
  const up = '../'.repeat(4)
  const tried = [
    secret,
    record('out.txt', `${own}/${up}${secret.url.slice('store:'.length)}`),
    record(`${up}out.txt`, `${own}/${up}out.txt`),
    record('out.txt', `${own}/other.txt`),
    record('out.txt', `${own}0/out.txt`),
    record('out.txt', 'store:'),
    // What later steps would fetch, wherever they run.
    record('out.txt', 'http://127.0.0.1/admin'),
    record('out.txt', 'file:///home/other/key'),
    record('out.txt', `file:///shared/out.txt.attempt-${result.fences[0]! + 1}`),
  ]
  for (const output of tried) expect(await holder.verdicts([{ ...result, outputs: [output] }])).toEqual(['refused'])
  await lab.settle()
  expect(existsSync(join(outputsDir(), 'published', mine.id))).toBe(false)
  await expect(getOutput(mine.id, 'out.txt')).rejects.toMatchObject({ code: 'request.notFound' })
  expect(await holder.verdicts([{ ...result, outputs: [keep(result, 'out.txt')] }])).toEqual(['accepted'])
  await lab.settle()
  expect(existsSync(join(outputsDir(), 'published', mine.id, 'a/0/out.txt'))).toBe(true)
  expect(await getOutput(mine.id, 'out.txt')).toMatchObject({ sizeBytes: SECRET.length })
  expect(await lab.store.verify()).toEqual([])
})

test('outputs - one that a centre of before took is neither published nor given out, and verify says so', async () => {
  const { holder, mine, result, secret } = await twoGroups()
  const base = `indraft:{${GROUP}}`
  expect(await holder.verdicts([result])).toEqual(['accepted'])
  const kept = keep(result, 'kept.txt')
  await lab.redis.hset(`${base}:results:${mine.id}:a`, '0', Buffer.from(pack({ ...result, outputs: [secret, kept] })))
  await lab.redis.sadd(`${base}:publish`, `${mine.id}|a|0`)
  await lab.settle()
  expect(await lab.redis.scard(`${base}:publish`)).toBe(0)
  expect(existsSync(join(outputsDir(), 'published', mine.id, 'a/0/out.txt'))).toBe(false)
  await expect(getOutput(mine.id, 'out.txt')).rejects.toMatchObject({ code: 'request.notFound' })
  expect(await getOutput(mine.id, 'kept.txt')).toMatchObject({ sizeBytes: SECRET.length })
  expect(await lab.store.verify()).toMatchObject([{ where: `${mine.id}/a/0 out.txt` }])
})

test('outputs - those that a centre of before took from anywhere are not given to later steps', async () => {
  const out = { path: 'out.txt', url: null, optional: true }
  const from = { url: null, from: 'a', output: 'out.txt', path: 'in/', list: null, checksum: null }
  const plan = planOf('old', {
    a: { size: 5, outputs: [out] },
    b: { after: [{ step: 'a' as never, accept: 1 }], inputs: [from] },
  })
  await lab.store.create(plan)
  await lab.settle()
  const holder = await new TestHolder(lab.dispatcher).hello()
  await holder.pull(5)
  const results = holder.allResults()
  expect(await holder.verdicts(results)).toEqual(Array(5).fill('accepted'))
  const fence = (index: number) => results.find((result) => result.index === index)!.fences[0]!
  const urls = [
    'http://127.0.0.1/admin',
    `file:///shared/1.txt.attempt-${fence(0)}`,
    `store:${plan.id}/a/0/${fence(0)}/out.txt`,
    `file:///shared/3.txt.attempt-${fence(3)}`,
    `store:${plan.id}/a/4/${fence(4)}/out.txt`,
  ]
  for (const result of results) {
    const old = { ...result, outputs: [record('out.txt', urls[result.index]!)] }
    await lab.redis.hset(`indraft:{${GROUP}}:results:${plan.id}:a`, String(result.index), Buffer.from(pack(old)))
  }
  await lab.settle()
  const { grants } = await holder.pull(1)
  const digest = verifyBundle(grants[0]!.bundle, importKeys(testSigner.keys), Date.now()).manifests['0']!.slice(7)
  const manifest = unpack(readFileSync(join(lab.folder, 'blobs', digest.slice(0, 2), digest))) as Manifest
  expect(manifest.entries.map(({ index, url }) => [index, url])).toEqual([
    [3, 'file:///shared/3.txt'],
    [4, urls[4]],
  ])
})

test('results - one that took longer than time itself holds up neither its own publishing nor what comes after it', async () => {
  const plan = planOf('long', { a: { size: 4 } })
  await lab.store.create(plan)
  await lab.settle()
  const holder = await new TestHolder(lab.dispatcher).hello()
  await holder.pull(4)
  const [first, second, third, fourth] = holder
    .allResults()
    .map((result) => ({ ...result, outputs: [keep(result, 'out.txt')] }))
  const most = Number.MAX_SAFE_INTEGER
  const endless = { wallMs: most, cpuMs: most, stageInMs: most, stageOutMs: most }
  expect(await holder.verdicts([{ ...first!, ...endless }, second!])).toEqual(['accepted', 'accepted'])
  await lab.settle()
  const yearMs = 366 * 24 * 3_600_000
  const [attempt] = (await lab.store.task(plan.id, 'a', first!.index))!.history
  expect(attempt).toMatchObject({ wallMs: yearMs, stageInMs: yearMs, stageOutMs: yearMs, cpuMs: yearMs * 100_000 })
  const [step] = (await lab.store.find(plan.id, [GROUP]))!.steps
  expect(step!.meanWallMs).toBeCloseTo((yearMs + second!.wallMs) / 2, 0)
  // As a centre of before may have left it.
  await lab.redis.hset(`indraft:{${GROUP}}:step:${plan.id}:a`, 'wallMs', (2n ** 63n - 1n).toString())
  expect(await holder.verdicts([third!, fourth!])).toEqual(['accepted', 'accepted'])
  await lab.settle()
  const isPublished = (index: number) => existsSync(join(outputsDir(), 'published', plan.id, 'a', `${index}/out.txt`))
  expect([0, 1, 2, 3].filter(isPublished)).toEqual([0, 1, 2, 3])
  expect(await lab.store.verify()).toEqual([])
})

test.each(['x|y', 'BETA'])('results - a site that calls itself %s is avoided under its own name', async (site) => {
  const plan = planOf('blame', { a: {} })
  lab.sites.set('BETA', { labels: {}, state: 'enabled' })
  await lab.store.create(plan)
  await lab.settle()
  const alpha = await new TestHolder(lab.dispatcher).hello()
  await alpha.pull(1)
  expect(await alpha.verdicts(alpha.allResults({ ...NODE_LOST, site }))).toEqual(['accepted'])
  const { history, site: last } = (await lab.store.task(plan.id, 'a', 0))!
  expect([last, history[0]!.site]).toEqual(['ALPHA', 'ALPHA'])
  await vi.waitFor(async () => {
    await lab.settle()
    expect(await lab.redis.smembers(`indraft:{${GROUP}}:queues`)).toEqual([`${plan.id}|a|class0000001|ALPHA`])
  }, 30_000)
  const beta = await new TestHolder(lab.dispatcher, { site: 'BETA' }).hello()
  await vi.waitFor(async () => expect((await beta.pull(1)).grants).toHaveLength(1), 30_000)
})
