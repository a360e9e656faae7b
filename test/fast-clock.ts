/**
 * A clock that runs faster than the world by a factor and can be moved on by hand: for tests with real servers, where
 * five seconds of round trip should cost fifty milliseconds. Time that a server really needs counts multiplied too, but
 * not that of a machine that stands still for a moment: multiplied, it would be longer than anybody may be silent.
 */
import type { Clock } from '../shared/clock.ts'

export interface FastClock extends Clock {
  /** Moves time on at once; every sleeper that falls due wakes. */
  jump(ms: number): void
}

/** Real time between two looks at the clock counts up to so much; whoever sleeps looks more often. */
const PAUSE_MS = 50
const LOOK_EVERY_MS = 20

interface Sleeper {
  dueMs: number
  timer: NodeJS.Timeout | undefined
  wake: () => void
}

export function fastClock(speed: number): FastClock {
  const wallStartMs = Date.now()
  let lookedAtMs = performance.now()
  let passedMs = 0
  const sleepers = new Set<Sleeper>()
  const nowMs = () => {
    const realMs = performance.now()
    passedMs += Math.min(realMs - lookedAtMs, PAUSE_MS) * speed
    lookedAtMs = realMs
    return passedMs
  }
  const arm = (sleeper: Sleeper) => {
    clearTimeout(sleeper.timer)
    const realMs = Math.max(0, (sleeper.dueMs - nowMs()) / speed)
    const look = () => (nowMs() >= sleeper.dueMs ? sleeper.wake() : arm(sleeper))
    sleeper.timer = setTimeout(look, Math.min(realMs, LOOK_EVERY_MS))
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
      passedMs += ms
      for (const sleeper of sleepers) arm(sleeper)
    },
  }
}
