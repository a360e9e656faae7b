/**
 * What the relay asks central for: the room of its pilots, added up by shape, and enough ahead to keep them fed through
 * an outage. Pure.
 */
import { type Shape, shapeOf, tasksPerShape, unmetNeeds } from '../shared/fit.ts'
import type { OfferEntry } from '../shared/protocol/messages.ts'
import { countRanges } from '../shared/ranges.ts'
import type { Lease } from './lease.ts'
import type { Session } from './sessions.ts'

/** Time left is rounded down to this, so that pilots that started together count as one shape. */
const TIME_LEFT_STEP_MS = 600_000
/** The buffer is filled again when this share of its reach is used up. */
const REFILL_AT = 0.25
const MOST_ENTRIES = 64

export interface OfferInput {
  /** Active ones. */
  pilots: readonly Session[]
  leases: Iterable<Lease>
  estimateMs: (lease: Lease) => number | null
  /** How far the buffer is to reach, milliseconds of work for all pilots. */
  aheadMs: number
}

/** Nothing to ask for is an empty offer. */
export function aggregateOffer({ pilots, leases, estimateMs, aheadMs }: OfferInput): OfferEntry[] {
  if (pilots.length === 0) return []
  const cores = pilots.reduce((sum, pilot) => sum + pilot.facts.cores, 0)
  let bufferedCoreMs = 0
  const free: Lease[] = []
  for (const lease of leases) {
    if (lease.free.length === 0 || lease.gone) continue
    free.push(lease)
    // Until run times are known one task is taken to fill its slot for the whole reach: one per slot is enough then.
    const taskMs = estimateMs(lease) ?? Math.min(lease.needs.walltimeMs, aheadMs)
    bufferedCoreMs += countRanges(lease.free) * taskMs * lease.needs.cores
  }
  const missingMs = Math.max(0, aheadMs - bufferedCoreMs / Math.max(cores, 1))
  const groups = new Map<string, OfferEntry>()
  const add = (shape: Shape, timeLeftMs: number | null, node: string, ahead: number) => {
    const rounded = timeLeftMs === null ? null : Math.floor(timeLeftMs / TIME_LEFT_STEP_MS) * TIME_LEFT_STEP_MS
    const left = rounded === 0 ? timeLeftMs : rounded
    const key = JSON.stringify([shape, left, ahead > 0])
    const entry = groups.get(key)
    if (entry) {
      entry.count++
      entry.node = null
    } else groups.set(key, { shape, count: 1, timeLeftMs: left, aheadMs: ahead, node })
  }
  for (const pilot of pilots) {
    const waiting = pilot.isWaiting && pilot.offer
    // Who waits although something fits is about to be served from the buffer.
    const isStarving = waiting && !free.some((lease) => fits(lease, waiting))
    if (isStarving && waiting.shape.cores > 0) add(waiting.shape, waiting.timeLeftMs, pilot.facts.node, missingMs)
    else if (missingMs > REFILL_AT * aheadMs) {
      add(shapeOf(pilot.facts), pilot.offer?.timeLeftMs ?? pilot.facts.timeLeftMs, pilot.facts.node, missingMs)
    }
  }
  return [...groups.values()].sort((a, b) => b.count - a.count).slice(0, MOST_ENTRIES)
}

function fits(lease: Lease, offer: OfferEntry): boolean {
  return (
    unmetNeeds(lease.needs, offer.shape, offer.timeLeftMs).length === 0 && tasksPerShape(lease.needs, offer.shape) > 0
  )
}
