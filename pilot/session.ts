/**
 * A pilot's life with its dispatcher: hello, then four loops that never wait for each other (beat, pull, report, and a
 * tick that looks at clocks), and at the end bye with a code of Vac's classes.
 *
 * What always holds: the beat waits for nothing but its answer; a task starts as soon as it fits, whatever messages
 * are under way; a result is on disk before it is reported and until it is acknowledged; what was granted is started,
 * given back, or dropped because its session is gone.
 */
import { access } from 'node:fs/promises'
import type { Clock } from '../shared/clock.ts'
import { ERRORS, IndraftError, isIndraftError } from '../shared/errors.ts'
import { failpoint } from '../shared/failpoint.ts'
import type { Shape } from '../shared/fit.ts'
import { shapeWithout } from '../shared/fit.ts'
import { heldDigest } from '../shared/held.ts'
import { Holder } from '../shared/holder.ts'
import { type AttemptRef, attemptPath } from '../shared/ids.ts'
import type { Link } from '../shared/link.ts'
import type { Log } from '../shared/log.ts'
import type { LeasePart, Message, NodeFacts, Order, Result, Verdict } from '../shared/protocol/messages.ts'
import type { Needs } from '../shared/protocol/work.ts'
import { indices, parseRanges } from '../shared/ranges.ts'
import type { PilotConfig } from './config.ts'
import type { Lease, Leases, RefusedGrant } from './leases.ts'
import type { TimeLeft } from './node.ts'
import type { Outbox } from './outbox.ts'
import { Attempt, type PayloadAround } from './payload.ts'
import { type BusyWork, freeShape, nextToStart, roomFor } from './slots.ts'

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
  stopFile: string
  onWelcome: (welcome: Message<'welcome'>) => void
}

/** Why a pilot left. Codes in Vac's classes: 200 done, 300 no work, 400 refused, 500 node, 600 ours, 700 transient. */
export interface Farewell {
  code: number
  reason: string
}

const TICK_MS = 500
const DRAIN_TICK_MS = 50
const REPORT_MOST = 64
/** Of a report before it is packed: the message may have 48 kB. */
const REPORT_BYTES = 36 * 1024
/** Between pulls that brought nothing, whatever the dispatcher says. */
const LEAST_PAUSE_MS = 50
const MOST_PAUSE_MS = 60_000
const HURRIED_MS = 2000
const MOST_NAMED = 256
const MOST_USAGE = 128
/** A gap of so many beats between two ticks means that the pilot stood still. */
const SUSPENDED_BEATS = 3

type Draining = 'no' | 'finishing' | 'ending' | 'hurried'

export class Session {
  readonly #options: SessionOptions
  readonly #holder: Holder
  readonly #running = new Map<Attempt, Lease>()
  /** Finished, not acknowledged; for the log line that closes an attempt. */
  readonly #unacknowledged = new Map<string, Attempt>()
  /** Room that an unkillable process keeps. */
  readonly #closed: Needs[] = []
  #toReturn: LeasePart[] = []
  readonly #started = new Map<Lease, Set<number>>()
  readonly #counters: Record<string, number> = {
    tasks_started: 0,
    tasks_done: 0,
    tasks_failed: 0,
    wall_ms: 0,
    cpu_ms: 0,
    core_ms: 0,
    suspended: 0,
  }
  readonly #bornAtMs: number
  readonly #over = Promise.withResolvers<Farewell>()
  readonly #stopped = new AbortController()
  /** The tick need not be waited for when somebody wants to leave. */
  readonly #drained = new AbortController()
  #isTested = false
  #sessions = 0
  #draining: Draining = 'no'
  #drainReason: Farewell = { code: 200, reason: 'told to drain' }
  /** From here on the pilot leaves, whatever is not done yet. */
  #deadlineMs = Number.POSITIVE_INFINITY
  /** SIGUSR1: payloads may finish until then. */
  #noticeEndsAtMs = Number.POSITIVE_INFINITY
  #idleSinceMs: number
  #hasWorked = false
  #wakers: (() => void)[] = []
  #reportWakers: (() => void)[] = []

  constructor(options: SessionOptions) {
    this.#options = options
    const { link, clock, log, name, incarnation, software } = options
    this.#bornAtMs = clock.monotonicMs()
    this.#idleSinceMs = this.#bornAtMs
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
    this.#wake()
  }

  /** Something outside the work says that the pilot has to go at once. */
  abandon(farewell: Farewell): void {
    this.#over.resolve(farewell)
  }

  /**
   * finish: take nothing more, let what runs end. notice: the same, but no longer than noticeTime. end: payloads get
   * SIGTERM and a grace, and the pilot is gone within drainGrace. Asked to end twice, it hurries.
   */
  drain(how: 'finish' | 'notice' | 'end', farewell: Farewell): void {
    const { clock, log, config } = this.#options
    const nowMs = clock.monotonicMs()
    if (this.#draining === 'no') {
      this.#drainReason = farewell
      this.#draining = 'finishing'
      this.#giveBack(this.#options.leases.withdraw(() => true))
    }
    if (how === 'notice') this.#noticeEndsAtMs = Math.min(this.#noticeEndsAtMs, nowMs + config.noticeTime)
    if (how === 'end') {
      const isHurried = this.#draining === 'ending' || this.#draining === 'hurried'
      this.#draining = isHurried ? 'hurried' : 'ending'
      this.#deadlineMs = Math.min(this.#deadlineMs, nowMs + (isHurried ? HURRIED_MS : config.drainGrace - 1000))
      // Outputs that are being stored have until the deadline.
      const ended = [...this.#running.keys()].filter((attempt) => attempt.takesRoom || isHurried)
      if (ended.some((attempt) => attempt.takesRoom)) {
        this.#drainReason = { code: 700, reason: `${farewell.reason}; payloads were ended` }
      }
      for (const attempt of ended) attempt.end('node.ending', farewell.reason, isHurried ? 0 : config.payloadGrace)
    }
    log.info({ how: this.#draining, running: this.#running.size, reason: farewell.reason }, 'pilot.draining')
    this.#drained.abort()
    this.#wake()
  }

  /** A process that SIGKILL does not end: its attempt is over without it, its room is not used again. */
  closeSlot(attemptName: string): void {
    for (const [attempt, lease] of this.#running) {
      if (attempt.path !== attemptName) continue
      this.#closed.push(lease.needs)
      attempt.giveUp()
    }
    this.#options.log.error({ attempt: attemptName, closed: this.#closed.length }, 'slot.closed')
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
    for (const loop of [this.#beatLoop(), this.#pullLoop(), this.#reportLoop()]) {
      loop.catch((error) => {
        this.#options.log.error({ err: error }, 'session.loopFailed')
        this.abandon({ code: 600, reason: 'internal error' })
      })
    }
  }

  #onWelcome(welcome: Message<'welcome'>, isNewSession: boolean): void {
    const { log, leases, name, incarnation } = this.#options
    this.#options.onWelcome(welcome)
    if (!isNewSession) return
    const isFirst = this.#sessions++ === 0
    const dropped = leases.dropOthers(welcome.session)
    this.#toReturn = []
    this.#started.clear()
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
    if (this.#running.size === 0) this.abandon(farewell)
    else this.drain('finish', farewell)
  }

  // --- beat

  async #beatLoop(): Promise<void> {
    const { clock, log } = this.#options
    while (!this.#stopped.signal.aborted) {
      const started = new Map([...this.#started].map(([lease, tasks]) => [lease, [...tasks]]))
      try {
        const { orders } = await this.#holder.beat(this.#beatBody(started))
        for (const [lease, tasks] of started) this.#forgetStarted(lease, tasks)
        for (const order of orders) this.#onOrder(order)
      } catch (error) {
        if (!(error instanceof IndraftError)) log.error({ err: error }, 'session.beatFailed')
        else if (!ERRORS[error.code].retry) this.#onRefused(error)
        else log.debug({ code: error.code }, 'session.beatLost')
      }
      await clock.sleep(this.#timings().beatMs, this.#stopped.signal)
    }
  }

  #beatBody(started: ReadonlyMap<Lease, number[]>): Parameters<Holder['beat']>[0] {
    const { clock, config, leases } = this.#options
    const session = this.#holder.welcome!.session
    const held = [...leases.held].filter((lease) => lease.session === session)
    const facts = this.#options.facts()
    const taking = [...this.#running.keys()].filter((attempt) => attempt.takesRoom)
    let coresBusy = 0
    for (const attempt of taking) coresBusy += attempt.work.template.needs.cores
    return {
      draining: this.#draining !== 'no',
      started: [...started].slice(0, MOST_NAMED).map(([lease, tasks]) => ({ ...lease.part(tasks), node: facts.node })),
      held:
        this.#holder.welcome!.inventory === 'digest'
          ? {
              count: held.length,
              digest: heldDigest(
                held.map(({ grant }) => ({ bundle: grant.lease.bundle, fence: grant.lease.fences.at(-1)! })),
              ),
            }
          : held.slice(0, 512).map(({ grant: { lease } }) => ({
              bundle: lease.bundle,
              campaign: lease.campaign,
              step: lease.step,
              fences: lease.fences,
            })),
      counters: { ...this.#counters },
      gauges: {
        cores: config.cores ?? facts.cores,
        coresBusy,
        running: taking.length,
        waiting: leases.unstarted,
        undelivered: this.#options.outbox.size,
        slotsClosed: this.#closed.length,
        upMs: Math.round(clock.monotonicMs() - this.#bornAtMs),
        rssBytes: process.memoryUsage.rss(),
      },
      pilots: [],
      usage: taking.slice(0, MOST_USAGE).flatMap((attempt) =>
        attempt.usage
          ? [
              {
                attempt: attempt.work.ref,
                wallMs: Math.round(attempt.elapsedMs),
                cpuMs: Math.round(attempt.usage.cpuMs),
                rssBytes: Math.round(attempt.usage.rssBytes),
              },
            ]
          : [],
      ),
    }
  }

  #forgetStarted(lease: Lease, tasks: Iterable<number>): void {
    const known = this.#started.get(lease)
    if (!known) return
    for (const task of tasks) known.delete(task)
    if (known.size === 0) this.#started.delete(lease)
  }

  #onOrder(order: Order): void {
    const { log, leases } = this.#options
    log.info({ ...order }, 'order.received')
    switch (order.kind) {
      case 'attempt.cancel': {
        const name = attemptPath(order.attempt as AttemptRef)
        for (const attempt of this.#running.keys()) {
          if (attempt.path === name) attempt.end('attempt.cancelled', 'ordered by the dispatcher')
        }
        const isOf = (lease: Lease) => attemptPath(lease.ref(order.attempt.index)) === name
        this.#giveBack(leases.withdraw(isOf, order.attempt.index))
        break
      }
      case 'campaign.cancel':
        for (const attempt of this.#running.keys()) {
          if (attempt.work.ref.campaign === order.campaign) {
            attempt.end('attempt.cancelled', 'the campaign was cancelled')
          }
        }
        this.#giveBack(leases.withdraw((lease) => lease.grant.lease.campaign === order.campaign))
        break
      case 'holder.drain':
        if (this.#draining === 'no') this.drain('finish', { code: 200, reason: 'told to drain by the dispatcher' })
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
    const all = [...this.#options.leases.held]
      .filter((lease) => lease.session === session)
      .map((lease) => lease.part(lease.open))
    const size = 128
    const parts = Math.max(1, Math.ceil(all.length / size))
    try {
      for (let part = 0; part < parts; part++) {
        const { orders } = await this.#holder.inventory({
          part,
          parts,
          leases: all.slice(part * size, (part + 1) * size),
        })
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
      const entry = this.#draining === 'no' && this.#isTested ? this.#offer() : null
      const returned = this.#toReturn.slice(0, MOST_NAMED)
      if (!entry && returned.length === 0) {
        // What fits also changes with time, as work in hand runs down.
        await this.#changed(Math.min(TICK_MS, Math.max(50, config.ahead / 4)))
        continue
      }
      try {
        const pauseMs = await this.#pullOnce(entry, returned)
        if (pauseMs > 0) await clock.sleep(pauseMs, this.#stopped.signal)
      } catch (error) {
        if (await this.#isPassing(error)) continue
        if (!(error instanceof IndraftError)) throw error
        return this.#onRefused(error)
      }
    }
  }

  async #pullOnce(entry: Message<'pull'>['offer'][number] | null, returned: LeasePart[]): Promise<number> {
    const { clock, leases, log } = this.#options
    const { reply, sentAtMs } = await this.#holder.pull({
      offer: entry ? [entry] : [],
      finished: [],
      returned,
      waitMs: entry && returned.length === 0 ? this.#timings().pullWaitMs : 0,
      knows: leases.knownTemplates(),
    })
    // A new session in between has emptied the list already.
    this.#toReturn = this.#toReturn.filter((part) => !returned.includes(part))
    const { session } = this.#holder.welcome!
    const refused = leases.accept(reply.grants, reply.templates, session, clock.wallMs(), sentAtMs)
    if (reply.grants.length > 0) failpoint('grant.received')
    this.#holder.processedGrants(reply.sequence)
    for (const grant of refused) await this.#reportRefused(grant)
    this.#settle(reply.verdicts)
    if (reply.grants.length > 0) {
      this.#idleSinceMs = clock.monotonicMs()
      log.debug({ grants: reply.grants.length, sequence: reply.sequence }, 'work.granted')
      if (this.#draining !== 'no') this.#giveBack(leases.withdraw(() => true))
      this.#startWhatFits()
      return 0
    }
    return entry ? Math.min(MOST_PAUSE_MS, Math.max(LEAST_PAUSE_MS, reply.askAgainMs)) : 0
  }

  /** What there is room for; nothing where too little time is left for anything. */
  #offer(): Message<'pull'>['offer'][number] | null {
    const { config, leases, timeLeft } = this.#options
    const timeLeftMs = timeLeft.leftMs
    if (timeLeftMs !== null && timeLeftMs < config.leastTimeLeft) return null
    const held = [...leases.held]
    const room = roomFor(this.#whole(), this.#busy(), held, config.ahead)
    if (!room) return null
    const aheadMs = Math.round(Math.max(0, room.aheadMs))
    return { shape: room.shape, count: 1, timeLeftMs, aheadMs, node: config.node }
  }

  #whole(): Shape {
    const { node: _node, timeLeftMs: _timeLeftMs, labels: _labels, ...shape } = this.#options.facts()
    return this.#closed.reduce((whole, needs) => shapeWithout(whole, needs), shape)
  }

  #busy(): BusyWork[] {
    const busy: BusyWork[] = []
    for (const [attempt, lease] of this.#running) {
      if (!attempt.takesRoom) continue
      busy.push({ needs: lease.needs, estimateMs: lease.estimateMs, elapsedMs: attempt.elapsedMs })
    }
    return busy
  }

  #startWhatFits(): void {
    if (this.#draining !== 'no' || !this.#isTested) return
    const { leases, clock, timeLeft } = this.#options
    const whole = this.#whole()
    // Outputs that are being stored take no core, but there is an end to how many may pile up.
    while (this.#running.size < 4 * whole.cores + 16) {
      const nowMs = clock.monotonicMs()
      const lease = nextToStart(leases.held, freeShape(whole, this.#busy()), timeLeft.leftMs, nowMs)
      if (!lease) return
      this.#start(lease, lease.takeNext())
    }
  }

  #start(lease: Lease, index: number): void {
    const { grant, template, bundle } = lease
    const work = {
      ref: lease.ref(index),
      template,
      bundle,
      earlierAttempts: grant.tries[String(index)] ?? 0,
      capability: grant.capability,
    }
    const attempt = new Attempt(work, this.#options.around)
    this.#running.set(attempt, lease)
    this.#hasWorked = true
    this.#counters.tasks_started!++
    lease.running++
    const started = this.#started.get(lease)
    if (started) started.add(index)
    else this.#started.set(lease, new Set([index]))
    let tookRoom = true
    attempt.onChanged = () => {
      if (!tookRoom || attempt.takesRoom) return
      tookRoom = false
      lease.running--
      lease.sawRunTime(attempt.elapsedMs)
      this.#wake()
    }
    void attempt.run().then((result) => this.#onFinished(attempt, lease, result))
  }

  async #onFinished(attempt: Attempt, lease: Lease, result: Result): Promise<void> {
    const { outbox } = this.#options
    this.#counters[result.end === 'done' ? 'tasks_done' : 'tasks_failed']!++
    this.#counters.wall_ms! += result.wallMs
    this.#counters.cpu_ms! += result.cpuMs
    this.#counters.core_ms! += result.wallMs * lease.needs.cores
    this.#unacknowledged.set(attempt.path, attempt)
    failpoint('outputs.stored')
    await outbox.add(result)
    failpoint('outbox.written')
    this.#running.delete(attempt)
    this.#idleSinceMs = this.#options.clock.monotonicMs()
    this.#wakeReport()
    this.#wake()
  }

  async #reportRefused({ lease, reason, detail }: RefusedGrant): Promise<void> {
    const { outbox, around, log } = this.#options
    let tasks: number[]
    try {
      tasks = [...indices(parseRanges(lease.tasks))]
    } catch {
      return log.error({ lease }, 'grant.unreadable')
    }
    await Promise.all(
      tasks.map((index) =>
        outbox.add({
          ...{ campaign: lease.campaign, step: lease.step, index, bundle: lease.bundle, fences: lease.fences },
          ...{ end: 'failed', reason, detail: detail.slice(0, 500), exitCode: null, signal: null },
          ...{ site: around.site, node: around.node, pilot: around.pilot },
          ...{ wallMs: 0, cpuMs: 0, maxRssBytes: 0, stageInMs: 0, stageOutMs: 0 },
          ...{ outputs: [], stdoutBytes: 0, stderrBytes: 0, tail: null },
        }),
      ),
    )
    this.#wakeReport()
  }

  #giveBack(parts: readonly LeasePart[]): void {
    const { log, name } = this.#options
    for (const part of parts) log.info({ ...part, pilot: name }, 'attempt.givenBack')
    this.#toReturn.push(...parts)
  }

  // --- report

  async #reportLoop(): Promise<void> {
    const { outbox, log, clock } = this.#options
    let most = REPORT_MOST
    while (!this.#stopped.signal.aborted) {
      const results = outbox.batch(most, REPORT_BYTES)
      if (results.length === 0) {
        await new Promise<void>((resolve) => {
          this.#reportWakers.push(resolve)
        })
        continue
      }
      try {
        const { verdicts } = await this.#holder.report(results)
        failpoint('report.answered')
        this.#settle(verdicts)
        most = REPORT_MOST
        if (verdicts.length < results.length) await clock.sleep(TICK_MS, this.#stopped.signal)
      } catch (error) {
        if (await this.#isPassing(error)) continue
        if (!(error instanceof IndraftError)) throw error
        if (error.code === 'message.tooLarge' && results.length > 1) most = Math.ceil(results.length / 2)
        else if (error.code === 'message.tooLarge') await this.#shrink(results[0]!)
        else {
          log.error({ err: error }, 'session.reportRefused')
          return this.#onRefused(error)
        }
      }
    }
  }

  /** One result that no message can carry: its outputs are too many to be named. */
  async #shrink(result: Result): Promise<void> {
    const { outbox, log } = this.#options
    log.error({ ...result, outputs: result.outputs.length }, 'result.tooLarge')
    outbox.acknowledged([result])
    const detail = 'the list of outputs is too long for a message'
    await outbox.add({ ...result, end: 'failed', reason: 'stage.outFailed', detail, outputs: [], tail: null })
  }

  #settle(verdicts: readonly Verdict[]): void {
    const { outbox, leases, log } = this.#options
    outbox.acknowledged(verdicts)
    for (const verdict of verdicts) {
      const ref = verdict as unknown as AttemptRef
      leases.settle(ref)
      const path = attemptPath(ref)
      this.#unacknowledged.get(path)?.acknowledge(verdict.verdict)
      this.#unacknowledged.delete(path)
      log.debug({ attempt: path, verdict: verdict.verdict }, 'result.acknowledged')
      if (verdict.verdict !== 'accepted') log.info({ ...verdict, attempt: path }, 'result.notAccepted')
    }
    if (verdicts.length > 0) this.#wake()
  }

  // --- the clock

  async #tickLoop(): Promise<void> {
    const { clock, timeLeft } = this.#options
    let lastMs = clock.monotonicMs()
    let refreshAtMs = lastMs + 60_000
    while (!this.#stopped.signal.aborted) {
      await (this.#draining === 'no'
        ? clock.sleep(TICK_MS, this.#drained.signal)
        : clock.sleep(DRAIN_TICK_MS, this.#stopped.signal))
      const nowMs = clock.monotonicMs()
      this.#noticeSuspension(nowMs - lastMs)
      lastMs = nowMs
      if (nowMs > refreshAtMs) {
        refreshAtMs = nowMs + 60_000
        void timeLeft.refresh()
      }
      await this.#tick(nowMs)
    }
  }

  #noticeSuspension(gapMs: number): void {
    if (gapMs < Math.max(SUSPENDED_BEATS * this.#timings().beatMs, 10 * TICK_MS)) return
    this.#options.log.warn({ gapMs: Math.round(gapMs) }, 'pilot.suspended')
    this.#counters.suspended!++
    this.#idleSinceMs += gapMs
    this.#options.around.watcher.shift(gapMs)
  }

  async #tick(nowMs: number): Promise<void> {
    const { config, leases, outbox, timeLeft, stopFile } = this.#options
    const session = this.#holder.welcome?.session
    if (session !== undefined) leases.renew(session, this.#holder.renewedAtMs)
    this.#startWhatFits()
    if (this.#draining === 'no' && (await exists(stopFile))) {
      this.drain('finish', { code: 200, reason: 'a STOP file asks for it' })
    }
    const leftMs = timeLeft.leftMs
    const isAtEnd = leftMs !== null && leftMs <= 0
    if (this.#draining !== 'ending' && this.#draining !== 'hurried') {
      if (isAtEnd) this.drain('end', { code: 200, reason: 'the allocation ends' })
      else if (nowMs > this.#noticeEndsAtMs) this.drain('end', { code: 200, reason: 'the announced end has come' })
    }
    if (nowMs > this.#deadlineMs) return this.#over.resolve(this.#drainReason)

    const silentMs = nowMs - Math.max(this.#holder.renewedAtMs, this.#bornAtMs)
    const isGone = silentMs > config.goneAfter
    if (this.#running.size > 0) this.#idleSinceMs = nowMs
    else if (isGone) return this.#over.resolve({ code: 700, reason: 'the dispatcher does not answer' })
    if (this.#running.size > 0 || outbox.size > 0) return
    // What is to be given back goes with the bye.
    if (this.#draining !== 'no') return this.#over.resolve(this.#drainReason)
    if (leases.unstarted > 0) return
    if (leftMs !== null && leftMs < config.leastTimeLeft) {
      return this.#over.resolve({ code: 300, reason: 'too little time is left' })
    }
    if (nowMs - this.#idleSinceMs > (this.#hasWorked ? config.idleAfter : config.idleBefore)) {
      const isSilent = silentMs > Math.max(60_000, this.#timings().lostAfterMs)
      const reason = this.#hasWorked ? 'no more work' : 'no work'
      this.#over.resolve(isSilent ? { code: 700, reason: 'the dispatcher does not answer' } : { code: 300, reason })
    }
  }

  #timings(): Message<'welcome'>['timings'] {
    // Before the first welcome nothing but the tick runs; it needs some beat to measure gaps by.
    return (
      this.#holder.welcome?.timings ?? {
        beatMs: 5000,
        lostAfterMs: 60_000,
        leaseMs: 60_000,
        confirmMs: 60_000,
        pullWaitMs: 0,
      }
    )
  }

  // --- the end

  async #leave({ code, reason }: Farewell): Promise<void> {
    const { log, link, leases, name } = this.#options
    for (const attempt of this.#running.keys()) attempt.end('node.ending', reason, 0)
    // Their results stay in the outbox for the next pilot here; the bye tells the dispatcher at once.
    for (let i = 0; this.#running.size > 0 && i < 20; i++) await this.#options.clock.sleep(DRAIN_TICK_MS)
    const returned = [...this.#toReturn, ...leases.withdraw(() => true)].slice(0, MOST_NAMED)
    this.#stopped.abort()
    this.#drained.abort()
    this.#holder.stop()
    this.#wake()
    this.#wakeReport()
    failpoint('bye.begun')
    const isHurried = this.#draining === 'hurried' || code === 700
    await this.#holder.bye({ code, reason: reason.slice(0, 500), returned }, isHurried ? 1 : 3)
    await link.close().catch((error) => log.warn({ err: error }, 'link.closeFailed'))
    log.info({ pilot: name, code, reason, undelivered: this.#options.outbox.size }, 'pilot.left')
  }

  #wake(): void {
    const wakers = this.#wakers
    this.#wakers = []
    for (const wake of wakers) wake()
    // Not within the caller: an attempt that changes its state is in the middle of something.
    queueMicrotask(() => this.#startWhatFits())
  }

  #wakeReport(): void {
    const wakers = this.#reportWakers
    this.#reportWakers = []
    for (const wake of wakers) wake()
  }

  async #changed(atMostMs: number): Promise<void> {
    const woken = new AbortController()
    this.#wakers.push(() => woken.abort())
    await this.#options.clock.sleep(atMostMs, woken.signal)
  }
}

async function exists(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  )
}
