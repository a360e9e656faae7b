/**
 * What a failed upload means for the result behind it. A site that is disabled, a token that was just replaced, a
 * process out of descriptors: all that passes, and an acknowledged success waits for it as it waits for a link that is
 * down. Only what no waiting mends is final.
 */
import type { Clock } from '../shared/clock.ts'
import { type ErrorCode, IndraftError } from '../shared/errors.ts'

/** Where the relay as a whole is turned away: nothing about this file. */
const PASSING: readonly ErrorCode[] = [
  'auth.missing',
  'auth.invalid',
  'auth.forbidden',
  'site.unknown',
  'site.disabled',
]
/** `stage.outFailed`: it is not here any more. */
const FINAL: readonly ErrorCode[] = ['stage.outFailed', 'file.conflict', 'file.checksum', 'file.tooLarge']
/** Errors of the disk that one file alone may have, and keep. */
const OF_THE_FILE = ['EIO', 'EACCES', 'EPERM', 'EISDIR']
const FILE_CALLS = ['open', 'read', 'stat', 'lstat', 'fstat']

/** A doubtful failure is final when it came so often. */
const MOST_DOUBTS = 6
const PAUSE_MS = { first: 1000, longest: 60_000 }

/** `doubtful`: it may be about this file alone, or pass. */
export type Outlook = 'passing' | 'doubtful' | 'final'

export function outlookOf(error: unknown): Outlook {
  if (error instanceof IndraftError) {
    if (PASSING.includes(error.code)) return 'passing'
    return FINAL.includes(error.code) ? 'final' : 'doubtful'
  }
  // No request can be made of it, today or later.
  if (error instanceof URIError || (error as NodeJS.ErrnoException)?.code === 'UND_ERR_INVALID_ARG') return 'final'
  // Everything else is of this machine or of the connection: descriptors, memory, a certificate that ran out.
  const { code = '', syscall = '' } = (error ?? {}) as NodeJS.ErrnoException
  return OF_THE_FILE.includes(code) && FILE_CALLS.includes(syscall) ? 'doubtful' : 'passing'
}

/**
 * Does it again and again, with growing pauses, until it is done or cannot be, or the signal ends it.
 * @throws what is final
 */
export async function insist(
  clock: Clock,
  signal: AbortSignal,
  work: (isAgain: boolean) => Promise<void>,
  onPutOff: (error: unknown, pauseMs: number) => void,
): Promise<void> {
  let doubts = 0
  for (let pauseMs = PAUSE_MS.first; ; pauseMs = Math.min(2 * pauseMs, PAUSE_MS.longest)) {
    try {
      return await work(pauseMs > PAUSE_MS.first)
    } catch (error) {
      const outlook = outlookOf(error)
      if (outlook === 'doubtful') doubts++
      if (signal.aborted || outlook === 'final' || doubts === MOST_DOUBTS) throw error
      onPutOff(error, pauseMs)
      await clock.sleep(pauseMs, signal)
      if (signal.aborted) throw error
    }
  }
}
