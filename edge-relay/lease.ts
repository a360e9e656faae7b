/**
 * A lease that the relay has from central, the parts of it that pilots have (sub-leases), and the forms in which both
 * are kept and named. Records only: buffer.ts alone changes them.
 */
import type { Grant, LeasePart } from '../shared/protocol/messages.ts'
import type { BundleBody, Needs, Signed } from '../shared/protocol/work.ts'
import { formatRanges, parseRanges, type Span } from '../shared/ranges.ts'
import { readTemplate } from '../shared/signing.ts'
import type { LeaseRow, SubLeaseRow } from './journal.ts'

/** Of the fences of an attempt, the one this relay gave. */
export const OWN_HOP = 1

export interface Lease {
  bundle: string
  /** All fences above the relay's; the first is central's. */
  fences: number[]
  campaign: string
  step: string
  arrival: number
  gone: boolean
  grant: Grant
  needs: Needs
  /** Wall clock; signed. */
  expiresAtMs: number
  free: Span[]
  back: Span[]
  open: Span[]
  /** Tasks that were at a pilot that got lost before it said that it started them. */
  suspect: Span[]
  /** Tasks by the fences of sub-leases that ended without them: a result under such a fence is late, not forged. */
  past: Map<number, Span[]>
}

export interface SubLease {
  fence: number
  lease: Lease
  session: string
  sequence: number
  confirmed: boolean
  tasks: Span[]
  started: Span[]
  /** Monotonic. */
  grantedAtMs: number
}

/** A lease as it comes, all of it in the buffer. @throws RangeError | IndraftError where it cannot be read */
export function newLease(grant: Grant, { expiresAtMs }: BundleBody, template: Signed, arrival: number): Lease {
  const { bundle, campaign, step, fences } = grant.lease
  const tasks = parseRanges(grant.lease.tasks)
  const { needs } = readTemplate(template)
  return {
    ...{ bundle, fences, campaign, step, arrival, grant, needs, expiresAtMs },
    gone: false,
    free: tasks,
    back: [],
    open: tasks,
    suspect: [],
    past: new Map(),
  }
}

/** Names a lease: one bundle may come again under another fence. */
export function leaseKey(bundle: string, fence: number): string {
  return `${bundle}#${fence}`
}

/** These tasks of a lease, as central knows it. */
export function leasePart({ bundle, campaign, step, fences }: Lease, tasks: readonly Span[]): LeasePart {
  return { bundle, campaign, step, fences, tasks: formatRanges(tasks) }
}

/** A sub-lease, as its pilot knows it. */
export function subLeasePart({ lease, fence, tasks }: SubLease): LeasePart {
  return { ...leasePart(lease, tasks), fences: [...lease.fences, fence] }
}

export function leaseRow({ bundle, fences, arrival, gone, free, back, open }: Lease): LeaseRow {
  const ranges = { free: formatRanges(free), back: formatRanges(back), open: formatRanges(open) }
  return { bundle, fence: fences[0]!, arrival, gone, ...ranges }
}

export function subLeaseRow({ fence, lease, session, sequence, confirmed, tasks, started }: SubLease): SubLeaseRow {
  const of = { bundle: lease.bundle, above: lease.fences[0]! }
  return { fence, ...of, session, sequence, confirmed, tasks: formatRanges(tasks), started: formatRanges(started) }
}
