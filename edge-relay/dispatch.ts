/**
 * The relay towards its pilots: a dispatcher by the same rules as central, over the journal instead of Redis.
 *
 * What always holds: nothing is answered before it is in the journal; a pull asked again gets the reply it got before;
 * a grant is provisional until the pilot names its sequence; a pilot is dead by the relay's own clock, its session ends
 * first and then its work comes back. Results are never judged by anything but the relay's own fence, and every one of
 * them goes up: whether a late one counts is central's to say. Failed tasks are never tried again here.
 */
import { type Clock, systemClock } from '../shared/clock.ts'
import type { Dispatcher } from '../shared/dispatcher.ts'
import { IndraftError } from '../shared/errors.ts'
import { failpoint } from '../shared/failpoint.ts'
import { makeCapability } from '../shared/files/capability.ts'
import type { Peer } from '../shared/link.ts'
import type { Log } from '../shared/log.ts'
import { check, pack, unpack } from '../shared/protocol/codec.ts'
import {
  type Grant,
  grantsSchema,
  type LeasePart,
  type Message,
  type OfferEntry,
  type ReplyTo,
  type Result,
  type StartedPart,
  type StoreMark,
  type Verdict,
} from '../shared/protocol/messages.ts'
import type { Signed } from '../shared/protocol/work.ts'
import { countRanges, formatRanges, indices, parseRanges } from '../shared/ranges.ts'
import { timingsFor } from '../shared/timings.ts'
import { type Buffer, type Lease, OWN_HOP, type SubLease } from './buffer.ts'
import type { Cancels } from './cancels.ts'
import { chooseWork } from './choice.ts'
import { answerDemand } from './demand.ts'
import type { Journal, JournalContent } from './journal.ts'
import { judge } from './judging.ts'
import type { Outgoing } from './outgoing.ts'
import { endedHere } from './results.ts'
import type { Session, Sessions } from './sessions.ts'

const DAY_MS = 86_400_000
/** A batch of orders is at most this; the rest comes with the next beat. */
const MOST_ORDERS = 200
type Grants = Message<'grants'>

export interface DispatchOptions {
  site: string
  journal: Journal
  buffer: Buffer
  sessions: Sessions
  outgoing: Outgoing
  cancels: Cancels
  replies: JournalContent['replies']
  log: Log
  clock?: Clock
  timeScale: number
  /** The centre's public keys, passed on; a pilot trusts only those that its own credential names. */
  keys: Record<string, string>
  filesUrl: () => string | null
  capabilityKey: Uint8Array
  /** Milliseconds left of a lease, by the time central was last heard of. */
  leaseLeftMs: (leaseMs: number) => number
  /** Central wants this relay empty, or the relay is stopping. */
  isDraining: () => boolean
  /** There is too little room on the disk for new work. */
  isDiskFull?: () => boolean
  /** What central would give such nodes now; throws where it does not answer. */
  askCentre?: (offer: OfferEntry[]) => Promise<ReplyTo<'demand'>>
  events?: DispatchEvents
}

export interface DispatchEvents {
  /** A pilot wants work that is not in the buffer, or took some of it. */
  onDemand?: () => void
  /** Tasks started, and where; to be told to central. */
  onStarted?: (part: StartedPart) => void
  onVerdict?: (verdict: Verdict['verdict'], end: Result['end']) => void
  onGranted?: (tasks: number) => void
  onPilotLost?: () => void
}

interface Pulling {
  sequence: number
  reply: Promise<Grants>
  /** The pilot asks something newer by now: nothing is granted to this one. */
  isGivenUp: boolean
}

export class RelayDispatcher implements Dispatcher {
  readonly #options: DispatchOptions
  readonly #clock: Clock
  readonly #timings: ReturnType<typeof timingsFor>
  readonly #events: DispatchEvents
  readonly #replies: Map<string, { sequence: number; body: Uint8Array }>
  readonly #pulling = new Map<string, Pulling>()
  /** Pulls that wait for work, oldest first. */
  readonly #waiting = new Map<string, () => void>()
  /** Logs wanted of running attempts, by session. */
  readonly #logOrders = new Map<string, Extract<ReplyTo<'beat'>['orders'][number], { kind: 'log.send' }>[]>()
  #isStopping = false

  constructor(options: DispatchOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.#timings = timingsFor('pilot', options.timeScale)
    this.#events = options.events ?? {}
    this.#replies = options.replies
  }

  async onHello(peer: Peer, hello: Message<'hello'>): Promise<ReplyTo<'hello'>> {
    const { sessions, journal, log, site } = this.#options
    this.#checkSite(peer)
    journal.noteSeen(hello.seen)
    const facts = hello.nodes[0]
    if (hello.role !== 'pilot')
      throw new IndraftError('message.invalid', 'a relay serves pilots only', { path: 'role' })
    if (!facts) throw new IndraftError('message.invalid', 'a pilot names its node', { path: 'nodes' })
    let session = sessions.ofHolder(hello.holder)
    if (session && session.incarnation !== hello.incarnation) {
      log.warn({ pilot: hello.holder, session: session.session }, 'pilot.replaced')
      this.#end(session, 'pilot.lost', null, 'another incarnation of the pilot said hello')
      session = undefined
    }
    if (session) sessions.heard(session, facts)
    else {
      session = sessions.open(hello, facts)
      log.info({ pilot: hello.holder, node: facts.node, session: session.session }, 'pilot.greeted')
    }
    await journal.committed()
    this.#events.onDemand?.()
    return {
      session: session.session,
      sequence: session.sequence,
      site,
      mark: this.#mark(),
      timings: this.#timings,
      inventory: 'list',
      keys: this.#options.keys,
      filesUrl: this.#options.filesUrl(),
    }
  }

  async onPull(peer: Peer, pull: Message<'pull'>): Promise<Grants> {
    const session = this.#session(peer, pull.session)
    const before = this.#pulling.get(pull.session)
    // A repeat that overtakes its own first try shares its end.
    if (before?.sequence === pull.sequence) return before.reply
    if (pull.sequence < session.sequence) throw new IndraftError('session.sequence')
    if (pull.sequence === session.sequence) return this.#repeatReply(session)
    // The pilot gave the earlier pull up: it must not take work for nobody.
    if (before) {
      before.isGivenUp = true
      this.#waiting.get(pull.session)?.()
      await before.reply.catch(() => {})
      if (pull.sequence <= session.sequence) throw new IndraftError('session.sequence')
    }
    const { promise, resolve, reject } = Promise.withResolvers<Grants>()
    const pulling: Pulling = { sequence: pull.sequence, reply: promise, isGivenUp: false }
    this.#pulling.set(pull.session, pulling)
    this.#answerPull(session, pull, pulling).then(resolve, reject)
    try {
      return await promise
    } finally {
      if (this.#pulling.get(pull.session) === pulling) this.#pulling.delete(pull.session)
    }
  }

  async #answerPull(session: Session, pull: Message<'pull'>, pulling: Pulling): Promise<Grants> {
    const { sessions, journal } = this.#options
    journal.noteSeen(pull.seen)
    this.#heardUpTo(session, pull.processed)
    const verdicts = pull.finished.map((result) => this.#accept(result, session))
    for (const part of pull.returned) this.#takeReturned(session, part)
    session.offer = pull.offer[0] ?? null
    let grants = this.#grant(session, pull)
    const maySit = pull.finished.length === 0 && pull.returned.length === 0 && pull.offer.length > 0
    if (grants.grants.length === 0 && maySit && !this.#isStopping) {
      session.isWaiting = true
      this.#events.onDemand?.()
      const endsAtMs = this.#clock.monotonicMs() + Math.min(pull.waitMs, this.#timings.pullWaitMs)
      const mayWait = () => !pulling.isGivenUp && !this.#isStopping && sessions.find(session.session) !== undefined
      while (grants.grants.length === 0 && mayWait()) {
        const leftMs = endsAtMs - this.#clock.monotonicMs()
        if (leftMs <= 0 || !(await this.#sit(session, leftMs)) || !mayWait()) break
        grants = this.#grant(session, pull)
      }
      session.isWaiting = false
    }
    // Dead by now: what was meant for it is not given out.
    if (!sessions.find(session.session)) throw new IndraftError('session.unknown')
    const reply: Grants = { ...grants, sequence: pull.sequence, mark: this.#mark(), verdicts }
    session.sequence = pull.sequence
    const body = pack(reply)
    this.#replies.set(session.session, { sequence: pull.sequence, body })
    journal.putReply(session.session, pull.sequence, body)
    sessions.save(session)
    await journal.committed()
    if (grants.grants.length > 0) failpoint('sublease.persisted')
    this.#events.onDemand?.()
    return reply
  }

  /** @returns false when the wait ended without a change */
  async #sit(session: Session, forMs: number): Promise<boolean> {
    const change = new AbortController()
    const wake = () => change.abort()
    this.#waiting.set(session.session, wake)
    await this.#clock.sleep(forMs, change.signal)
    if (this.#waiting.get(session.session) === wake) this.#waiting.delete(session.session)
    return change.signal.aborted
  }

  /** What waits for work looks again. */
  wake(): void {
    const waiting = [...this.#waiting.values()]
    this.#waiting.clear()
    for (const wake of waiting) wake()
  }

  async #repeatReply(session: Session): Promise<Grants> {
    const kept = this.#replies.get(session.session)
    if (kept?.sequence !== session.sequence) throw new IndraftError('session.sequence')
    this.#options.sessions.heard(session)
    await this.#options.journal.committed()
    return check(grantsSchema, unpack(kept.body), 'grants')
  }

  /** Picks work for an offer and leases it provisionally. */
  #grant(session: Session, pull: Message<'pull'>): Omit<Grants, 'sequence' | 'mark' | 'verdicts'> {
    const { buffer, sessions, log, leaseLeftMs } = this.#options
    const askAgainMs = Math.round(this.#timings.beatMs / 5)
    const nothing = (reason: Grants['reason']) => ({ grants: [], templates: [], reason, askAgainMs })
    if (this.#options.isDraining() || this.#isStopping || session.state === 'draining') return nothing('draining')
    if (pull.offer.length === 0) return nothing('noWork')
    if (this.#options.isDiskFull?.()) return nothing('storeFull')
    const knows = new Set(pull.knows)
    const { picked, offerLeft, reason } = chooseWork({
      leases: buffer.leases(),
      offer: pull.offer,
      node: session.facts.node,
      others: sessions
        .live()
        .filter((other) => other !== session && other.state === 'active')
        .map((other) => other.facts),
      estimateMs: (lease) => buffer.steps.estimateMs(lease),
      leaseLeftMs: (lease) => leaseLeftMs(lease.grant.leaseMs),
      wallMs: this.#clock.wallMs(),
      templateBytes: (lease) => {
        const { name, template } = buffer.template(lease)
        return knows.has(name) ? 0 : template.bytes.length
      },
    })
    if (picked.length === 0) return nothing(reason)
    session.offer = offerLeft[0] ?? null
    const templates = new Map<string, Signed>()
    const grants = picked.map(({ lease, tasks }): Grant => {
      const part = buffer.grant(lease, tasks, session.session, pull.sequence)
      const { name, template } = buffer.template(lease)
      if (!knows.has(name)) templates.set(name, template)
      const tries = [...indices(tasks)].flatMap((index) => {
        const count = lease.grant.tries[index]
        return count ? [[String(index), count] as const] : []
      })
      log.info(
        {
          campaign: lease.campaign,
          step: lease.step,
          bundle: lease.bundle,
          fence: part.fence,
          tasks: formatRanges(tasks),
          pilot: session.holder,
        },
        'lease.granted',
      )
      this.#events.onGranted?.(countRanges(tasks))
      return {
        ...lease.grant,
        lease: partOf(part),
        leaseMs: this.#timings.leaseMs,
        tries: Object.fromEntries(tries),
        estimateMs: buffer.steps.estimateMs(lease),
        capability: this.#capabilityFor(part),
      }
    })
    return { grants, templates: [...templates.values()], reason: null, askAgainMs: 0 }
  }

  /** Work cannot start after the bundle's signed end, so the files stay open for its walltime and a day to report. */
  #capabilityFor(part: SubLease): string {
    const { lease } = part
    return makeCapability(this.#options.capabilityKey, {
      campaign: lease.campaign,
      step: lease.step,
      fences: [...lease.fences, part.fence],
      tasks: formatRanges(part.tasks),
      expiresAtMs: lease.expiresAtMs + lease.needs.walltimeMs + DAY_MS,
    })
  }

  async onDemand(peer: Peer, demand: Message<'demand'>): Promise<ReplyTo<'demand'>> {
    const { buffer, sessions, isDraining, askCentre } = this.#options
    this.#checkSite(peer)
    const parts = {
      leases: () => buffer.leases(),
      estimateMs: (lease: Lease) => buffer.steps.estimateMs(lease),
      pilots: () => sessions.live().filter(({ state }) => state === 'active'),
      isDraining,
      askCentre: askCentre ?? (() => Promise.reject(new IndraftError('link.noResponder'))),
    }
    return { ...(await answerDemand(parts, demand)), nowMs: this.#clock.wallMs() }
  }

  async onReport(peer: Peer, report: Message<'report'>): Promise<ReplyTo<'report'>> {
    const session = this.#session(peer, report.session)
    this.#options.sessions.heard(session)
    const verdicts = report.results.map((result) => this.#accept(result, session))
    await this.#options.journal.committed()
    return { mark: this.#mark(), verdicts }
  }

  /** Takes a result in, and tells what became of it. A success is never turned away. */
  #accept(result: Result, session: Session | null): Verdict {
    const { campaign, step, index, fences, end, reason } = result
    const verdict = judge(this.#options, result)
    this.#options.log.info(
      {
        campaign,
        task: `${campaign}/${step}/${index}`,
        attempt: fences.join('.'),
        pilot: session?.holder ?? result.pilot,
        end,
        reason,
        verdict,
      },
      end === 'done' ? 'task.finished' : 'task.failed',
    )
    this.#events.onVerdict?.(verdict, end)
    return { campaign, step, index, fences, verdict }
  }

  async onBeat(peer: Peer, beat: Message<'beat'>): Promise<ReplyTo<'beat'>> {
    const { sessions, buffer, cancels, journal } = this.#options
    const session = this.#session(peer, beat.session)
    journal.noteSeen(beat.seen)
    this.#heardUpTo(session, beat.processed)
    if (beat.draining && session.state === 'active') sessions.move(session, 'pilot.draining')
    for (const part of beat.started) {
      const own = part.fences[OWN_HOP]
      const held = own === undefined ? undefined : buffer.subLease(own)
      if (held?.session !== session.session) continue
      buffer.confirm(held)
      const fresh = buffer.start(held, parseRanges(part.tasks))
      if (fresh.length === 0) continue
      const { node } = session.facts
      this.#events.onStarted?.({ ...partOf(held), fences: held.lease.fences, tasks: formatRanges(fresh), node })
    }
    this.#compareHeld(session, beat)
    this.#noteUsage(session, beat)
    await journal.committed()
    const orders: ReplyTo<'beat'>['orders'] = cancels.ordersFor(buffer.ofSession(session.session)).slice(0, MOST_ORDERS)
    if (this.#options.isDraining()) orders.push({ kind: 'holder.drain' })
    orders.push(...(this.#logOrders.get(session.session)?.splice(0, MOST_ORDERS / 4) ?? []))
    return { mark: this.#mark(), orders }
  }

  /** A confirmed lease that two beats in a row do not name is not held: the pilot lost it. */
  #compareHeld(session: Session, beat: Message<'beat'>): void {
    if (!Array.isArray(beat.held)) return
    const missing = this.#missingFrom(session, beat.held, beat.processed)
    for (const part of missing) if (session.missing.has(part.fence)) this.#releaseMissing(part, session)
    session.missing = new Set(missing.map((part) => part.fence))
  }

  #missingFrom(session: Session, named: Iterable<Pick<LeasePart, 'fences'>>, processed: number): SubLease[] {
    const fences = new Set([...named].map((part) => part.fences[OWN_HOP]))
    return this.#options.buffer
      .ofSession(session.session)
      .filter((part) => part.sequence <= processed && !fences.has(part.fence))
  }

  #releaseMissing(part: SubLease, session: Session): void {
    this.#options.log.warn({ pilot: session.holder, bundle: part.lease.bundle, fence: part.fence }, 'lease.notHeld')
    this.#release(part, 'the pilot does not hold it any more')
  }

  #noteUsage(session: Session, beat: Message<'beat'>): void {
    const { buffer, sessions } = this.#options
    let coresBusy = 0
    for (const { attempt } of beat.usage) {
      const own = attempt.fences[OWN_HOP]
      coresBusy += (own === undefined ? undefined : buffer.subLease(own))?.lease.needs.cores ?? 1
    }
    const running = beat.usage.length
    session.counters = beat.counters
    if (running === session.running && coresBusy === session.coresBusy) return
    session.running = running
    session.coresBusy = coresBusy
    sessions.touch(session)
  }

  /** Complete when every part of one `processed` is here; what it lacks then comes back at once. */
  async onInventory(peer: Peer, inventory: Message<'inventory'>): Promise<ReplyTo<'inventory'>> {
    const session = this.#session(peer, inventory.session)
    this.#options.sessions.heard(session)
    const { processed, part, parts, leases } = inventory
    if (session.inventory?.processed !== processed || session.inventory.parts !== parts) {
      session.inventory = { processed, parts, byPart: new Map() }
    }
    const { byPart } = session.inventory
    byPart.set(part, leases)
    if (byPart.size === parts) {
      for (const missing of this.#missingFrom(session, [...byPart.values()].flat(), processed)) {
        this.#releaseMissing(missing, session)
      }
      session.inventory = null
    }
    await this.#options.journal.committed()
    return { mark: this.#mark(), orders: [] }
  }

  async onBye(peer: Peer, bye: Message<'bye'>): Promise<ReplyTo<'bye'>> {
    const { sessions, journal, log } = this.#options
    this.#checkSite(peer)
    const session = sessions.find(bye.session)
    // Said twice, or said by one who was thought dead: either way it is gone.
    if (session) {
      for (const part of bye.returned) this.#takeReturned(session, part)
      log.info({ pilot: session.holder, code: bye.code, reason: bye.reason }, 'pilot.left')
      this.#end(session, 'pilot.left', bye.code, `the pilot left (${bye.code}) without ending it`)
    }
    await journal.committed()
    return { mark: this.#mark() }
  }

  /** Asks the pilot that runs an attempt for its log. @returns false where nobody here runs it */
  orderLog(order: Extract<ReplyTo<'beat'>['orders'][number], { kind: 'log.send' }>): boolean {
    const own = order.attempt.fences[OWN_HOP]
    const part = own === undefined ? undefined : this.#options.buffer.subLease(own)
    if (!part) return false
    const orders = this.#logOrders.get(part.session) ?? []
    this.#logOrders.set(part.session, orders)
    // What opens the centre's files is not for pilots.
    const { capability: _ours, ...forPilot } = order
    orders.push(forPilot)
    return true
  }

  /** Call about every beat: ends silent pilots, takes unconfirmed grants back, forgets what is over. */
  sweep(): void {
    const { sessions, buffer, cancels, journal, log } = this.#options
    if (journal.isFull) {
      // Nobody is heard while nothing can be taken in: that is no evidence of anybody's death.
      sessions.excuse()
      return
    }
    for (const session of sessions.live()) {
      if (sessions.silentFor(session) <= this.#timings.lostAfterMs) continue
      log.warn({ pilot: session.holder, node: session.facts.node, silentMs: sessions.silentFor(session) }, 'pilot.lost')
      this.#end(session, 'pilot.lost', null, 'the pilot was not heard of any more')
      this.#events.onPilotLost?.()
    }
    const nowMs = this.#clock.monotonicMs()
    for (const part of [...buffer.subLeases()]) {
      if (part.confirmed || nowMs - part.grantedAtMs <= this.#timings.confirmMs) continue
      log.warn({ bundle: part.lease.bundle, fence: part.fence, session: part.session }, 'lease.unconfirmed')
      this.#release(part, 'the grant was never confirmed')
    }
    for (const session of this.#logOrders.keys()) if (!sessions.find(session)) this.#logOrders.delete(session)
    cancels.forgetDone()
    sessions.forgetOld()
    buffer.forgetUnused()
  }

  /** Answers every waiting pull and grants nothing more. */
  stop(): void {
    this.#isStopping = true
    this.wake()
  }

  /** The session first, so that nothing more is granted to it; then its sub-leases, one by one. */
  #end(session: Session, event: 'pilot.left' | 'pilot.lost', code: number | null, why: string): void {
    this.#options.sessions.move(session, event, code)
    this.#waiting.get(session.session)?.()
    for (const part of this.#options.buffer.ofSession(session.session)) this.#release(part, why, session)
    this.#events.onDemand?.()
  }

  /**
   * A sub-lease ends without its holder. What was not started waits in the buffer again; what was started is reported
   * as lost, because only central may decide to run it again and charge the try.
   */
  #release(part: SubLease, why: string, session = this.#options.sessions.get(part.session)): void {
    const { buffer, log } = this.#options
    buffer.expectLate(part.lease)
    const started = [...indices(session?.state === 'lost' ? buffer.blame(part) : part.started)]
    log.info(
      { bundle: part.lease.bundle, fence: part.fence, tasks: formatRanges(part.tasks), started: started.length },
      'lease.expired',
    )
    const where = {
      site: this.#options.site,
      node: session?.facts.node ?? 'unknown',
      pilot: session?.holder ?? 'unknown',
    }
    const { bundle, campaign, step, fences } = partOf(part)
    for (const index of started) {
      this.#accept(endedHere({ campaign, step, index, bundle, fences }, 'node.lost', why, where), null)
    }
    buffer.takeBack(part, part.tasks)
  }

  #takeReturned(session: Session, returned: LeasePart): void {
    const own = returned.fences[OWN_HOP]
    const part = own === undefined ? undefined : this.#options.buffer.subLease(own)
    if (part?.session !== session.session) return
    this.#options.buffer.takeBack(part, parseRanges(returned.tasks))
  }

  /** Notes that the pilot lives and has processed grants up to here. */
  #heardUpTo(session: Session, processed: number): void {
    this.#options.sessions.heard(session)
    session.processed = Math.max(session.processed, processed)
    for (const part of this.#options.buffer.ofSession(session.session)) {
      if (part.sequence <= processed) this.#options.buffer.confirm(part)
    }
  }

  #session(peer: Peer, name: string): Session {
    this.#checkSite(peer)
    const session = this.#options.sessions.find(name)
    if (!session) throw new IndraftError('session.unknown')
    return session
  }

  #checkSite(peer: Peer): void {
    if (peer.site !== this.#options.site) throw new IndraftError('site.unknown')
    // Before anything changes in memory that could not be kept.
    this.#options.journal.mustHaveRoom()
  }

  /**
   * The journal's incarnation is the store's epoch, so an empty journal shows itself at once; its commits are the
   * sequence, so a pilot that has seen more of them shows that the disk went back.
   */
  #mark(): StoreMark {
    const { incarnation: epoch, sequence } = this.#options.journal
    return { epoch, sequence }
  }
}

function partOf(part: SubLease): LeasePart {
  const { bundle, campaign, step, fences } = part.lease
  return { bundle, campaign, step, fences: [...fences, part.fence], tasks: formatRanges(part.tasks) }
}
