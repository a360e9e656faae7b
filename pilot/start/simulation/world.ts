/**
 * A site in memory for the simulation: nodes good and bad, a batch system, a queue of tasks behind a relay, pilots that
 * live by the pilot's own rules, and a disk with the vacuum's state. It offers the ports of a tick, so what decides is
 * the very code that runs at sites. Ticks may die at any port, as processes do.
 */
import type { Message } from '../../../shared/protocol/messages.ts'
import { seeded } from '../../../test/seeded.ts'
import { isWithin } from '../../policy.ts'
import type { QueuedJob } from '../absorb.ts'
import type { Start } from '../decide.ts'
import { allowedGroups } from '../demand.ts'
import { type EndRecord, EndTally } from '../end-record.ts'
import { folderTag, type SiteFile } from '../site-file.ts'
import { emptyState, type State } from '../state.ts'
import { NotStarted, NotStartedForNodes, type Ports } from '../tick.ts'

export const STEP_MS = 15_000
const IDLE_BEFORE_MS = 480_000
const IDLE_AFTER_MS = 180_000
const PROGRESS_AFTER_MS = 600_000
const BAD_NODE_LIVES_MS = 15_000

/** Broken: its pilots end with 500. Gone: they end without a word, and so does their job where it has no other. */
export type Health = 'good' | 'broken' | 'fails' | 'skips' | 'gone'

export interface Campaign {
  name: string
  arrivesMs: number
  tasks: number
  taskMs: number
  /** The simulation's own unless said otherwise. */
  group?: string
}

export interface WorldOptions {
  site: SiteFile
  nodes: number
  tasksPerNode: number
  campaigns: readonly Campaign[]
  seed: number
  /** Of a node at a time; good unless said otherwise. */
  health?: (node: string, nowMs: number) => Health
  isRelayUp?: (nowMs: number) => boolean
  /** Whether the relay knows the vacuum's question. */
  answers?: boolean
  /** Whether the batch system sends jobs to a node; what runs there goes on. */
  isDrained?: (node: string, nowMs: number) => boolean
  /** Whether the node is in the batch system's configuration. */
  isKnown?: (node: string, nowMs: number) => boolean
  /** Why sbatch refuses an order; null where it does not. */
  refusal?: (order: Start, nowMs: number) => string | null
  /** Whether scancel is answered. */
  canCancel?: (nowMs: number) => boolean
  /** The chance that a tick dies at any one of its steps. */
  deathRate?: number
}

class Died extends Error {}

interface Pilot {
  start: string
  node: string
  bornMs: number
  endsMs: number
  idleSinceMs: number
  hasWorked: boolean
  busyUntilMs: number
  holds: { campaign: string; tasks: number } | null
  tally: EndTally
  tasks: number
  taskLimit: number
}

interface Job {
  jobId: string
  order: Start
  state: 'queued' | 'running'
  pilots: Pilot[]
  /** Held until the last pilot has ended. */
  nodes: string[]
  beganMs: number
}

/** What is measured, minute by minute. */
export interface Sample {
  atMs: number
  queuedTasks: number
  running: number
  busy: number
  /** Pilots by kind. */
  kinds: Record<string, number>
}

export class World {
  readonly options: WorldOptions
  nowMs = 0
  readonly samples: Sample[] = []
  readonly figures = {
    pilots: 0,
    idleMs: 0,
    busyMs: 0,
    tasksDone: 0,
    tasksSpoilt: 0,
    sbatch: 0,
    squeue: 0,
    scancel: 0,
    sinfo: 0,
    doubled: 0,
  }
  readonly startTimes: number[] = []
  readonly callTimes: number[] = []
  readonly refusedTimes: number[] = []
  readonly cancelTimes: number[] = []
  /** Node-milliseconds that the batch system charged, by account. */
  readonly charged = new Map<string, number>()
  readonly nodeStarts = new Map<string, number>()
  readonly #random: () => number
  readonly #queue = new Map<string, { tasks: number; taskMs: number; isTimed: boolean; group: string }>()
  /** Of whom pilots of a kind take work; empty: of all. */
  readonly #groups: ReadonlyMap<string, readonly string[]>
  #coming: Campaign[]
  #jobs: Job[] = []
  #numbers = 0
  #disk: string | null = null
  #records = new Map<string, EndRecord>()
  #locked: 'no' | 'held' | 'stale' = 'no'

  constructor(options: WorldOptions) {
    this.options = options
    this.#random = seeded(options.seed).next
    this.#groups = new Map(Object.keys(options.site.kinds).map((kind) => [kind, allowedGroups(options.site, kind)]))
    this.#coming = [...options.campaigns].sort((a, b) => a.arrivesMs - b.arrivesMs)
  }

  get state(): State {
    return this.#disk === null ? emptyState() : (JSON.parse(this.#disk) as State)
  }

  loseState(): void {
    this.#disk = null
  }

  get queuedTasks(): number {
    return [...this.#queue.values()].reduce((sum, { tasks }) => sum + tasks, 0)
  }

  get runningPilots(): number {
    return this.#jobs.reduce((sum, { pilots }) => sum + pilots.length, 0)
  }

  get jobs(): number {
    return this.#jobs.length
  }

  /** Time goes on by one step. */
  advance(): void {
    this.nowMs += STEP_MS
    while (this.#coming[0] && this.#coming[0].arrivesMs <= this.nowMs) {
      const { name, tasks, taskMs, group = '/sim' } = this.#coming.shift()!
      this.#queue.set(name, { tasks, taskMs, isTimed: false, group })
    }
    this.#schedule()
    let busy = 0
    for (const job of this.#jobs) {
      for (const pilot of [...job.pilots]) {
        this.#live(job, pilot)
        const isBusy = pilot.holds !== null
        if (isBusy) busy++
        this.figures[isBusy ? 'busyMs' : 'idleMs'] += STEP_MS
      }
      // What a pilot left of a job that goes on serves nobody.
      if (job.pilots.length > 0) this.figures.idleMs += (job.nodes.length - job.pilots.length) * STEP_MS
    }
    this.#jobs = this.#jobs.filter((job) => {
      const isOver = job.state === 'running' && job.pilots.length === 0
      if (isOver) this.#charge(job)
      return !isOver
    })
    if (this.nowMs % 60_000 === 0) this.#sample(busy)
  }

  #sample(busy: number): void {
    const kinds: Record<string, number> = {}
    for (const { order, pilots } of this.#jobs) kinds[order.kind] = (kinds[order.kind] ?? 0) + pilots.length
    const { nowMs: atMs, queuedTasks, runningPilots: running } = this
    this.samples.push({ atMs, queuedTasks, running, busy, kinds })
  }

  #charge({ order, nodes, beganMs }: Job): void {
    const account = this.options.site.kinds[order.kind]!.account ?? ''
    this.charged.set(account, (this.charged.get(account) ?? 0) + nodes.length * (this.nowMs - beganMs))
  }

  #schedule(): void {
    const { isDrained } = this.options
    // Too late to end in time.
    this.#jobs = this.#jobs.filter(({ order, state }) => {
      const lastMs = (order.endsByMs ?? Number.POSITIVE_INFINITY) - (order.leastTimeMs ?? order.timeMs)
      return state === 'running' || this.nowMs <= lastMs
    })
    const taken = new Set(this.#jobs.flatMap(({ nodes }) => nodes))
    const free = this.#nodeNames().filter((node) => !taken.has(node) && !isDrained?.(node, this.nowMs))
    // A broken node is free sooner than others: batch systems like black holes.
    free.sort((a, b) => Number(this.#health(b) !== 'good') - Number(this.#health(a) !== 'good'))
    for (const job of this.#jobs.filter(({ state }) => state === 'queued')) {
      const { order } = job
      const may = free.filter((node) =>
        order.canaryOf === null ? !order.exclude.includes(node) : node === order.canaryOf,
      )
      if (may.length < order.nodes) continue
      job.state = 'running'
      job.beganMs = this.nowMs
      const endsMs = Math.min(this.nowMs + order.timeMs, order.endsByMs ?? Number.POSITIVE_INFINITY)
      for (const node of may.slice(0, order.nodes)) {
        free.splice(free.indexOf(node), 1)
        this.figures.pilots++
        this.startTimes.push(this.nowMs)
        this.nodeStarts.set(node, (this.nodeStarts.get(node) ?? 0) + 1)
        job.nodes.push(node)
        job.pilots.push({
          ...{ start: order.id, node, bornMs: this.nowMs, endsMs, idleSinceMs: this.nowMs },
          ...{ hasWorked: false, busyUntilMs: 0, holds: null, tally: new EndTally(), tasks: 0 },
          taskLimit: order.canaryOf === null ? Number.POSITIVE_INFINITY : this.options.site.nodes.canaryTasks,
        })
      }
    }
  }

  #nodeNames(): string[] {
    const all = Array.from({ length: this.options.nodes }, (_, at) => `n${at + 1}`)
    return all.filter((node) => this.options.isKnown?.(node, this.nowMs) ?? true)
  }

  #health(node: string): Health {
    return this.options.health?.(node, this.nowMs) ?? 'good'
  }

  #isRelayUp(): boolean {
    return this.options.isRelayUp?.(this.nowMs) ?? true
  }

  #live(job: Job, pilot: Pilot): void {
    const health = this.#health(pilot.node)
    if (health === 'broken' && this.nowMs - pilot.bornMs >= BAD_NODE_LIVES_MS) {
      this.#end(job, pilot, 500, 'scratch can be written: No space left on device')
      return
    }
    if (health === 'gone') {
      this.#giveBack(pilot)
      job.pilots.splice(job.pilots.indexOf(pilot), 1)
      return
    }
    if (pilot.holds && this.nowMs >= pilot.busyUntilMs) this.#finish(pilot, health)
    if (pilot.holds) return
    const leftMs = pilot.endsMs - this.nowMs
    if (leftMs <= 120_000) this.#end(job, pilot, 300, 'too little time is left')
    else if (pilot.tasks >= pilot.taskLimit) this.#end(job, pilot, 200, 'as many tasks as it was to start')
    else if (this.#isRelayUp() && this.#take(job, pilot, health, leftMs)) return
    else if (this.nowMs - pilot.idleSinceMs >= (pilot.hasWorked ? IDLE_AFTER_MS : IDLE_BEFORE_MS)) {
      if (this.#isRelayUp()) this.#end(job, pilot, 300, pilot.hasWorked ? 'no more work' : 'no work')
      else this.#end(job, pilot, 700, 'the dispatcher does not answer')
    }
  }

  #take(job: Job, pilot: Pilot, health: Health, leftMs: number): boolean {
    const groups = this.#groups.get(job.order.kind)!
    for (const [campaign, queued] of this.#queue) {
      const { taskMs, group } = queued
      if (queued.tasks === 0 || taskMs > leftMs) continue
      if (groups.length > 0 && !groups.some((one) => isWithin(group, one))) continue
      // Until the next step a slot does several short tasks one after another.
      const rounds = Math.max(1, Math.floor(STEP_MS / (health === 'good' ? taskMs : 1000)))
      const tasks = Math.min(queued.tasks, this.options.tasksPerNode * rounds, pilot.taskLimit - pilot.tasks)
      queued.tasks -= tasks
      pilot.tasks += tasks
      pilot.holds = { campaign, tasks }
      pilot.hasWorked = true
      pilot.busyUntilMs = this.nowMs + (health === 'good' ? Math.max(taskMs, STEP_MS) : STEP_MS)
      return true
    }
    return false
  }

  #finish(pilot: Pilot, health: Health): void {
    const { campaign, tasks } = pilot.holds!
    const queued = this.#queue.get(campaign)!
    pilot.holds = null
    pilot.idleSinceMs = this.nowMs
    const wallMs = health === 'good' ? queued.taskMs * (0.8 + 0.4 * this.#random()) : 900
    for (let i = 0; i < tasks; i++) {
      const end = health === 'fails' ? 'failed' : 'done'
      pilot.tally.add({ campaign, step: 'run', end, reason: null, wallMs } as never)
    }
    if (health !== 'good') this.figures.tasksSpoilt += tasks
    if (health === 'fails') queued.tasks += tasks
    else {
      queued.isTimed = true
      this.figures.tasksDone += tasks
    }
  }

  #cancel(job: Job, pilot: Pilot, code = 700, reason = 'SIGTERM was received; payloads were ended'): void {
    this.#giveBack(pilot)
    this.#end(job, pilot, code, reason)
  }

  #giveBack({ holds }: Pilot): void {
    if (holds) this.#queue.get(holds.campaign)!.tasks += holds.tasks
  }

  #end(job: Job, pilot: Pilot, code: number, reason: string): void {
    job.pilots.splice(job.pilots.indexOf(pilot), 1)
    this.#records.set(`${pilot.start}-${pilot.node}.json`, this.#recordOf(job, pilot, code, reason))
  }

  #recordOf({ jobId }: Job, pilot: Pilot, code: number, reason: string): EndRecord {
    return {
      ...{ version: 1, start: pilot.start, pilot: pilot.node, node: pilot.node, job: jobId, code, reason },
      ...{ livedMs: this.nowMs - pilot.bornMs, work: pilot.tally.work() },
    }
  }

  /** The ports of one tick, which is a process of its own and may die at each of them. */
  ports(): Ports {
    let isDead = false
    const { deathRate = 0 } = this.options
    const dies = () => {
      if (isDead || (deathRate > 0 && this.#random() < deathRate)) {
        isDead = true
        if (this.#locked === 'held') this.#locked = 'stale'
        throw new Died()
      }
    }
    /** Dies before it, or after it. */
    const doing = async <T>(act: () => T): Promise<T> => {
      dies()
      const done = act()
      dies()
      return done
    }
    const called = (kind: 'sbatch' | 'squeue' | 'scancel' | 'sinfo') => {
      this.figures[kind]++
      this.callTimes.push(this.nowMs)
      if (kind !== 'scancel') return
      this.cancelTimes.push(this.nowMs)
      if (this.options.canCancel?.(this.nowMs) === false)
        throw new Error('scancel: error: Unable to contact slurm controller')
    }
    return {
      lock: async () => {
        if (this.#locked === 'held') return null
        this.#locked = 'held'
        return {
          isHeld: async () => !isDead,
          release: async () => {
            if (!isDead) this.#locked = 'no'
          },
        }
      },
      readState: () => doing(() => this.state),
      writeState: (state) =>
        doing(() => {
          this.#disk = JSON.stringify(state)
        }),
      endRecords: () => doing(() => [...this.#records].map(([file, record]) => ({ file, record }))),
      progress: () =>
        doing(() =>
          this.#jobs.flatMap((job) =>
            job.pilots
              .filter(({ bornMs }) => this.nowMs - bornMs >= PROGRESS_AFTER_MS)
              .map((pilot) => ({
                file: `${pilot.start}-${pilot.node}.alive`,
                record: this.#recordOf(job, pilot, 100, ''),
              })),
          ),
        ),
      askToLeave: (alive, why) =>
        doing(() => {
          for (const job of [...this.#jobs])
            for (const pilot of [...job.pilots])
              if (`${pilot.start}-${pilot.node}.alive` === alive) this.#cancel(job, pilot, 500, why)
        }),
      removeEndRecords: (files) =>
        doing(() => {
          for (const file of files) this.#records.delete(file)
        }),
      ask: (offer) =>
        doing(() => (this.options.answers !== false && this.#isRelayUp() ? this.#demand(offer.length) : null)),
      isStopped: () => doing(() => false),
      tidy: () => doing(() => undefined),
      starter: {
        queue: () =>
          doing(() => {
            called('squeue')
            return this.#jobs.map(
              ({ jobId, order, state, nodes }): QueuedJob => ({
                ...{ jobId, id: order.id, state, nodes: [...nodes], nodeCount: order.nodes, reason: '' },
              }),
            )
          }),
        start: (order) =>
          doing(() => {
            called('sbatch')
            this.#refuse(order)
            if (this.#jobs.some((job) => job.order.id === order.id)) this.figures.doubled++
            const jobId = String(++this.#numbers)
            this.#jobs.push({ jobId, order, state: 'queued', pilots: [], nodes: [], beganMs: 0 })
            return jobId
          }),
        withdraw: (starts) =>
          doing(() => {
            called('scancel')
            const ids = new Set(starts.map(({ id }) => id))
            this.#jobs = this.#jobs.filter((job) => job.state === 'running' || !ids.has(job.order.id))
          }),
        end: (starts) =>
          doing(() => {
            called('scancel')
            const ids = new Set(starts.map(({ id }) => id))
            for (const job of this.#jobs.filter(({ order }) => ids.has(order.id))) {
              for (const pilot of [...job.pilots]) this.#cancel(job, pilot)
            }
          }),
        nodeNames: () =>
          doing(() => {
            called('sinfo')
            return this.#nodeNames()
          }),
      },
      nowMs: () => this.nowMs,
      random: this.#random,
      newId: () =>
        folderTag(this.options.site) +
        Math.floor(this.#random() * 2 ** 32)
          .toString(16)
          .padStart(8, '0'),
    }
  }

  /** @throws NotStarted as sbatch refuses */
  #refuse(order: Start): void {
    const known = this.#nodeNames()
    const isOfNodes = [...order.exclude, ...(order.canaryOf === null ? [] : [order.canaryOf])].some(
      (node) => !known.includes(node),
    )
    const why = this.options.refusal?.(order, this.nowMs) ?? null
    if (!isOfNodes && why === null) return
    this.refusedTimes.push(this.nowMs)
    throw isOfNodes ? new NotStartedForNodes('Invalid node name specified') : new NotStarted(why!)
  }

  #demand(entries: number): Message<'demanded'> {
    const { tasksPerNode: perNode } = this.options
    const waiting = [...this.#queue].filter(([, { tasks }]) => tasks > 0)
    const fits = Array.from({ length: entries }, (_, entry) =>
      waiting.map(([name, { tasks, taskMs, isTimed, group }]) => ({
        ...{ entry, group, work: `${name}/run`, tasks, perNode, estimateMs: isTimed ? taskMs : null },
      })),
    ).flat()
    const idlePilots = this.#jobs.flatMap(({ pilots }) => pilots).filter(({ holds }) => holds === null).length
    return { fits, idlePilots, isWhole: true, reason: fits.length > 0 ? null : 'noWork' }
  }
}

export function isDeath(error: unknown): boolean {
  return error instanceof Died
}
