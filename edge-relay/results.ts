/** Results that the relay writes itself: of attempts that ended without their pilot, or that never began. */
import type { ErrorCode } from '../shared/errors.ts'
import type { AttemptRef } from '../shared/ids.ts'
import { noResult } from '../shared/no-result.ts'
import type { Result } from '../shared/protocol/messages.ts'

export function endedHere(
  attempt: Pick<Result, 'campaign' | 'step' | 'index' | 'bundle' | 'fences'> | AttemptRef,
  reason: ErrorCode,
  detail: string,
  where: { site: string; node?: string; pilot: string },
): Result {
  const { campaign, step, index, bundle, fences } = attempt
  return {
    campaign,
    step,
    index,
    bundle,
    fences,
    ...noResult({ site: where.site, node: where.node ?? 'none', pilot: where.pilot }),
    reason,
    detail: detail.slice(0, 500),
  }
}
