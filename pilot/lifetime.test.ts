import { describe, expect, test } from 'vitest'
import { type Known, nextStep, type Patience } from './lifetime.ts'

const PATIENCE: Patience = {
  idleBefore: 600,
  idleAfter: 180,
  goneAfter: 1800,
  leastTimeLeft: 120,
  diskPatience: 300,
  silentMs: 60,
}

const AT_WORK: Known = {
  nowMs: 10_000,
  draining: 'no',
  drainReason: { code: 200, reason: 'told to drain' },
  deadlineMs: Number.POSITIVE_INFINITY,
  noticeEndsAtMs: Number.POSITIVE_INFINITY,
  timeLeftMs: null,
  hasStopFile: false,
  running: 2,
  undelivered: 0,
  isRefused: false,
  unstarted: 3,
  hasWorked: true,
  idleMs: 0,
  silentMs: 1,
  diskTrouble: null,
}
const IDLE: Partial<Known> = { running: 0, unstarted: 0 }
const FULL = { forMs: 301, message: 'ENOSPC' }

function decided(more: Partial<Known>): string {
  const made = nextStep({ ...AT_WORK, ...more }, PATIENCE)
  if (made.step === 'stay') return 'stay'
  const how = made.step === 'drain' ? `drain ${made.how}` : 'leave'
  return `${how} ${made.farewell.code} ${made.farewell.reason}`
}

describe('lifetime', () => {
  test.each<[string, Partial<Known>, string]>([
    ['at work', {}, 'stay'],
    ['idle for a moment', IDLE, 'stay'],
    ['idle before the first work', { ...IDLE, hasWorked: false, idleMs: 599 }, 'stay'],
    ['idle too long before the first work', { ...IDLE, hasWorked: false, idleMs: 601 }, 'leave 300 no work'],
    ['idle too long after work', { ...IDLE, idleMs: 181 }, 'leave 300 no more work'],
    ['idle, and nobody answers', { ...IDLE, idleMs: 181, silentMs: 61 }, 'leave 700 the dispatcher does not answer'],
    ['idle with a result that nobody acknowledged', { ...IDLE, idleMs: 181, undelivered: 1 }, 'stay'],
    ['dispatcher gone, payloads run', { silentMs: 9999 }, 'stay'],
    [
      'dispatcher gone for good, a result left',
      { ...IDLE, silentMs: 1801, undelivered: 2 },
      'leave 700 the dispatcher does not answer; 2 results wait for the next pilot',
    ],
    ['too little time for anything', { ...IDLE, timeLeftMs: 119 }, 'leave 300 too little time is left'],
    ['little time, a task in hand', { running: 0, timeLeftMs: 119 }, 'stay'],
    ['the allocation ends', { timeLeftMs: 0 }, 'drain end 200 the allocation ends'],
    ['the announced end', { noticeEndsAtMs: 9999, draining: 'finishing' }, 'drain end 200 the announced end has come'],
    ['a STOP file', { hasStopFile: true }, 'drain finish 200 a STOP file asks for it'],
    ['a STOP file, draining already', { hasStopFile: true, draining: 'finishing' }, 'stay'],
    ['draining, all done', { ...IDLE, draining: 'finishing' }, 'leave 200 told to drain'],
    ['draining, unstarted work goes with the bye', { running: 0, draining: 'finishing' }, 'leave 200 told to drain'],
    ['draining, a result left', { ...IDLE, draining: 'finishing', undelivered: 1 }, 'stay'],
    [
      'draining, a result left that nobody takes',
      { ...IDLE, draining: 'finishing', undelivered: 1, isRefused: true },
      'leave 200 told to drain',
    ],
    ['draining, payloads run whose results nobody takes', { draining: 'finishing', isRefused: true }, 'stay'],
    [
      'the deadline, whatever runs',
      { draining: 'ending', deadlineMs: 9999, undelivered: 1 },
      'leave 200 told to drain',
    ],
    ['a disk that fails for a while', { diskTrouble: { ...FULL, forMs: 299 } }, 'stay'],
    ['a disk that fails for good', { diskTrouble: FULL }, 'drain finish 500 results cannot be written to disk: ENOSPC'],
    [
      'a disk that fails, and nothing to do',
      { ...IDLE, diskTrouble: { ...FULL, forMs: 200 }, idleMs: 181 },
      'leave 500 results cannot be written to disk: ENOSPC',
    ],
    [
      'a disk that fails for good, all told',
      { ...IDLE, diskTrouble: FULL, draining: 'finishing', drainReason: { code: 500, reason: 'disk' } },
      'leave 500 disk',
    ],
  ])('lifetime - %s', (_what, more, expected) => {
    expect(decided(more)).toBe(expected)
  })
})
