/**
 * What an attempt's end costs and what follows, in the words of the scripts (see endAttempt in scripts/prelude.lua):
 * which credit is charged, whether trying again can help, when, and what is avoided. Pure.
 */
import { chargeOf, ERRORS, type ErrorCode } from '../../shared/errors.ts'
import type { Result } from '../../shared/protocol/messages.ts'
import type { StoredStep } from './plans.ts'

/** Times of retries, milliseconds, not scaled. */
const RETRY = { backOffMs: 10_000, longestMs: 15 * 60_000, avoidSiteMs: 15 * 60_000, refusedMs: 24 * 3600_000 }
/** Grants of a task that nobody confirmed and that are not charged: a lost reply or two is nobody's fault. */
const UNCONFIRMED_FREE = 2

export interface RetryRules {
  charge: 'payload' | 'infrastructure' | 'none'
  /** Whether trying again can help at all. */
  retry: boolean
  /** Ends as held at once, for a person to look. */
  hold: boolean
  /** Further tries that the credit allows. */
  limit: number
  exhausted: 'failed' | 'held'
  backOffMs: number
  longestMs: number
  avoidMs: number
  reason: ErrorCode
}

/**
 * Of a step that cannot be read, for a moment or because its blob is gone: its attempts end all the same, and what the step
 * allows is judged at the next one that ends when it can be read again.
 */
export const RETRIES_UNKNOWN: StoredStep['retries'] = {
  payload: Number.MAX_SAFE_INTEGER,
  infrastructure: Number.MAX_SAFE_INTEGER,
  holdExitCodes: [],
  exhausted: 'held',
}

/** For an attempt whose holder is gone, or which no holder confirmed; every such reason is nobody's own fault. */
export function lostRules(
  retries: StoredStep['retries'],
  scale: number,
  reason: ErrorCode,
): RetryRules & { unconfirmedFree: number } {
  return { ...rulesOf(retries, scale, reason), unconfirmedFree: UNCONFIRMED_FREE }
}

/** For an attempt that was reported as failed. */
export function failureRules(retries: StoredStep['retries'], scale: number, result: Result) {
  const rules = rulesOf(retries, scale, reasonOf(result))
  const hold = result.exitCode !== null && retries.holdExitCodes.includes(result.exitCode)
  return { ...rules, hold, site: result.site, node: result.node }
}

/** The site's own word, which says nothing about other sites. */
export function isPolicy({ reason }: Pick<Result, 'reason'>): boolean {
  return reason === 'policy.refused'
}

/**
 * For one that the policy of `site` refused: `sites` may run the step for all that is known. What the site is asked again, it
 * is asked after its refusal may have been lifted.
 */
export function refusedRules<R extends RetryRules>(rules: R, scale: number, site: string, sites: readonly string[]) {
  return { ...rules, site, sites, refusedMs: RETRY.refusedMs * scale }
}

/** A failure that names no reason is a fault of who reported it. */
export function reasonOf(result: Result): ErrorCode {
  return result.reason ?? 'node.fault'
}

function rulesOf(retries: StoredStep['retries'], scale: number, reason: ErrorCode): RetryRules {
  const credit = chargeOf(reason)
  return {
    charge: reason === 'attempt.cancelled' ? 'none' : credit,
    // What is a site's or a relay's own fault may go well elsewhere, though to ask it again would be in vain.
    retry: ERRORS[reason].retry || ERRORS[reason].fault !== 'user',
    hold: false,
    limit: retries[credit],
    exhausted: retries.exhausted,
    backOffMs: RETRY.backOffMs * scale,
    longestMs: RETRY.longestMs * scale,
    avoidMs: RETRY.avoidSiteMs * scale,
    reason,
  }
}
