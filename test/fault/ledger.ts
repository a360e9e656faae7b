/**
 * What the payloads themselves say they did, read from the file that they append to. It is outside of every folder of the
 * product, and the only thing that the product's own records are judged against.
 */
import { closeSync, openSync, readSync } from 'node:fs'

export interface LedgerAttempt {
  /** `campaign/step/index/fences`. */
  attempt: string
  pid: number
  node: string
  end: 'done' | 'fail' | null
  /** The value of a success, the exit status of a failure on purpose. */
  value: string | null
}

export class Ledger {
  readonly attempts = new Map<string, LedgerAttempt>()
  /** By task: attempts that ended well, in the order of their ends. */
  readonly successes = new Map<string, string[]>()
  /** Tasks that always fail, seen to have failed. */
  readonly #failed = new Set<string>()
  readonly #tail: FileTail

  constructor(path: string) {
    this.#tail = new FileTail(path)
  }

  /** Reads what was added since the last call. @throws Error for a line that no payload writes */
  read(): void {
    for (const line of this.#tail.lines()) this.#take(line)
  }

  /** Tasks whose payload has come to the end that it was made for: what a run's progress is counted by. */
  get settled(): number {
    return this.successes.size + this.#failed.size
  }

  #take(line: string): void {
    const [what, attempt = '', first = '', node = ''] = line.split(' ')
    if (what === 'start') {
      this.attempts.set(attempt, { attempt, pid: Number(first), node, end: null, value: null })
      return
    }
    const known = this.attempts.get(attempt)
    if (!known || (what !== 'done' && what !== 'fail'))
      throw new Error(`ledger: a line that no payload writes: ${line}`)
    known.end = what
    known.value = first
    const task = taskOf(attempt)
    if (what === 'done') this.successes.set(task, [...(this.successes.get(task) ?? []), attempt])
    else if (first === '4') this.#failed.add(task)
  }

  /** Started there and not ended: newest first. Some of them may be dead. */
  open(node: string): LedgerAttempt[] {
    return [...this.attempts.values()].filter((one) => one.end === null && one.node === node).reverse()
  }
}

/** `campaign/step/index` of `campaign/step/index/fences`. */
export function taskOf(attempt: string): string {
  return attempt.slice(0, attempt.lastIndexOf('/'))
}

/** Whole lines that were added to a file since the last look; the file need not be there yet. */
export class FileTail {
  readonly #path: string
  #at = 0
  #rest = ''

  constructor(path: string) {
    this.#path = path
  }

  lines(): string[] {
    let file: number
    try {
      file = openSync(this.#path, 'r')
    } catch {
      return []
    }
    try {
      const chunk = Buffer.alloc(1 << 20)
      const pieces: Buffer[] = []
      for (;;) {
        const length = readSync(file, chunk, 0, chunk.length, this.#at)
        if (length === 0) break
        this.#at += length
        pieces.push(Buffer.from(chunk.subarray(0, length)))
      }
      if (pieces.length === 0) return []
      const lines = (this.#rest + Buffer.concat(pieces).toString('utf8')).split('\n')
      this.#rest = lines.pop() ?? ''
      return lines
    } finally {
      closeSync(file)
    }
  }
}
