/**
 * How many tasks travel together, and how many of a kind an offer is given. Pure.
 *
 * A bundle is some minutes of work, so that second-long tasks do not cost a message each; but near the end of a step
 * bundles shrink, so that no slot idles while another holds the last hundred tasks.
 */
import { tasksPerShape } from '../../shared/fit.ts'
import type { OfferEntry } from '../../shared/protocol/messages.ts'
import type { Needs } from '../../shared/protocol/work.ts'

const BUNDLE_WORK_MS = 2 * 60_000
const LARGEST_BUNDLE = 1000
const ROWS_BYTES = 8 * 1024

/**
 * @param meanWallMs of tasks done; null before the first: one task a bundle
 * @param remaining tasks of the step that are not leased or over
 * @param slots how many such tasks could run at once on all that is known
 * @param rowBytesMax the table's largest row, 0 without a table
 */
export function chooseBundleSize(
  meanWallMs: number | null,
  remaining: number,
  slots: number,
  rowBytesMax: number,
): number {
  if (meanWallMs === null) return 1
  const byTime = Math.ceil(BUNDLE_WORK_MS / Math.max(1, meanWallMs))
  const byShare = Math.floor(remaining / (4 * Math.max(1, slots)))
  const byRows = rowBytesMax > 0 ? Math.floor(ROWS_BYTES / rowBytesMax) : LARGEST_BUNDLE
  return Math.max(1, Math.min(byTime, byShare, byRows, LARGEST_BUNDLE))
}

/**
 * How many tasks of these needs an offer's entry would take: what starts at once, and as much more as keeps those
 * slots busy for `aheadMs`. While run times are unknown, ahead means one more task a slot. Near a step's end what is
 * held ahead is at most remaining / (2 x sites), so that one site's buffer does not hold what others could run.
 */
export function tasksWanted(
  needs: Needs,
  entry: OfferEntry,
  meanWallMs: number | null,
  remaining: number,
  activeSites: number,
): number {
  const slots = entry.count * tasksPerShape(needs, entry.shape)
  if (slots === 0 || entry.aheadMs === 0) return slots
  const rounds = meanWallMs === null ? 1 : entry.aheadMs / Math.max(1, meanWallMs)
  const ahead = Math.min(Math.ceil(slots * rounds), Math.floor(remaining / (2 * Math.max(1, activeSites))))
  return slots + Math.max(0, ahead)
}
