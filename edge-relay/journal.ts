/**
 * The relay's one journal: what must survive a crash or a power cut, in one SQLite file (WAL, synchronous=FULL). The
 * buffer, sub-leases, sessions of pilots, results that central does not have yet, files to upload or to rename. Here is
 * what is kept and how it is read back; journal-commits.ts makes it durable.
 *
 * What always holds: changes are durable in the order in which they were made; whoever answers a peer awaits
 * committed() first, so acknowledged means here. Memory is the truth while the relay runs, and the journal is read once,
 * at the start; of results alone memory has only what they are told apart by. An empty journal is a new incarnation.
 */
import type { PilotState } from '../shared/lifecycle.ts'
import type { Log } from '../shared/log.ts'
import { check, pack, unpack } from '../shared/protocol/codec.ts'
import {
  type Grant,
  grantSchema,
  type NodeFacts,
  type Result,
  resultSchema,
  type StoreMark,
} from '../shared/protocol/messages.ts'
import type { Signed } from '../shared/protocol/work.ts'
import { Commits } from './journal-commits.ts'
import { openJournalFile } from './journal-file.ts'

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

export interface SessionRow {
  session: string
  /** The pilot's name. */
  holder: string
  incarnation: string
  software: string
  facts: NodeFacts
  state: PilotState
  /** The last pull answered. */
  sequence: number
  processed: number
  /** Why it left, in Vac's classes; null while it has not. */
  code: number | null
  /** Wall clock, only to show how long it has been up. */
  sinceMs: number
  /** Its last totals. */
  counters: Record<string, number>
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
  pending: { kind: PendingKind; name: string; body: unknown }[]
}

export class Journal {
  readonly #commits: Commits
  readonly #log: Log
  readonly #incarnation: string
  #hasLost: boolean
  #hasAskedNames: boolean
  /** It may have lost which files are to be named. */
  onLoss: () => void = () => {}

  private constructor(commits: Commits, log: Log) {
    this.#commits = commits
    this.#log = log
    this.#incarnation = this.meta<string>('incarnation')!
    this.#hasLost = this.meta<boolean>('hasLost') ?? false
    this.#hasAskedNames = this.meta<boolean>('namesAsked') ?? false
  }

  /**
   * Opens or makes the journal. A damaged one is set aside and said loudly; one of a newer schema is refused.
   * @param onFailed the disk failed for good: memory is ahead of it, or it cannot be read. The relay has to end and start
   * again
   * @throws IndraftError request.invalid for a journal of a newer version; Error where the disk fails
   */
  static open(path: string, log: Log, onFailed: (error: unknown) => void): Journal {
    return new Journal(new Commits(openJournalFile(path, log), log, onFailed), log)
  }

  /** New with every new journal. */
  get incarnation(): string {
    return this.#incarnation
  }

  /** Commits so far. Who has seen a higher one than this of the same incarnation knows that the disk went back. */
  get sequence(): number {
    return this.#commits.sequence
  }

  /** The last commit found no room; it is tried again by itself. */
  get isFull(): boolean {
    return this.#commits.isFull
  }

  meta<T>(name: string): T | undefined {
    return this.#commits.meta<T>(name)
  }

  setMeta(name: string, value: unknown): void {
    this.#commits.setMeta(name, value)
  }

  putBundle(bundle: string, fence: number, grant: Grant): void {
    this.#commits.change('INSERT OR REPLACE INTO bundle VALUES (?, ?, ?)', bundle, fence, pack(grant))
  }

  putLease(row: LeaseRow): void {
    const { bundle, fence, arrival, gone, free, back, open } = row
    const sql = 'INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?, ?, ?, ?)'
    this.#commits.change(sql, bundle, fence, arrival, Number(gone), free, back, open)
  }

  dropLease(bundle: string, fence: number): void {
    this.#commits.change('DELETE FROM lease WHERE bundle = ? AND fence = ?', bundle, fence)
    this.#commits.change('DELETE FROM bundle WHERE bundle = ? AND fence = ?', bundle, fence)
    this.#commits.change('DELETE FROM past WHERE bundle = ? AND above = ?', bundle, fence)
  }

  putSubLease(row: SubLeaseRow): void {
    const { fence, bundle, above, session, sequence, confirmed, tasks, started } = row
    const sql = 'INSERT OR REPLACE INTO sublease VALUES (?, ?, ?, ?, ?, ?, ?, ?)'
    this.#commits.change(sql, fence, bundle, above, session, sequence, Number(confirmed), tasks, started)
  }

  dropSubLease(fence: number): void {
    this.#commits.change('DELETE FROM sublease WHERE fence = ?', fence)
  }

  putPast({ fence, bundle, above, tasks }: PastRow): void {
    this.#commits.change('INSERT OR REPLACE INTO past VALUES (?, ?, ?, ?)', fence, bundle, above, tasks)
  }

  putSession(row: SessionRow): void {
    this.#commits.change('INSERT OR REPLACE INTO session VALUES (?, ?)', row.session, pack(row))
  }

  dropSession(session: string): void {
    this.#commits.change('DELETE FROM session WHERE session = ?', session)
    this.#commits.change('DELETE FROM reply WHERE session = ?', session)
  }

  putReply(session: string, sequence: number, body: Uint8Array): void {
    this.#commits.change('INSERT OR REPLACE INTO reply VALUES (?, ?, ?)', session, sequence, body)
  }

  putTemplate(name: string, template: Signed): void {
    this.#commits.change('INSERT OR IGNORE INTO template VALUES (?, ?)', name, pack(template))
  }

  dropTemplate(name: string): void {
    this.#commits.change('DELETE FROM template WHERE name = ?', name)
  }

  putResult(attempt: string, result: Result): void {
    this.#commits.changeResult('INSERT OR REPLACE INTO result (attempt, body) VALUES (?, ?)', attempt, pack(result))
  }

  dropResult(attempt: string): void {
    this.#commits.change('DELETE FROM result WHERE attempt = ?', attempt)
  }

  putPending(kind: PendingKind, name: string, body: unknown): void {
    this.#commits.change('INSERT OR REPLACE INTO pending VALUES (?, ?, ?)', kind, name, pack(body))
  }

  dropPending(kind: PendingKind, name: string): void {
    this.#commits.change('DELETE FROM pending WHERE kind = ? AND name = ?', kind, name)
  }

  /** @throws IndraftError store.full while nothing can be taken in */
  mustHaveRoom(): void {
    this.#commits.mustHaveRoom()
  }

  /** A peer has seen this mark of ours: a higher one than the journal knows proves that the disk lost commits. */
  noteSeen(seen: StoreMark | null): void {
    if (seen?.epoch !== this.#incarnation || seen.sequence <= this.sequence) return
    if (!this.hasLost) this.#log.error({ seen: seen.sequence, known: this.sequence }, 'journal.wentBack')
    this.noteLoss()
    // From here on it counts beyond what was seen, so that a second loss shows too.
    this.#commits.countFrom(seen.sequence)
  }

  /** Whether this journal is known to have lost something: then what it does not know may still have been. */
  get hasLost(): boolean {
    return this.#hasLost
  }

  /** Whether central was asked, since the last loss, what is still to be named (names.ts). A new journal was not. */
  get hasAskedNames(): boolean {
    return this.#hasAskedNames
  }

  noteNamesAsked(): void {
    this.#hasAskedNames = true
    this.setMeta('namesAsked', true)
  }

  noteLoss(): void {
    this.#hasAskedNames = false
    this.setMeta('namesAsked', false)
    this.onLoss()
    if (this.hasLost) return
    this.#hasLost = true
    this.setMeta('hasLost', true)
  }

  /** What cannot be read is kept for people to look at, and never read again. */
  setAside(kind: string, name: string, body: Uint8Array | null, error: unknown): void {
    this.#log.error({ err: error, kind, name }, 'journal.rowUnreadable')
    this.noteLoss()
    this.#commits.change('INSERT INTO unreadable VALUES (?, ?, ?, ?)', kind, name, body, Date.now())
  }

  /**
   * Resolves when every change made so far is on disk.
   * @throws IndraftError store.full while there is no room; Error where the disk failed, and the relay is ending
   */
  committed(): Promise<void> {
    return this.#commits.committed()
  }

  /** One by one, oldest first. What cannot be read is set aside, said loudly, and missing here. */
  *results(): Generator<{ attempt: string; result: Result }> {
    const rows = this.#commits.prepare('SELECT attempt, body FROM result ORDER BY number').iterate()
    for (const row of rows as Iterable<{ attempt: string; body: Uint8Array }>) {
      const result = this.#readResult(row)
      if (result) yield { attempt: row.attempt, result }
    }
  }

  /**
   * As it was committed last; undefined where there is none that can be read.
   * @throws Error where the disk or the file does not let it be read: then the relay ends, and starts from what is whole
   */
  result(attempt: string): Result | undefined {
    const row = this.#commits.read(() =>
      this.#commits.prepare('SELECT attempt, body FROM result WHERE attempt = ?').get(attempt),
    )
    return row && this.#readResult(row as { attempt: string; body: Uint8Array })
  }

  #readResult({ attempt, body }: { attempt: string; body: Uint8Array }): Result | undefined {
    try {
      return check(resultSchema, unpack(body), 'result')
    } catch (error) {
      this.setAside('result', attempt, body, error)
      this.dropResult(attempt)
      return undefined
    }
  }

  /** Everything kept but results. What cannot be read is set aside, said loudly, and missing here. */
  read(): JournalContent {
    const all = <T>(sql: string) => this.#commits.prepare(sql).all() as unknown as T[]
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
      pending: readable(
        all<Named & { kind: PendingKind }>('SELECT * FROM pending'),
        (row) => ({ ...row, body: unpack(row.body) }),
        ({ kind, name, body }) => ({ kind, name, body, drop: () => this.dropPending(kind, name) }),
      ),
    }
  }

  /** Commits what is waiting and closes the file. */
  close(): void {
    this.#commits.close()
  }
}
