/**
 * What fits now, and what to ask for: cores, memory, scratch, GPUs and time left of one node, as pure decisions over
 * what is known. There are no fixed slots: a slot is whatever a running task takes.
 */
import { type Shape, shapeWithout, tasksPerShape, unmetNeeds } from '../shared/fit.ts'
import type { Needs } from '../shared/protocol/work.ts'

/** A lease starts nothing in the last tenth of its time: what starts then could not be said in time. */
const LAST_PART = 0.1

/** Unstarted work in hand, per lease. */
export interface WaitingWork {
  needs: Needs
  /** Tasks not started yet. */
  waiting: number
  /** Tasks of the same lease that take room now. */
  running: number
  /** What one task is expected to take; null until known. */
  estimateMs: number | null
  /** Monotonic end of the lease, and its whole length. */
  endsAtMs: number
  leaseMs: number
}

export interface BusyWork {
  needs: Needs
  estimateMs: number | null
  elapsedMs: number
}

/** What is left of a node beside the work that runs. May be negative where a slot was closed under running work. */
export function freeShape(whole: Shape, busy: Iterable<Pick<BusyWork, 'needs'>>): Shape {
  let free = whole
  for (const work of busy) free = shapeWithout(free, work.needs)
  return free
}

export function mayStart(work: Pick<WaitingWork, 'endsAtMs' | 'leaseMs'>, nowMs: number): boolean {
  return nowMs < work.endsAtMs - work.leaseMs * LAST_PART
}

/** A task has its whole walltime or does not start: what the margins keep back is not in the time left. */
export function canEnd(needs: Pick<Needs, 'walltimeMs'>, timeLeftMs: number | null): boolean {
  return timeLeftMs === null || needs.walltimeMs <= timeLeftMs
}

/** Whether it could run on a node of this shape with nothing beside it. */
export function fits(needs: Needs, whole: Shape): boolean {
  return unmetNeeds(needs, whole, null).length === 0
}

/** Which GPUs are whose: each is one task's, free, or retired, and none appears or gets lost. */
export class Devices {
  #free: string[]
  readonly #retired = new Set<string>()

  constructor(ids: readonly string[]) {
    this.#free = [...ids]
  }

  get free(): number {
    return this.#free.length
  }

  /** Given to nobody any more. */
  get retired(): number {
    return this.#retired.size
  }

  /** Those unused for longest. @throws Error where there are not so many: nobody starts what does not fit */
  take(count: number): readonly string[] {
    if (count > this.#free.length) throw new Error(`${count} GPUs wanted, ${this.#free.length} free`)
    return this.#free.splice(0, count)
  }

  release(ids: readonly string[]): void {
    this.#free.push(...ids.filter((id) => !this.#retired.has(id)))
  }

  /** From now on nobody gets these; who has one now keeps it for as long as it runs. */
  retire(ids: readonly string[]): void {
    for (const id of ids) this.#retired.add(id)
    this.#free = this.#free.filter((id) => !this.#retired.has(id))
  }
}

/** The first lease, in the order given, whose next task fits into what is free. */
export function nextToStart<T extends WaitingWork>(
  leases: Iterable<T>,
  free: Shape,
  timeLeftMs: number | null,
  nowMs: number,
): T | undefined {
  if (free.cores < 1) return undefined
  for (const lease of leases) {
    if (lease.waiting > 0 && mayStart(lease, nowMs) && unmetNeeds(lease.needs, free, timeLeftMs).length === 0) {
      return lease
    }
  }
  return undefined
}

export interface Room {
  shape: Shape
  /** How much more work than fits side by side is wanted; see offerEntrySchema. */
  aheadMs: number
}

/**
 * What to ask the dispatcher for; null for nothing.
 *
 * A lease with running tasks recycles their room; one that has none is about to take what is free. What remains is
 * offered. Where nothing is free, but all that runs and waits is known to be over within `aheadMs`, the whole node is
 * offered ahead of time: then a slot never stands empty for the length of an answer.
 */
export function roomFor(
  whole: Shape,
  busy: readonly BusyWork[],
  waiting: readonly WaitingWork[],
  aheadMs: number,
): Room | null {
  let free = freeShape(whole, busy)
  let isStarving = false
  for (const lease of waiting) {
    if (lease.waiting === 0) continue
    if (lease.running === 0) free = shapeWithout(free, lease.needs, startingNow(lease, free))
    isStarving ||= lease.running === 0 && tasksPerShape(lease.needs, freeShape(whole, busy)) === 0
  }
  if (isStarving) return null
  if (free.cores >= 1 && free.memoryBytes > 0 && free.scratchBytes >= 0 && free.gpus >= 0) {
    return { shape: free, aheadMs }
  }
  const drainMs = timeToDrain(whole, busy, waiting)
  return drainMs !== null && drainMs < aheadMs ? { shape: whole, aheadMs: aheadMs - drainMs } : null
}

/** How many tasks of a lease will take room at once. */
function startingNow(lease: WaitingWork, free: Shape): number {
  return Math.min(lease.waiting, tasksPerShape(lease.needs, free))
}

/** When the node would be idle, were nothing added; null where some task's length is not known. */
function timeToDrain(whole: Shape, busy: readonly BusyWork[], waiting: readonly WaitingWork[]): number | null {
  let coreMs = 0
  for (const work of busy) {
    if (work.estimateMs === null) return null
    coreMs += Math.max(0, work.estimateMs - work.elapsedMs) * work.needs.cores
  }
  for (const work of waiting) {
    if (work.waiting === 0) continue
    if (work.estimateMs === null) return null
    coreMs += work.waiting * work.estimateMs * work.needs.cores
  }
  return coreMs / Math.max(1, whole.cores)
}
