import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { silentLog } from '../shared/log.ts'
import { pack } from '../shared/protocol/codec.ts'
import type { Result } from '../shared/protocol/messages.ts'
import { sampleResult } from '../test/sample-messages.ts'
import { Journal } from './journal.ts'
import { Outgoing } from './outgoing.ts'

const result = (index: number, more: Partial<Result> = {}): Result => ({ ...sampleResult, index, ...more })
const failed: Partial<Result> = { end: 'failed', reason: 'node.lost', outputs: [] }

let folder: string
let journal: Journal
let outgoing: Outgoing
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-outgoing-'))
  open()
})
afterEach(() => {
  journal.close()
  rmSync(folder, { recursive: true, force: true })
})

function open(): void {
  journal = Journal.open(join(folder, 'journal.sqlite'), silentLog, (error) => {
    throw error
  })
  outgoing = new Outgoing(journal)
  outgoing.onAdded = (one) => outgoing.makeReady(one)
}

/** Whatever is in the journal's file by now. */
function overwrite(index: number, body: Uint8Array): void {
  const database = new DatabaseSync(join(folder, 'journal.sqlite'))
  const { changes } = database.prepare('UPDATE result SET body = ? WHERE attempt LIKE ?').run(body, `%/${index}/%`)
  database.close()
  expect(changes).toBe(1)
}
const waiting = () => outgoing.batch(100).map(({ index }) => index)

it('outgoing - what goes up is read from the journal, once it is there', async () => {
  for (const index of [3, 1, 2]) outgoing.add(result(index))
  expect(waiting()).toEqual([3, 1, 2])
  await journal.committed()
  overwrite(1, pack(result(1, { wallMs: 987_654 })))
  expect(outgoing.batch(100).map(({ wallMs }) => wallMs === 987_654)).toEqual([false, true, false])
})

it('outgoing - one that cannot be read any more holds up none of the others', async () => {
  for (const index of [1, 2, 3]) outgoing.add(result(index))
  await journal.committed()
  overwrite(2, Buffer.from([0xc1]))
  expect(waiting()).toEqual([1, 3])
  expect([outgoing.waiting, outgoing.ready]).toEqual([2, 2])
  expect(journal.hasLost).toBe(true)
})

it('outgoing - a success that is lost, or cannot go up as one, keeps no other of its task from going up', async () => {
  const [above] = sampleResult.fences
  const other = (index: number) => result(index, { fences: [above!, 77] })
  let lost = 0
  outgoing.onLost = () => lost++
  for (const index of [1, 2]) outgoing.add(result(index))
  await journal.committed()
  overwrite(1, Buffer.from([0xc1]))
  expect([1, 2].map((index) => outgoing.isWonByOther(other(index)))).toEqual([true, true])
  expect(waiting()).toEqual([2])
  expect(lost).toBe(1)
  expect([1, 2].map((index) => outgoing.isWonByOther(other(index)))).toEqual([false, true])
  outgoing.onAdded = (one) => outgoing.makeReady(one, { ...one, ...failed, reason: 'stage.outFailed' })
  outgoing.add(result(3))
  expect(outgoing.isWonByOther(other(3))).toBe(false)
})

it('outgoing - a success after a failure of the same attempt goes up too, though the failure is under way', async () => {
  outgoing.add(result(1, failed))
  const [underWay] = outgoing.batch(1)
  outgoing.add(result(1))
  await journal.committed()
  outgoing.settle(underWay!)
  expect(outgoing.batch(10).map(({ end }) => end)).toEqual(['done'])
  outgoing.settle(result(1))
  expect([outgoing.waiting, outgoing.ready]).toEqual([0, 0])
  expect(outgoing.knows(result(1, failed))).toBe(true)
})

it('outgoing - over a restart results wait in their order, and their successes still win', async () => {
  for (const index of [2, 1]) outgoing.add(result(index))
  journal.close()
  open()
  expect([...outgoing.attempts].map((attempt) => attempt.split('/')[2])).toEqual(['2', '1'])
  const [above] = sampleResult.fences
  expect(outgoing.isWonByOther(result(2, { fences: [above!, 77] }))).toBe(true)
  expect(outgoing.isWonByOther(result(2, { fences: [above! + 1, 77] }))).toBe(false)
  for (const attempt of [...outgoing.attempts]) outgoing.makeReady(outgoing.unready(attempt)!)
  expect(waiting()).toEqual([2, 1])
})
