/**
 * The pulls of pilots, one at a time for each: answered at once where there is something to say, else held until there
 * is work or the wait is over.
 *
 * What always holds: the reply of a pull is in the journal before it is sent, and a repeat under the same sequence gets
 * that very reply; a pull that its pilot gave up takes no work.
 */
import type { Clock } from '../shared/clock.ts'
import { IndraftError } from '../shared/errors.ts'
import { failpoint } from '../shared/failpoint.ts'
import { check, pack, unpack } from '../shared/protocol/codec.ts'
import { grantsSchema, type Message, type StoreMark, type Verdict } from '../shared/protocol/messages.ts'
import type { Timings } from '../shared/timings.ts'
import type { Granted } from './granting.ts'
import type { Journal, JournalContent } from './journal.ts'
import type { Session, Sessions } from './sessions.ts'

type Pull = Message<'pull'>
type Grants = Message<'grants'>

export interface PullsOptions {
  journal: Journal
  sessions: Sessions
  replies: JournalContent['replies']
  clock: Clock
  timings: Timings
  mark: () => StoreMark
  /** Takes in all that a pull says beside its offer. */
  takeIn: (session: Session, pull: Pull) => Verdict[]
  grant: (session: Session, pull: Pull) => Granted
  /** A pilot wants work that is not in the buffer, or took some of it. */
  onDemand: () => void
}

interface Pulling {
  sequence: number
  reply: Promise<Grants>
  /** The pilot asks something newer by now: nothing is granted to this one. */
  isGivenUp: boolean
}

export class Pulls {
  readonly #options: PullsOptions
  readonly #replies: Map<string, { sequence: number; body: Uint8Array }>
  readonly #pulling = new Map<string, Pulling>()
  /** Pulls that wait for work, oldest first. */
  readonly #waiting = new Map<string, () => void>()
  #isStopping = false

  constructor(options: PullsOptions) {
    this.#options = options
    this.#replies = options.replies
  }

  /** @throws IndraftError session.sequence for a pull that another has overtaken; session.unknown where it died meanwhile */
  async answer(session: Session, pull: Pull): Promise<Grants> {
    const before = this.#pulling.get(pull.session)
    // A repeat that overtakes its own first try shares its end.
    if (before?.sequence === pull.sequence) return before.reply
    if (pull.sequence < session.sequence) throw new IndraftError('session.sequence')
    if (pull.sequence === session.sequence) return this.#repeat(session)
    // The pilot gave the earlier pull up: it must not take work for nobody.
    if (before) {
      before.isGivenUp = true
      this.wakeOne(pull.session)
      await before.reply.catch(() => {})
      if (pull.sequence <= session.sequence) throw new IndraftError('session.sequence')
    }
    const { promise, resolve, reject } = Promise.withResolvers<Grants>()
    const pulling: Pulling = { sequence: pull.sequence, reply: promise, isGivenUp: false }
    this.#pulling.set(pull.session, pulling)
    this.#process(session, pull, pulling).then(resolve, reject)
    try {
      return await promise
    } finally {
      if (this.#pulling.get(pull.session) === pulling) this.#pulling.delete(pull.session)
    }
  }

  /** What waits for work looks again. */
  wake(): void {
    const waiting = [...this.#waiting.values()]
    this.#waiting.clear()
    for (const wake of waiting) wake()
  }

  /** The same for one session, which is over perhaps. */
  wakeOne(session: string): void {
    this.#waiting.get(session)?.()
  }

  /** Replies are repeated only to sessions that live. */
  forgetEnded(): void {
    for (const session of this.#replies.keys()) if (!this.#options.sessions.find(session)) this.#replies.delete(session)
  }

  /** Answers every waiting pull, and lets none wait any more. */
  stop(): void {
    this.#isStopping = true
    this.wake()
  }

  async #process(session: Session, pull: Pull, pulling: Pulling): Promise<Grants> {
    const { sessions, takeIn, grant, mark, onDemand } = this.#options
    const verdicts = takeIn(session, pull)
    session.offer = pull.offer[0] ?? null
    let granted = grant(session, pull)
    const maySit = pull.finished.length === 0 && pull.returned.length === 0 && pull.offer.length > 0
    if (granted.grants.length === 0 && maySit && !this.#isStopping) {
      granted = await this.#waitForWork(session, pull, pulling, granted)
    }
    // Dead by now: what was meant for it is not given out.
    if (!sessions.find(session.session)) throw new IndraftError('session.unknown')
    const reply: Grants = { ...granted, sequence: pull.sequence, mark: mark(), verdicts }
    await this.#keep(session, reply)
    if (granted.grants.length > 0) failpoint('sublease.persisted')
    onDemand()
    return reply
  }

  async #waitForWork(session: Session, pull: Pull, pulling: Pulling, nothing: Granted): Promise<Granted> {
    const { sessions, clock, timings, grant, onDemand } = this.#options
    let granted = nothing
    session.isWaiting = true
    onDemand()
    const endsAtMs = clock.monotonicMs() + Math.min(pull.waitMs, timings.pullWaitMs)
    const mayWait = () => !pulling.isGivenUp && !this.#isStopping && sessions.find(session.session) !== undefined
    while (granted.grants.length === 0 && mayWait()) {
      const leftMs = endsAtMs - clock.monotonicMs()
      if (leftMs <= 0 || !(await this.#sit(session, leftMs)) || !mayWait()) break
      granted = grant(session, pull)
    }
    session.isWaiting = false
    return granted
  }

  /** @returns false when the wait ended without a change */
  async #sit(session: Session, forMs: number): Promise<boolean> {
    const change = new AbortController()
    const wake = () => change.abort()
    this.#waiting.set(session.session, wake)
    await this.#options.clock.sleep(forMs, change.signal)
    if (this.#waiting.get(session.session) === wake) this.#waiting.delete(session.session)
    return change.signal.aborted
  }

  async #keep(session: Session, reply: Grants): Promise<void> {
    const { journal, sessions } = this.#options
    const { sequence } = reply
    session.sequence = sequence
    const body = pack(reply)
    this.#replies.set(session.session, { sequence, body })
    journal.putReply(session.session, sequence, body)
    sessions.save(session)
    await journal.committed()
  }

  async #repeat(session: Session): Promise<Grants> {
    const kept = this.#replies.get(session.session)
    if (kept?.sequence !== session.sequence) throw new IndraftError('session.sequence')
    this.#options.sessions.heard(session)
    await this.#options.journal.committed()
    return check(grantsSchema, unpack(kept.body), 'grants')
  }
}
