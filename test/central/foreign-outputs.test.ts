/** A site reports what it likes of its own attempts; files of other attempts, and of other groups, it opens to nobody. */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { outputHandlers } from '../../central/api/outputs.ts'
import { AttemptFiles, attemptFolder } from '../../shared/files/attempt-files.ts'
import { pack } from '../../shared/protocol/codec.ts'
import type { OutputRecord, Result } from '../../shared/protocol/messages.ts'
import { digestOf } from '../../shared/signing.ts'
import { TestHolder } from './store-holder.ts'
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
