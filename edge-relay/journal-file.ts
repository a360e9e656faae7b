/**
 * The journal as a file: made, opened, taken over from an older version, and set aside when it is damaged. Nothing of a
 * damaged one is trusted to be complete, so what follows is a new incarnation; but results that pilots were told are
 * safe, and what opens and names their files, are carried over where they can still be read.
 *
 * What always holds: a disk that is full, read-only or away is not damage. Then the file is left alone and the start
 * fails. A damaged file keeps its name until all that it says is on disk in the new one, so a start that is killed on
 * the way is done again by the next. Called by journal.ts only.
 */
import { randomUUID } from 'node:crypto'
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync } from 'node:fs'
import { dirname } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { IndraftError } from '../shared/errors.ts'
import { failpoint } from '../shared/failpoint.ts'
import type { Log } from '../shared/log.ts'
import { check, pack, unpack } from '../shared/protocol/codec.ts'
import { type Grant, resultSchema } from '../shared/protocol/messages.ts'

const SCHEMA_VERSION = 2

const SCHEMA = `
  CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
  CREATE TABLE bundle (bundle TEXT, fence INTEGER, grant_body BLOB NOT NULL, PRIMARY KEY (bundle, fence)) WITHOUT ROWID;
  CREATE TABLE lease (
    bundle TEXT, fence INTEGER, arrival INTEGER NOT NULL, gone INTEGER NOT NULL,
    free TEXT NOT NULL, back TEXT NOT NULL, open TEXT NOT NULL, PRIMARY KEY (bundle, fence)) WITHOUT ROWID;
  CREATE TABLE sublease (
    fence INTEGER PRIMARY KEY, bundle TEXT NOT NULL, above INTEGER NOT NULL, session TEXT NOT NULL,
    sequence INTEGER NOT NULL, confirmed INTEGER NOT NULL, tasks TEXT NOT NULL, started TEXT NOT NULL);
  CREATE TABLE session (session TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
  CREATE TABLE reply (session TEXT PRIMARY KEY, sequence INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
  CREATE TABLE template (name TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
  CREATE TABLE result (number INTEGER PRIMARY KEY AUTOINCREMENT, attempt TEXT NOT NULL UNIQUE, body BLOB NOT NULL);
  CREATE TABLE pending (kind TEXT, name TEXT, body BLOB NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID;
`
/** By the version that they lead to. */
const STEPS: Record<number, string> = {
  1: SCHEMA,
  2: `CREATE TABLE past (
        fence INTEGER, bundle TEXT, above INTEGER, tasks TEXT NOT NULL, PRIMARY KEY (bundle, above, fence)) WITHOUT ROWID;
      CREATE TABLE unreadable (kind TEXT, name TEXT, body BLOB, atMs INTEGER NOT NULL);`,
}

/** SQLite's primary result codes. */
export const SQLITE = { readOnly: 8, ioError: 10, corrupt: 11, full: 13, notADatabase: 26 } as const

/** Of the files of one database. */
const SUFFIXES = ['', '-wal', '-shm']

/** The primary code of SQLite's own error; undefined for anything else. */
export function sqliteCode(error: unknown): number | undefined {
  const { errcode } = error as { errcode?: unknown }
  return typeof errcode === 'number' ? errcode & 0xff : undefined
}

/**
 * @returns a journal that can be written, with an incarnation
 * @throws IndraftError request.invalid for a journal of a newer version; Error where the disk does not let it be opened
 */
export function openJournalFile(path: string, log: Log): DatabaseSync {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
  const next = `${path}.next`
  // Killed between the two names: what is next is whole.
  if (!existsSync(path) && existsSync(next)) replaceBy(next, path)
  removeDatabase(next)
  try {
    return openDatabase(path)
  } catch (error) {
    if (!isDamage(error)) throw error
    log.error({ err: error, path }, 'journal.damaged')
    const saved = salvageInto(next, path)
    const aside = replaceBy(next, path)
    log.error({ ...saved, aside }, 'journal.salvaged')
    return openDatabase(path)
  }
}

class Damage extends Error {}

function isDamage(error: unknown): boolean {
  const code = sqliteCode(error)
  return error instanceof Damage || code === SQLITE.corrupt || code === SQLITE.notADatabase
}

function setAside(path: string): string {
  const aside = `${path.replace(/\.sqlite$/, '')}.damaged-${new Date().toISOString().replace(/[:.]/g, '-')}`
  // The log of a database belongs to its name: all move, or the new one would be given the old one's changes. The file
  // itself goes first: alone under its name it could pass for a good one, and be without its last changes.
  for (const suffix of SUFFIXES) {
    if (existsSync(path + suffix)) renameSync(path + suffix, aside + suffix)
  }
  return aside
}

/** @returns where the old one is */
function replaceBy(next: string, path: string): string {
  const aside = setAside(path)
  failpoint('journal.setAside')
  renameSync(next, path)
  sync(dirname(path))
  return aside
}

function removeDatabase(path: string): void {
  for (const suffix of SUFFIXES) rmSync(path + suffix, { force: true })
}

/** A whole new journal, on disk when it returns. */
function salvageInto(next: string, damaged: string): Salvaged {
  const database = openDatabase(next)
  let saved: Salvaged
  try {
    saved = salvage(damaged, database)
    database.exec('PRAGMA wal_checkpoint(TRUNCATE)')
  } finally {
    database.close()
  }
  sync(next)
  sync(dirname(next))
  return saved
}

function sync(path: string): void {
  const file = openSync(path, 'r')
  try {
    fsyncSync(file)
  } finally {
    closeSync(file)
  }
}

function openDatabase(path: string): DatabaseSync {
  const database = new DatabaseSync(path)
  try {
    database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000')
    const { user_version: version } = database.prepare('PRAGMA user_version').get() as { user_version: number }
    if (version > SCHEMA_VERSION) {
      throw new IndraftError(
        'request.invalid',
        `journal ${path} has version ${version}, this relay knows ${SCHEMA_VERSION}`,
      )
    }
    // The quick check does not compare an index with its table, and what it overlooks is met while the relay runs.
    const { integrity_check: verdict } = database.prepare('PRAGMA integrity_check').get() as { integrity_check: string }
    if (verdict !== 'ok') throw new Damage(`integrity_check: ${verdict.slice(0, 300)}`)
    for (let next = version + 1; next <= SCHEMA_VERSION; next++) {
      database.exec(`BEGIN; ${STEPS[next]} PRAGMA user_version = ${next}; COMMIT`)
    }
    const known = database.prepare("SELECT value FROM meta WHERE name = 'incarnation'").get()
    if (version > 0 && !known) throw new Damage('the incarnation is missing')
    if (!known) database.prepare('INSERT INTO meta VALUES (?, ?)').run('incarnation', pack(randomUUID()))
    return database
  } catch (error) {
    database.close()
    // Tables or columns that are not what the version promises.
    if (sqliteCode(error) === 1) throw new Damage((error as Error).message, { cause: error })
    throw error
  }
}

interface Salvaged {
  results: number
  files: number
  capabilities: number
}

/**
 * Reads what can still be read of each table, from both ends, because a damaged page stops a walk. Leases are not
 * carried over: central ends them with the old incarnation. Their capabilities are, as those of late results.
 */
function salvage(from: string, into: DatabaseSync): Salvaged {
  const saved: Salvaged = { results: 0, files: 0, capabilities: 0 }
  let damaged: DatabaseSync
  try {
    damaged = new DatabaseSync(from)
  } catch {
    return saved
  }
  const insert = (sql: string, ...values: (string | Uint8Array)[]) => Number(into.prepare(sql).run(...values).changes)
  const pending = 'INSERT OR IGNORE INTO pending VALUES (?, ?, ?)'
  const lateSinceMs = Date.now()
  try {
    into.exec('BEGIN IMMEDIATE')
    walk(damaged, 'result', 'number', (row) => {
      check(resultSchema, unpack(row.body as Uint8Array), 'result')
      const sql = 'INSERT OR IGNORE INTO result (attempt, body) VALUES (?, ?)'
      saved.results += insert(sql, row.attempt as string, row.body as Uint8Array)
    })
    walk(damaged, 'pending', 'kind, name', (row) => {
      unpack(row.body as Uint8Array)
      if (row.kind === 'cancel') return
      const added = insert(pending, row.kind as string, row.name as string, row.body as Uint8Array)
      if (row.kind === 'capability') saved.capabilities += added
      else saved.files += added
    })
    walk(damaged, 'bundle', 'bundle, fence', (row) => {
      const { lease, capability } = unpack(row.grant_body as Uint8Array) as Grant
      if (capability === null) return
      const name = `${lease.campaign}/${lease.step}/${lease.fences[0]}`
      const body = pack({ capability, campaign: lease.campaign, lateSinceMs })
      saved.capabilities += insert(pending, 'capability', name, body)
    })
    failpoint('journal.salvaging')
    into.exec('COMMIT')
  } finally {
    damaged.close()
  }
  return saved
}

function walk(database: DatabaseSync, table: string, order: string, each: (row: Record<string, unknown>) => void) {
  for (const direction of ['ASC', 'DESC']) {
    const by = order.replace(/\w+/g, (column) => `${column} ${direction}`)
    try {
      for (const row of database.prepare(`SELECT * FROM ${table} ORDER BY ${by}`).iterate()) {
        try {
          each(row)
        } catch (error) {
          // A row that cannot be read is not carried over; a disk that cannot be written is not the row's fault.
          if (sqliteCode(error) !== undefined) throw error
        }
      }
      return
    } catch (error) {
      const code = sqliteCode(error)
      if (code !== SQLITE.corrupt && code !== SQLITE.notADatabase && code !== 1) throw error
    }
  }
}
