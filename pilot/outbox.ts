/**
 * Results that no dispatcher has acknowledged yet, on disk: temporary name, fsync, rename, so that a file is whole or
 * not there. Results that come within a few milliseconds share a file. A pilot that starts reads what it finds, its
 * own from before and what dead pilots of this node left; any holder may hand in any result.
 */
import { randomBytes } from 'node:crypto'
import { mkdir, open, readdir, readFile, rename, rm, unlink } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { failpoint } from '../shared/failpoint.ts'
import { type AttemptRef, attemptPath } from '../shared/ids.ts'
import type { Log } from '../shared/log.ts'
import { pack } from '../shared/protocol/codec.ts'
import { type Result, resultSchema, type Verdict } from '../shared/protocol/messages.ts'

const GATHER_MS = 5
const MOST_PER_FILE = 64

type Named = Pick<Result, 'campaign' | 'step' | 'index' | 'fences'>

function keyOf(attempt: Named): string {
  return attemptPath(attempt as AttemptRef)
}

interface Entry {
  result: Result
  /** Null where the disk refused it: then it lives in memory alone. */
  file: string | null
  bytes: number
}

export class Outbox {
  readonly #folder: string
  readonly #log: Log
  readonly #entries = new Map<string, Entry>()
  /** Results of each file that are not acknowledged yet. */
  readonly #left = new Map<string, number>()
  #gathering: { results: Result[]; written: Promise<void> } | undefined
  #counter = 0

  private constructor(folder: string, log: Log) {
    this.#folder = folder
    this.#log = log
  }

  static async open(folder: string, log: Log): Promise<Outbox> {
    await mkdir(folder, { recursive: true, mode: 0o700 })
    const outbox = new Outbox(folder, log)
    await outbox.#read()
    return outbox
  }

  get size(): number {
    return this.#entries.size
  }

  /** Takes over the files of another outbox, whose pilot is dead. */
  async adopt(folder: string): Promise<void> {
    for (const name of await readdir(folder).catch(() => [])) {
      if (name.endsWith('.json')) await rename(join(folder, name), join(this.#folder, name)).catch(() => {})
    }
    await this.#read()
  }

  async #read(): Promise<void> {
    for (const name of (await readdir(this.#folder)).sort()) {
      const path = join(this.#folder, name)
      if (!name.endsWith('.json')) {
        if (name.endsWith('.tmp')) await rm(path, { force: true })
        continue
      }
      if (this.#left.has(path)) continue
      try {
        const results = z.array(resultSchema).parse(JSON.parse(await readFile(path, 'utf8')))
        this.#enter(results, path)
        if (results.length > 0) this.#log.info({ results: results.length, path }, 'outbox.found')
      } catch (error) {
        this.#log.error({ err: error, path }, 'outbox.unreadable')
        await rename(path, `${path}.bad`).catch(() => {})
      }
    }
  }

  #enter(results: readonly Result[], file: string | null): void {
    let entered = 0
    for (const result of results) {
      if (this.#entries.has(keyOf(result))) continue
      this.#entries.set(keyOf(result), { result, file, bytes: pack(result).length })
      entered++
    }
    if (file !== null && entered > 0) this.#left.set(file, entered)
    else if (file !== null) void unlink(file).catch(() => {})
  }

  /** Resolves when the result is on disk (or, with a full disk, in memory and said so). */
  async add(result: Result): Promise<void> {
    if (!this.#gathering || this.#gathering.results.length >= MOST_PER_FILE) {
      const results: Result[] = []
      const written = new Promise((resolve) => setTimeout(resolve, GATHER_MS)).then(() => {
        if (this.#gathering?.results === results) this.#gathering = undefined
        return this.#write(results)
      })
      this.#gathering = { results, written }
    }
    this.#gathering.results.push(result)
    await this.#gathering.written
  }

  async #write(results: Result[]): Promise<void> {
    const name = `${Date.now().toString(36)}-${this.#counter++}-${randomBytes(4).toString('hex')}.json`
    const path = join(this.#folder, name)
    try {
      failpoint('outbox.writing')
      const file = await open(`${path}.tmp`, 'wx', 0o600)
      try {
        await file.writeFile(JSON.stringify(results))
        await file.sync()
      } finally {
        await file.close()
      }
      await rename(`${path}.tmp`, path)
      await syncFolder(this.#folder)
      this.#enter(results, path)
    } catch (error) {
      this.#log.error({ err: error }, 'outbox.writeFailed')
      await rm(`${path}.tmp`, { force: true }).catch(() => {})
      this.#enter(results, null)
    }
  }

  /** The oldest results, at most so many, of at most so many bytes together (but at least one). */
  batch(most: number, mostBytes: number): Result[] {
    const results: Result[] = []
    let bytes = 0
    for (const entry of this.#entries.values()) {
      if (results.length >= most || (results.length > 0 && bytes + entry.bytes > mostBytes)) break
      results.push(entry.result)
      bytes += entry.bytes
    }
    return results
  }

  /** The dispatcher has these for good, whatever it thinks of them. Unknown ones are ignored. */
  acknowledged(verdicts: readonly Pick<Verdict, 'campaign' | 'step' | 'index' | 'fences'>[]): void {
    for (const verdict of verdicts) {
      const key = keyOf(verdict)
      const entry = this.#entries.get(key)
      if (!entry) continue
      this.#entries.delete(key)
      if (entry.file === null) continue
      const left = this.#left.get(entry.file)! - 1
      this.#left.set(entry.file, left)
      if (left > 0) continue
      this.#left.delete(entry.file)
      void unlink(entry.file).catch((error) => this.#log.warn({ err: error }, 'outbox.unlinkFailed'))
    }
  }
}

async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}
