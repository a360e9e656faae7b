/**
 * A pilot's life with its dispatcher: hello, then four loops that never wait for each other (beat, pull, report, and a
 * tick that looks at clocks), and at the end bye with a code of Vac's classes. What is in hand and what runs is work.ts's,
 * what the pilot sees by itself lookout.ts's, the course of leaving drain.ts's, and when to leave is decided in
 * lifetime.ts; here are the messages, the orders and the timers.
 *
 * What always holds: the beat waits for nothing but its answer; a result is on disk before it is reported and until it
 * is acknowledged; while the disk refuses results no work is taken.
 */
import { Bell } from '../shared/bell.ts'
import type { Clock } from '../shared/clock.ts'
import { ERRORS, IndraftError, isIndraftError } from '../shared/errors.ts'
import { failpoint } from '../shared/failpoint.ts'
import { inventoryParts } from '../shared/held.ts'
import { Holder } from '../shared/holder.ts'
import { type AttemptRef, attemptPath } from '../shared/ids.ts'
import type { Link } from '../shared/link.ts'
import type { Log } from '../shared/log.ts'
import type { LeasePart, Message, NodeFacts, Order, Result } from '../shared/protocol/messages.ts'
import type { Banned } from './banned.ts'
import { beatBody, MOST_STARTED } from './beat.ts'
import type { PilotConfig } from './config.ts'
import { Drain, type DrainKind } from './drain.ts'
import type { Lease, Leases } from './leases.ts'
import { type Farewell, nextStep } from './lifetime.ts'
import { Lookout } from './lookout.ts'
import type { Outbox } from './outbox.ts'
import type { PayloadAround } from './payload.ts'
import { Reports } from './reports.ts'
import type { TimeLeft } from './time-left.ts'
import { Work } from './work.ts'

export interface SessionOptions {
  link: Link
  clock: Clock
  log: Log
  config: PilotConfig
  name: string
  incarnation: string
  software: string
  facts: () => NodeFacts
  timeLeft: TimeLeft
  leases: Leases
  outbox: Outbox
  around: PayloadAround
  banned: Banned
  stopFile: string
  onWelcome: (welcome: Message<'welcome'>) => void
  onResult?: ((result: Result) => void) | undefined
}

const TICK_MS = 500
const DRAIN_TICK_MS = 50
/** Between pulls that brought nothing, whatever the dispatcher says. */
const LEAST_PAUSE_MS = 50
const MOST_PAUSE_MS = 60_000
/** After a pull that brought nothing but what is refused here: the dispatcher hears of it first. */
const REFUSED_PAUSE_MS = 1000
/** Of payloads that are ended when the pilot leaves, and of a bye that is in a hurry. */
const LEAVING = { payloadsMs: 1000, byeMs: 1000 } as const
/** Parts given back in one message. */
const MOST_NAMED = 256
/** Before the first welcome nothing but the tick runs; it needs some beat to measure gaps by. */
const TIMINGS_BEFORE_WELCOME = { beatMs: 5000, lostAfterMs: 60_000, leaseMs: 60_000, confirmMs: 60_000, pullWaitMs: 0 }

export class Session {
  readonly #options: SessionOptions
  readonly #holder: Holder
  readonly #work: Work
  readonly #reports: Reports
  readonly #drain: Drain
  readonly #lookout: Lookout
  readonly #bornAtMs: number
  readonly #over = Promise.withResolvers<Farewell>()
  readonly #stopped = new AbortController()
  /** The tick need not be waited for when somebody wants to leave. */
  readonly #drained = new AbortController()
  #isTested = false
  /** What is granted from now on goes back with the bye, named or not. */
  #isLeaving = false
  #sessions = 0
  #idleSinceMs: number
  /** There may be work to ask for, or something to give back. */
  readonly #changes: Bell

  constructor(options: SessionOptions) {
    this.#options = options
    const { link, clock, log, name, incarnation, software, outbox, config } = options
    this.#bornAtMs = clock.monotonicMs()
    this.#idleSinceMs = this.#bornAtMs
    this.#changes = new Bell(clock)
    this.#drain = new Drain(config)
    this.#holder = new Holder({
      link,
      clock,
      log,
      role: 'pilot',
      holder: name,
      incarnation,
      software,
      nodes: () => [options.facts()],
      onWelcome: (welcome, isNewSession) => this.#onWelcome(welcome, isNewSession),
    })
    this.#work = new Work({
      ...options,
      taskLimit: config.taskLimit,
      mayStart: () => this.#mayTake,
      onChanged: (isWork) => {
        if (isWork) this.#idleSinceMs = clock.monotonicMs()
        this.#reports.wake()
        this.#wake()
      },
      onDiskSuspected: () => void outbox.mend(),
    })
    this.#reports = new Reports({
      ...{ holder: this.#holder, outbox, work: this.#work, clock, log },
      stopped: this.#stopped.signal,
      isPassing: (error) => this.#isPassing(error),
    })
    this.#lookout = new Lookout({
      ...options,
      banEvery: config.banEvery,
      beatMs: () => this.#timings.beatMs,
      onBanned: () => this.#endBanned(),
      onDisk: (refuses) => (refuses ? this.#work.giveBack() : this.#wake()),
    })
  }

  /** Resolves when the pilot has left. Work is asked for only after nodeIsGood(). */
  async run(): Promise<Farewell> {
    void this.#tickLoop()
    void this.#connect()
    const farewell = await this.#over.promise
    await this.#leave(farewell)
    return farewell
  }

  /** The node passed its test. */
  nodeIsGood(): void {
    this.#isTested = true
    this.#idleSinceMs = this.#options.clock.monotonicMs()
    this.#wake()
  }

  /** Something outside the work says that the pilot has to go at once. */
  abandon(farewell: Farewell): void {
    this.#over.resolve(farewell)
  }

  /** See drain.ts. */
  drain(kind: DrainKind, farewell: Farewell): void {
    const { clock, log } = this.#options
    const act = this.#drain.ask(kind, farewell, clock.monotonicMs())
    if (!act) return
    if (act.isFirst) this.#work.giveBack()
    if (act.end) {
      const { isHurried, graceMs } = act.end
      // Outputs that are being stored have until the deadline.
      const isMeant = (attempt: { takesRoom: boolean }) => attempt.takesRoom || isHurried
      if (this.#work.end(isMeant, 'node.ending', farewell.reason, graceMs)) {
        this.#drain.reason = { code: 700, reason: `${farewell.reason}; payloads were ended` }
      }
      this.#drain.acted(clock.monotonicMs())
    }
    log.info({ how: this.#drain.state, running: this.#work.running, reason: farewell.reason }, 'pilot.draining')
    this.#drained.abort()
    this.#wake()
  }

  /** New work is asked for, and what was granted starts. */
  get #mayTake(): boolean {
    const { outbox, config } = this.#options
    if (this.#isLeaving) return false
    return !this.#drain.isOn && this.#isTested && outbox.trouble === null && outbox.bytes < config.outboxMemory
  }

  // --- hello

  async #connect(): Promise<void> {
    for (let isWelcome = false; !isWelcome; ) {
      try {
        await this.#holder.connect()
        isWelcome = true
      } catch (error) {
        if (!(await this.#isPassing(error))) return this.#onRefused(error)
      }
    }
    for (const loop of [this.#beatLoop(), this.#pullLoop(), this.#reports.run()]) {
      loop.catch((error) => {
        if (error instanceof IndraftError) return this.#onRefused(error)
        this.#options.log.error({ err: error }, 'session.loopFailed')
        this.abandon({ code: 600, reason: 'internal error' })
      })
    }
  }

  #onWelcome(welcome: Message<'welcome'>, isNewSession: boolean): void {
    const { log, name, incarnation, onWelcome } = this.#options
    onWelcome(welcome)
    if (!isNewSession) return
    const isFirst = this.#sessions++ === 0
    const dropped = this.#work.startSession(welcome.session)
    const facts = { pilot: name, session: welcome.session, site: welcome.site, incarnation, dropped }
    log.info(facts, isFirst ? 'pilot.ready' : 'session.renewed')
  }

  /** A lost session was greeted anew already; a link that closed under us may come back. Neither is a refusal. */
  async #isPassing(error: unknown): Promise<boolean> {
    if (this.#stopped.signal.aborted || isIndraftError(error, 'session.unknown')) return !this.#stopped.signal.aborted
    if (!isIndraftError(error, 'link.closed')) return false
    await this.#options.clock.sleep(TICK_MS, this.#stopped.signal)
    return !this.#stopped.signal.aborted
  }

  /** What a dispatcher refuses for good ends the pilot: 400 where the site is meant, 600 where we are at fault. */
  #onRefused(error: unknown): void {
    const { log } = this.#options
    if (this.#stopped.signal.aborted || isIndraftError(error, 'link.closed')) return
    log.error({ err: error }, 'session.refused')
    const isSite = error instanceof IndraftError && ERRORS[error.code].fault === 'site'
    const reason = error instanceof IndraftError ? `${error.code}: ${error.message}` : 'internal error'
    const farewell = { code: isSite ? 400 : 600, reason }
    if (this.#work.running === 0) this.abandon(farewell)
    else this.drain('finish', farewell)
  }

  // --- beat

  async #beatLoop(): Promise<void> {
    const { clock, log } = this.#options
    while (!this.#stopped.signal.aborted) {
      const started = this.#work.unsaidStarts(MOST_STARTED)
      try {
        const { orders } = await this.#holder.beat(this.#beatBody(started))
        this.#work.saidStarts(started)
        for (const order of orders) this.#onOrder(order)
      } catch (error) {
        if (this.#stopped.signal.aborted) return
        if (!(error instanceof IndraftError)) log.error({ err: error }, 'session.beatFailed')
        else if (!ERRORS[error.code].retry) this.#onRefused(error)
        else log.debug({ code: error.code }, 'session.beatLost')
      }
      await clock.sleep(this.#timings.beatMs, this.#stopped.signal)
    }
  }

  #beatBody(started: ReadonlyMap<Lease, number[]>): Parameters<Holder['beat']>[0] {
    const { clock, facts, leases, outbox } = this.#options
    return beatBody({
      ...{ welcome: this.#holder.welcome!, facts: facts(), started, leases, outbox, work: this.#work },
      isDraining: this.#drain.isOn,
      upMs: clock.monotonicMs() - this.#bornAtMs,
      suspended: this.#lookout.suspended,
    })
  }

  #onOrder(order: Order): void {
    this.#options.log.info({ ...order }, 'order.received')
    switch (order.kind) {
      case 'attempt.cancel': {
        const name = attemptPath(order.attempt as AttemptRef)
        this.#work.end(({ path }) => path === name, 'attempt.cancelled', 'ordered by the dispatcher')
        const { index } = order.attempt
        this.#work.giveBack((lease) => attemptPath(lease.ref(index)) === name, index)
        break
      }
      case 'campaign.cancel': {
        const isOf = ({ work }: { work: { ref: AttemptRef } }) => work.ref.campaign === order.campaign
        this.#work.end(isOf, 'attempt.cancelled', 'the campaign was cancelled')
        this.#work.giveBack((lease) => lease.grant.lease.campaign === order.campaign)
        break
      }
      case 'holder.drain':
        if (!this.#drain.isOn) this.drain('finish', { code: 200, reason: 'told to drain by the dispatcher' })
        break
      case 'holder.inventory':
        void this.#sendInventory()
        break
      case 'log.send':
        // Logs are stored with every attempt's end; there is nothing more to send.
        break
    }
    this.#wake()
  }

  async #sendInventory(): Promise<void> {
    const session = this.#holder.welcome!.session
    const held = [...this.#options.leases.held].filter((lease) => lease.session === session)
    const parts = inventoryParts(held.map((lease) => lease.part(lease.open)))
    try {
      for (const [part, leases] of parts.entries()) {
        const { orders } = await this.#holder.inventory({ part, parts: parts.length, leases })
        for (const order of orders) this.#onOrder(order)
      }
    } catch (error) {
      this.#options.log.warn({ err: error }, 'session.inventoryLost')
    }
  }

  // --- pull

  async #pullLoop(): Promise<void> {
    const { clock, config } = this.#options
    while (!this.#stopped.signal.aborted) {
      const entry = this.#mayTake ? this.#work.offer() : null
      const returned = this.#work.toReturn.slice(0, MOST_NAMED)
      if (!entry && returned.length === 0) {
        // What fits also changes with time, as work in hand runs down.
        await this.#changes.next(Math.min(TICK_MS, Math.max(50, config.ahead / 4)))
        continue
      }
      try {
        const pauseMs = await this.#pullOnce(entry, returned)
        if (pauseMs > 0) await clock.sleep(pauseMs, this.#stopped.signal)
      } catch (error) {
        if (!(await this.#isPassing(error))) throw error
      }
    }
  }

  async #pullOnce(entry: Message<'pull'>['offer'][number] | null, returned: LeasePart[]): Promise<number> {
    const { clock, leases, log } = this.#options
    const { reply, sentAtMs } = await this.#holder.pull({
      offer: entry ? [entry] : [],
      finished: [],
      returned,
      waitMs: entry && returned.length === 0 ? this.#timings.pullWaitMs : 0,
      knows: leases.knownTemplates(),
    })
    this.#work.returned(returned)
    const { session } = this.#holder.welcome!
    const refused = leases.accept(reply.grants, reply.templates, session, sentAtMs)
    if (reply.grants.length > 0) failpoint('grant.received')
    this.#holder.processedGrants(reply.sequence)
    for (const grant of refused) await this.#work.refuse(grant)
    if (refused.length > 0) this.#reports.wake()
    this.#work.settle(reply.verdicts)
    // What may not run here is no work: a pilot that is given nothing else leaves, and meanwhile does not ask without end.
    if (refused.length > 0 && refused.length === reply.grants.length) return REFUSED_PAUSE_MS
    if (reply.grants.length > 0) {
      this.#idleSinceMs = clock.monotonicMs()
      log.debug({ grants: reply.grants.length, sequence: reply.sequence }, 'work.granted')
      if (!this.#mayTake) this.#work.giveBack()
      this.#work.startWhatFits()
      return 0
    }
    return entry ? Math.min(MOST_PAUSE_MS, Math.max(LEAST_PAUSE_MS, reply.askAgainMs)) : 0
  }

  // --- the clock

  async #tickLoop(): Promise<void> {
    const { clock, log } = this.#options
    while (!this.#stopped.signal.aborted) {
      await (this.#drain.isOn
        ? clock.sleep(DRAIN_TICK_MS, this.#stopped.signal)
        : clock.sleep(TICK_MS, this.#drained.signal))
      const nowMs = clock.monotonicMs()
      const stoodMs = this.#lookout.look(nowMs)
      this.#idleSinceMs += stoodMs
      if (stoodMs > 0) log.warn({ gapMs: Math.round(stoodMs), running: this.#work.running }, 'pilot.suspended')
      this.#tick(nowMs)
    }
  }

  /** The site's own word, with no dispatcher asked. */
  #endBanned(): void {
    const { banned } = this.#options
    const why = 'the subject is banned at this site'
    this.#work.end(({ work }) => banned.has(work.template.subject), 'policy.refused', why)
    this.#work.giveBack(({ template }) => banned.has(template.subject))
    this.#wake()
  }

  #tick(nowMs: number): void {
    const { config, leases, outbox, timeLeft } = this.#options
    const session = this.#holder.welcome?.session
    if (session !== undefined) leases.renew(session, this.#holder.renewedAtMs)
    this.#work.startWhatFits()
    const { running } = this.#work
    // While the node is being tested nothing could have come.
    if (running > 0 || !this.#isTested) this.#idleSinceMs = nowMs
    if (this.#work.isAtLimit && !this.#drain.isOn) {
      this.drain('finish', { code: 200, reason: 'it has started as many tasks as it was to' })
    }
    const decided = nextStep(
      {
        nowMs,
        draining: this.#drain.state,
        drainReason: this.#drain.reason,
        deadlineMs: this.#drain.deadlineMs,
        noticeEndsAtMs: this.#drain.noticeEndsAtMs,
        timeLeftMs: timeLeft.leftMs,
        hasStopFile: this.#lookout.hasStopFile,
        running,
        undelivered: outbox.size,
        isRefused: this.#reports.isRefused,
        unstarted: leases.unstarted,
        hasWorked: this.#work.hasWorked,
        idleMs: nowMs - this.#idleSinceMs,
        silentMs: nowMs - Math.max(this.#holder.renewedAtMs, this.#lookout.awakeSinceMs),
        diskTrouble: this.#lookout.diskTrouble(nowMs),
      },
      { ...config, silentMs: Math.max(60_000, this.#timings.lostAfterMs) },
    )
    if (decided.step === 'drain') this.drain(decided.how, decided.farewell)
    else if (decided.step === 'leave') this.#over.resolve(decided.farewell)
  }

  get #timings(): Message<'welcome'>['timings'] {
    return this.#holder.welcome?.timings ?? TIMINGS_BEFORE_WELCOME
  }

  // --- the end

  async #leave({ code, reason }: Farewell): Promise<void> {
    const { log, link, name, outbox } = this.#options
    this.#isLeaving = true
    this.#work.giveBack()
    this.#work.end(() => true, 'node.ending', reason, 0)
    // Their results stay in the outbox for the next pilot here; the bye tells the dispatcher at once.
    const untilMs = this.#options.clock.monotonicMs() + LEAVING.payloadsMs
    while (this.#work.running > 0 && this.#options.clock.monotonicMs() < untilMs) {
      await this.#options.clock.sleep(DRAIN_TICK_MS)
    }
    const returned = this.#work.toReturn.slice(0, MOST_NAMED)
    this.#stopped.abort()
    this.#drained.abort()
    this.#holder.stop()
    this.#wake()
    this.#reports.wake()
    failpoint('bye.begun')
    const bye = { code, reason: reason.slice(0, 500), returned }
    const isHurried = this.#drain.isEnding || code === 700
    if (isHurried) await this.#holder.bye(bye, 1, LEAVING.byeMs)
    else await this.#holder.bye(bye)
    await link.close().catch((error) => log.warn({ err: error }, 'link.closeFailed'))
    if (outbox.unwritten > 0) log.error({ results: outbox.unwritten }, 'outbox.lost')
    log.info({ pilot: name, code, reason, undelivered: outbox.size }, 'pilot.left')
  }

  #wake(): void {
    this.#changes.ring()
    // Not within the caller: an attempt that changes its state is in the middle of something.
    queueMicrotask(() => this.#work.startWhatFits())
  }
}
