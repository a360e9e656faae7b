/** How a holder says what it holds: summed up in 20 bytes, by which a dispatcher sees whether both agree, or in full. */
import { createHash } from 'node:crypto'
import type { LeasePart } from './protocol/messages.ts'

/** Digest over `bundle#fence` of every lease, whatever their order. `fence` is the dispatcher's own. */
export function heldDigest(leases: Iterable<{ bundle: string; fence: number }>): string {
  const lines = [...leases].map((lease) => `${lease.bundle}#${lease.fence}`).sort()
  return createHash('sha256').update(lines.join('\n')).digest('base64url').slice(0, 20)
}

/** Of one part of an inventory: leases, and bytes before they are packed (a message may have 48 kB). */
const MOST_LEASES = 200
const MOST_BYTES = 32 * 1024
/** Of a lease beside its ranges. */
const NAME_BYTES = 200

/** All leases of a holder, cut into parts that each fit a message; one empty part where there are none. */
export function inventoryParts(leases: Iterable<LeasePart>): LeasePart[][] {
  let last: LeasePart[] = []
  const parts = [last]
  let bytes = 0
  for (const lease of leases) {
    const size = NAME_BYTES + lease.tasks.length
    if (last.length === MOST_LEASES || bytes + size > MOST_BYTES) {
      last = []
      parts.push(last)
      bytes = 0
    }
    last.push(lease)
    bytes += size
  }
  return parts
}
