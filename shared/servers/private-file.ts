/** Files that only their owner may read, complete or not there at all. */
import { randomBytes } from 'node:crypto'
import { closeSync, existsSync, fsyncSync, linkSync, openSync, renameSync, rmSync, writeSync } from 'node:fs'

/** Mode 0600, by a temporary name and a rename. */
export function writePrivately(path: string, content: string): void {
  const temporary = `${path}.${process.pid}.tmp`
  const file = openSync(temporary, 'w', 0o600)
  try {
    try {
      writeSync(file, content)
      fsyncSync(file)
    } finally {
      closeSync(file)
    }
    renameSync(temporary, path)
  } catch (error) {
    rmSync(temporary, { force: true })
    throw error
  }
}

/** As writePrivately, where there is no such file yet: of several processes that start at once, one makes it. */
export function writePrivatelyOnce(path: string, make: () => string): void {
  if (existsSync(path)) return
  // Not the process id: two containers on one folder may both have 1.
  const made = `${path}.${randomBytes(6).toString('hex')}.made`
  writePrivately(made, make())
  try {
    linkSync(made, path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
  } finally {
    rmSync(made, { force: true })
  }
}
