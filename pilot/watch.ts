/**
 * Limits of running payloads, and their end. The pilot measures because the batch system's and the container
 * runtime's own limits usually fail inside batch jobs: walltime, memory of the process tree, scratch space, stalled.
 * Ending is SIGTERM, a grace, then SIGKILL to everything that belongs to the attempt; what survives that is said to
 * the owner, who closes the slot.
 *
 * What always holds: one scan of the processes serves all attempts, at most a tenth of the time goes into it, and a
 * process of an attempt that is over is ended at the next scan.
 */
import { realpathSync } from 'node:fs'
import type { Clock } from '../shared/clock.ts'
import type { ErrorCode } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import { formatBytes, formatDuration } from '../shared/quantity.ts'
import { folderBytes, MEASURE_AT_MOST_MS } from './folder-bytes.ts'
import { Membership, type ProcessFacts, type ProcessSource } from './processes.ts'
import { mappedSharedMemory, ownSharedMemory } from './shared-memory.ts'

export interface Limits {
  walltimeMs: number
  /** 0 is no limit, as for scratchBytes. */
  memoryBytes: number
  scratchBytes: number
  stalledAfterMs: number | null
}

export interface WatchTarget {
  /** The attempt's path: what its processes carry as marker. */
  attempt: string
  /** First process, leader of its own session. */
  pid: number
  /** Everything the task writes lies in these. */
  folders: readonly string[]
  limits: Limits
  /** Bytes of output so far, for the stall check. */
  outputBytes: () => number
  /** Called once, with the first limit that was broken. */
  onViolated: (reason: ErrorCode, detail: string) => void
  /** Called once, when a process of it has outlived SIGKILL; mostly long after its first one has ended. */
  onUnkillable: () => void
}

export interface Usage {
  cpuMs: number
  rssBytes: number
  maxRssBytes: number
}

export interface WatcherOptions {
  source: ProcessSource
  clock: Clock
  log: Log
  /** The pilot's own mark, see processes.ts. */
  run: string
  everyMs: number
}

const MEASURE_EVERY_MS = 5000
const KILL_REPEAT_MS = 200
const UNKILLABLE_AFTER_MS = 10_000
/** Something of an attempt that is over may turn up until so many looks in a row have found nothing. */
const LOOKS_AFTER = 2
/** A look at the processes that comes so much later than meant: until then nobody was there to look, or to kill. */
const STOOD_STILL_MS = 2000
/** Less processor time than this share of the wall time is standing still. */
const STANDSTILL = 0.01

export class Watched {
  readonly target: WatchTarget
  readonly usage: Usage = { cpuMs: 0, rssBytes: 0, maxRssBytes: 0 }
  startedAtMs: number
  /** The payload's own program was reached. Before, no limit counts: the time and the memory are the container's. */
  isBegun = false
  processes: ProcessFacts[] = []
  isViolated = false
  isUnkillable = false
  isMeasuring = false
  nextMeasureAtMs: number
  scratchBytes = 0
  /** In a /dev/shm of its own, mapped or not. */
  shmBytes = 0
  activeAtMs: number
  activity = { cpuMs: 0, outputBytes: 0, scratchBytes: 0, atMs: 0 }

  constructor(target: WatchTarget, nowMs: number) {
    this.target = target
    this.startedAtMs = nowMs
    this.activeAtMs = nowMs
    this.activity.atMs = nowMs
    this.nextMeasureAtMs = nowMs
  }
}

/** An attempt whose first process has ended, for as long as something of it may turn up. */
interface Over {
  /** Null for one that is known by its mark alone. */
  watched: Watched | null
  looksLeft: number
  /** When processes of it were last seen, and killed; null while there are none. */
  killedAtMs: number | null
  /** For how long there have been some, as sinceKillMs counts. */
  survivedMs: number
}

export class Watcher {
  readonly #options: WatcherOptions
  readonly #membership: Membership
  readonly #watched = new Map<string, Watched>()
  /** First processes of attempts that ended since the last scan; what they started may be in no scan yet. */
  readonly #released = new Map<number, string>()
  /** Attempt by folder, for as long as something of it may turn up. */
  readonly #folders = new Map<string, string>()
  readonly #over = new Map<string, Over>()
  #timer: NodeJS.Timeout | undefined
  #wasJustScanned = false
  #isClosed = false

  constructor(options: WatcherOptions) {
    this.#options = options
    this.#membership = new Membership(options.source, options.run)
  }

  watch(target: WatchTarget): Watched {
    const watched = new Watched(target, this.#options.clock.monotonicMs())
    this.#watched.set(target.attempt, watched)
    for (const folder of target.folders) this.#folders.set(realPath(folder), target.attempt)
    this.#schedule(this.#options.everyMs)
    return watched
  }

  /** The payload's own program was reached: from now on its limits count. */
  begin(watched: Watched): void {
    const nowMs = this.#options.clock.monotonicMs()
    Object.assign(watched, { isBegun: true, startedAtMs: nowMs, activeAtMs: nowMs, nextMeasureAtMs: nowMs + 1000 })
    watched.activity = { ...watched.activity, cpuMs: watched.usage.cpuMs, atMs: nowMs }
    // What the next look sees. One that ends before it is given what the last one saw; see release.
    watched.usage.maxRssBytes = 0
  }

  /** The attempt's first process has ended: what is left of it is ended at the next scan, at once where it is known. */
  release(watched: Watched): void {
    const { target, usage } = watched
    const { attempt, pid } = target
    usage.maxRssBytes = Math.max(usage.maxRssBytes, usage.rssBytes)
    this.#watched.delete(attempt)
    this.#released.set(pid, attempt)
    this.#over.set(attempt, { watched, looksLeft: LOOKS_AFTER, killedAtMs: null, survivedMs: 0 })
    this.#options.source.kill(-pid, 'SIGKILL')
    this.#schedule(this.#options.everyMs)
  }

  /** SIGTERM to all of the attempt; after `graceMs` SIGKILL, repeated until `exited` aborts or it proves unkillable. */
  async end(watched: Watched, graceMs: number, exited: AbortSignal): Promise<void> {
    const { clock } = this.#options
    if (graceMs > 0) {
      this.#signal(watched, 'SIGTERM')
      await clock.sleep(graceMs, exited)
    }
    let survivedMs = 0
    while (!exited.aborted) {
      const killedAtMs = clock.monotonicMs()
      this.#signal(watched, 'SIGKILL')
      // Whoever is late for a pilot that leaves is killed once, and waited for by nobody.
      if (this.#isClosed) return
      await clock.sleep(KILL_REPEAT_MS, exited)
      survivedMs += sinceKillMs(killedAtMs, clock.monotonicMs())
      if (exited.aborted || survivedMs < UNKILLABLE_AFTER_MS) continue
      return this.#isUnkillable(watched, watched.target.pid)
    }
  }

  #isUnkillable(watched: Watched, pid: number): void {
    if (watched.isUnkillable) return
    watched.isUnkillable = true
    this.#options.log.error({ attempt: watched.target.attempt, pid }, 'payload.unkillable')
    watched.target.onUnkillable()
  }

  #signal(watched: Watched, signal: NodeJS.Signals): void {
    const { source } = this.#options
    this.#scanOnce()
    source.kill(-watched.target.pid, signal)
    for (const facts of watched.processes) {
      if (facts.group !== watched.target.pid) source.kill(facts.pid, signal)
    }
  }

  /** This pilot stood still (suspended, or had no processor): no payload is to blame for the time. */
  #forgive(lateMs: number): void {
    if (lateMs < STOOD_STILL_MS) return
    const nowMs = this.#options.clock.monotonicMs()
    const later = (ms: number) => Math.min(nowMs, ms + lateMs)
    for (const watched of this.#watched.values()) {
      watched.startedAtMs = later(watched.startedAtMs)
      watched.activeAtMs = later(watched.activeAtMs)
      watched.activity.atMs = later(watched.activity.atMs)
    }
  }

  /** Another attempt that uses more memory than it asked for now, or a moment ago. */
  overMemory(except: string): string | null {
    for (const [attempt, { target, usage, isBegun }] of this.#watched) {
      const { memoryBytes } = target.limits
      if (attempt !== except && isBegun && memoryBytes > 0 && usage.maxRssBytes > memoryBytes) return attempt
    }
    return null
  }

  /** Ends what attempts that are over left behind, then stops. */
  close(): void {
    this.#scan()
    this.#isClosed = true
    clearTimeout(this.#timer)
  }

  #schedule(inMs: number): void {
    if (this.#timer || this.#isClosed) return
    const dueMs = this.#options.clock.monotonicMs() + inMs
    this.#timer = setTimeout(() => {
      this.#timer = undefined
      // Here and not with the pilot's own tick, which may come after this one when both are overdue.
      this.#forgive(this.#options.clock.monotonicMs() - dueMs)
      const startMs = performance.now()
      this.#scan()
      for (const watched of this.#watched.values()) this.#check(watched)
      this.#forgetOver()
      const tookMs = performance.now() - startMs
      if (this.#watched.size > 0 || this.#over.size > 0) {
        this.#schedule(Math.max(this.#options.everyMs, tookMs * 10))
      }
    }, inMs)
  }

  /** After each look. */
  #forgetOver(): void {
    let forgotten = 0
    for (const [attempt, over] of this.#over) {
      if (over.killedAtMs !== null || --over.looksLeft > 0) continue
      this.#over.delete(attempt)
      forgotten++
    }
    if (forgotten === 0) return
    for (const [folder, attempt] of this.#folders) {
      if (!this.#watched.has(attempt) && !this.#over.has(attempt)) this.#folders.delete(folder)
    }
  }

  /** Attempts that are told in one turn share the look: a hundred of their own would keep a pilot deaf for seconds. */
  #scanOnce(): void {
    if (this.#wasJustScanned) return
    this.#scan()
    this.#wasJustScanned = true
    setImmediate(() => {
      this.#wasJustScanned = false
    })
  }

  #scan(): void {
    const leaders = new Map<number, string>()
    for (const watched of this.#watched.values()) leaders.set(watched.target.pid, watched.target.attempt)
    const members = this.#membership.assign(leaders, this.#released, this.#folders)
    this.#released.clear()
    for (const watched of this.#watched.values()) {
      const { usage } = watched
      watched.processes = members.get(watched.target.attempt) ?? []
      let cpuMs = 0
      usage.rssBytes = 0
      for (const facts of watched.processes) {
        cpuMs += facts.cpuMs
        usage.rssBytes += facts.rssBytes
      }
      // What ended without being waited for takes its time with it: never count backwards.
      usage.cpuMs = Math.max(usage.cpuMs, cpuMs)
      usage.maxRssBytes = Math.max(usage.maxRssBytes, usage.rssBytes)
    }
    this.#endLeftovers(members)
  }

  #endLeftovers(members: ReadonlyMap<string, ProcessFacts[]>): void {
    const { clock, log, source } = this.#options
    const nowMs = clock.monotonicMs()
    for (const [attempt, processes] of members) {
      if (this.#watched.has(attempt)) continue
      const over = this.#over.get(attempt) ?? { watched: null, looksLeft: LOOKS_AFTER, killedAtMs: null, survivedMs: 0 }
      this.#over.set(attempt, over)
      if (over.killedAtMs === null) {
        log.info({ attempt, processes: processes.length }, 'payload.leftoversEnded')
        over.survivedMs = 0
      } else over.survivedMs += sinceKillMs(over.killedAtMs, nowMs)
      over.killedAtMs = nowMs
      over.looksLeft = LOOKS_AFTER
      for (const facts of processes) source.kill(facts.pid, 'SIGKILL')
      if (over.watched && over.survivedMs > UNKILLABLE_AFTER_MS) {
        this.#isUnkillable(over.watched, processes[0]!.pid)
      }
    }
    for (const [attempt, over] of this.#over) if (!members.has(attempt)) over.killedAtMs = null
  }

  #check(watched: Watched): void {
    if (watched.isViolated || !watched.isBegun) return
    const nowMs = this.#options.clock.monotonicMs()
    const { limits } = watched.target
    if (nowMs - watched.startedAtMs > limits.walltimeMs) {
      this.#violated(watched, 'payload.walltime', `longer than ${formatDuration(limits.walltimeMs)}`)
    } else if (limits.memoryBytes > 0 && watched.usage.rssBytes + watched.shmBytes > limits.memoryBytes) {
      const bytes = this.#sharedOnce(watched)
      const detail = `${formatBytes(bytes)} of ${formatBytes(limits.memoryBytes)}`
      if (bytes > limits.memoryBytes) this.#violated(watched, 'payload.memory', detail)
    }
    if (!watched.isMeasuring && nowMs >= watched.nextMeasureAtMs) void this.#measure(watched)
    this.#checkStalled(watched, nowMs)
  }

  /** Memory with pages that forked processes share counted once; costs more, so only asked when the sum is too high. */
  #sharedOnce(watched: Watched): number {
    let bytes = 0
    let mapped = 0
    for (const facts of watched.processes) {
      bytes += this.#options.source.pssBytes(facts.pid) ?? facts.rssBytes
      if (watched.shmBytes > 0) mapped += mappedSharedMemory(facts.pid)
    }
    return bytes + Math.max(0, watched.shmBytes - mapped)
  }

  async #measure(watched: Watched): Promise<void> {
    watched.isMeasuring = true
    const startMs = this.#options.clock.monotonicMs()
    const { limits, folders } = watched.target
    const most = limits.scratchBytes > 0 ? limits.scratchBytes : Number.POSITIVE_INFINITY
    watched.scratchBytes = await folderBytes(folders, most, MEASURE_AT_MOST_MS)
    watched.shmBytes = await ownSharedMemory(watched.processes.map(({ pid }) => pid))
    const endMs = this.#options.clock.monotonicMs()
    watched.nextMeasureAtMs = endMs + Math.max(MEASURE_EVERY_MS, 10 * (endMs - startMs))
    watched.isMeasuring = false
    if (watched.scratchBytes > most && this.#watched.has(watched.target.attempt)) {
      this.#violated(watched, 'payload.scratch', `more than ${formatBytes(most)}`)
    }
  }

  #checkStalled(watched: Watched, nowMs: number): void {
    const { limits } = watched.target
    if (limits.stalledAfterMs === null) return
    const { activity, usage } = watched
    const outputBytes = watched.target.outputBytes()
    const busyMs = usage.cpuMs - activity.cpuMs
    const isActive =
      outputBytes !== activity.outputBytes ||
      watched.scratchBytes !== activity.scratchBytes ||
      busyMs > (nowMs - activity.atMs) * STANDSTILL
    if (isActive) {
      watched.activeAtMs = nowMs
      watched.activity = { cpuMs: usage.cpuMs, outputBytes, scratchBytes: watched.scratchBytes, atMs: nowMs }
    } else if (nowMs - watched.activeAtMs > limits.stalledAfterMs) {
      this.#violated(watched, 'payload.stalled', `nothing for ${formatDuration(limits.stalledAfterMs)}`)
    }
  }

  #violated(watched: Watched, reason: ErrorCode, detail: string): void {
    if (watched.isViolated) return
    watched.isViolated = true
    watched.target.onViolated(reason, detail)
  }
}

/**
 * How long something has outlived its SIGKILL. Where this pilot stood still, the killed may have as well, or have ended
 * unseen: of any one wait so little counts that it takes several kills to prove something unkillable.
 */
function sinceKillMs(killedAtMs: number, seenAtMs: number): number {
  return Math.min(seenAtMs - killedAtMs, STOOD_STILL_MS)
}

function realPath(folder: string): string {
  try {
    return realpathSync(folder)
  } catch {
    return folder
  }
}
