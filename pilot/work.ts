/**
 * The work of one pilot: what it was granted, what runs, what is to be given back, and the counters of it all. Starts
 * whatever fits as soon as it fits, whatever messages are under way. Knows no dispatcher: session.ts carries what is said.
 *
 * What always holds: what was granted is started, given back, or dropped because its session is gone; a result is in
 * the outbox before its attempt leaves the running ones; nothing starts while `mayStart` says no.
 */
import type { Clock } from '../shared/clock.ts'
import type { ErrorCode } from '../shared/errors.ts'
import { failpoint } from '../shared/failpoint.ts'
import type { Shape } from '../shared/fit.ts'
import { shapeWithout } from '../shared/fit.ts'
import { type AttemptRef, attemptPath } from '../shared/ids.ts'
import type { Log } from '../shared/log.ts'
import { noResult } from '../shared/no-result.ts'
import type { LeasePart, Message, NodeFacts, Result, Verdict } from '../shared/protocol/messages.ts'
import type { Needs } from '../shared/protocol/work.ts'
import { indices, parseRanges } from '../shared/ranges.ts'
import type { PilotConfig } from './config.ts'
import type { Lease, Leases, RefusedGrant } from './leases.ts'
import type { Outbox } from './outbox.ts'
import { Attempt, type PayloadAround } from './payload.ts'
import { type BusyWork, canEnd, Devices, fits, freeShape, nextToStart, roomFor } from './slots.ts'
import type { TimeLeft } from './time-left.ts'

export interface WorkOptions {
  clock: Clock
  log: Log
  config: PilotConfig
  name: string
  facts: () => NodeFacts
  timeLeft: TimeLeft
  leases: Leases
  outbox: Outbox
  around: PayloadAround
  mayStart: () => boolean
  /** Room became free, a result is in the outbox, or it left it; `isWork` where that is of something that ran here. */
  onChanged: (isWork: boolean) => void
  /** These ends may mean that the disk is bad. */
  onDiskSuspected: () => void
  /** Every end, before it is on disk. */
  onResult?: ((result: Result) => void) | undefined
  /** Nothing starts beyond so many. */
  taskLimit?: number | null
}

export class Work {
  readonly #options: WorkOptions
  readonly #running = new Map<Attempt, Lease>()
  /** Finished, not acknowledged; for the log line that closes an attempt. */
  readonly #unacknowledged = new Map<string, Attempt>()
  /** Attempts whose files are being written or removed, with what they may write; not those of a closed slot. */
  readonly #scratch = new Map<Attempt, Needs>()
  /** Those of them whose files cannot be removed. */
  readonly #unremoved = new Map<Attempt, Needs>()
  /** Room that unkillable processes keep; their GPUs are retired. */
  readonly #closed: Needs[] = []
  readonly #devices: Devices
  readonly #cpus: Devices | null
  #toReturn: LeasePart[] = []
  readonly #started = new Map<Lease, Set<number>>()
  readonly counters = {
    tasks_started: 0,
    tasks_done: 0,
    tasks_failed: 0,
    wall_ms: 0,
    cpu_ms: 0,
    core_ms: 0,
  }

  constructor(options: WorkOptions) {
    this.#options = options
    this.#devices = new Devices(options.around.gpus?.devices.map(({ id }) => id) ?? [])
    this.#cpus = options.around.cpus ? new Devices(options.around.cpus) : null
  }

  get running(): number {
    return this.#running.size
  }

  /** Attempts that take cores and memory now. */
  get taking(): Attempt[] {
    return [...this.#running.keys()].filter((attempt) => attempt.takesRoom)
  }

  get slotsClosed(): number {
    return this.#closed.length
  }

  get hasWorked(): boolean {
    return this.counters.tasks_started > 0
  }

  /** As many tasks were started as this pilot is to start. */
  get isAtLimit(): boolean {
    return this.counters.tasks_started >= (this.#options.taskLimit ?? Number.POSITIVE_INFINITY)
  }

  /** Unstarted tasks to be named to the dispatcher. */
  get toReturn(): readonly LeasePart[] {
    return this.#toReturn
  }

  /** The dispatcher has these back. A new session in between has emptied the list already. */
  returned(parts: readonly LeasePart[]): void {
    this.#toReturn = this.#toReturn.filter((part) => !parts.includes(part))
  }

  /** Unstarted work of the leases chosen, or one task of them, is given back with the next pull or the bye. */
  giveBack(choose: (lease: Lease) => boolean = () => true, index?: number): void {
    const { log, name, leases } = this.#options
    for (const part of leases.withdraw(choose, index)) {
      log.info({ ...part, pilot: name }, 'attempt.givenBack')
      this.#toReturn.push(part)
    }
  }

  /** Leases of other sessions are gone, and with them what was to be said about them. @returns what was dropped */
  startSession(session: string): LeasePart[] {
    this.#toReturn = []
    this.#started.clear()
    return this.#options.leases.dropOthers(session)
  }

  /** Tasks that started and no beat has said so, of at most so many leases. */
  unsaidStarts(most: number): Map<Lease, number[]> {
    return new Map([...this.#started].slice(0, most).map(([lease, tasks]) => [lease, [...tasks]]))
  }

  saidStarts(starts: ReadonlyMap<Lease, readonly number[]>): void {
    for (const [lease, tasks] of starts) {
      const known = this.#started.get(lease)
      if (!known) continue
      for (const task of tasks) known.delete(task)
      if (known.size === 0) this.#started.delete(lease)
    }
  }

  /** Ends running attempts that are chosen; see Attempt.end. @returns whether any of them took room */
  end(choose: (attempt: Attempt) => boolean, reason: ErrorCode, detail: string, graceMs?: number): boolean {
    const chosen = [...this.#running.keys()].filter(choose)
    const tookRoom = chosen.some((attempt) => attempt.takesRoom)
    for (const attempt of chosen) attempt.end(reason, detail, graceMs)
    return tookRoom
  }

  /** What there is room for; nothing where too little time is left for anything. */
  offer(): Message<'pull'>['offer'][number] | null {
    const { config, leases, timeLeft } = this.#options
    const timeLeftMs = timeLeft.leftMs
    if (timeLeftMs !== null && timeLeftMs < config.leastTimeLeft) return null
    // The scratch of what has ended is about to come free: a pull for less would wait on long after it has. What is
    // granted for it starts when it is there.
    const room = roomFor(this.#whole(), this.#busy(false), [...leases.held], config.ahead)
    if (!room) return null
    const aheadMs = Math.round(Math.max(0, room.aheadMs))
    return { shape: room.shape, count: 1, timeLeftMs, aheadMs, node: config.node }
  }

  #whole(): Shape {
    const { node: _node, timeLeftMs: _timeLeftMs, labels: _labels, ...shape } = this.#options.facts()
    const taken = this.#closed.map((needs) => ({ ...needs, gpus: 0 }))
    for (const needs of this.#unremoved.values()) taken.push({ ...needs, cores: 0, memoryBytes: 0, gpus: 0 })
    const left = taken.reduce((whole, needs) => shapeWithout(whole, needs), shape)
    // Those of several closed slots may be the same.
    return { ...left, gpus: left.gpus - this.#devices.retired }
  }

  /** @param withEnded what lies in scratch of payloads that have ended counts too, until it is stored and removed */
  #busy(withEnded: boolean): BusyWork[] {
    const busy: BusyWork[] = []
    for (const [attempt, lease] of this.#running) {
      if (!attempt.takesRoom) continue
      busy.push({ needs: lease.needs, estimateMs: lease.estimateMs, elapsedMs: attempt.elapsedMs })
    }
    // Images that had to be unpacked lie in scratch for as long as they are in use.
    let scratchBytes = this.#options.around.runtimes.reduce((sum, { unpacked }) => sum + (unpacked?.bytes ?? 0), 0)
    for (const [attempt, needs] of this.#scratch) {
      if (withEnded && !attempt.takesRoom) scratchBytes += needs.scratchBytes
    }
    const needs = { ...busy[0]?.needs, cores: 0, memoryBytes: 0, gpus: 0, scratchBytes } as Needs
    if (scratchBytes > 0) busy.push({ needs, estimateMs: 0, elapsedMs: 0 })
    return busy
  }

  startWhatFits(): void {
    const { leases, clock, timeLeft, mayStart } = this.#options
    if (!mayStart()) return
    // What could not end any more goes to a pilot that lives longer, and leaves its room to shorter work.
    const timeLeftMs = timeLeft.leftMs
    const whole = this.#whole()
    // Nor can what is larger than the node: since a slot was closed, or because a dispatcher gave what was not offered.
    this.giveBack(({ waiting, needs }) => waiting > 0 && (!canEnd(needs, timeLeftMs) || !fits(needs, whole)))
    // Outputs that are being stored take no core, but there is an end to how many may pile up.
    while (this.#running.size < 4 * whole.cores + 16 && !this.isAtLimit) {
      const nowMs = clock.monotonicMs()
      const lease = nextToStart(leases.held, freeShape(whole, this.#busy(true)), timeLeft.leftMs, nowMs)
      if (!lease) return
      this.#start(lease, lease.takeNext())
    }
  }

  #start(lease: Lease, index: number): void {
    const { grant, template, bundle } = lease
    const { gpus } = this.#options.around
    const ids = this.#devices.take(lease.needs.gpus)
    const cpus = this.#cpus?.take(lease.needs.cores)
    const work = {
      ref: lease.ref(index),
      template,
      bundle,
      earlierAttempts: grant.tries[String(index)] ?? 0,
      capability: grant.capability,
      gpus: gpus && ids.length > 0 ? { vendor: gpus.vendor, ids, ...gpus.files?.foreignTo(ids) } : null,
      cpus: cpus?.join(',') ?? null,
    }
    const attempt = new Attempt(work, this.#options.around)
    this.#running.set(attempt, lease)
    this.#scratch.set(attempt, lease.needs)
    this.counters.tasks_started++
    lease.running++
    const started = this.#started.get(lease)
    if (started) started.add(index)
    else this.#started.set(lease, new Set([index]))
    let tookRoom = true
    attempt.onChanged = () => {
      if (!tookRoom || attempt.takesRoom) return
      tookRoom = false
      this.#devices.release(ids)
      this.#cpus?.release(cpus ?? [])
      lease.running--
      lease.sawRunTime(attempt.elapsedMs)
      this.#options.onChanged(true)
    }
    attempt.onRemoved = (isGone) => {
      if (!this.#scratch.delete(attempt)) return
      if (!isGone) this.#unremoved.set(attempt, lease.needs)
      this.#options.onChanged(false)
    }
    attempt.onUnkillable = () => {
      // Its room is not used again; somebody may have been given it since the attempt ended.
      this.#scratch.delete(attempt)
      this.#unremoved.delete(attempt)
      this.#closed.push(lease.needs)
      this.#devices.retire(ids)
      this.#cpus?.retire(cpus ?? [])
      this.#options.log.error({ attempt: attempt.path, closed: this.#closed.length }, 'slot.closed')
    }
    void attempt.run().then((result) => this.#onFinished(attempt, lease, result))
  }

  async #onFinished(attempt: Attempt, lease: Lease, result: Result): Promise<void> {
    const { outbox, onChanged, onDiskSuspected } = this.#options
    this.counters[result.end === 'done' ? 'tasks_done' : 'tasks_failed']++
    this.counters.wall_ms += result.wallMs
    this.counters.cpu_ms += result.cpuMs
    this.counters.core_ms += result.wallMs * lease.needs.cores
    this.#unacknowledged.set(attempt.path, attempt)
    this.#options.onResult?.(result)
    failpoint('outputs.stored')
    await outbox.add(result)
    failpoint('outbox.written')
    this.#running.delete(attempt)
    if (result.reason === 'node.scratchFull' || result.reason === 'node.fault') onDiskSuspected()
    onChanged(true)
  }

  /** Each task of a refused grant fails singly, so that the centre hears why. */
  async refuse({ lease, reason, detail }: RefusedGrant): Promise<void> {
    const { outbox, around, log } = this.#options
    let tasks: number[]
    try {
      tasks = [...indices(parseRanges(lease.tasks))]
    } catch {
      return log.error({ lease }, 'grant.unreadable')
    }
    const { campaign, step, bundle, fences } = lease
    const failed = { ...noResult(around), reason, detail: detail.slice(0, 500), campaign, step, bundle, fences }
    await Promise.all(tasks.map((index) => outbox.add({ ...failed, index })))
  }

  /** No dispatcher takes this result: its attempt is held no longer, so that it is found missing. */
  async setAside(result: Result): Promise<void> {
    const { outbox, leases, onChanged } = this.#options
    const ref = result as unknown as AttemptRef
    await outbox.setAside(result)
    leases.settle(ref)
    onChanged(this.#unacknowledged.delete(attemptPath(ref)))
  }

  /** The dispatcher has these results, whatever it thinks of them. */
  settle(verdicts: readonly Verdict[]): void {
    const { outbox, leases, log } = this.#options
    outbox.acknowledged(verdicts)
    let isWork = false
    for (const verdict of verdicts) {
      const ref = verdict as unknown as AttemptRef
      leases.settle(ref)
      const path = attemptPath(ref)
      this.#unacknowledged.get(path)?.acknowledge(verdict.verdict)
      isWork = this.#unacknowledged.delete(path) || isWork
      log.debug({ attempt: path, verdict: verdict.verdict }, 'result.acknowledged')
      if (verdict.verdict !== 'accepted') log.info({ ...verdict, attempt: path }, 'result.notAccepted')
    }
    if (verdicts.length > 0) this.#options.onChanged(isWork)
  }
}
