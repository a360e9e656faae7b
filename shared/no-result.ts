/** Results of attempts of which nothing is known, or of which nothing more can be said. */
import { type IndraftError, isIndraftError } from './errors.ts'
import type { AttemptRef } from './ids.ts'
import { REPLY_OF, type Result } from './protocol/messages.ts'

/** All of a result but the attempt's name. */
export type ResultBody = Omit<Result, keyof AttemptRef>

const MOST_DETAIL = 400

/** An attempt of which only is known where it was: nothing ran, nothing was used, the node is at fault. */
export function noResult({ site, node, pilot }: Pick<Result, 'site' | 'node' | 'pilot'>): ResultBody {
  return {
    end: 'failed',
    reason: 'node.fault',
    detail: null,
    exitCode: null,
    signal: null,
    site,
    node,
    pilot,
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

/** Whether what was reported is refused, and not who reported: then the rest of it may be taken. Nor an answer unread here. */
export function isOfTheMessage(error: unknown): error is IndraftError {
  if (!isIndraftError(error, 'message.tooLarge', 'message.invalid')) return false
  return !error.path?.startsWith(REPLY_OF.report)
}

/**
 * In place of one result that no message can carry, for its outputs are too many to be named, or that the dispatcher does
 * not understand: says at least that the attempt is over.
 */
export function insteadOf(result: Result, { code, message }: IndraftError): Result {
  if (code === 'message.tooLarge') {
    const detail = 'the list of outputs is too long for a message'
    return { ...result, end: 'failed', reason: 'stage.outFailed', detail, outputs: [], tail: null }
  }
  // With nothing of what may not be understood.
  const { campaign, step, index, bundle, fences } = result
  const detail = `the dispatcher does not take the result: ${message}`.slice(0, MOST_DETAIL)
  return { ...noResult(result), detail, campaign, step, index, bundle, fences }
}
