import { mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { enableFailpoints } from '../shared/failpoint.ts'
import { silentLog } from '../shared/log.ts'
import type { Result } from '../shared/protocol/messages.ts'
import { Outbox } from './outbox.ts'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-outbox-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

function result(index: number, more: Partial<Result> = {}): Result {
  return {
    ...{ campaign: 'c1', step: 'sim', index, bundle: 'b1', fences: [5, 6], end: 'done', reason: null, detail: null },
    ...{ exitCode: 0, signal: null, site: 'here', node: 'n1', pilot: 'p1', wallMs: 1, cpuMs: 1, maxRssBytes: 0 },
    ...{ stageInMs: 0, stageOutMs: 0, outputs: [], stdoutBytes: 0, stderrBytes: 0, tail: null },
    ...more,
  }
}

const files = () => readdirSync(folder).filter((name) => name.endsWith('.json'))

test('outbox - results are on disk until each is acknowledged', async () => {
  const outbox = await Outbox.open(folder, silentLog)
  await Promise.all([outbox.add(result(0)), outbox.add(result(1))])
  expect(files()).toHaveLength(1)
  outbox.acknowledged([result(0), result(0), result(77)])
  expect([outbox.size, files().length]).toEqual([1, 1])
  outbox.acknowledged([result(1)])
  await expect.poll(files).toEqual([])
})

test('outbox - is read again by the next pilot, each attempt once', async () => {
  await (await Outbox.open(folder, silentLog)).add(result(0))
  const again = await Outbox.open(folder, silentLog)
  expect(again.batch(10, 1e6)).toEqual([result(0)])
  again.acknowledged([result(0)])
  await expect.poll(files).toEqual([])
})

test('outbox - torn, foreign and half-written files are put aside and lose nothing else', async () => {
  await (await Outbox.open(folder, silentLog)).add(result(3))
  writeFileSync(join(folder, 'a.json'), '[{"campaign":')
  writeFileSync(join(folder, 'b.json'), '[{"campaign":"c1"}]')
  writeFileSync(join(folder, 'c.json.tmp'), '[')
  const outbox = await Outbox.open(folder, silentLog)
  expect(outbox.batch(10, 1e6).map(({ index }) => index)).toEqual([3])
  expect(readdirSync(folder).filter((name) => name.endsWith('.bad'))).toEqual(['a.json.bad', 'b.json.bad'])
  expect(readdirSync(folder)).not.toContain('c.json.tmp')
})

test("outbox - a dead pilot's results are taken over", async () => {
  const other = join(folder, 'other')
  await (await Outbox.open(other, silentLog)).add(result(9))
  mkdirSync(join(folder, 'mine'))
  const outbox = await Outbox.open(join(folder, 'mine'), silentLog)
  await outbox.adopt(other)
  expect(outbox.batch(10, 1e6)).toEqual([result(9)])
  expect(readdirSync(other)).toEqual([])
})

test("outbox - a dead pilot's file that was set aside stays, and its folder with it", async () => {
  const other = join(folder, 'other')
  mkdirSync(other)
  writeFileSync(join(other, 'a.json'), '[{"campaign":')
  expect(await (await Outbox.open(other, silentLog)).isEmpty()).toBe(false)
  const outbox = await Outbox.open(join(folder, 'mine'), silentLog)
  expect(await outbox.adopt(other)).toBe(false)
  expect(readdirSync(other)).toEqual(['a.json.bad'])
  expect(await outbox.isEmpty()).toBe(true)
})

test('outbox - a file that cannot be read now is no damaged one: it stays, and the next pilot reads it', async () => {
  await (await Outbox.open(folder, silentLog)).add(result(4))
  const [name] = files() as [string]
  // EISDIR stands for whatever a disk says; root may read everything else.
  renameSync(join(folder, name), join(folder, 'kept'))
  mkdirSync(join(folder, name))
  const outbox = await Outbox.open(folder, silentLog)
  expect([outbox.size, await outbox.isEmpty(), files()]).toEqual([0, false, [name]])
  rmSync(join(folder, name), { recursive: true })
  renameSync(join(folder, 'kept'), join(folder, name))
  expect((await Outbox.open(folder, silentLog)).batch(1, 1e6)).toEqual([result(4)])
})

test('outbox - what is told in the place of a result changes nothing on disk until somebody has taken it', async () => {
  const outbox = await Outbox.open(folder, silentLog)
  await outbox.add(result(0))
  expect(outbox.tellInstead(result(0, { end: 'failed', reason: 'node.fault' }))).toBe(true)
  expect(outbox.tellInstead(result(0, { end: 'failed', reason: 'node.fault' }))).toBe(false)
  expect(outbox.batch(9, 1e6).map(({ end }) => end)).toEqual(['failed'])
  // A next pilot, to which another dispatcher may listen, tells it as it was.
  expect((await Outbox.open(folder, silentLog)).batch(9, 1e6)).toEqual([result(0)])
  outbox.acknowledged([result(0)])
  await expect.poll(files).toEqual([])
})

test('outbox - a result that is set aside is told no more and can be read; those of its file stay', async () => {
  const outbox = await Outbox.open(folder, silentLog)
  await Promise.all([outbox.add(result(0)), outbox.add(result(1))])
  outbox.tellInstead(result(0, { end: 'failed', reason: 'node.fault' }))
  await outbox.setAside(result(0))
  expect([outbox.batch(9, 1e6), files().length]).toEqual([[result(1)], 1])
  const [bad] = readdirSync(folder).filter((name) => name.endsWith('.bad')) as [string]
  expect(JSON.parse(readFileSync(join(folder, bad), 'utf8'))).toEqual([result(0)])
  outbox.acknowledged([result(1)])
  await expect.poll(files).toEqual([])
  expect([outbox.bytes, await outbox.isEmpty()]).toEqual([0, false])
})

test('outbox - a result that is set aside where the disk refuses stays in the file that it is in', async () => {
  const outbox = await Outbox.open(folder, silentLog)
  await outbox.add(result(0))
  const armed = join(folder, 'armed')
  mkdirSync(armed)
  enableFailpoints(armed)
  writeFileSync(join(armed, 'outbox.writing'), 'throw ENOSPC')
  await outbox.setAside(result(0))
  enableFailpoints(null)
  const trouble = outbox.trouble
  // Whatever was begun on the disk before is done then.
  expect(await outbox.mend()).toBe(true)
  expect([outbox.size, outbox.bytes, files().length, trouble]).toEqual([0, 0, 1, expect.stringContaining('ENOSPC')])
})

test('outbox - a batch keeps the order and both bounds, and is never empty while there is something', async () => {
  const outbox = await Outbox.open(folder, silentLog)
  for (let i = 0; i < 5; i++) await outbox.add(result(i, { tail: 'x'.repeat(1000), end: 'failed' }))
  expect(outbox.batch(2, 1e6).map(({ index }) => index)).toEqual([0, 1])
  expect(outbox.batch(10, 3500).map(({ index }) => index)).toEqual([0, 1])
  expect(outbox.batch(10, 1).map(({ index }) => index)).toEqual([0])
})

test('outbox - a full disk is said, and the result is reported all the same', async () => {
  const outbox = await Outbox.open(folder, silentLog)
  rmSync(folder, { recursive: true })
  writeFileSync(folder, 'a file in its place')
  await outbox.add(result(0))
  expect(outbox.batch(1, 1)).toHaveLength(1)
  outbox.acknowledged([result(0)])
  expect(outbox.size).toBe(0)
})

test('outbox - of a torn file the whole results are kept, under a name of their own', async () => {
  writeFileSync(join(folder, 'a.json'), JSON.stringify([result(1), { campaign: 'c1' }, result(2)]))
  const outbox = await Outbox.open(folder, silentLog)
  expect(outbox.batch(10, 1e6).map(({ index }) => index)).toEqual([1, 2])
  expect(readdirSync(folder)).toContain('a.json.bad')
  const again = await Outbox.open(folder, silentLog)
  expect(again.size).toBe(2)
  again.acknowledged([result(1), result(2)])
  await expect.poll(files).toEqual([])
})

test('outbox - a refusal of the disk is said until it takes as much again, and what waited is written then', async () => {
  const outbox = await Outbox.open(folder, silentLog)
  const armed = join(folder, 'armed')
  mkdirSync(armed)
  enableFailpoints(armed)
  writeFileSync(join(armed, 'outbox.writing'), 'throw ENOSPC')
  await outbox.add(result(0))
  expect([outbox.trouble, outbox.unwritten, outbox.size]).toEqual([expect.stringContaining('ENOSPC'), 1, 1])
  writeFileSync(join(armed, 'outbox.writing'), 'throw EROFS')
  expect(await outbox.mend()).toBe(false)
  expect(outbox.trouble).toContain('EROFS')
  expect(await outbox.mend()).toBe(true)
  expect([outbox.trouble, outbox.unwritten, files().length]).toEqual([null, 0, 1])
  expect(outbox.bytes).toBeGreaterThan(0)
  outbox.acknowledged([result(0)])
  expect(outbox.bytes).toBe(0)
  enableFailpoints(null)
  await expect.poll(files).toEqual([])
})
