/**
 * At most one `indraft up` on a home folder. The lock is a file that names its owner's process; the lock of a process
 * that is gone counts for nothing.
 */
import { linkSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { IndraftError } from '../../../shared/errors.ts'
import { isAlive, readRecord, recordOf } from '../../../shared/servers/record.ts'

const ATTEMPTS = 5

/** @returns releases the lock @throws IndraftError request.invalid naming the process that has it */
export function lockHome(folder: string): () => void {
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  const path = join(folder, 'up.pid')
  const mine = `${path}.${process.pid}`
  const content = JSON.stringify(recordOf(process.pid))
  writeFileSync(mine, content, { mode: 0o600 })
  try {
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      if (tryLink(mine, path)) {
        return () => {
          if (readText(path) === content) rmSync(path, { force: true })
        }
      }
      const owner = readRecord(path)
      if (owner && isAlive(owner)) throw alreadyRuns(folder, owner.pid)
      removeDead(path)
    }
    throw new IndraftError('request.invalid', `${path} cannot be taken: is another "indraft up" starting right now?`)
  } finally {
    rmSync(mine, { force: true })
  }
}

function alreadyRuns(folder: string, pid: number): IndraftError {
  return new IndraftError(
    'request.invalid',
    `"indraft up" already runs on ${folder} (process ${pid}). Stop it with Ctrl-C or kill ${pid}, or give another --home.`,
  )
}

/** link() fails where the file exists, so only one of two gets through. */
function tryLink(from: string, to: string): boolean {
  try {
    linkSync(from, to)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false
    throw error
  }
}

/** Moved away first: what was moved may turn out to be a lock that somebody took meanwhile, and is then put back. */
function removeDead(path: string): void {
  const aside = `${path}.dead-${process.pid}`
  try {
    renameSync(path, aside)
  } catch {
    return
  }
  const owner = readRecord(aside)
  if (owner && isAlive(owner)) tryLink(aside, path)
  rmSync(aside, { force: true })
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return undefined
  }
}
