/**
 * The site's own record of whose payload ran where and when: one JSON line at the start and one at the end of each.
 * Kept small by turning it over once.
 */
import { appendFile, mkdir, rename, stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import type { Log } from '../shared/log.ts'

const TURN_OVER_BYTES = 64 * 2 ** 20

export class Trace {
  readonly #path: string
  readonly #log: Log
  #sizeBytes: number | undefined
  #writing: Promise<void> = Promise.resolve()
  #lines: string[] = []

  constructor(path: string, log: Log) {
    this.#path = path
    this.#log = log
  }

  /** Never waits for the disk and never throws: lines are written in order, together where they come together. */
  write(line: Record<string, unknown>): void {
    this.#lines.push(`${JSON.stringify(line)}\n`)
    if (this.#lines.length === 1) this.#writing = this.#writing.then(() => this.#flush())
  }

  /** Resolves when everything so far is written. */
  async close(): Promise<void> {
    await this.#writing
  }

  async #flush(): Promise<void> {
    const text = this.#lines.join('')
    this.#lines = []
    try {
      if (this.#sizeBytes === undefined) {
        await mkdir(dirname(this.#path), { recursive: true })
        this.#sizeBytes = await stat(this.#path).then(
          (facts) => facts.size,
          () => 0,
        )
      }
      if (this.#sizeBytes > TURN_OVER_BYTES) {
        await rename(this.#path, `${this.#path}.1`)
        this.#sizeBytes = 0
      }
      await appendFile(this.#path, text, { mode: 0o600 })
      this.#sizeBytes += Buffer.byteLength(text)
    } catch (error) {
      this.#log.error({ err: error }, 'trace.writeFailed')
    }
  }
}
