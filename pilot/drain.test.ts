import { expect, it } from 'vitest'
import { Drain } from './drain.ts'

const times = { drainGrace: 30_000, noticeTime: 120_000, payloadGrace: 10_000 }
const why = { code: 200, reason: 'asked' }

it('drain - to finish stops taking, ends nothing and has no deadline', () => {
  const drain = new Drain(times)
  expect(drain.isOn).toBe(false)
  expect(drain.ask('finish', why, 0)).toEqual({ isFirst: true, end: null })
  expect([drain.state, drain.reason, drain.deadlineMs]).toEqual(['finishing', why, Number.POSITIVE_INFINITY])
  expect(drain.ask('finish', { code: 500, reason: 'another' }, 1)).toEqual({ isFirst: false, end: null })
  expect(drain.reason).toEqual(why)
})

it('drain - a notice gives payloads until its time, and the earliest counts', () => {
  const drain = new Drain(times)
  drain.ask('notice', why, 1000)
  drain.ask('notice', why, 50_000)
  expect(drain.noticeEndsAtMs).toBe(121_000)
  expect(drain.isEnding).toBe(false)
})

it('drain - to end gives payloads their grace, and keeps something of its own for the bye', () => {
  const drain = new Drain(times)
  expect(drain.ask('end', why, 0)).toEqual({ isFirst: true, end: { graceMs: 10_000, isHurried: false } })
  expect([drain.state, drain.deadlineMs]).toEqual(['ending', 27_000])
  const short = new Drain({ ...times, drainGrace: 3000 })
  short.ask('end', why, 0)
  expect(short.deadlineMs).toBe(2000)
})

it('drain - an end that is told twice at once is one; told again later it hurries', () => {
  const drain = new Drain(times)
  drain.ask('end', why, 0)
  expect(drain.ask('end', why, 999)).toBeNull()
  expect(drain.ask('end', why, 5000)).toEqual({ isFirst: false, end: { graceMs: 0, isHurried: true } })
  expect([drain.state, drain.deadlineMs]).toEqual(['hurried', 7000])
  drain.ask('end', why, 6500)
  expect(drain.deadlineMs).toBe(7000)
})

it('drain - an end that is told twice at once is one, however long the payloads took to be told', () => {
  const drain = new Drain(times)
  drain.ask('end', why, 0)
  drain.acted(4000)
  expect(drain.ask('end', why, 4001)).toBeNull()
  expect([drain.state, drain.deadlineMs]).toEqual(['ending', 27_000])
  expect(drain.ask('end', why, 5001)?.end?.isHurried).toBe(true)
})
