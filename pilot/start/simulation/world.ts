/**
 * A site in memory for the simulation: nodes good and bad, a batch system, a queue of tasks behind a relay, pilots that
 * live by the pilot's own rules, and a disk with the vacuum's state. It offers the ports of a tick, so what decides is
 * the very code that runs at sites. Ticks may die at any port, as processes do.
 */
import type { Message } from '../../../shared/protocol/messages.ts'
import { seeded } from '../../../test/seeded.ts'
import type { QueuedJob } from '../absorb.ts'
import type { Start } from '../decide.ts'
import { type EndRecord, EndTally } from '../end-record.ts'
import { folderTag, type SiteFile } from '../site-file.ts'
import { emptyState, type State } from '../state.ts'
import type { Ports } from '../tick.ts'

export const STEP_MS = 15_000
const IDLE_BEFORE_MS = 480_000
const IDLE_AFTER_MS = 180_000
const PROGRESS_AFTER_MS = 600_000
const BAD_NODE_LIVES_MS = 15_000

export type Health = 'good' | 'broken' | 'fails' | 'skips'

export interface Campaign {
  name: string
  arrivesMs: number
  tasks: number
  taskMs: number
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
}

/** What is measured, minute by minute. */
export interface Sample {
  atMs: number
  queuedTasks: number
  running: number
  busy: number
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
    doubled: 0,
  }
  readonly startTimes: number[] = []
  readonly callTimes: number[] = []
  readonly nodeStarts = new Map<string, number>()
  readonly #random: () => number
  readonly #queue = new Map<string, { tasks: number; taskMs: number; isTimed: boolean }>()
  #coming: Campaign[]
  #jobs: Job[] = []
  #numbers = 0
  #disk: string | null = null
  #records = new Map<string, EndRecord>()
  #locked: 'no' | 'held' | 'stale' = 'no'

  constructor(options: WorldOptions) {
    this.options = options
    this.#random = seeded(options.seed).next
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
      const { name, tasks, taskMs } = this.#coming.shift()!
      this.#queue.set(name, { tasks, taskMs, isTimed: false })
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
    }
    this.#jobs = this.#jobs.filter((job) => job.state === 'queued' || job.pilots.length > 0)
    if (this.nowMs % 60_000 === 0) {
      this.samples.push({ atMs: this.nowMs, queuedTasks: this.queuedTasks, running: this.runningPilots, busy })
    }
  }

  #schedule(): void {
    const taken = new Set(this.#jobs.flatMap(({ pilots }) => pilots.map(({ node }) => node)))
    const free = Array.from({ length: this.options.nodes }, (_, at) => `n${at + 1}`).filter((node) => !taken.has(node))
    // A broken node is free sooner than others: batch systems like black holes.
    free.sort((a, b) => Number(this.#health(b) !== 'good') - Number(this.#health(a) !== 'good'))
    for (const job of this.#jobs.filter(({ state }) => state === 'queued')) {
      const { order } = job
      const may = free.filter((node) =>
        order.canaryOf === null ? !order.exclude.includes(node) : node === order.canaryOf,
      )
      if (may.length < order.nodes) continue
      job.state = 'running'
      for (const node of may.slice(0, order.nodes)) {
        free.splice(free.indexOf(node), 1)
        this.figures.pilots++
        this.startTimes.push(this.nowMs)
        this.nodeStarts.set(node, (this.nodeStarts.get(node) ?? 0) + 1)
        job.pilots.push({
          ...{ start: order.id, node, bornMs: this.nowMs, endsMs: this.nowMs + order.timeMs, idleSinceMs: this.nowMs },
          ...{ hasWorked: false, busyUntilMs: 0, holds: null, tally: new EndTally(), tasks: 0 },
          taskLimit: order.canaryOf === null ? Number.POSITIVE_INFINITY : this.options.site.nodes.canaryTasks,
        })
      }
    }
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
    if (pilot.holds && this.nowMs >= pilot.busyUntilMs) this.#finish(pilot, health)
    if (pilot.holds) return
    const leftMs = pilot.endsMs - this.nowMs
    if (leftMs <= 120_000) this.#end(job, pilot, 300, 'too little time is left')
    else if (pilot.tasks >= pilot.taskLimit) this.#end(job, pilot, 200, 'as many tasks as it was to start')
    else if (this.#isRelayUp() && this.#take(pilot, health, leftMs)) return
    else if (this.nowMs - pilot.idleSinceMs >= (pilot.hasWorked ? IDLE_AFTER_MS : IDLE_BEFORE_MS)) {
      if (this.#isRelayUp()) this.#end(job, pilot, 300, pilot.hasWorked ? 'no more work' : 'no work')
      else this.#end(job, pilot, 700, 'the dispatcher does not answer')
    }
  }

  #take(pilot: Pilot, health: Health, leftMs: number): boolean {
    for (const [campaign, queued] of this.#queue) {
      const { taskMs } = queued
      if (queued.tasks === 0 || taskMs > leftMs) continue
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
    if (pilot.holds) this.#queue.get(pilot.holds.campaign)!.tasks += pilot.holds.tasks
    this.#end(job, pilot, code, reason)
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
    const called = (kind: 'sbatch' | 'squeue' | 'scancel') => {
      this.figures[kind]++
      this.callTimes.push(this.nowMs)
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
              ({ jobId, order, state, pilots }): QueuedJob => ({
                ...{ jobId, id: order.id, state, nodes: pilots.map(({ node }) => node), reason: '' },
              }),
            )
          }),
        start: (order) =>
          doing(() => {
            called('sbatch')
            if (this.#jobs.some((job) => job.order.id === order.id)) this.figures.doubled++
            const jobId = String(++this.#numbers)
            this.#jobs.push({ jobId, order, state: 'queued', pilots: [] })
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

  #demand(entries: number): Message<'demanded'> {
    const { tasksPerNode: perNode } = this.options
    const waiting = [...this.#queue].filter(([, { tasks }]) => tasks > 0)
    const fits = Array.from({ length: entries }, (_, entry) =>
      waiting.map(([name, { tasks, taskMs, isTimed }]) => ({
        ...{ entry, group: '/sim', work: `${name}/run`, tasks, perNode, estimateMs: isTimed ? taskMs : null },
      })),
    ).flat()
    const idlePilots = this.#jobs.flatMap(({ pilots }) => pilots).filter(({ holds }) => holds === null).length
    return { fits, idlePilots, isWhole: true, reason: fits.length > 0 ? null : 'noWork' }
  }
}

export function isDeath(error: unknown): boolean {
  return error instanceof Died
}
