/**
 * The relay's one journal: what must survive a crash or a power cut, in one SQLite file (WAL, synchronous=FULL). The
 * buffer, sub-leases, sessions of pilots, results that central does not have yet, files to upload or to rename.
 *
 * What always holds: changes are durable in the order in which they were made; whoever answers a peer awaits
 * committed() first, so acknowledged means here. One commit takes all changes of at most 20 ms or 64 results. Memory
 * is the truth while the relay runs; the journal is read once, at the start. An empty journal is a new incarnation.
 */
import { randomUUID } from 'node:crypto'
import { existsSync, mkdirSync, renameSync } from 'node:fs'
import { dirname } from 'node:path'
import { DatabaseSync, type SQLInputValue, type StatementSync } from 'node:sqlite'
import { IndraftError } from '../shared/errors.ts'
import { failpoint } from '../shared/failpoint.ts'
import type { Log } from '../shared/log.ts'
import { pack, unpack } from '../shared/protocol/codec.ts'
import type { Grant, Result } from '../shared/protocol/messages.ts'
import type { Signed } from '../shared/protocol/work.ts'
import type { SessionRow } from './sessions.ts'

const SCHEMA_VERSION = 1
const LONGEST_GROUPING_MS = 20
const RESULTS_PER_COMMIT = 64

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

export interface LeaseRow {
  bundle: string
  /** Central's own. */
  fence: number
  /** Counted up; the buffer gives out the oldest first. */
  arrival: number
  /** Central took it back, or the session it was granted in is gone: nothing of it is started. */
  gone: boolean
  /** Ranges: in the buffer; to be given back; not yet over for central (free, back, sub-leased, result on its way). */
  free: string
  back: string
  open: string
}

export interface SubLeaseRow {
  /** The relay's own. */
  fence: number
  bundle: string
  /** Central's fence of the lease it is a part of. */
  above: number
  session: string
  /** Of the pull it was granted to. */
  sequence: number
  confirmed: boolean
  /** Ranges: not ended yet; of those, started. */
  tasks: string
  started: string
}

/** Things that are done, or come, after a restart too; `capability` opens files of late results (capabilities.ts). */
export type PendingKind = 'upload' | 'publication' | 'cancel' | 'capability'

export interface JournalContent {
  leases: { row: LeaseRow; grant: Grant }[]
  subLeases: SubLeaseRow[]
  sessions: SessionRow[]
  replies: Map<string, { sequence: number; body: Uint8Array }>
  templates: Map<string, Signed>
  /** Oldest first. */
  results: { attempt: string; result: Result }[]
  pending: { kind: PendingKind; name: string; body: unknown }[]
}

type Change = [statement: StatementSync, ...values: SQLInputValue[]]

export class Journal {
  readonly #database: DatabaseSync
  readonly #onFailed: (error: unknown) => void
  readonly #statements = new Map<string, StatementSync>()
  #changes: Change[] = []
  #resultsQueued = 0
  #next: PromiseWithResolvers<void> | undefined
  #timer: NodeJS.Timeout | undefined
  #lastCommitMs = 0
  #failure: unknown

  private constructor(database: DatabaseSync, onFailed: (error: unknown) => void) {
    this.#database = database
    this.#onFailed = onFailed
  }

  /**
   * Opens or makes the journal. A damaged one is moved aside and said loudly; one of a newer schema is refused.
   * @param onFailed a commit failed: memory is ahead of the disk, so the relay has to end and start again
   * @throws IndraftError request.invalid for a journal of a newer version
   */
  static open(path: string, log: Log, onFailed: (error: unknown) => void): Journal {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
    try {
      return new Journal(openDatabase(path), onFailed)
    } catch (error) {
      if (error instanceof IndraftError) throw error
      const aside = `${path}.damaged-${new Date().toISOString().replace(/[:.]/g, '-')}`
      for (const suffix of ['', '-wal', '-shm']) {
        if (existsSync(path + suffix)) renameSync(path + suffix, aside + suffix)
      }
      log.error({ err: error, path, aside }, 'journal.damaged')
      return new Journal(openDatabase(path), onFailed)
    }
  }

  /** New with every new journal. */
  get incarnation(): string {
    return this.meta<string>('incarnation')!
  }

  meta<T>(name: string): T | undefined {
    const row = this.#prepare('SELECT value FROM meta WHERE name = ?').get(name) as { value: Uint8Array } | undefined
    return row && (unpack(row.value) as T)
  }

  setMeta(name: string, value: unknown): void {
    this.#change('INSERT OR REPLACE INTO meta VALUES (?, ?)', name, pack(value))
  }

  putBundle(bundle: string, fence: number, grant: Grant): void {
    this.#change('INSERT OR REPLACE INTO bundle VALUES (?, ?, ?)', bundle, fence, pack(grant))
  }

  putLease(row: LeaseRow): void {
    const { bundle, fence, arrival, gone, free, back, open } = row
    const sql = 'INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?, ?, ?, ?)'
    this.#change(sql, bundle, fence, arrival, Number(gone), free, back, open)
  }

  dropLease(bundle: string, fence: number): void {
    this.#change('DELETE FROM lease WHERE bundle = ? AND fence = ?', bundle, fence)
    this.#change('DELETE FROM bundle WHERE bundle = ? AND fence = ?', bundle, fence)
  }

  putSubLease(row: SubLeaseRow): void {
    const { fence, bundle, above, session, sequence, confirmed, tasks, started } = row
    const sql = 'INSERT OR REPLACE INTO sublease VALUES (?, ?, ?, ?, ?, ?, ?, ?)'
    this.#change(sql, fence, bundle, above, session, sequence, Number(confirmed), tasks, started)
  }

  dropSubLease(fence: number): void {
    this.#change('DELETE FROM sublease WHERE fence = ?', fence)
  }

  putSession(row: SessionRow): void {
    this.#change('INSERT OR REPLACE INTO session VALUES (?, ?)', row.session, pack(row))
  }

  dropSession(session: string): void {
    this.#change('DELETE FROM session WHERE session = ?', session)
    this.#change('DELETE FROM reply WHERE session = ?', session)
  }

  putReply(session: string, sequence: number, body: Uint8Array): void {
    this.#change('INSERT OR REPLACE INTO reply VALUES (?, ?, ?)', session, sequence, body)
  }

  putTemplate(name: string, template: Signed): void {
    this.#change('INSERT OR IGNORE INTO template VALUES (?, ?)', name, pack(template))
  }

  dropTemplate(name: string): void {
    this.#change('DELETE FROM template WHERE name = ?', name)
  }

  putResult(attempt: string, result: Result): void {
    this.#resultsQueued++
    this.#change('INSERT OR REPLACE INTO result (attempt, body) VALUES (?, ?)', attempt, pack(result))
  }

  dropResult(attempt: string): void {
    this.#change('DELETE FROM result WHERE attempt = ?', attempt)
  }

  putPending(kind: PendingKind, name: string, body: unknown): void {
    this.#change('INSERT OR REPLACE INTO pending VALUES (?, ?, ?)', kind, name, pack(body))
  }

  dropPending(kind: PendingKind, name: string): void {
    this.#change('DELETE FROM pending WHERE kind = ? AND name = ?', kind, name)
  }

  /** Resolves when every change made so far is on disk. @throws where the disk failed; the relay is ending then */
  committed(): Promise<void> {
    if (this.#failure) return Promise.reject(this.#failure)
    if (this.#changes.length === 0) return this.#next?.promise ?? Promise.resolve()
    this.#schedule()
    return this.#next!.promise
  }

  read(): JournalContent {
    const all = <T>(sql: string) => this.#prepare(sql).all() as unknown as T[]
    type Stored<T, K extends keyof T> = Omit<T, K> & Record<K, number>
    const leases = all<Stored<LeaseRow, 'gone'> & { grant_body: Uint8Array }>(
      'SELECT * FROM lease JOIN bundle USING (bundle, fence) ORDER BY arrival',
    )
    const subLeases = all<Stored<SubLeaseRow, 'confirmed'>>('SELECT * FROM sublease ORDER BY fence')
    return {
      leases: leases.map(({ grant_body, ...row }) => ({
        row: { ...row, gone: row.gone === 1 },
        grant: unpack(grant_body) as Grant,
      })),
      subLeases: subLeases.map((row) => ({ ...row, confirmed: row.confirmed === 1 })),
      sessions: all<{ body: Uint8Array }>('SELECT body FROM session').map(({ body }) => unpack(body) as SessionRow),
      replies: new Map(
        all<{ session: string; sequence: number; body: Uint8Array }>('SELECT * FROM reply').map((row) => [
          row.session,
          { sequence: row.sequence, body: row.body },
        ]),
      ),
      templates: new Map(
        all<{ name: string; body: Uint8Array }>('SELECT * FROM template').map(({ name, body }) => [
          name,
          unpack(body) as Signed,
        ]),
      ),
      results: all<{ attempt: string; body: Uint8Array }>('SELECT attempt, body FROM result ORDER BY number').map(
        ({ attempt, body }) => ({ attempt, result: unpack(body) as Result }),
      ),
      pending: all<{ kind: PendingKind; name: string; body: Uint8Array }>('SELECT * FROM pending').map((row) => ({
        ...row,
        body: unpack(row.body),
      })),
    }
  }

  /** Commits what is waiting and closes the file. */
  close(): void {
    if (!this.#failure) this.#commit()
    clearTimeout(this.#timer)
    this.#database.close()
  }

  #prepare(sql: string): StatementSync {
    let statement = this.#statements.get(sql)
    if (!statement) {
      statement = this.#database.prepare(sql)
      this.#statements.set(sql, statement)
    }
    return statement
  }

  #change(sql: string, ...values: SQLInputValue[]): void {
    this.#changes.push([this.#prepare(sql), ...values])
    this.#schedule()
  }

  /**
   * Waits as long as the last commit took: a quick disk answers at once, a slow one spends half its time at most and
   * gathers more per commit.
   */
  #schedule(): void {
    this.#next ??= Promise.withResolvers<void>()
    // Not everyone who changes something waits for it; a failure reaches those who do, and onFailed.
    this.#next.promise.catch(() => {})
    if (this.#resultsQueued >= RESULTS_PER_COMMIT) {
      clearTimeout(this.#timer)
      this.#commit()
      return
    }
    this.#timer ??= setTimeout(() => this.#commit(), Math.min(this.#lastCommitMs, LONGEST_GROUPING_MS))
  }

  #commit(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    const changes = this.#changes
    const waiting = this.#next
    this.#changes = []
    this.#next = undefined
    this.#resultsQueued = 0
    if (changes.length === 0) {
      waiting?.resolve()
      return
    }
    const startMs = performance.now()
    try {
      failpoint('changes.gathered')
      this.#database.exec('BEGIN IMMEDIATE')
      for (const [statement, ...values] of changes) statement.run(...values)
      this.#database.exec('COMMIT')
    } catch (error) {
      this.#failure = error
      waiting?.reject(error)
      this.#onFailed(error)
      return
    }
    failpoint('changes.committed')
    this.#lastCommitMs = performance.now() - startMs
    waiting?.resolve()
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
    const { quick_check: verdict } = database.prepare('PRAGMA quick_check').get() as { quick_check: string }
    if (verdict !== 'ok') throw new Error(`quick_check: ${verdict}`)
    if (version === 0) {
      database.exec(`BEGIN; ${SCHEMA} PRAGMA user_version = ${SCHEMA_VERSION}; COMMIT`)
      database.prepare('INSERT INTO meta VALUES (?, ?)').run('incarnation', pack(randomUUID()))
    }
    return database
  } catch (error) {
    database.close()
    throw error
  }
}
