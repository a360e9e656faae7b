/**
 * When a pilot drains and when it leaves: a pure decision over what is known, taken at every tick of session.ts. All
 * times are monotonic milliseconds.
 *
 * What always holds: nobody leaves while payloads run or results wait, except at the deadline of an end that was ordered,
 * or without payloads when the dispatcher has been silent for `goneAfter` or takes no results; then they stay on disk.
 */

/** Why a pilot left. Codes in Vac's classes: 200 done, 300 no work, 400 refused, 500 node, 600 ours, 700 transient. */
export interface Farewell {
  code: number
  reason: string
  /** The dispatcher did not answer: another one may. */
  isGone?: true
}

/** no → finishing (what runs may end) → ending (payloads have their grace) → hurried (asked twice). */
export type Draining = 'no' | 'finishing' | 'ending' | 'hurried'

export interface Known {
  nowMs: number
  draining: Draining
  /** Why it drains, where it does. */
  drainReason: Farewell
  /** It leaves then, whatever is not done yet; infinite where no end was ordered. */
  deadlineMs: number
  /** Until then payloads may finish after an announced end. */
  noticeEndsAtMs: number
  /** Null where no end of the allocation is known. */
  timeLeftMs: number | null
  hasStopFile: boolean
  running: number
  /** Results that no dispatcher has acknowledged. */
  undelivered: number
  /** The dispatcher takes no more of them. */
  isRefused: boolean
  /** Granted tasks that have not started. */
  unstarted: number
  hasWorked: boolean
  idleMs: number
  /** Since the dispatcher last acknowledged anything. */
  silentMs: number
  /** How long results could not be written to disk; null while they can. */
  diskTrouble: { forMs: number; message: string } | null
}

export interface Patience {
  idleBefore: number
  idleAfter: number
  goneAfter: number
  leastTimeLeft: number
  diskPatience: number
  /** Silence of this length explains that there was no work. */
  silentMs: number
}

export type Step =
  | { step: 'stay' }
  | { step: 'drain'; how: 'finish' | 'end'; farewell: Farewell }
  | { step: 'leave'; farewell: Farewell }

const DISK = 'results cannot be written to disk'
const STAY: Step = { step: 'stay' }

export function nextStep(known: Known, patience: Patience): Step {
  const { draining, nowMs, timeLeftMs, running, undelivered } = known
  if (draining !== 'ending' && draining !== 'hurried') {
    if (timeLeftMs !== null && timeLeftMs <= 0) return drain('end', 200, 'the allocation ends')
    if (nowMs > known.noticeEndsAtMs) return drain('end', 200, 'the announced end has come')
  }
  if (draining === 'no' && known.hasStopFile) return drain('finish', 200, 'a STOP file asks for it')
  if (draining === 'no' && known.diskTrouble && known.diskTrouble.forMs > patience.diskPatience) {
    return drain('finish', 500, `${DISK}: ${known.diskTrouble.message}`)
  }
  if (nowMs > known.deadlineMs) return leave(known.drainReason)
  if (running > 0) return STAY
  if (known.silentMs > patience.goneAfter) {
    const kept = undelivered > 0 ? `; ${undelivered} results wait for the next pilot` : ''
    return leave({ code: 700, reason: `the dispatcher does not answer${kept}`, isGone: true })
  }
  if (undelivered > 0 && !known.isRefused) return STAY
  // What is to be given back goes with the bye.
  if (draining !== 'no') return leave(known.drainReason)
  if (known.unstarted > 0) return STAY
  if (timeLeftMs !== null && timeLeftMs < patience.leastTimeLeft) {
    return leave({ code: 300, reason: 'too little time is left' })
  }
  if (known.diskTrouble && known.idleMs > patience.idleAfter) {
    return leave({ code: 500, reason: `${DISK}: ${known.diskTrouble.message}` })
  }
  if (known.idleMs > (known.hasWorked ? patience.idleAfter : patience.idleBefore)) {
    if (known.silentMs > patience.silentMs)
      return leave({ code: 700, reason: 'the dispatcher does not answer', isGone: true })
    return leave({ code: 300, reason: known.hasWorked ? 'no more work' : 'no work' })
  }
  return STAY
}

function drain(how: 'finish' | 'end', code: number, reason: string): Step {
  return { step: 'drain', how, farewell: { code, reason } }
}

function leave(farewell: Farewell): Step {
  return { step: 'leave', farewell }
}
