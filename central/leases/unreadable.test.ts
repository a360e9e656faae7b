import { Writable } from 'node:stream'
import { pino } from 'pino'
import { beforeEach, expect, test } from 'vitest'
import { systemClock } from '../../shared/clock.ts'
import { Unreadable } from './unreadable.ts'

const STEP = { campaign: 'c', step: 's' }
let nowMs: number
let said: { msg: string; tasks?: string }[]
let reads: string[]
let isGone: boolean
let unreadable: Unreadable
beforeEach(() => {
  nowMs = 0
  said = []
  reads = []
  isGone = true
  const lines = new Writable({
    write(line, _encoding, done) {
      said.push(JSON.parse(String(line)))
      done()
    },
  })
  unreadable = new Unreadable({ ...systemClock, monotonicMs: () => nowMs }, pino({}, lines), 1)
})

const look = (of = STEP) =>
  unreadable.look('template', of, async (tasks) => {
    reads.push(tasks)
    if (isGone) throw new Error('gone')
    return 'there'
  })

test('unreadable - is looked at and said once in five seconds, whoever asks', async () => {
  for (let i = 0; i < 3; i++) expect(await look()).toBeNull()
  expect([reads.length, said.length]).toEqual([1, 1])
  nowMs = 5000
  expect(await Promise.all([look(), look()])).toEqual([null, null])
  expect([reads.length, said.length]).toEqual([2, 2])
  expect(said[1]).toMatchObject({ ...STEP, msg: 'template.unreadable' })
})

test('unreadable - those who find it at the same time say it once', async () => {
  expect(await Promise.all([look(), look()])).toEqual([null, null])
  unreadable.note('template', { ...STEP, tasks: '1' }, new Error('gone'))
  expect(said).toHaveLength(1)
})

test('unreadable - what is back is read, and other steps and parts never waited', async () => {
  await look()
  isGone = false
  expect(await look()).toBeNull()
  expect(await look({ ...STEP, step: 't' })).toBe('there')
  expect(await unreadable.look('grant', STEP, async () => 'there')).toBe('there')
  nowMs = 5000
  expect(await look()).toBe('there')
  expect(await look()).toBe('there')
})

test('unreadable - the same tasks are tried again, for as long as they cannot be read', async () => {
  unreadable.note('template', { ...STEP, tasks: '3-4' }, new Error('gone'))
  for (nowMs = 5000; nowMs <= 10_000; nowMs += 5000) expect(await look()).toBeNull()
  expect(reads).toEqual(['3-4', '3-4'])
  expect(said.map(({ tasks }) => tasks)).toEqual(['3-4', '3-4', '3-4'])
})
