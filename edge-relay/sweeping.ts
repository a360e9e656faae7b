/**
 * When the relay looks who fell silent: about every beat, but only while it could hear. A relay that stood still
 * (suspended, or its machine was) or whose nats-server was away has heard nobody, and what pilots said meanwhile is read
 * after the timer: their silence until then is nobody's. But not for ever: where pilots cannot reach it for longer than
 * their work would wait for a site that is cut off, they are gone, and others are to have what they held.
 */
import type { Clock } from '../shared/clock.ts'
import type { Timings } from '../shared/timings.ts'

export interface SweepingOptions {
  dispatcher: { sweep(): void; excuse(): void }
  clock: Clock
  timings: Timings
  /** Who cannot be reached for longer sweeps all the same. */
  outageMs: number
  /** Whether pilots can reach us just now. */
  hears(): boolean
}

/** @returns what ends it */
export function sweepRegularly({ dispatcher, clock, timings, outageMs, hears }: SweepingOptions): () => void {
  let lookedAtMs = clock.monotonicMs()
  let heardAtMs = lookedAtMs
  const timer = setInterval(() => {
    const nowMs = clock.monotonicMs()
    const isLate = nowMs - lookedAtMs > timings.lostAfterMs / 2
    lookedAtMs = nowMs
    if (isLate || hears()) heardAtMs = nowMs
    if (isLate || (nowMs > heardAtMs && nowMs - heardAtMs < outageMs)) dispatcher.excuse()
    else dispatcher.sweep()
  }, timings.beatMs)
  return () => clearInterval(timer)
}
