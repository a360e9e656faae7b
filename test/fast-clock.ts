/**
 * A clock that runs faster than the world by a factor and can be moved on by hand: for tests with real servers, where
 * five seconds of round trip should cost fifty milliseconds. Time that a server really needs counts multiplied too.
 */
import type { Clock } from '../shared/clock.ts'

export interface FastClock extends Clock {
  /** Moves time on at once; every sleeper that falls due wakes. */
  jump(ms: number): void
}

export function fastClock(speed: number): FastClock {
  const startMs = performance.now()
  const wallStartMs = Date.now()
  let jumpedMs = 0
  const sleepers = new Set<{ dueMs: number; timer: NodeJS.Timeout | undefined; wake: () => void }>()
  const nowMs = () => (performance.now() - startMs) * speed + jumpedMs
  const arm = (sleeper: { dueMs: number; timer: NodeJS.Timeout | undefined; wake: () => void }) => {
    clearTimeout(sleeper.timer)
    sleeper.timer = setTimeout(sleeper.wake, Math.max(0, (sleeper.dueMs - nowMs()) / speed))
  }
  return {
    wallMs: () => wallStartMs + nowMs(),
    monotonicMs: nowMs,
    sleep: (ms, signal) =>
      new Promise((resolve) => {
        if (signal?.aborted) return resolve()
        const wake = () => {
          clearTimeout(sleeper.timer)
          sleepers.delete(sleeper)
          signal?.removeEventListener('abort', wake)
          resolve()
        }
        const sleeper = { dueMs: nowMs() + ms, timer: undefined as NodeJS.Timeout | undefined, wake }
        sleepers.add(sleeper)
        signal?.addEventListener('abort', wake, { once: true })
        arm(sleeper)
      }),
    jump(ms) {
      jumpedMs += ms
      for (const sleeper of sleepers) arm(sleeper)
    },
  }
}
