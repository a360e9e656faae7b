/**
 * The relay's one journal: what must survive a crash or a power cut, in one SQLite file (WAL, synchronous=FULL). The
 * buffer, sub-leases, sessions of pilots, results that central does not have yet, files to upload or to rename.
 *
 * What always holds: changes are durable in the order in which they were made; whoever answers a peer awaits
 * committed() first, so acknowledged means here. One commit takes all changes of at most 20 ms or 64 results. Memory
 * is the truth while the relay runs; the journal is read once, at the start. An empty journal is a new incarnation.
 *
 * A full disk loses nothing: changes wait in memory and are tried again until there is room, and meanwhile committed()
 * refuses, so that nobody is told what is not on disk. Any other failure of the disk is final: what it holds is unknown
 * then, and the relay has to end and to start again from it.
 */
import type { DatabaseSync, SQLInputValue, StatementSync } from 'node:sqlite'
import { IndraftError } from '../shared/errors.ts'
import { failpoint } from '../shared/failpoint.ts'
import type { Log } from '../shared/log.ts'
import { check, pack, unpack } from '../shared/protocol/codec.ts'
import { type Grant, grantSchema, type Result, resultSchema, type StoreMark } from '../shared/protocol/messages.ts'
import type { Signed } from '../shared/protocol/work.ts'
import { openJournalFile, SQLITE, sqliteCode } from './journal-file.ts'
import type { SessionRow } from './sessions.ts'

const LONGEST_GROUPING_MS = 20
const RESULTS_PER_COMMIT = 64
/** Between two looks for room on a full disk. */
const FULL_PAUSE_MS = 500

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

/** Tasks that a sub-lease ended without. */
export interface PastRow {
  fence: number
  bundle: string
  above: number
  /** Ranges. */
  tasks: string
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
  past: PastRow[]
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
  readonly #log: Log
  readonly #onFailed: (error: unknown) => void
  readonly #statements = new Map<string, StatementSync>()
  #changes: Change[] = []
  #resultsQueued = 0
  #next: PromiseWithResolvers<void> | undefined
  #timer: NodeJS.Timeout | undefined
  #lastCommitMs = 0
  #failure: unknown
  #isFull = false
  #hasLost: boolean | undefined
  #sequence: number
  readonly #incarnation: string

  private constructor(database: DatabaseSync, log: Log, onFailed: (error: unknown) => void) {
    this.#database = database
    this.#log = log
    this.#onFailed = onFailed
    this.#sequence = this.meta<number>('sequence') ?? 0
    this.#incarnation = this.meta<string>('incarnation')!
  }

  /**
   * Opens or makes the journal. A damaged one is set aside and said loudly; one of a newer schema is refused.
   * @param onFailed a commit failed for good: memory is ahead of the disk, so the relay has to end and start again
   * @throws IndraftError request.invalid for a journal of a newer version; Error where the disk fails
   */
  static open(path: string, log: Log, onFailed: (error: unknown) => void): Journal {
    return new Journal(openJournalFile(path, log), log, onFailed)
  }

  /** New with every new journal. */
  get incarnation(): string {
    return this.#incarnation
  }

  /** Commits so far. Who has seen a higher one than this of the same incarnation knows that the disk went back. */
  get sequence(): number {
    return this.#sequence
  }

  /** The last commit found no room; it is tried again by itself. */
  get isFull(): boolean {
    return this.#isFull
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
    this.#change('DELETE FROM past WHERE bundle = ? AND above = ?', bundle, fence)
  }

  putSubLease(row: SubLeaseRow): void {
    const { fence, bundle, above, session, sequence, confirmed, tasks, started } = row
    const sql = 'INSERT OR REPLACE INTO sublease VALUES (?, ?, ?, ?, ?, ?, ?, ?)'
    this.#change(sql, fence, bundle, above, session, sequence, Number(confirmed), tasks, started)
  }

  dropSubLease(fence: number): void {
    this.#change('DELETE FROM sublease WHERE fence = ?', fence)
  }

  putPast({ fence, bundle, above, tasks }: PastRow): void {
    this.#change('INSERT OR REPLACE INTO past VALUES (?, ?, ?, ?)', fence, bundle, above, tasks)
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

  /** @throws IndraftError store.full while nothing can be taken in */
  mustHaveRoom(): void {
    if (this.#isFull) throw fullDisk()
  }

  /** A peer has seen this mark of ours: a higher one than the journal knows proves that the disk lost commits. */
  noteSeen(seen: StoreMark | null): void {
    if (seen?.epoch !== this.#incarnation || seen.sequence <= this.#sequence) return
    if (!this.hasLost) this.#log.error({ seen: seen.sequence, known: this.#sequence }, 'journal.wentBack')
    this.noteLoss()
    // From here on it counts beyond what was seen, so that a second loss shows too.
    this.#sequence = seen.sequence
  }

  /** Whether this journal is known to have lost something: then what it does not know may still have been. */
  get hasLost(): boolean {
    this.#hasLost ??= this.meta<boolean>('hasLost') ?? false
    return this.#hasLost
  }

  noteLoss(): void {
    if (this.hasLost) return
    this.#hasLost = true
    this.setMeta('hasLost', true)
  }

  /** What cannot be read is kept for people to look at, and never read again. */
  setAside(kind: string, name: string, body: Uint8Array | null, error: unknown): void {
    this.#log.error({ err: error, kind, name }, 'journal.rowUnreadable')
    this.noteLoss()
    this.#change('INSERT INTO unreadable VALUES (?, ?, ?, ?)', kind, name, body, Date.now())
  }

  /**
   * Resolves when every change made so far is on disk.
   * @throws IndraftError store.full while there is no room; Error where the disk failed, and the relay is ending
   */
  committed(): Promise<void> {
    if (this.#failure) return Promise.reject(this.#failure)
    if (this.#changes.length === 0) return this.#next?.promise ?? Promise.resolve()
    if (this.#isFull) return Promise.reject(fullDisk())
    this.#schedule()
    return this.#next!.promise
  }

  /** Everything kept. What cannot be read is set aside, said loudly, and missing here. */
  read(): JournalContent {
    const all = <T>(sql: string) => this.#prepare(sql).all() as unknown as T[]
    type Stored<T, K extends keyof T> = Omit<T, K> & Record<K, number>
    /** Rows by what is made of them; a row that throws is set aside under its name, and dropped. */
    const readable = <R, T>(
      rows: readonly R[],
      make: (row: R) => T,
      bad: (row: R) => { kind: string; name: string; body: Uint8Array; drop: () => void },
    ): T[] =>
      rows.flatMap((row) => {
        try {
          return [make(row)]
        } catch (error) {
          const { kind, name, body, drop } = bad(row)
          this.setAside(kind, name, body, error)
          drop()
          return []
        }
      })
    type Named = { name: string; body: Uint8Array }
    const leases = all<Stored<LeaseRow, 'gone'> & { grant_body: Uint8Array }>(
      'SELECT * FROM lease JOIN bundle USING (bundle, fence) ORDER BY arrival',
    )
    const subLeases = all<Stored<SubLeaseRow, 'confirmed'>>('SELECT * FROM sublease ORDER BY fence')
    const replies = all<{ session: string; sequence: number; body: Uint8Array }>('SELECT * FROM reply')
    return {
      leases: readable(
        leases,
        ({ grant_body, ...row }) => ({
          row: { ...row, gone: row.gone === 1 },
          grant: check(grantSchema, unpack(grant_body), 'grant'),
        }),
        ({ bundle, fence, grant_body: body }) => ({
          ...{ kind: 'lease', name: `${bundle}#${fence}`, body },
          drop: () => this.dropLease(bundle, fence),
        }),
      ),
      subLeases: subLeases.map((row) => ({ ...row, confirmed: row.confirmed === 1 })),
      past: all<PastRow>('SELECT * FROM past ORDER BY fence'),
      sessions: readable(
        all<{ session: string; body: Uint8Array }>('SELECT * FROM session'),
        ({ body }) => unpack(body) as SessionRow,
        ({ session, body }) => ({ kind: 'session', name: session, body, drop: () => this.dropSession(session) }),
      ),
      replies: new Map(replies.map(({ session, sequence, body }) => [session, { sequence, body }])),
      templates: new Map(
        readable(
          all<Named>('SELECT * FROM template'),
          ({ name, body }) => [name, unpack(body) as Signed] as const,
          ({ name, body }) => ({ kind: 'template', name, body, drop: () => this.dropTemplate(name) }),
        ),
      ),
      results: readable(
        all<{ attempt: string; body: Uint8Array }>('SELECT attempt, body FROM result ORDER BY number'),
        ({ attempt, body }) => ({ attempt, result: check(resultSchema, unpack(body), 'result') }),
        ({ attempt, body }) => ({ kind: 'result', name: attempt, body, drop: () => this.dropResult(attempt) }),
      ),
      pending: readable(
        all<Named & { kind: PendingKind }>('SELECT * FROM pending'),
        (row) => ({ ...row, body: unpack(row.body) }),
        ({ kind, name, body }) => ({ kind, name, body, drop: () => this.dropPending(kind, name) }),
      ),
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
    if (this.#resultsQueued >= RESULTS_PER_COMMIT && !this.#isFull) {
      clearTimeout(this.#timer)
      this.#commit()
      return
    }
    const waitMs = this.#isFull ? FULL_PAUSE_MS : Math.min(this.#lastCommitMs, LONGEST_GROUPING_MS)
    this.#timer ??= setTimeout(() => this.#commit(), waitMs)
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
      this.#prepare('INSERT OR REPLACE INTO meta VALUES (?, ?)').run('sequence', pack(this.#sequence + 1))
      this.#database.exec('COMMIT')
    } catch (error) {
      if (isFull(error)) this.#onFull(changes, waiting, error)
      else {
        this.#failure = error
        waiting?.reject(error)
        this.#onFailed(error)
      }
      return
    }
    this.#sequence++
    if (this.#isFull) {
      this.#isFull = false
      this.#log.warn({ changes: changes.length }, 'journal.hasRoom')
    }
    failpoint('changes.committed')
    this.#lastCommitMs = performance.now() - startMs
    waiting?.resolve()
  }

  /** The changes stay, in their order, before those that come meanwhile; who waited is told to ask again. */
  #onFull(changes: Change[], waiting: PromiseWithResolvers<void> | undefined, error: unknown): void {
    if (this.#database.isTransaction) this.#database.exec('ROLLBACK')
    this.#changes = [...changes, ...this.#changes]
    if (!this.#isFull) this.#log.error({ err: error, changes: changes.length }, 'journal.full')
    this.#isFull = true
    waiting?.reject(fullDisk())
    this.#schedule()
  }
}

function isFull(error: unknown): boolean {
  return sqliteCode(error) === SQLITE.full || (error as NodeJS.ErrnoException).code === 'ENOSPC'
}

function fullDisk(): IndraftError {
  return new IndraftError('store.full', "the relay's disk is full: nothing is taken in until there is room", {
    retryAfterMs: 2 * FULL_PAUSE_MS,
  })
}
