/**
 * What a failed upload means for the result behind it. A site that is disabled, a token that was just replaced, a
 * process out of descriptors: all that passes, and an acknowledged success waits for it as it waits for a link that is
 * down. Only what no waiting mends is final.
 */
import { ERRORS, type ErrorCode, IndraftError } from '../shared/errors.ts'

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

/** `doubtful`: it may be about this file alone, or pass. */
export type Outlook = 'passing' | 'doubtful' | 'final'

export function outlookOf(error: unknown): Outlook {
  if (error instanceof IndraftError) {
    if (FINAL.includes(error.code)) return 'final'
    return PASSING.includes(error.code) || ERRORS[error.code].retry ? 'passing' : 'doubtful'
  }
  // It has a name that no request can be made of, today or later.
  if (error instanceof URIError) return 'final'
  // Everything else is of this machine or of the connection: descriptors, memory, a certificate that ran out.
  const { code = '', syscall = '' } = (error ?? {}) as NodeJS.ErrnoException
  // A header or an address: of this file, or of the relay's credential.
  if (code === 'UND_ERR_INVALID_ARG') return 'doubtful'
  return OF_THE_FILE.includes(code) && FILE_CALLS.includes(syscall) ? 'doubtful' : 'passing'
}
