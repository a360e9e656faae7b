/**
 * Results on their way to central: in the journal from the moment a pilot handed them in until central has them. A
 * result goes up only when the outputs it names are durable at central, so each waits for its files first.
 *
 * What always holds: of a result that is in the journal memory keeps its name and how it ended, nothing else; so a
 * backlog of days is no matter of memory.
 */
import { attemptPath } from '../shared/ids.ts'
import type { Result } from '../shared/protocol/messages.ts'
import type { Journal } from './journal.ts'

/** So many results that central has are remembered, to answer a repeat without sending it up again. */
const REMEMBERED = 20_000

interface Waiting {
  end: Result['end']
  isReady: boolean
  /** Central did not take what there was. */
  isReplaced: boolean
  /** Until it is in the journal. */
  uncommitted: Result | null
}

export class Outgoing {
  readonly #journal: Journal
  /** By attempt, oldest first. */
  readonly #waiting = new Map<string, Waiting>()
  readonly #settled = new Map<string, Result['end']>()
  /** The attempt that succeeded, by task and central's fence; for as long as it is remembered. */
  readonly #winners = new Map<string, string>()
  #ready = 0
  /** A result was taken in: its files may go up. */
  onAdded: (result: Result) => void = () => {}
  /** A result may go up. */
  onReady: () => void = () => {}
  /** One that was taken in cannot be read any more: its task is nowhere. */
  onLost: () => void = () => {}

  constructor(journal: Journal) {
    this.#journal = journal
    for (const { attempt, result } of journal.results()) {
      this.#waiting.set(attempt, { end: result.end, isReady: false, isReplaced: false, uncommitted: null })
      this.#noteWinner(result.end, attempt)
    }
  }

  /** Whether this says nothing new. A success after a failure of the same attempt (it was thought lost) does. */
  knows(result: Result): boolean {
    const attempt = attemptPath(result)
    const end = this.#waiting.get(attempt)?.end ?? this.#settled.get(attempt)
    return end === 'done' || (end === 'failed' && result.end === 'failed')
  }

  /** Whether another attempt under the same lease of central succeeded: one success goes up, and nothing after it. */
  isWonByOther(one: Pick<Result, 'campaign' | 'step' | 'index' | 'fences'>): boolean {
    const attempt = attemptPath(one)
    const winner = this.#winners.get(leaseTaskOf(attempt))
    return winner !== undefined && winner !== attempt
  }

  /** Its success is none any more: another one is welcome. */
  #forgetWinner(attempt: string): void {
    const task = leaseTaskOf(attempt)
    if (this.#winners.get(task) === attempt) this.#winners.delete(task)
  }

  #noteWinner(end: Result['end'], attempt: string): void {
    if (end === 'done') remember(this.#winners, leaseTaskOf(attempt), attempt)
  }

  /** Everything that waits, oldest first. */
  get attempts(): Iterable<string> {
    return this.#waiting.keys()
  }

  /** The result of an attempt whose files are to be looked at; undefined where there is none, or no need to. */
  unready(attempt: string): Result | undefined {
    const waiting = this.#waiting.get(attempt)
    return waiting && !waiting.isReady ? this.#read(attempt, waiting) : undefined
  }

  add(result: Result): void {
    const attempt = attemptPath(result)
    if (this.#waiting.get(attempt)?.isReady) this.#ready--
    const waiting: Waiting = { end: result.end, isReady: false, isReplaced: false, uncommitted: null }
    this.#waiting.set(attempt, waiting)
    this.#keep(attempt, waiting, result)
    this.#noteWinner(result.end, attempt)
    this.onAdded(result)
  }

  /** The files are up; or they cannot be, and `instead` says so. */
  makeReady(result: Result, instead: Result = result): void {
    const attempt = attemptPath(result)
    const waiting = this.#waiting.get(attempt)
    // A newer one of the same attempt ended otherwise.
    if (waiting?.end !== result.end || waiting.isReady) return
    if (instead !== result) this.#keep(attempt, waiting, instead)
    if (instead.end === 'failed') this.#forgetWinner(attempt)
    waiting.isReady = true
    this.#ready++
    this.onReady()
  }

  /** The oldest that may go up, at most `limit`; the same again until they are settled. */
  batch(limit: number): Result[] {
    const batch: Result[] = []
    if (this.#ready === 0) return batch
    for (const [attempt, waiting] of this.#waiting) {
      if (!waiting.isReady) continue
      const result = this.#read(attempt, waiting)
      if (result && batch.push(result) === limit) break
    }
    return batch
  }

  /** Central takes no such message: `instead` goes in its place. @returns false where something did before */
  replace(result: Result, instead: Result): boolean {
    const attempt = attemptPath(result)
    const waiting = this.#waiting.get(attempt)
    if (waiting?.isReplaced) return false
    if (waiting?.end !== result.end) return true
    waiting.isReplaced = true
    this.#keep(attempt, waiting, instead)
    if (instead.end === 'failed') this.#forgetWinner(attempt)
    return true
  }

  /** Central had no word for it now: what waits behind it goes first. */
  postpone(result: Result): void {
    const attempt = attemptPath(result)
    const waiting = this.#waiting.get(attempt)
    if (!waiting) return
    this.#waiting.delete(attempt)
    this.#waiting.set(attempt, waiting)
  }

  /** Central has this result. A newer one of the same attempt, which ended otherwise, stays. */
  settle(result: Result): void {
    const attempt = attemptPath(result)
    const waiting = this.#waiting.get(attempt)
    if (waiting?.end !== result.end) return
    this.#drop(attempt, waiting)
    this.#journal.dropResult(attempt)
    remember(this.#settled, attempt, result.end)
  }

  isWaiting(attempt: string): boolean {
    return this.#waiting.has(attempt)
  }

  #keep(attempt: string, waiting: Waiting, result: Result): void {
    waiting.end = result.end
    waiting.uncommitted = result
    this.#journal.putResult(attempt, result)
    const forget = () => {
      if (waiting.uncommitted === result) waiting.uncommitted = null
    }
    // On a full disk it stays in memory; the journal writes it down when there is room.
    this.#journal.committed().then(forget, () => {})
  }

  #read(attempt: string, waiting: Waiting): Result | undefined {
    if (waiting.uncommitted) return waiting.uncommitted
    const result = this.#journal.result(attempt)
    if (result) return result
    // The journal has set it aside, and said so.
    this.#drop(attempt, waiting)
    this.#forgetWinner(attempt)
    this.onLost()
    return undefined
  }

  #drop(attempt: string, waiting: Waiting): void {
    if (waiting.isReady) this.#ready--
    this.#waiting.delete(attempt)
  }

  get waiting(): number {
    return this.#waiting.size
  }

  get ready(): number {
    return this.#ready
  }
}

/** `campaign/step/index/fence` of an attempt's path: the task, under the lease that central gave. */
export function leaseTaskOf(attempt: string): string {
  const end = attempt.indexOf('.', attempt.lastIndexOf('/'))
  return end < 0 ? attempt : attempt.slice(0, end)
}

function remember<V>(map: Map<string, V>, key: string, value: V): void {
  map.delete(key)
  map.set(key, value)
  if (map.size <= REMEMBERED) return
  for (const oldest of map.keys()) {
    map.delete(oldest)
    break
  }
}
