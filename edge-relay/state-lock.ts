/**
 * One relay at a time in a state folder: two would write one journal. The lock is a lock on a file, so it ends with its
 * process however that ends; the process id beside it is for people and for `indraft relay drain`.
 */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { IndraftError } from '../shared/errors.ts'
import { sqliteCode } from './journal-file.ts'

const BUSY = 5

export interface StateLock {
  release(): void
}

/** @throws IndraftError state.taken while another relay runs here; Error where the disk fails */
export function lockState(state: string): StateLock {
  mkdirSync(state, { recursive: true, mode: 0o700 })
  const database = takeLock(state)
  if (!database) {
    throw new IndraftError(
      'state.taken',
      `another relay runs in ${state} (process ${runningRelay(state) ?? 'unknown'})`,
    )
  }
  const pidFile = join(state, 'relay.pid')
  try {
    writeFileSync(pidFile, `${process.pid}\n`, { mode: 0o600 })
  } catch (error) {
    database.close()
    throw error
  }
  return {
    release() {
      rmSync(pidFile, { force: true })
      database.close()
    },
  }
}

/** @returns the process id of the relay that runs in this folder, null where none does */
export function runningRelay(state: string): number | null {
  const database = takeLock(state)
  if (database) {
    database.close()
    return null
  }
  try {
    return Number(readFileSync(join(state, 'relay.pid'), 'utf8')) || null
  } catch {
    return null
  }
}

/** @returns null while another process has it */
function takeLock(state: string): DatabaseSync | null {
  const database = new DatabaseSync(join(state, 'relay.lock'))
  try {
    database.exec('PRAGMA busy_timeout = 0; PRAGMA journal_mode = DELETE; BEGIN EXCLUSIVE')
    return database
  } catch (error) {
    database.close()
    if (sqliteCode(error) === BUSY) return null
    throw error
  }
}
