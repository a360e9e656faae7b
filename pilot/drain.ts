/**
 * The course of a pilot's leaving once somebody has asked for it: how far it has come, until when, and for which reason.
 * Asked again it only ever gets shorter. Monotonic milliseconds throughout; session.ts carries it out, lifetime.ts
 * decides from it when the pilot is gone.
 */
import type { Draining, Farewell } from './lifetime.ts'

const HURRIED_MS = 2000
/** Slurm tells a step that it ends, and its srun passes the same on: within this they are one. */
const SAME_END_MS = 1000
/** Kept of drainGrace for what comes after the deadline: payloads that are killed then, and the bye. */
const AFTER_DEADLINE = { mostMs: 3000, part: 1 / 3 } as const

export interface DrainTimes {
  /** Milliseconds. */
  drainGrace: number
  noticeTime: number
  payloadGrace: number
}

/**
 * finish: take nothing more, let what runs end. notice: the same, but no longer than noticeTime. end: payloads get
 * SIGTERM and a grace, and the pilot is gone within drainGrace; asked to end again later, it hurries.
 */
export type DrainKind = 'finish' | 'notice' | 'end'

/** What is to be done at once. */
export interface DrainAct {
  /** Nothing is taken any more from here on. */
  isFirst: boolean
  /** Payloads are to be ended; hurried also those whose outputs are being stored. */
  end: { graceMs: number; isHurried: boolean } | null
}

export class Drain {
  readonly #times: DrainTimes
  #state: Draining = 'no'
  /** Why it leaves; what is said in the bye. */
  reason: Farewell = { code: 200, reason: 'told to drain' }
  #deadlineMs = Number.POSITIVE_INFINITY
  #noticeEndsAtMs = Number.POSITIVE_INFINITY
  #endAskedAtMs = Number.NEGATIVE_INFINITY

  constructor(times: DrainTimes) {
    this.#times = times
  }

  get state(): Draining {
    return this.#state
  }

  get isOn(): boolean {
    return this.#state !== 'no'
  }

  /** Payloads have been told to end. */
  get isEnding(): boolean {
    return this.#state === 'ending' || this.#state === 'hurried'
  }

  /** From here on the pilot leaves, whatever is not done yet. */
  get deadlineMs(): number {
    return this.#deadlineMs
  }

  /** Until then payloads may finish after an announced end. */
  get noticeEndsAtMs(): number {
    return this.#noticeEndsAtMs
  }

  /** What was asked for has been done; many payloads take a while to be told, and what came meanwhile came at once. */
  acted(nowMs: number): void {
    if (this.isEnding) this.#endAskedAtMs = nowMs
  }

  /** @returns null where this is an end that was told before */
  ask(kind: DrainKind, farewell: Farewell, nowMs: number): DrainAct | null {
    if (kind === 'end') {
      if (nowMs - this.#endAskedAtMs < SAME_END_MS) return null
      this.#endAskedAtMs = nowMs
    }
    const isFirst = !this.isOn
    if (isFirst) {
      this.reason = farewell
      this.#state = 'finishing'
    }
    const { drainGrace, noticeTime, payloadGrace } = this.#times
    if (kind === 'notice') this.#noticeEndsAtMs = Math.min(this.#noticeEndsAtMs, nowMs + noticeTime)
    if (kind !== 'end') return { isFirst, end: null }
    const isHurried = this.isEnding
    this.#state = isHurried ? 'hurried' : 'ending'
    const afterMs = Math.min(AFTER_DEADLINE.mostMs, drainGrace * AFTER_DEADLINE.part)
    this.#deadlineMs = Math.min(this.#deadlineMs, nowMs + (isHurried ? HURRIED_MS : drainGrace - afterMs))
    return { isFirst, end: { graceMs: isHurried ? 0 : payloadGrace, isHurried } }
  }
}
