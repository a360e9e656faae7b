/**
 * Which buffered work a pilot's pull gets. Pure: looks at leases, the offer and the other pilots, changes nothing.
 *
 * Oldest lease first (central has already put what matters most in front). A lease is passed over when it does not fit,
 * when too little of its time is left to start anything, or when it avoids this node while another live pilot's node
 * could take it. Retries are central's: nothing here knows how often a task was tried.
 */
import { shapeOf, shapeWithout, tasksPerShape, unmetNeeds } from '../shared/fit.ts'
import type { NodeFacts, OfferEntry } from '../shared/protocol/messages.ts'
import { countRanges, formatRanges, indices, type Span, takeFirst } from '../shared/ranges.ts'
import type { Lease } from './lease.ts'

/** A lease starts nothing in its last tenth. */
export const LAST_PART = 0.1
const MOST_GRANTS = 64
/** Grants are added until about this much; a message may have 48 kB. */
const REPLY_BYTES = 40 * 1024
/** Of a grant beside its signed bundle, ranges, tries and nodes: envelope and capability. */
const ENVELOPE_BYTES = 700
/** In one grant. */
const MOST_TASKS = 2000

export interface Picked {
  lease: Lease
  tasks: Span[]
}

export interface ChoiceInput {
  leases: Iterable<Lease>
  offer: readonly OfferEntry[]
  /** The node that asks, where an offer does not name one. */
  node: string
  /** Other live pilots that take work. */
  others: readonly NodeFacts[]
  estimateMs: (lease: Lease) => number | null
  /** Milliseconds until a lease ends. */
  leaseLeftMs: (lease: Lease) => number
  wallMs: number
  /** Bytes that a lease's template adds to the reply; 0 where the pilot has it. */
  templateBytes: (lease: Lease) => number
}

export type Choice = { picked: Picked[]; offerLeft: OfferEntry[]; reason: null | 'noWork' | 'nothingFits' }

export function chooseWork(input: ChoiceInput): Choice {
  const picked: Picked[] = []
  const offerLeft = input.offer.map((entry) => ({ ...entry, shape: { ...entry.shape } }))
  const templates = new Set<string>()
  let bytes = 0
  let isThereWork = false
  for (const lease of input.leases) {
    if (lease.free.length === 0 || lease.gone || !mayStart(lease, input)) continue
    isThereWork = true
    const templateBytes = templates.has(lease.grant.template) ? 0 : input.templateBytes(lease)
    const least = lease.grant.bundle.bytes.length + ENVELOPE_BYTES + templateBytes
    if (picked.length > 0 && bytes + least > REPLY_BYTES) continue
    for (const entry of offerLeft) {
      const count = Math.min(roomFor(lease, entry, input), MOST_TASKS)
      if (count === 0) continue
      // Of the first one a part goes into any reply, be it a single task.
      let { taken } = takeFirst(lease.free, count)
      const weight = () => least + weightOf(lease, taken)
      while (picked.length === 0 && weight() > REPLY_BYTES && countRanges(taken) > 1) {
        taken = takeFirst(taken, Math.floor(countRanges(taken) / 2)).taken
      }
      if (picked.length > 0 && bytes + weight() > REPLY_BYTES) break
      picked.push({ lease, tasks: taken })
      bytes += weight()
      templates.add(lease.grant.template)
      const side = Math.min(tasksPerShape(lease.needs, entry.shape), countRanges(taken))
      entry.shape = shapeWithout(entry.shape, lease.needs, side)
      break
    }
    if (picked.length >= MOST_GRANTS || bytes >= REPLY_BYTES) break
  }
  return { picked, offerLeft, reason: picked.length > 0 ? null : isThereWork ? 'nothingFits' : 'noWork' }
}

/**
 * Bytes that tasks of a lease add to a reply at most: their ranges stand in the grant and, while they are short, in its
 * capability.
 */
function weightOf({ grant }: Lease, tasks: readonly Span[]): number {
  const ranges = formatRanges(tasks).length
  let bytes = ranges + Math.min(400, 2 * ranges)
  for (const node of grant.avoidNodes) bytes += Buffer.byteLength(node) + 3
  for (const index of indices(tasks)) if (grant.tries[index]) bytes += String(index).length + 6
  return bytes
}

function mayStart(lease: Lease, { leaseLeftMs, wallMs }: ChoiceInput): boolean {
  return leaseLeftMs(lease) > LAST_PART * lease.grant.leaseMs && wallMs < lease.expiresAtMs
}

/** How many tasks of this lease the entry takes: what starts now, and what it wants to have in hand. */
function roomFor(lease: Lease, entry: OfferEntry, input: ChoiceInput): number {
  const { needs } = lease
  if (unmetNeeds(needs, entry.shape, entry.timeLeftMs).length > 0) return 0
  const node = entry.node ?? input.node
  if (lease.grant.avoidNodes.includes(node) && hasAlternative(lease, input.others)) return 0
  const now = tasksPerShape(needs, entry.shape) * entry.count
  const estimateMs = input.estimateMs(lease)
  if (estimateMs === null || entry.aheadMs === 0) return now
  const aheadMs = entry.timeLeftMs === null ? entry.aheadMs : Math.min(entry.aheadMs, entry.timeLeftMs - estimateMs)
  return now + Math.max(0, Math.floor((now * aheadMs) / Math.max(estimateMs, 1)))
}

function hasAlternative(lease: Lease, others: readonly NodeFacts[]): boolean {
  return others.some(
    (facts) =>
      !lease.grant.avoidNodes.includes(facts.node) &&
      unmetNeeds(lease.needs, shapeOf(facts), facts.timeLeftMs).length === 0,
  )
}
