/**
 * Files and folders held by descriptor. Where a payload can write it can put a link at any moment, also between a look
 * and a use: so what is to be checked is opened first, then asked where it really is, then used through its descriptor.
 */
import { constants } from 'node:fs'
import { chmod, type FileHandle, open, readlink } from 'node:fs/promises'

/** Of Linux, the same on all its architectures; Node does not name it. Holds what may be neither read nor written. */
const O_PATH = 0o10000000

export interface Held {
  handle: FileHandle
  /** Leads to what is held, whatever its name leads to by now. */
  location: string
  /** Where it is, with no link in it. */
  real: string
}

/** For reading. Never waits, and follows no link at the end of the path; a link above shows in `real`. */
export async function holdFile(path: string): Promise<Held> {
  return await hold(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
}

/** Needs no right to read it. Names below `location` lie in what is held. */
export async function holdFolder(path: string): Promise<Held> {
  return await hold(path, O_PATH | constants.O_DIRECTORY)
}

/** A folder that its own user locked can be read again. @throws where it is no folder any more, or another user's */
export async function unlockFolder(path: string): Promise<void> {
  const { handle, location } = await hold(path, O_PATH | constants.O_DIRECTORY | constants.O_NOFOLLOW)
  try {
    await chmod(location, ((await handle.stat()).mode & 0o7777) | 0o700)
  } finally {
    await handle.close()
  }
}

async function hold(path: string, flags: number): Promise<Held> {
  const handle = await open(path, flags)
  try {
    const location = `/proc/self/fd/${handle.fd}`
    return { handle, location, real: await readlink(location) }
  } catch (error) {
    await handle.close()
    throw error
  }
}
