/**
 * The relay towards its pilots: a dispatcher by the same rules as central, over the journal instead of Redis. Here is
 * each message and what it sets off; pulls.ts answers pulls, granting.ts gives work, endings.ts takes it back.
 *
 * What always holds: nothing is answered before it is in the journal; a pull asked again gets the reply it got before;
 * a grant is provisional until the pilot names its sequence; a pilot is dead by the relay's own clock, its session ends
 * first and then its work comes back. Results are never judged by anything but the relay's own fence, and every one of
 * them goes up: whether a late one counts is central's to say. Failed tasks are never tried again here.
 */
import { carriedIn, PILOT_TOTALS } from '../shared/carried-metrics.ts'
import type { Clock } from '../shared/clock.ts'
import type { Dispatcher } from '../shared/dispatcher.ts'
import { IndraftError } from '../shared/errors.ts'
import type { Peer } from '../shared/link.ts'
import type { Log } from '../shared/log.ts'
import type {
  Message,
  OfferEntry,
  ReplyTo,
  Result,
  StartedPart,
  StoreMark,
  Verdict,
} from '../shared/protocol/messages.ts'
import { formatRanges, parseRanges } from '../shared/ranges.ts'
import { isProven, proveMark } from '../shared/store-mark.ts'
import { type Timings, timingsFor } from '../shared/timings.ts'
import type { Buffer } from './buffer.ts'
import type { Cancels } from './cancels.ts'
import { answerDemand } from './demand.ts'
import { Endings } from './endings.ts'
import { Granting } from './granting.ts'
import { Holding } from './holding.ts'
import type { Journal, JournalContent } from './journal.ts'
import { type Lease, OWN_HOP, type SubLease, subLeasePart } from './lease.ts'
import type { Outgoing } from './outgoing.ts'
import type { Publications } from './publications.ts'
import { Pulls } from './pulls.ts'
import type { Session, Sessions } from './sessions.ts'

/** A batch of orders is at most this; the rest comes with the next beat. */
const MOST_ORDERS = 200

export interface DispatchOptions {
  site: string
  journal: Journal
  buffer: Buffer
  sessions: Sessions
  outgoing: Outgoing
  cancels: Cancels
  publications: Publications
  replies: JournalContent['replies']
  log: Log
  clock: Clock
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
  isDiskFull: () => boolean
  /** What central would give such nodes now; throws where it does not answer. */
  askCentre: (offer: OfferEntry[]) => Promise<ReplyTo<'demand'>>
  events: DispatchEvents
}

export interface DispatchEvents {
  /** A pilot wants work that is not in the buffer, or took some of it. */
  onDemand: () => void
  /** Tasks started, and where; to be told to central. */
  onStarted: (part: StartedPart) => void
  onVerdict: (verdict: Verdict['verdict'], end: Result['end']) => void
  onGranted: (tasks: number) => void
  onPilotLost: () => void
}

type Orders = ReplyTo<'beat'>['orders']
type LogOrder = Extract<Orders[number], { kind: 'log.send' }>

export class RelayDispatcher implements Dispatcher {
  readonly #options: DispatchOptions
  readonly #timings: Timings
  readonly #pulls: Pulls
  readonly #endings: Endings
  readonly #holding: Holding
  /** Logs wanted of running attempts, by session. */
  readonly #logOrders = new Map<string, LogOrder[]>()
  #isStopping = false

  constructor(options: DispatchOptions) {
    this.#options = options
    this.#timings = timingsFor('pilot', options.timeScale)
    const parts = { ...options, timings: this.#timings }
    this.#endings = new Endings({ ...options, onVerdict: options.events.onVerdict })
    this.#holding = new Holding({ ...options, release: (part, why) => this.#endings.release(part, why) })
    const granting = new Granting({
      ...parts,
      isClosed: () => options.isDraining() || this.#isStopping,
      onGranted: options.events.onGranted,
    })
    this.#pulls = new Pulls({
      ...parts,
      mark: () => this.#mark(),
      takeIn: (session, pull) => this.#takeIn(session, pull),
      grant: (session, pull) => granting.grant(session, pull),
      onDemand: options.events.onDemand,
    })
  }

  async onHello(peer: Peer, hello: Message<'hello'>): Promise<ReplyTo<'hello'>> {
    const { sessions, journal, log, site } = this.#options
    this.#checkSite(peer)
    this.#noteSeen(hello.seen, hello.holder)
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
    this.#options.events.onDemand()
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

  async onPull(peer: Peer, pull: Message<'pull'>): Promise<ReplyTo<'pull'>> {
    return await this.#pulls.answer(this.#session(peer, pull.session), pull)
  }

  #takeIn(session: Session, { seen, processed, finished, returned }: Message<'pull'>): Verdict[] {
    this.#noteSeen(seen, session.holder)
    this.#holding.heardUpTo(session, processed)
    const verdicts = finished.map((result) => this.#endings.accept(result, session))
    for (const part of returned) this.#endings.takeReturned(session, part)
    return verdicts
  }

  async onDemand(peer: Peer, demand: Message<'demand'>): Promise<ReplyTo<'demand'>> {
    const { buffer, sessions, isDraining, askCentre } = this.#options
    this.#checkSite(peer)
    const parts = {
      leases: () => buffer.leases(),
      estimateMs: (lease: Lease) => buffer.steps.estimateMs(lease),
      pilots: () => sessions.live().filter(({ state }) => state === 'active'),
      isDraining,
      askCentre,
    }
    return { ...(await answerDemand(parts, demand)), nowMs: this.#options.clock.wallMs() }
  }

  async onReport(peer: Peer, report: Message<'report'>): Promise<ReplyTo<'report'>> {
    const session = this.#session(peer, report.session)
    this.#options.sessions.heard(session)
    const verdicts = report.results.map((result) => this.#endings.accept(result, session))
    await this.#options.journal.committed()
    return { mark: this.#mark(), verdicts }
  }

  async onBeat(peer: Peer, beat: Message<'beat'>): Promise<ReplyTo<'beat'>> {
    const { sessions, buffer, cancels, journal } = this.#options
    const session = this.#session(peer, beat.session)
    this.#noteSeen(beat.seen, session.holder)
    this.#holding.heardUpTo(session, beat.processed)
    if (beat.draining && session.state === 'active') sessions.move(session, 'pilot.draining')
    for (const part of beat.started) this.#noteStarted(session, part)
    this.#holding.compare(session, beat)
    this.#noteUsage(session, beat)
    await journal.committed()
    const orders: Orders = cancels.ordersFor(buffer.ofSession(session.session)).slice(0, MOST_ORDERS)
    if (this.#options.isDraining()) orders.push({ kind: 'holder.drain' })
    orders.push(...(this.#logOrders.get(session.session)?.splice(0, MOST_ORDERS / 4) ?? []))
    return { mark: this.#mark(), orders }
  }

  #noteStarted(session: Session, part: StartedPart): void {
    const { buffer } = this.#options
    const held = this.#subLease(part.fences)
    if (held?.session !== session.session) return
    buffer.confirm(held)
    const fresh = buffer.start(held, parseRanges(part.tasks))
    if (fresh.length === 0) return
    const { node } = session.facts
    this.#options.events.onStarted({
      ...subLeasePart(held),
      fences: held.lease.fences,
      tasks: formatRanges(fresh),
      node,
    })
  }

  #noteUsage(session: Session, beat: Message<'beat'>): void {
    const { sessions } = this.#options
    let coresBusy = 0
    for (const { attempt } of beat.usage) coresBusy += this.#subLease(attempt.fences)?.lease.needs.cores ?? 1
    const running = beat.usage.length
    session.counters = carriedIn(PILOT_TOTALS, beat.counters)
    if (running === session.running && coresBusy === session.coresBusy) return
    session.running = running
    session.coresBusy = coresBusy
    sessions.touch(session)
  }

  async onInventory(peer: Peer, inventory: Message<'inventory'>): Promise<ReplyTo<'inventory'>> {
    const session = this.#session(peer, inventory.session)
    this.#options.sessions.heard(session)
    this.#holding.takeInventory(session, inventory)
    await this.#options.journal.committed()
    return { mark: this.#mark(), orders: [] }
  }

  async onBye(peer: Peer, bye: Message<'bye'>): Promise<ReplyTo<'bye'>> {
    const { sessions, journal, log } = this.#options
    this.#checkSite(peer)
    const session = sessions.find(bye.session)
    // Said twice, or said by one who was thought dead: either way it is gone.
    if (session) {
      for (const part of bye.returned) this.#endings.takeReturned(session, part)
      log.info({ pilot: session.holder, code: bye.code, reason: bye.reason }, 'pilot.left')
      this.#end(session, 'pilot.left', bye.code, `the pilot left (${bye.code}) without ending it`)
    }
    await journal.committed()
    return { mark: this.#mark() }
  }

  /** Asks the pilot that runs an attempt for its log. @returns false where nobody here runs it */
  orderLog(order: LogOrder): boolean {
    const part = this.#subLease(order.attempt.fences)
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
    // Nobody is heard while nothing can be taken in.
    if (journal.isFull) {
      this.excuse()
      return
    }
    for (const session of sessions.live()) {
      if (sessions.silentFor(session) <= this.#timings.lostAfterMs) continue
      log.warn({ pilot: session.holder, node: session.facts.node, silentMs: sessions.silentFor(session) }, 'pilot.lost')
      this.#end(session, 'pilot.lost', null, 'the pilot was not heard of any more')
      this.#options.events.onPilotLost()
    }
    const nowMs = this.#options.clock.monotonicMs()
    for (const part of [...buffer.subLeases()]) {
      if (part.confirmed || nowMs - part.grantedAtMs <= this.#timings.confirmMs) continue
      log.warn({ bundle: part.lease.bundle, fence: part.fence, session: part.session }, 'lease.unconfirmed')
      this.#endings.release(part, 'the grant was never confirmed')
    }
    for (const session of this.#logOrders.keys()) if (!sessions.find(session)) this.#logOrders.delete(session)
    this.#pulls.forgetEnded()
    cancels.forgetDone()
    sessions.forgetOld()
    buffer.forgetUnused()
  }

  /** Nobody could be heard until now: that is no evidence of anybody's death, nor of a grant that did not arrive. */
  excuse(): void {
    const nowMs = this.#options.clock.monotonicMs()
    this.#options.sessions.excuse()
    for (const part of this.#options.buffer.subLeases()) if (!part.confirmed) part.grantedAtMs = nowMs
  }

  /** There may be work for pulls that wait. */
  wake(): void {
    this.#pulls.wake()
  }

  /** Answers every waiting pull and grants nothing more. */
  stop(): void {
    this.#isStopping = true
    this.#pulls.stop()
  }

  /** The session first, so that nothing more is granted to it; then its sub-leases, one by one. */
  #end(session: Session, event: 'pilot.left' | 'pilot.lost', code: number | null, why: string): void {
    this.#options.sessions.move(session, event, code)
    this.#pulls.wakeOne(session.session)
    for (const part of this.#options.buffer.ofSession(session.session)) this.#endings.release(part, why, session)
    this.#options.events.onDemand()
  }

  /** The part that an attempt of a pilot belongs to, by this relay's own fence. */
  #subLease(fences: readonly number[]): SubLease | undefined {
    const own = fences[OWN_HOP]
    return own === undefined ? undefined : this.#options.buffer.subLease(own)
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
    const { journal, capabilityKey } = this.#options
    return proveMark(capabilityKey, { epoch: journal.incarnation, sequence: journal.sequence })
  }

  /** What a pilot made up itself is no sign of anything, nor what one of before marks had proofs says. */
  #noteSeen(seen: StoreMark | null, pilot: string): void {
    const { journal, capabilityKey, log } = this.#options
    if (seen?.epoch !== journal.incarnation) return
    if (isProven(capabilityKey, seen)) journal.noteSeen(seen)
    else if (seen.proof !== undefined) log.warn({ pilot, seen }, 'journal.markUnproven')
  }
}
