/**
 * A clock that a test moves by hand. Sleepers wake in order of their time, one after the other, and what they do next
 * (promises, setImmediate) is let finish before the clock goes on.
 */
import { setImmediate } from 'node:timers/promises'
import type { Clock } from '../shared/clock.ts'

export interface ManualClock extends Clock {
  /** Moves time on, waking every sleeper that falls due on the way. */
  advance(ms: number): Promise<void>
  /** How many sleep now. */
  readonly sleeping: number
  /** Lets everything that can go on without time go on. */
  settle(): Promise<void>
}

/** @param startWallMs wall-clock milliseconds at the beginning; monotonic time begins at 0 */
export function manualClock(startWallMs = Date.UTC(2026, 0, 1)): ManualClock {
  let nowMs = 0
  let order = 0
  const sleepers = new Map<number, { dueMs: number; wake: () => void }>()
  const settle = async () => {
    for (let turn = 0; turn < 5; turn++) await setImmediate()
  }
  return {
    wallMs: () => startWallMs + nowMs,
    monotonicMs: () => nowMs,
    get sleeping() {
      return sleepers.size
    },
    settle,
    sleep: (ms, signal) =>
      new Promise((resolve) => {
        if (signal?.aborted) return resolve()
        const key = order++
        const wake = () => {
          sleepers.delete(key)
          signal?.removeEventListener('abort', wake)
          resolve()
        }
        sleepers.set(key, { dueMs: nowMs + Math.max(0, ms), wake })
        signal?.addEventListener('abort', wake, { once: true })
      }),
    async advance(ms) {
      const untilMs = nowMs + ms
      await settle()
      for (;;) {
        let next: { dueMs: number; wake: () => void } | undefined
        for (const sleeper of sleepers.values()) if (!next || sleeper.dueMs < next.dueMs) next = sleeper
        if (!next || next.dueMs > untilMs) break
        nowMs = Math.max(nowMs, next.dueMs)
        next.wake()
        await settle()
      }
      nowMs = untilMs
      await settle()
    },
  }
}
