/** How a holder sums up the leases it holds, so that a dispatcher sees in 20 bytes whether both agree. */
import { createHash } from 'node:crypto'

/** Digest over `bundle#fence` of every lease, whatever their order. `fence` is the dispatcher's own. */
export function heldDigest(leases: Iterable<{ bundle: string; fence: number }>): string {
  const lines = [...leases].map((lease) => `${lease.bundle}#${lease.fence}`).sort()
  return createHash('sha256').update(lines.join('\n')).digest('base64url').slice(0, 20)
}
