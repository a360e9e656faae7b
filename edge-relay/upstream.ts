/**
 * The relay towards central: one holder for all its pilots. Asks for work when pilots want some, hands results up,
 * beats, carries out orders. With the link down each of these waits by itself and everything below goes on.
 *
 * What always holds: grants are confirmed only when they are in the journal; a result leaves the journal only when
 * central has it; over a restart with the journal intact the session with central goes on.
 */

import { Bell } from '../shared/bell.ts'
import type { Clock } from '../shared/clock.ts'
import { ERRORS, IndraftError } from '../shared/errors.ts'
import { failpoint } from '../shared/failpoint.ts'
import { shapeOf } from '../shared/fit.ts'
import { heldDigest, inventoryParts } from '../shared/held.ts'
import { Holder, type HolderMemory } from '../shared/holder.ts'
import type { Link } from '../shared/link.ts'
import type { Log } from '../shared/log.ts'
import { firstFitting } from '../shared/protocol/fitting.ts'
import type { LeasePart, Message, NodeFacts, Order, Result, StartedPart, Verdict } from '../shared/protocol/messages.ts'
import { formatRanges, parseRanges, uniteRanges } from '../shared/ranges.ts'
import type { Buffer } from './buffer.ts'
import type { Cancels } from './cancels.ts'
import type { RelayDispatcher } from './dispatch.ts'
import { Drain } from './drain.ts'
import { HandingUp } from './handing-up.ts'
import type { Journal } from './journal.ts'
import { type Lease, leasePart } from './lease.ts'
import { aggregateOffer } from './offer.ts'
import type { Outgoing } from './outgoing.ts'
import type { Publications } from './publications.ts'
import { Receiving } from './receiving.ts'
import type { Sessions } from './sessions.ts'
import type { Uploads } from './uploads.ts'

const MOST_PARTS = 200
const MOST_NODES = 32
export const MOST_TEMPLATES = 512
/**
 * Of lists in a message, which may have 48 kB: the rest goes with the next. Of a hello, a pull, a beat. A pull has 8.5 kB of
 * template names besides, and all its lists together fit even where deflating gains nothing.
 */
const NODES_BYTES = 32 * 1024
export const OFFER_BYTES = 20 * 1024
export const RETURNED_BYTES = 18 * 1024
const STARTED_BYTES = 20 * 1024
const PILOTS_BYTES = 22 * 1024
/** Whoever asks waits itself. */
const DEMAND_TIMEOUT_MS = 3000
/** Before the first welcome, and where central refuses in a way that repeating cannot mend soon. */
const REFUSED_PAUSE_MS = 10_000

/** So many new sessions within so many beats are not central's doing. */
const RENEWALS_CONTESTED = 4
const RENEWALS_WITHIN_BEATS = 12

/** What the journal keeps of the session with central. */
interface UpstreamMemory extends HolderMemory {
  /** Wall clock at the last renewal: the only way to know over a restart how old the leases are. */
  renewedAtWallMs: number
}

export interface UpstreamOptions {
  link: Link
  clock: Clock
  log: Log
  /** The relay's name at its site. */
  holder: string
  software: string
  journal: Journal
  buffer: Buffer
  sessions: Sessions
  outgoing: Outgoing
  cancels: Cancels
  uploads: Uploads
  publications: Publications
  /** Buffer reach in milliseconds. */
  aheadMs: number
  dispatcher: () => RelayDispatcher
  /** There is too little room on the disk for new work. */
  isDiskFull: () => boolean
  /** For the beat. */
  gauges: () => Record<string, number>
  onRefused: (code: string) => void
  /** Central has this result, and judged it so. */
  onSettled: (result: Result, verdict: Verdict['verdict']) => void
}

export class Upstream {
  readonly #options: UpstreamOptions
  readonly #holder: Holder
  readonly #stop = new AbortController()
  readonly #receiving: Receiving
  readonly #handingUp: HandingUp
  readonly #drain: Drain
  readonly #demand: Bell
  readonly #results: Bell
  #memory: UpstreamMemory | undefined
  /** Monotonic time of the last renewal known from before this start. */
  readonly #renewedBeforeMs: number
  /** To be told with the next beat: one entry for each node and lease. */
  readonly #started = new Map<string, StartedPart>()
  /** Monotonic times of the last new sessions. */
  #renewals: number[] = []
  #loops: Promise<unknown>[] = []
  #lastAnswerMs = Number.NEGATIVE_INFINITY

  constructor(options: UpstreamOptions) {
    this.#options = options
    const { journal, clock, outgoing, buffer } = options
    this.#memory = journal.meta<UpstreamMemory>('upstream')
    const ageMs = this.#memory ? Math.max(0, clock.wallMs() - this.#memory.renewedAtWallMs) : Number.POSITIVE_INFINITY
    this.#renewedBeforeMs = clock.monotonicMs() - ageMs
    this.#demand = new Bell(clock)
    this.#results = new Bell(clock)
    outgoing.onReady = () => this.#results.ring()
    buffer.onBack = () => this.#demand.ring()
    this.#holder = new Holder({
      link: options.link,
      clock,
      log: options.log,
      role: 'relay',
      holder: options.holder,
      incarnation: journal.incarnation,
      software: options.software,
      nodes: () => this.#nodes(),
      onWelcome: (welcome, isNewSession) => this.#onWelcome(welcome, isNewSession),
      resume: this.#memory,
    })
    this.#receiving = new Receiving(options)
    this.#handingUp = new HandingUp({
      ...options,
      holder: this.#holder,
      stop: this.#stop.signal,
      onAnswer: () => this.#noteAnswer(),
    })
    this.#drain = new Drain({ ...options, onChanged: () => this.#onDrainChanged() })
  }

  /** Whether central answered within the last three beats. */
  get isUp(): boolean {
    const beatMs = this.#holder.welcome?.timings.beatMs ?? 0
    return this.#options.clock.monotonicMs() - this.#lastAnswerMs < 3 * Math.max(beatMs, 1000)
  }

  #noteAnswer(): void {
    this.#lastAnswerMs = this.#options.clock.monotonicMs()
  }

  get isDraining(): boolean {
    return this.#drain.isOn
  }

  get isDrainedHere(): boolean {
    return this.#drain.isFromHere
  }

  /** Takes nothing more, gives back what no pilot has yet, until resume(), whatever central says. */
  drain(): void {
    this.#drain.begin('here')
  }

  resume(): void {
    this.#drain.end()
  }

  #onDrainChanged(): void {
    if (this.#drain.isOn) this.#options.buffer.giveBack(() => true)
    this.#demand.ring()
  }

  /** Pilots want work, or took some of the buffer. */
  demand(): void {
    this.#demand.ring()
  }

  /** What central would give such nodes now. @throws IndraftError where it does not answer soon */
  askDemand(offer: Message<'demand'>['offer']): Promise<Message<'demanded'>> {
    return this.#holder.demand(offer, DEMAND_TIMEOUT_MS)
  }

  noteStarted(part: StartedPart): void {
    const name = JSON.stringify([part.bundle, part.fences[0], part.node])
    const known = this.#started.get(name)
    const tasks = known ? uniteRanges(parseRanges(known.tasks), parseRanges(part.tasks)) : null
    this.#started.set(name, tasks === null ? part : { ...part, tasks: formatRanges(tasks) })
  }

  /** Milliseconds left of a lease of this length: leases run from the last message that central acknowledged. */
  leaseLeftMs(leaseMs: number): number {
    const renewedAtMs = Math.max(this.#holder.renewedAtMs, this.#renewedBeforeMs)
    return renewedAtMs + leaseMs - this.#options.clock.monotonicMs()
  }

  start(): void {
    this.#loops = [
      this.#loop('pull', () => this.#pullOnce()),
      this.#loop('report', () => this.#handUp()),
      this.#loop('beat', () => this.#beatOnce()),
    ]
  }

  /**
   * Ends the loops. First gives results `flushMs` to go up. Says bye only with `leave`: a restart keeps its leases.
   */
  async stop(flushMs: number, leave: boolean): Promise<void> {
    const { clock, outgoing, buffer } = this.#options
    const endsAtMs = clock.monotonicMs() + flushMs
    while (outgoing.waiting > 0 && this.isUp && clock.monotonicMs() < endsAtMs) await clock.sleep(50)
    if (leave) {
      buffer.giveBack(() => true)
      await this.#holder.bye({ code: 600, reason: 'relay drained', returned: this.#returned() })
    }
    this.#stop.abort()
    this.#holder.stop()
    this.#demand.ring()
    this.#results.ring()
    await this.#options.link.close()
    await Promise.all(this.#loops)
  }

  /** Runs a step again and again; what central refuses ends nothing. */
  async #loop(name: string, step: () => Promise<void>): Promise<void> {
    const { clock, log } = this.#options
    const { signal } = this.#stop
    while (!signal.aborted) {
      try {
        if (!this.#holder.welcome) await this.#holder.connect()
        if (signal.aborted) return
        await step()
      } catch (error) {
        if (signal.aborted) return
        if (!(error instanceof IndraftError)) {
          log.error({ err: error, loop: name }, 'upstream.stepFailed')
          await clock.sleep(1000, signal)
          continue
        }
        this.#options.onRefused(error.code)
        // A new session was opened meanwhile: the next round speaks in it.
        if (error.code === 'session.unknown') continue
        const isFinal = !ERRORS[error.code].retry
        log.warn({ code: error.code, loop: name, detail: error.message }, 'upstream.refused')
        await clock.sleep(isFinal ? REFUSED_PAUSE_MS : 500, signal)
      }
    }
  }

  async #onWelcome(welcome: Message<'welcome'>, isNewSession: boolean): Promise<void> {
    const { buffer, sessions, log, journal } = this.#options
    this.#noteAnswer()
    if (isNewSession) {
      this.#noteRenewal()
      // Central ended the old session, so its leases are others' by now. What runs goes on and reports late.
      buffer.dropAbove()
      sessions.tellAll()
    }
    this.#remember()
    await journal.committed()
    log.info({ session: welcome.session, isNewSession, sequence: welcome.sequence }, 'upstream.welcomed')
    this.#demand.ring()
    this.#results.ring()
  }

  /** Sessions that end one after the other are ended by somebody: by another relay that goes by the same name. */
  #noteRenewal(): void {
    const { clock, log, holder } = this.#options
    const nowMs = clock.monotonicMs()
    this.#renewals = [...this.#renewals, nowMs].slice(-RENEWALS_CONTESTED)
    if (this.isContested) log.error({ holder }, 'upstream.nameContested')
  }

  /** Whether another relay of this name seems to be at work. */
  get isContested(): boolean {
    const first = this.#renewals[0] ?? Number.NEGATIVE_INFINITY
    const withinMs = RENEWALS_WITHIN_BEATS * (this.#holder.welcome?.timings.beatMs ?? 0)
    return this.#renewals.length === RENEWALS_CONTESTED && this.#options.clock.monotonicMs() - first < withinMs
  }

  #remember(upTo = 0): void {
    const { welcome, seen } = this.#holder
    if (!welcome) return
    const before = this.#memory?.session === welcome.session ? this.#memory.processed : 0
    const processed = Math.max(upTo, before, this.#holder.processed)
    this.#memory = { session: welcome.session, processed, seen, renewedAtWallMs: this.#options.clock.wallMs() }
    this.#options.journal.setMeta('upstream', this.#memory)
  }

  #nodes(): NodeFacts[] {
    const largest = new Map<string, NodeFacts>()
    for (const { facts } of this.#options.sessions.live()) largest.set(JSON.stringify(shapeOf(facts)), facts)
    const first = [...largest.values()].sort((a, b) => b.cores - a.cores).slice(0, MOST_NODES)
    return firstFitting(first, NODES_BYTES)
  }

  #returned(): LeasePart[] {
    return firstFitting(this.#options.buffer.returns(MOST_PARTS), RETURNED_BYTES)
  }

  async #pullOnce(): Promise<void> {
    const { buffer, sessions, clock, aheadMs } = this.#options
    // What came with a pull that was open when it began, what pilots gave back, and what a restart found.
    if (this.isDraining) buffer.giveBack(() => true)
    const returned = this.#returned()
    const wanted =
      this.isDraining || this.#options.isDiskFull()
        ? []
        : aggregateOffer({
            pilots: sessions.live().filter((session) => session.state === 'active'),
            leases: buffer.leases(),
            estimateMs: (lease) => buffer.steps.estimateMs(lease),
            aheadMs,
          })
    const offer = firstFitting(wanted, OFFER_BYTES)
    if (offer.length === 0 && returned.length === 0) {
      await this.#demand.next()
      return
    }
    const { pullWaitMs, beatMs } = this.#holder.welcome!.timings
    const answer = await this.#holder.pull({
      offer,
      finished: [],
      returned,
      // Not the whole pullWaitMs: a pilot of another shape may come meanwhile, and its wishes wait for the next pull.
      waitMs: returned.length > 0 ? 0 : Math.min(pullWaitMs, beatMs),
      knows: buffer.steps.templateNames().slice(-MOST_TEMPLATES),
    })
    if (answer.reply.grants.length > 0) failpoint('lease.received')
    await this.#onGrants(answer.reply, returned)
    const { reply } = answer
    if (reply.grants.length === 0 && reply.askAgainMs > 0) {
      await clock.sleep(Math.min(reply.askAgainMs, beatMs), this.#stop.signal)
    }
  }

  async #onGrants(reply: Message<'grants'>, returned: readonly LeasePart[]): Promise<void> {
    const { site, timings } = this.#holder.welcome!
    this.#noteAnswer()
    this.#options.buffer.returned(returned)
    this.#receiving.take(reply, site)
    // Kept together with the grants, and said only when both are on disk.
    this.#remember(reply.sequence)
    await this.#receiving.kept(reply, timings.confirmMs, this.#stop.signal)
    this.#holder.processedGrants(reply.sequence)
  }

  async #handUp(): Promise<void> {
    if (!(await this.#handingUp.next())) await this.#results.next()
  }

  async #beatOnce(): Promise<void> {
    const { sessions, clock, journal } = this.#options
    const { beatMs } = this.#holder.welcome!.timings
    const startMs = clock.monotonicMs()
    const started = this.#takeStarted()
    const { names, pilots } = sessions.takeChanges(PILOTS_BYTES)
    try {
      const held = this.#held()
      const reply = await this.#holder.beat({
        draining: this.isDraining,
        started,
        held: {
          count: held.length,
          digest: heldDigest(held.map(({ bundle, fences }) => ({ bundle, fence: fences[0]! }))),
        },
        counters: sessions.counters(),
        gauges: this.#options.gauges(),
        pilots,
        usage: [],
      })
      this.#noteAnswer()
      this.#remember()
      this.#drain.onOrders(reply.orders)
      for (const order of reply.orders) await this.#onOrder(order)
      await journal.committed()
    } catch (error) {
      for (const part of started) this.noteStarted(part)
      sessions.untold(names)
      if (!(error instanceof IndraftError) || error.code === 'session.unknown') throw error
      this.#options.log.info({ code: error.code }, 'upstream.beatMissed')
    }
    const isMoreWaiting = this.#started.size > 0 && this.isUp
    await clock.sleep(isMoreWaiting ? beatMs / 10 : beatMs - (clock.monotonicMs() - startMs), this.#stop.signal)
  }

  /** What is told with this beat. */
  #takeStarted(): StartedPart[] {
    const first = firstFitting([...this.#started].slice(0, MOST_PARTS), STARTED_BYTES)
    for (const [name] of first) this.#started.delete(name)
    return first.map(([, part]) => part)
  }

  async #onOrder(order: Order): Promise<void> {
    const { cancels, uploads, dispatcher, log } = this.#options
    log.info({ order }, 'order.received')
    switch (order.kind) {
      case 'campaign.cancel':
      case 'attempt.cancel':
        cancels.add(order)
        return
      case 'holder.drain':
        return
      case 'holder.inventory':
        return this.#sendInventory()
      case 'log.send': {
        const isHere = await uploads.sendLog(order.attempt, order.stream, order.capability ?? null)
        if (!isHere && !dispatcher().orderLog(order)) log.info({ attempt: order.attempt }, 'log.notHere')
        return
      }
    }
  }

  /** What central takes to be here. */
  #held(): Lease[] {
    return [...this.#options.buffer.leases()].filter((lease) => !lease.gone && lease.open.length > 0)
  }

  /** Judged up to `processed` only, so grants on their way do no harm. */
  async #sendInventory(): Promise<void> {
    const parts = inventoryParts(this.#held().map((lease) => leasePart(lease, lease.open)))
    for (const [part, leases] of parts.entries()) {
      await this.#holder.inventory({ part, parts: parts.length, leases })
    }
  }
}
