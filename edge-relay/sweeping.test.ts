import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { timingsFor } from '../shared/timings.ts'
import { sweepRegularly } from './sweeping.ts'

const timings = timingsFor('pilot', 1)

beforeEach(() => {
  vi.useFakeTimers()
})
afterEach(() => {
  vi.useRealTimers()
})

/** What the dispatcher was told at each look. */
function looks() {
  const told: string[] = []
  let nowMs = 0
  let isUp = true
  const stop = sweepRegularly({
    dispatcher: { sweep: () => void told.push('sweep'), excuse: () => void told.push('excuse') },
    clock: { wallMs: () => nowMs, monotonicMs: () => nowMs, sleep: async () => {} },
    timings,
    outageMs: 10 * timings.lostAfterMs,
    hears: () => isUp,
  })
  const look = (ms = timings.beatMs, up = true) => {
    nowMs += ms
    isUp = up
    vi.advanceTimersByTime(timings.beatMs)
    return told.splice(0)
  }
  return { look, stop }
}

test('sweeping - who could not hear judges nobody: after a standstill, and while its nats-server is away', () => {
  const { look, stop } = looks()
  expect(look()).toEqual(['sweep'])
  expect(look(timings.lostAfterMs / 2)).toEqual(['sweep'])
  expect(look(timings.lostAfterMs)).toEqual(['excuse'])
  expect(look()).toEqual(['sweep'])
  expect(look(timings.beatMs, false)).toEqual(['excuse'])
  expect(look()).toEqual(['sweep'])
  stop()
  expect(look()).toEqual([])
})

test('sweeping - who cannot be reached for longer than an outage may last judges again, and gives what was held to others', () => {
  const { look, stop } = looks()
  const told = Array.from({ length: 200 }, () => look(timings.beatMs, false)[0])
  expect(told.slice(0, 100)).not.toContain('sweep')
  expect(told.slice(-50)).not.toContain('excuse')
  expect(look()).toEqual(['sweep'])
  expect(look(timings.beatMs, false)).toEqual(['excuse'])
  stop()
})
