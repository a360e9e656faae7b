/**
 * What is answered where the disk under central's state folder is full or cannot be written: it passes, so whoever asked
 * is told in words to come again. Nothing is half done then: blobs and outputs appear whole or not at all.
 */
import { IndraftError } from '../shared/errors.ts'

const RETRY_AFTER_MS = 10_000

/** Undefined for any error that is not the disk's. */
export function diskRefusal(error: unknown): IndraftError | undefined {
  const code = (error as NodeJS.ErrnoException | null)?.code
  const more = { retryAfterMs: RETRY_AFTER_MS, cause: error }
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    return new IndraftError('store.full', 'the disk of the state folder of the centre is full: ask again', more)
  }
  if (code === 'EROFS') {
    return new IndraftError('dispatcher.busy', 'the state folder of the centre is read-only: ask again', more)
  }
  return undefined
}
