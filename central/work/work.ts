/**
 * The work about work, on BullMQ: expand, feed, release, publish, compact; and a sweep that every second looks for what
 * is due and was not done. A job is a hint to look, never the truth: it may be lost, doubled, or die anywhere, and any
 * number of processes may run them side by side.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { type Job, Queue, Worker } from 'bullmq'
import type { Redis } from 'ioredis'
import { syncFolder } from '../../shared/files/durable.ts'
import { openTasks } from '../../shared/lifecycle.ts'
import type { Log } from '../../shared/log.ts'
import type { Feeder } from '../leases/feeding.ts'
import { GLOBAL, groupBase } from '../leases/keys.ts'
import type { Plans } from '../leases/plans.ts'
import { readCounts } from '../leases/read.ts'
import { BLOCK_TASKS, mustPublish, type Results } from '../leases/results.ts'
import type { Scripts } from '../leases/scripts.ts'
import { publishOutputs } from '../publishing/publish.ts'
import { storeRefusal } from '../redis.ts'
import type { Compactor } from './compact.ts'
import type { Reaper } from './reaper.ts'

const QUEUE = 'indraft-work'
const PREFIX = 'indraft-jobs'
const SWEEP_EVERY_MS = 1000
const PUBLISH_BATCH = 200
const CLOSE_WAIT_MS = 2000
/** A job may be at work still; whoever runs next goes on where it was. */
const STOP_WAIT_MS = 10_000

export type JobName = 'expand' | 'feed' | 'release' | 'publish' | 'compact'

interface JobData {
  campaign: string
  step: string
}

export interface WorkParts {
  /** Made anew for each connection that BullMQ blocks on. */
  connect: () => Redis
  scripts: Scripts
  plans: Plans
  results: Results
  feeder: Feeder
  compactor: Compactor
  reaper: Reaper
  outputsDir: string
  log: Log
  timeScale: number
}

/** Jobs are asked for before the parts that run them exist; this end knows only the queue. */
export class WorkQueue {
  readonly #queue: Queue
  readonly #log: Log
  readonly #pending = new Set<Promise<unknown>>()
  /** Asked for in this turn of the event loop already. */
  readonly #asked = new Set<string>()

  constructor(connection: Redis, log: Log) {
    this.#queue = new Queue(QUEUE, {
      connection,
      prefix: PREFIX,
      streams: { events: { maxLen: 100 } },
      defaultJobOptions: { removeOnComplete: true, removeOnFail: { count: 100 } },
    })
    this.#queue.on('error', (error) => log.warn({ err: error }, 'work.queueFailed'))
    this.#log = log
  }

  /** Never throws and is not waited for: what is lost here the sweep finds. */
  want(job: JobName, campaign: string, step: string): void {
    const id = [job, campaign, step].join('/')
    if (this.#asked.has(id)) return
    this.#asked.add(id)
    setImmediate(() => this.#asked.delete(id))
    const added = this.#queue
      .add(job, { campaign, step }, { deduplication: { id, keepLastIfActive: true } })
      .catch((error) => this.#log.warn({ err: error, job, campaign, step }, 'work.notAsked'))
      .finally(() => this.#pending.delete(added))
    this.#pending.add(added)
  }

  async close(): Promise<void> {
    // Without Redis neither ends; what was asked for is only a hint.
    await within(CLOSE_WAIT_MS, Promise.all(this.#pending))
    await within(CLOSE_WAIT_MS, this.#queue.close())
  }
}

export class Work {
  readonly #parts: WorkParts
  readonly #queue: WorkQueue
  /** One at a time in this process; others may run beside it elsewhere. */
  #sweeping: Promise<void> | undefined
  #reaping: Promise<void> | undefined
  #worker: { worker: Worker; connection: Redis } | undefined
  #timer: NodeJS.Timeout | undefined
  /** Tasks whose outputs could not be published when this process tried last. */
  readonly #unpublished = new Set<string>()

  constructor(parts: WorkParts, queue: WorkQueue) {
    this.#parts = parts
    this.#queue = queue
  }

  async start(): Promise<void> {
    const connection = this.#parts.connect()
    const worker = new Worker(QUEUE, (job: Job) => this.#run(job.name as JobName, job.data as JobData), {
      connection,
      prefix: PREFIX,
      concurrency: 4,
      // Looking once more is all that a job does, however often its process died: it never fails for that.
      maxStalledCount: Number.MAX_SAFE_INTEGER,
    })
    worker.on('stalled', (job) => this.#parts.log.info({ job, next: 'it runs again here' }, 'work.jobTakenOver'))
    worker.on('error', (error) => this.#parts.log.warn({ err: error }, 'work.failed'))
    worker.on('failed', (job, error) => {
      this.#parts.log.error({ err: error, job: job?.name, ...(job?.data as object) }, 'work.jobFailed')
    })
    this.#worker = { worker, connection }
    await worker.waitUntilReady()
    const everyMs = Math.max(50, Math.round(SWEEP_EVERY_MS * this.#parts.timeScale))
    this.#timer = setInterval(() => {
      this.#takeTurn(everyMs).catch((error: unknown) => this.#parts.log.warn({ err: error }, 'work.sweepFailed'))
    }, everyMs)
    await this.sweep()
  }

  async stop(): Promise<void> {
    clearInterval(this.#timer)
    await within(STOP_WAIT_MS, Promise.allSettled([this.#sweeping, this.#reaping]))
    if (!this.#worker) return
    const { worker, connection } = this.#worker
    this.#worker = undefined
    await within(STOP_WAIT_MS, worker.close(connection.status !== 'ready'))
    connection.disconnect()
  }

  #run(name: JobName, { campaign, step }: JobData): Promise<unknown> {
    switch (name) {
      case 'expand':
      case 'release':
        return this.#parts.feeder.advance(campaign)
      case 'feed':
        return this.#parts.feeder.feed(campaign, step)
      case 'publish':
        return this.publish(campaign)
      case 'compact':
        return this.#parts.compactor.compact(campaign, step)
    }
  }

  /**
   * Every process has a timer, and Redis gives the turn to one. BullMQ's schedulers go by the wall clock of whoever ran
   * last: one clock an hour ahead would put off everybody's sweep by that hour (test/central/store-faults.test.ts).
   */
  async #takeTurn(everyMs: number): Promise<void> {
    await this.#parts.reaper.listen()
    const turn = await this.#parts.scripts.redis.set(GLOBAL.turn, process.pid, 'PX', Math.ceil(everyMs / 2), 'NX')
    if (turn === null) return
    // A sweep that takes long (millions of tasks, a slow disk) puts off the end of nobody's session.
    await (this.#sweeping ? this.#reap() : this.sweep())
  }

  #reap(): Promise<void> {
    this.#reaping ??= this.#parts.reaper.sweep().finally(() => {
      this.#reaping = undefined
    })
    return this.#reaping
  }

  /** Looks for everything that is due, whoever should have asked for it. One round does it all; tests call it. */
  async sweep(): Promise<void> {
    this.#sweeping ??= this.#sweepOnce().finally(() => {
      this.#sweeping = undefined
    })
    return this.#sweeping
  }

  async #sweepOnce(): Promise<void> {
    const { scripts, feeder, plans, log } = this.#parts
    await this.#reap()
    for (const group of await scripts.redis.smembers(GLOBAL.groups)) {
      const base = groupBase(group)
      const sweepCampaign = async (campaign: string) => {
        const isOpen = await feeder.advance(campaign)
        let results = 0
        const known = await plans.get(campaign)
        for (const step of known?.plan.steps ?? []) {
          const counts = await readCounts(scripts.redis, base, campaign, step.name)
          if (counts.queued > 0) await feeder.feed(campaign, step.name)
          const kept = await scripts.redis.hlen(`${base}:results:${campaign}:${step.name}`)
          results += kept
          if (kept >= BLOCK_TASKS || (kept > 0 && openTasks(counts) === 0)) {
            this.#queue.want('compact', campaign, step.name)
          }
        }
        // What is over stays listed until nothing more has to be done for it.
        if (!isOpen && results === 0) {
          const steps = known?.plan.steps.map((step) => step.name) ?? []
          await scripts.run('end', base, { campaign, steps, retire: true })
        }
      }
      for (const campaign of await scripts.redis.smembers(`${base}:active`)) {
        try {
          await sweepCampaign(campaign)
        } catch (error) {
          // What one campaign meets (a full disk, a blob that is gone) must not hold up the others.
          if (storeRefusal(error)) throw error
          log.warn({ err: error, campaign }, 'work.campaignNotSwept')
        }
      }
      const waiting = await scripts.redis.srandmember(`${base}:publish`)
      if (waiting) await this.#publishIn(base, waiting.slice(0, waiting.indexOf('|')))
    }
  }

  /** Publishes what waits in the group of a campaign. What fails stays on the list for the next sweep. */
  async publish(campaign: string): Promise<void> {
    const known = await this.#parts.plans.readable(campaign)
    if (known) await this.#publishIn(known.base, campaign)
  }

  async #publishIn(base: string, campaign: string): Promise<void> {
    const { scripts, results, outputsDir, log } = this.#parts
    const key = `${base}:publish`
    const names = await scripts.redis.srandmember(key, PUBLISH_BATCH)
    const named: { name: string; folders: string[] }[] = []
    const notPublished = (name: string, error: unknown) => {
      // A file that is not there may be missing with every sweep from now on.
      const level = this.#unpublished.has(name) ? 'debug' : 'warn'
      log[level]({ err: error, task: name.replaceAll('|', '/') }, 'task.notPublished')
      this.#unpublished.add(name)
    }
    for (const name of names) {
      const [id = '', step = '', index = ''] = name.split('|')
      try {
        const result = await results.winner(id, step, Number(index))
        const isOurs = result?.outputs.some((output) => mustPublish(output.url, result))
        named.push({ name, folders: isOurs ? await publishOutputs(outputsDir, result!, log) : [] })
      } catch (error) {
        if (storeRefusal(error)) throw error
        notPublished(name, error)
      }
    }
    // Nobody would give the names again that a power cut took, were they off the list.
    const published: string[] = []
    const syncs = new Map<string, Promise<void>>()
    for (const folder of new Set(named.flatMap(({ folders }) => folders))) syncs.set(folder, syncFolder(folder))
    await Promise.allSettled(syncs.values())
    for (const { name, folders } of named) {
      try {
        for (const folder of folders) await syncs.get(folder)
        published.push(name)
        this.#unpublished.delete(name)
      } catch (error) {
        notPublished(name, error)
      }
    }
    if (published.length > 0) await scripts.redis.srem(key, ...published)
    if (published.length === PUBLISH_BATCH) this.#queue.want('publish', campaign, '')
  }
}

/** Resolves when the promise does, or after so long. */
async function within(ms: number, promise: Promise<unknown>): Promise<void> {
  const over = new AbortController()
  const late = delay(ms, undefined, { signal: over.signal }).catch(() => {})
  await Promise.race([promise, late]).finally(() => over.abort())
}
