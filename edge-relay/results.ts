/** Results that the relay writes itself: of attempts that ended without their pilot, or that never began. */
import type { ErrorCode } from '../shared/errors.ts'
import type { AttemptRef } from '../shared/ids.ts'
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
    end: 'failed',
    reason,
    detail: detail.slice(0, 500),
    exitCode: null,
    signal: null,
    site: where.site,
    node: where.node ?? 'none',
    pilot: where.pilot,
    wallMs: 0,
    cpuMs: 0,
    maxRssBytes: 0,
    stageInMs: 0,
    stageOutMs: 0,
    outputs: [],
    stdoutBytes: 0,
    stderrBytes: 0,
    tail: null,
  }
}
