/**
 * The relay towards central: one holder for all its pilots. Asks for work when pilots want some, hands results up,
 * beats, carries out orders. With the link down each of these waits by itself and everything below goes on.
 *
 * What always holds: grants are confirmed only when they are in the journal; a result leaves the journal only when
 * central has it; over a restart with the journal intact the session with central goes on.
 */
import type { Clock } from '../shared/clock.ts'
import { ERRORS, IndraftError, isIndraftError } from '../shared/errors.ts'
import { failpoint } from '../shared/failpoint.ts'
import { shapeOf } from '../shared/fit.ts'
import { heldDigest } from '../shared/held.ts'
import { Holder, type HolderMemory } from '../shared/holder.ts'
import type { Link } from '../shared/link.ts'
import type { Log } from '../shared/log.ts'
import type { LeasePart, Message, NodeFacts, Order, Result, StartedPart } from '../shared/protocol/messages.ts'
import { formatRanges, indices, parseRanges, rangesOf } from '../shared/ranges.ts'
import { attemptName, type Buffer, type Lease, type RefusedGrant } from './buffer.ts'
import type { Cancels } from './cancels.ts'
import type { RelayDispatcher } from './dispatch.ts'
import type { Journal } from './journal.ts'
import { aggregateOffer } from './offer.ts'
import type { Outgoing } from './outgoing.ts'
import type { Publications } from './publications.ts'
import { endedHere } from './results.ts'
import type { Sessions } from './sessions.ts'
import type { Uploads } from './uploads.ts'

const MOST_RESULTS = 256
const MOST_PARTS = 200
const MOST_PILOTS_A_BEAT = 200
const MOST_NODES = 32
/** Whoever asks waits itself. */
const DEMAND_TIMEOUT_MS = 3000
/** Before the first welcome, and where central refuses in a way that repeating cannot mend soon. */
const REFUSED_PAUSE_MS = 10_000

/** So many answers without the order to drain end it. */
const BEATS_TO_RESUME = 3

/** So many new sessions within so many beats are not central's doing. */
const RENEWALS_CONTESTED = 4
const RENEWALS_WITHIN_BEATS = 12

interface Drain {
  by: 'centre' | 'here'
}

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
  isDiskFull?: () => boolean
  /** More totals and gauges for the beat. */
  counters: () => Record<string, number>
  gauges: () => Record<string, number>
  onRefused?: (code: string) => void
  /** Central has these results, and judged them so. */
  onSettled?: (result: Result, verdict: string) => void
}

export class Upstream {
  readonly #options: UpstreamOptions
  readonly #holder: Holder
  readonly #stop = new AbortController()
  readonly #demand: Signal
  readonly #results: Signal
  #memory: UpstreamMemory | undefined
  /** Monotonic time of the last renewal known from before this start. */
  readonly #renewedBeforeMs: number
  /** To be told with the next beat: one entry for each node and lease. */
  readonly #started = new Map<string, StartedPart>()
  /** Why nothing more is taken; over a restart too. */
  #drain: Drain | null
  #beatsWithoutDrain = 0
  /** Monotonic times of the last new sessions. */
  #renewals: number[] = []
  #loops: Promise<unknown>[] = []
  #lastAnswerMs = Number.NEGATIVE_INFINITY

  constructor(options: UpstreamOptions) {
    this.#options = options
    const { journal, clock, outgoing, buffer } = options
    this.#memory = journal.meta<UpstreamMemory>('upstream')
    this.#drain = journal.meta<Drain | null>('drain') ?? null
    const ageMs = this.#memory ? Math.max(0, clock.wallMs() - this.#memory.renewedAtWallMs) : Number.POSITIVE_INFINITY
    this.#renewedBeforeMs = clock.monotonicMs() - ageMs
    this.#demand = new Signal(clock)
    this.#results = new Signal(clock)
    outgoing.onReady = () => this.#results.raise()
    buffer.onBack = () => this.#demand.raise()
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
  }

  /** Whether central answered within the last three beats. */
  get isUp(): boolean {
    const beatMs = this.#holder.welcome?.timings.beatMs ?? 0
    return this.#options.clock.monotonicMs() - this.#lastAnswerMs < 3 * Math.max(beatMs, 1000)
  }

  get isDraining(): boolean {
    return this.#drain !== null
  }

  get isDrainedHere(): boolean {
    return this.#drain?.by === 'here'
  }

  /** Takes nothing more, gives back what no pilot has yet. `here`: until lifted by resume(), whatever central says. */
  drain(by: Drain['by']): void {
    if (this.#drain?.by === 'here' || (this.#drain && by === 'centre')) return
    this.#setDrain({ by })
    this.#options.buffer.giveBack(() => true)
    this.#demand.raise()
  }

  resume(): void {
    this.#setDrain(null)
    this.#demand.raise()
  }

  #setDrain(drain: Drain | null): void {
    this.#drain = drain
    this.#beatsWithoutDrain = 0
    this.#options.journal.setMeta('drain', drain)
    this.#options.log.info({ by: drain?.by ?? null }, drain ? 'relay.draining' : 'relay.resumed')
  }

  /** Central repeats the order for as long as it means it. */
  #onDrainOrders(orders: readonly Order[]): void {
    if (orders.some(({ kind }) => kind === 'holder.drain')) {
      this.#beatsWithoutDrain = 0
      this.drain('centre')
    } else if (this.#drain?.by === 'centre' && ++this.#beatsWithoutDrain >= BEATS_TO_RESUME) this.resume()
  }

  /** Pilots want work, or took some of the buffer. */
  demand(): void {
    this.#demand.raise()
  }

  /** What central would give such nodes now. @throws IndraftError where it does not answer soon */
  askDemand(offer: Message<'demand'>['offer']): Promise<Message<'demanded'>> {
    return this.#holder.demand(offer, DEMAND_TIMEOUT_MS)
  }

  noteStarted(part: StartedPart): void {
    const name = JSON.stringify([part.bundle, part.fences[0], part.node])
    const known = this.#started.get(name)
    const tasks = known ? [...indices(parseRanges(known.tasks)), ...indices(parseRanges(part.tasks))] : null
    this.#started.set(name, tasks === null ? part : { ...part, tasks: formatRanges(rangesOf(tasks)) })
  }

  /** Milliseconds left of a lease of this length: leases run from the last message that central acknowledged. */
  leaseLeftMs(leaseMs: number): number {
    const renewedAtMs = Math.max(this.#holder.renewedAtMs, this.#renewedBeforeMs)
    return renewedAtMs + leaseMs - this.#options.clock.monotonicMs()
  }

  start(): void {
    this.#loops = [
      this.#loop('pull', () => this.#pullOnce()),
      this.#loop('report', () => this.#reportOnce()),
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
      await this.#holder.bye({ code: 600, reason: 'relay drained', returned: buffer.returns(MOST_PARTS) })
    }
    this.#stop.abort()
    this.#holder.stop()
    this.#demand.raise()
    this.#results.raise()
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
        this.#options.onRefused?.(error.code)
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
    this.#lastAnswerMs = this.#options.clock.monotonicMs()
    if (isNewSession) {
      this.#noteRenewal()
      // Central ended the old session, so its leases are others' by now. What runs goes on and reports late.
      buffer.dropAbove()
      sessions.tellAll()
    }
    this.#remember()
    await journal.committed()
    log.info({ session: welcome.session, isNewSession, sequence: welcome.sequence }, 'upstream.welcomed')
    this.#demand.raise()
    this.#results.raise()
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
    return [...largest.values()].sort((a, b) => b.cores - a.cores).slice(0, MOST_NODES)
  }

  async #pullOnce(): Promise<void> {
    const { buffer, sessions, clock, aheadMs } = this.#options
    // What came with a pull that was open when it began, what pilots gave back, and what a restart found.
    if (this.isDraining) buffer.giveBack(() => true)
    const returned = buffer.returns(MOST_PARTS)
    const offer =
      this.isDraining || this.#options.isDiskFull?.()
        ? []
        : aggregateOffer({
            pilots: sessions.live().filter((session) => session.state === 'active'),
            leases: buffer.leases(),
            estimateMs: (lease) => buffer.steps.estimateMs(lease),
            aheadMs,
          })
    if (offer.length === 0 && returned.length === 0) {
      await this.#demand.next(this.#stop.signal)
      return
    }
    const { pullWaitMs, beatMs } = this.#holder.welcome!.timings
    const answer = await this.#holder.pull({
      offer,
      finished: [],
      returned,
      // Not the whole pullWaitMs: a pilot of another shape may come meanwhile, and its wishes wait for the next pull.
      waitMs: returned.length > 0 ? 0 : Math.min(pullWaitMs, beatMs),
      knows: buffer.steps.templateNames().slice(-512),
    })
    if (answer.reply.grants.length > 0) failpoint('lease.received')
    await this.#onGrants(answer.reply, returned)
    const { reply } = answer
    if (reply.grants.length === 0 && reply.askAgainMs > 0) {
      await clock.sleep(Math.min(reply.askAgainMs, beatMs), this.#stop.signal)
    }
  }

  async #onGrants(reply: Message<'grants'>, returned: readonly LeasePart[]): Promise<void> {
    const { buffer, cancels, log } = this.#options
    this.#lastAnswerMs = this.#options.clock.monotonicMs()
    buffer.returned(returned)
    const refused = buffer.add(reply.grants, reply.templates)
    for (const one of refused) this.#onUnreadable(one)
    const unreadable = new Set(refused.map(({ grant }) => grant))
    for (const grant of reply.grants) {
      if (unreadable.has(grant)) continue
      const { lease } = grant
      log.info(
        {
          campaign: lease.campaign,
          step: lease.step,
          bundle: lease.bundle,
          fence: lease.fences[0],
          tasks: lease.tasks,
        },
        'lease.received',
      )
    }
    buffer.giveBack((lease) => cancels.isCampaignCancelled(lease.campaign))
    // Kept together with the grants, and said only when both are on disk.
    this.#remember(reply.sequence)
    await this.#kept(reply)
    this.#holder.processedGrants(reply.sequence)
  }

  /** Resolves when the grants are in the journal, however long its disk is full. */
  async #kept(reply: Message<'grants'>): Promise<void> {
    const { buffer, journal, clock } = this.#options
    const givenUpAtMs = clock.monotonicMs() + this.#holder.welcome!.timings.confirmMs / 2
    while (!this.#stop.signal.aborted) {
      try {
        return await journal.committed()
      } catch (error) {
        if (!isIndraftError(error, 'store.full')) throw error
        if (clock.monotonicMs() > givenUpAtMs) {
          // Central takes back what is not confirmed in time, so nothing of it may be started here.
          const bundles = new Set(reply.grants.map(({ lease }) => lease.bundle))
          buffer.dropAbove((lease) => bundles.has(lease.bundle))
        }
        await clock.sleep(500, this.#stop.signal)
      }
    }
  }

  /** Its tasks fail, so that its owner hears why; a template that only did not come is sent with the next grant. */
  #onUnreadable({ grant, why }: RefusedGrant): void {
    const { outgoing, holder, log } = this.#options
    const { tasks, ...lease } = grant.lease
    log.error({ ...grant.lease, detail: why?.message ?? 'the template did not come' }, 'lease.unreadable')
    if (!why) return
    let indicesOf: number[]
    try {
      indicesOf = [...indices(parseRanges(tasks))]
    } catch {
      // Not even which tasks: central finds them missing from the next inventory.
      return
    }
    const detail = `this site's relay cannot read the work: ${why.message}`
    for (const index of indicesOf) {
      const where = { site: this.#holder.welcome?.site ?? 'unknown', pilot: holder }
      const result = endedHere({ ...lease, index }, 'campaign.invalid', detail, where)
      if (!outgoing.knows(result)) outgoing.add(result)
    }
  }

  async #reportOnce(): Promise<void> {
    const { outgoing } = this.#options
    const batch = outgoing.batch(MOST_RESULTS)
    if (batch.length === 0) {
      await this.#results.next(this.#stop.signal)
      return
    }
    failpoint('results.acknowledged')
    await this.#report(batch)
  }

  async #report(results: Result[]): Promise<void> {
    const { outgoing, buffer, publications, journal, log } = this.#options
    let reply: Message<'reported'>
    try {
      reply = await this.#holder.report(results)
    } catch (error) {
      const isTooLarge = error instanceof IndraftError && error.code === 'message.tooLarge'
      if (!isTooLarge || results.length < 2) throw error
      const half = Math.ceil(results.length / 2)
      await this.#report(results.slice(0, half))
      await this.#report(results.slice(half))
      return
    }
    this.#lastAnswerMs = this.#options.clock.monotonicMs()
    failpoint('verdict.received')
    const verdicts = new Map(reply.verdicts.map((verdict) => [attemptName(verdict), verdict.verdict]))
    for (const result of results) {
      const verdict = verdicts.get(attemptName(result))
      // Not judged is not had: it stays and goes again.
      if (!verdict) continue
      log.info({ attempt: attemptName(result), end: result.end, verdict }, 'result.acknowledged')
      publications.onVerdict(result, verdict)
      outgoing.settle(result)
      buffer.settle(result)
      this.#options.onSettled?.(result, verdict)
    }
    if (verdicts.size === 0) {
      log.error({ results: results.length }, 'upstream.resultsNotJudged')
      await this.#options.clock.sleep(1000, this.#stop.signal)
    }
    await journal.committed()
  }

  async #beatOnce(): Promise<void> {
    const { sessions, buffer, clock, journal } = this.#options
    const { beatMs } = this.#holder.welcome!.timings
    const startMs = clock.monotonicMs()
    const told = [...this.#started].slice(0, MOST_PARTS)
    for (const [name] of told) this.#started.delete(name)
    const started = told.map(([, part]) => part)
    const { names, pilots } = sessions.takeChanges(MOST_PILOTS_A_BEAT)
    try {
      const held = [...buffer.leases()].filter((lease) => !lease.gone && lease.open.length > 0)
      const reply = await this.#holder.beat({
        draining: this.isDraining,
        started,
        held: {
          count: held.length,
          digest: heldDigest(held.map(({ bundle, fences }) => ({ bundle, fence: fences[0]! }))),
        },
        counters: { ...sessions.counters(), ...this.#options.counters() },
        gauges: this.#options.gauges(),
        pilots,
        usage: [],
      })
      this.#lastAnswerMs = clock.monotonicMs()
      this.#remember()
      this.#onDrainOrders(reply.orders)
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

  /** All leases in parts; an inventory is judged up to `processed` only, so grants on their way do no harm. */
  async #sendInventory(): Promise<void> {
    const leases = [...this.#options.buffer.leases()]
      .filter((lease) => !lease.gone && lease.open.length > 0)
      .map(partOf)
    const parts: LeasePart[][] = [[]]
    let bytes = 0
    for (const lease of leases) {
      bytes += lease.tasks.length + 200
      if (parts.at(-1)!.length >= MOST_PARTS || bytes > 32_768) {
        parts.push([])
        bytes = lease.tasks.length + 200
      }
      parts.at(-1)!.push(lease)
    }
    for (const [part, leasesOfPart] of parts.entries()) {
      await this.#holder.inventory({ part, parts: parts.length, leases: leasesOfPart })
    }
  }
}

function partOf({ bundle, campaign, step, fences, open }: Lease): LeasePart {
  return { bundle, campaign, step, fences, tasks: formatRanges(open) }
}

/** Something happened since it was looked at last; one waits for it. */
class Signal {
  readonly #clock: Clock
  #isRaised = false
  #waiting: AbortController | undefined

  constructor(clock: Clock) {
    this.#clock = clock
  }

  raise(): void {
    this.#isRaised = true
    this.#waiting?.abort()
  }

  /** Resolves at once when it was raised since the last call; at the latest after half a minute, or with `signal`. */
  async next(signal: AbortSignal): Promise<void> {
    if (!this.#isRaised) {
      this.#waiting = new AbortController()
      await this.#clock.sleep(30_000, AbortSignal.any([this.#waiting.signal, signal]))
      this.#waiting = undefined
    }
    this.#isRaised = false
  }
}
