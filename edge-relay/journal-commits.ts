/**
 * How changes of the journal become durable: in the order in which they were made, many to a commit (all of at most
 * 20 ms or 64 results). Called by journal.ts only.
 *
 * A full disk loses nothing: changes wait in memory and are tried again until there is room, and meanwhile committed()
 * refuses, so that nobody is told what is not on disk. Any other failure of the disk is final: what it holds is unknown
 * then, and the relay has to end and to start again from it.
 */
import type { DatabaseSync, SQLInputValue, StatementSync } from 'node:sqlite'
import { IndraftError } from '../shared/errors.ts'
import { failpoint } from '../shared/failpoint.ts'
import type { Log } from '../shared/log.ts'
import { pack, unpack } from '../shared/protocol/codec.ts'
import { SQLITE, sqliteCode } from './journal-file.ts'

const LONGEST_GROUPING_MS = 20
const RESULTS_PER_COMMIT = 64
/** Between two looks for room on a full disk. */
const FULL_PAUSE_MS = 500

const SET_META = 'INSERT OR REPLACE INTO meta VALUES (?, ?)'

type Change = [statement: StatementSync, ...values: SQLInputValue[]]

export class Commits {
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
  #sequence: number

  /** @param onFailed a commit or a read failed for good: what is on the disk is unknown */
  constructor(database: DatabaseSync, log: Log, onFailed: (error: unknown) => void) {
    this.#database = database
    this.#log = log
    this.#onFailed = onFailed
    this.#sequence = this.meta<number>('sequence') ?? 0
  }

  /** Commits so far. */
  get sequence(): number {
    return this.#sequence
  }

  /** From here on it is counted beyond this one. */
  countFrom(sequence: number): void {
    this.#sequence = sequence
  }

  /** The last commit found no room; it is tried again by itself. */
  get isFull(): boolean {
    return this.#isFull
  }

  /** @throws IndraftError store.full while nothing can be taken in */
  mustHaveRoom(): void {
    if (this.#isFull) throw fullDisk()
  }

  meta<T>(name: string): T | undefined {
    const row = this.prepare('SELECT value FROM meta WHERE name = ?').get(name) as { value: Uint8Array } | undefined
    return row && (unpack(row.value) as T)
  }

  setMeta(name: string, value: unknown): void {
    this.change(SET_META, name, pack(value))
  }

  prepare(sql: string): StatementSync {
    let statement = this.#statements.get(sql)
    if (!statement) {
      statement = this.#database.prepare(sql)
      this.#statements.set(sql, statement)
    }
    return statement
  }

  change(sql: string, ...values: SQLInputValue[]): void {
    this.#changes.push([this.prepare(sql), ...values])
    this.#schedule()
  }

  /** The same for a result: somebody waits for each. */
  changeResult(sql: string, ...values: SQLInputValue[]): void {
    this.#resultsQueued++
    this.change(sql, ...values)
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

  /** Reads from what is committed. @throws what the disk or the file throws: nothing is acknowledged from then on */
  read<T>(from: () => T): T {
    try {
      return from()
    } catch (error) {
      this.#fail(error)
      throw error
    }
  }

  #fail(error: unknown): void {
    if (this.#failure) return
    this.#failure = error
    this.#onFailed(error)
  }

  /** Commits what is waiting and closes the file. */
  close(): void {
    if (!this.#failure) this.#commit()
    clearTimeout(this.#timer)
    this.#database.close()
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
    if (this.#failure) {
      waiting?.reject(this.#failure)
      return
    }
    if (changes.length === 0) {
      waiting?.resolve()
      return
    }
    const startMs = performance.now()
    try {
      failpoint('changes.gathered')
      this.#database.exec('BEGIN IMMEDIATE')
      for (const [statement, ...values] of changes) statement.run(...values)
      this.prepare(SET_META).run('sequence', pack(this.#sequence + 1))
      this.#database.exec('COMMIT')
    } catch (error) {
      if (isFull(error)) this.#onFull(changes, waiting, error)
      else {
        this.#fail(error)
        waiting?.reject(error)
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
