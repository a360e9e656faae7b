/**
 * Which buffered work a pilot's pull gets. Pure: looks at leases, the offer and the other pilots, changes nothing.
 *
 * Oldest lease first (central has already put what matters most in front). A lease is passed over when it does not fit,
 * when too little of its time is left to start anything, or when it avoids this node while another live pilot's node
 * could take it. Retries are central's: nothing here knows how often a task was tried.
 */
import { shapeOf, shapeWithout, tasksPerShape, unmetNeeds } from '../shared/fit.ts'
import type { NodeFacts, OfferEntry } from '../shared/protocol/messages.ts'
import { countRanges, type Span, takeFirst } from '../shared/ranges.ts'
import type { Lease } from './lease.ts'

/** A lease starts nothing in its last tenth. */
export const LAST_PART = 0.1
const MOST_GRANTS = 64
/** Grants are added until about this much; a message may have 48 kB. */
const REPLY_BYTES = 40 * 1024
/** Of a grant beside its signed bundle: envelope, ranges, capability. */
const ENVELOPE_BYTES = 700
/** In one grant, so that ranges and tries stay small. */
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
    const cost = lease.grant.bundle.bytes.length + ENVELOPE_BYTES + templateBytes
    if (picked.length > 0 && bytes + cost > REPLY_BYTES) continue
    let rest: readonly Span[] = lease.free
    for (const entry of offerLeft) {
      const count = Math.min(roomFor(lease, entry, input), MOST_TASKS)
      if (count === 0) continue
      const { taken, rest: left } = takeFirst(rest, count)
      if (taken.length === 0) break
      rest = left
      picked.push({ lease, tasks: taken })
      bytes += cost
      templates.add(lease.grant.template)
      const side = Math.min(tasksPerShape(lease.needs, entry.shape), countRanges(taken))
      entry.shape = shapeWithout(entry.shape, lease.needs, side)
      break
    }
    if (picked.length >= MOST_GRANTS || bytes >= REPLY_BYTES) break
  }
  return { picked, offerLeft, reason: picked.length > 0 ? null : isThereWork ? 'nothingFits' : 'noWork' }
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
