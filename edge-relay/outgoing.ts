/**
 * Results on their way to central: in the journal from the moment a pilot handed them in until central has them. A
 * result goes up only when the outputs it names are durable at central, so each waits for its files first.
 */

import { attemptPath } from '../shared/ids.ts'
import type { Result } from '../shared/protocol/messages.ts'
import type { Journal } from './journal.ts'

/** So many results that central has are remembered, to answer a repeat without sending it up again. */
const REMEMBERED = 20_000

interface Waiting {
  result: Result
  isReady: boolean
}

export class Outgoing {
  readonly #journal: Journal
  readonly #waiting = new Map<string, Waiting>()
  readonly #settled = new Map<string, Result['end']>()
  /** The attempt that succeeded, by task and central's fence; for as long as it is remembered. */
  readonly #winners = new Map<string, string>()
  #ready = 0
  /** A result was taken in: its files may go up. */
  onAdded: (result: Result) => void = () => {}
  /** A result may go up. */
  onReady: () => void = () => {}

  constructor(journal: Journal, kept: readonly { attempt: string; result: Result }[]) {
    this.#journal = journal
    for (const { attempt, result } of kept) {
      this.#waiting.set(attempt, { result, isReady: false })
      this.#noteWinner(result)
    }
  }

  /** Whether this says nothing new. A success after a failure of the same attempt (it was thought lost) does. */
  knows(result: Result): boolean {
    const attempt = attemptPath(result)
    const end = this.#waiting.get(attempt)?.result.end ?? this.#settled.get(attempt)
    return end === 'done' || (end === 'failed' && result.end === 'failed')
  }

  /** Whether another attempt under the same lease of central succeeded: one success goes up, and nothing after it. */
  isWonByOther(result: Result): boolean {
    const winner = this.#winners.get(taskName(result))
    return winner !== undefined && winner !== attemptPath(result)
  }

  #noteWinner(result: Result): void {
    if (result.end === 'done') remember(this.#winners, taskName(result), attemptPath(result))
  }

  /** Everything kept over a restart, oldest first: their files are looked at again. */
  all(): Result[] {
    return [...this.#waiting.values()].map(({ result }) => result)
  }

  add(result: Result): void {
    const attempt = attemptPath(result)
    if (this.#waiting.get(attempt)?.isReady) this.#ready--
    this.#waiting.set(attempt, { result, isReady: false })
    this.#journal.putResult(attempt, result)
    this.#noteWinner(result)
    this.onAdded(result)
  }

  /** The files are up; or they cannot be, and `instead` says so. */
  makeReady(result: Result, instead: Result = result): void {
    const attempt = attemptPath(result)
    const waiting = this.#waiting.get(attempt)
    if (waiting?.result !== result || waiting.isReady) return
    if (instead !== result) this.#journal.putResult(attempt, instead)
    waiting.result = instead
    waiting.isReady = true
    this.#ready++
    this.onReady()
  }

  /** The oldest that may go up, at most `limit`; the same again until they are settled. */
  batch(limit: number): Result[] {
    const batch: Result[] = []
    if (this.#ready === 0) return batch
    for (const { result, isReady } of this.#waiting.values()) {
      if (isReady && batch.push(result) === limit) break
    }
    return batch
  }

  /** Central has this result. A newer one of the same attempt stays. */
  settle(result: Result): void {
    const attempt = attemptPath(result)
    const waiting = this.#waiting.get(attempt)
    if (waiting?.result !== result) return
    this.#ready--
    this.#waiting.delete(attempt)
    this.#journal.dropResult(attempt)
    remember(this.#settled, attempt, result.end)
  }

  isWaiting(attempt: string): boolean {
    return this.#waiting.has(attempt)
  }

  get waiting(): number {
    return this.#waiting.size
  }

  get ready(): number {
    return this.#ready
  }
}

function taskName({ campaign, step, index, fences }: Result): string {
  return `${campaign}/${step}/${index}/${fences[0]}`
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
