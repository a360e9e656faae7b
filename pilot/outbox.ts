/**
 * Results that no dispatcher has acknowledged yet, on disk: temporary name, fsync, rename, so that a file is whole or
 * not there. Results that come within a few milliseconds share a file. A pilot that starts reads what it finds, its
 * own from before and what dead pilots of this node left; any holder may hand in any result.
 *
 * Where the disk refuses (full, read-only, broken) results live in memory alone and `trouble` says so until mend()
 * has written them; the owner takes no more work meanwhile.
 */
import { randomBytes } from 'node:crypto'
import { mkdir, open, readdir, readFile, rename, rm, unlink } from 'node:fs/promises'
import { join } from 'node:path'
import { failpoint } from '../shared/failpoint.ts'
import { syncFolder } from '../shared/files/durable.ts'
import { type AttemptRef, attemptPath } from '../shared/ids.ts'
import type { Log } from '../shared/log.ts'
import { pack } from '../shared/protocol/codec.ts'
import { type Result, resultSchema, type Verdict } from '../shared/protocol/messages.ts'

const GATHER_MS = 5
const MOST_PER_FILE = 64
/** What has to fit before a disk that refused is trusted again: about a file of results. */
const TRIAL_BYTES = 32 * 1024

type Named = Pick<Result, 'campaign' | 'step' | 'index' | 'fences'>

function keyOf(attempt: Named): string {
  return attemptPath(attempt as AttemptRef)
}

interface Entry {
  result: Result
  /** Told in its place; what is on disk stays what it was until somebody has taken that. */
  instead: Result | null
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
  #mending: Promise<boolean> | undefined
  #counter = 0
  #bytes = 0
  #trouble: string | null = null

  private constructor(folder: string, log: Log) {
    this.#folder = folder
    this.#log = log
  }

  /** @throws Error where the folder cannot be made or listed */
  static async open(folder: string, log: Log): Promise<Outbox> {
    await mkdir(folder, { recursive: true, mode: 0o700 })
    const outbox = new Outbox(folder, log)
    await outbox.#read()
    return outbox
  }

  get size(): number {
    return this.#entries.size
  }

  /** Of all results in hand, as a message carries them; they are in memory too. */
  get bytes(): number {
    return this.#bytes
  }

  /** Results that are in memory alone: they die with this process. */
  get unwritten(): number {
    let count = 0
    for (const { file } of this.#entries.values()) if (file === null) count++
    return count
  }

  /** What the disk said when it last refused; null while it takes results. */
  get trouble(): string | null {
    return this.#trouble
  }

  /**
   * Takes over the files of another outbox, whose pilot is dead.
   * @returns false where something is left, which could not be taken or was set aside: then its folder has to stay
   */
  async adopt(folder: string): Promise<boolean> {
    for (const name of await namesIn(folder)) {
      if (!name.endsWith('.json')) continue
      await rename(join(folder, name), join(this.#folder, name)).catch((error: NodeJS.ErrnoException) => {
        // Gone: another pilot that starts now was quicker.
        if (error.code !== 'ENOENT') this.#log.error({ err: error, folder, name }, 'outbox.notAdopted')
      })
    }
    await this.#read()
    return !(await holdsResults(folder))
  }

  /** Whether nothing of it would be missed: no result is in hand, and no file that could not be read. */
  async isEmpty(): Promise<boolean> {
    return this.size === 0 && !(await holdsResults(this.#folder))
  }

  async #read(): Promise<void> {
    for (const name of (await readdir(this.#folder)).sort()) {
      const path = join(this.#folder, name)
      if (!name.endsWith('.json')) {
        if (name.endsWith('.tmp') || name.startsWith('trial-')) await rm(path, { force: true })
        continue
      }
      if (!this.#left.has(path)) await this.#readFile(path)
    }
  }

  /** What is whole of a file is taken; a file that holds anything else is set aside under another name and stays. */
  async #readFile(path: string): Promise<void> {
    const results: Result[] = []
    let torn = 0
    let text: string
    try {
      text = await readFile(path, 'utf8')
    } catch (error) {
      // It may be read another time: the next pilot of this node tries again.
      this.#log.error({ err: error, path }, 'outbox.unreadable')
      return
    }
    try {
      const found: unknown = JSON.parse(text)
      if (!Array.isArray(found)) throw new Error('expected a list of results')
      for (const one of found) {
        const { data } = resultSchema.safeParse(one)
        if (data) results.push(data)
        else torn++
      }
    } catch (error) {
      this.#log.error({ err: error, path }, 'outbox.notResults')
      torn++
    }
    if (torn === 0) {
      this.#enter(results, path)
    } else {
      this.#enter(results, null)
      this.#log.error({ torn, whole: results.length, path }, 'outbox.torn')
      // The whole ones first under a name of their own: there is no moment at which they are nowhere.
      if (results.length > 0) await this.#write(results)
      await rename(path, `${path}.bad`).catch(() => {})
    }
    if (results.length > 0) this.#log.info({ results: results.length, path }, 'outbox.found')
  }

  #enter(results: readonly Result[], file: string | null): void {
    let entered = 0
    for (const result of results) {
      const key = keyOf(result)
      const known = this.#entries.get(key)
      if (known && (known.file !== null || file === null)) continue
      if (known) {
        known.file = file
      } else {
        const bytes = pack(result).length
        this.#bytes += bytes
        this.#entries.set(key, { result, instead: null, file, bytes })
      }
      entered++
    }
    if (file !== null && entered > 0) this.#left.set(file, entered)
    else if (file !== null) void unlink(file).catch(() => {})
  }

  /** Resolves when the result is on disk (or, where the disk refused, in memory and said so). */
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

  /** From now on tells this of its attempt. @returns false where something was told in its place before */
  tellInstead(result: Result): boolean {
    const entry = this.#entries.get(keyOf(result))
    if (!entry) return true
    if (entry.instead !== null) return false
    entry.instead = result
    return true
  }

  /** Nobody takes what there is of this attempt: it is told no more, and stays on disk for somebody to read. */
  async setAside(attempt: Named): Promise<void> {
    const entry = this.#entries.get(keyOf(attempt))
    if (!entry) return
    const path = `${this.#newPath()}.bad`
    this.#log.error({ ...entry.result, outputs: entry.result.outputs.length, path }, 'result.setAside')
    try {
      await this.#writeFile(path, JSON.stringify([entry.result]))
      this.acknowledged([attempt])
    } catch (error) {
      this.#refused(error as Error)
      // The file that it is in, if any, stays.
      this.#drop(entry)
    }
  }

  async #write(results: Result[]): Promise<void> {
    const path = this.#newPath()
    try {
      await this.#writeFile(path, JSON.stringify(results))
      this.#enter(results, path)
    } catch (error) {
      this.#refused(error as Error)
      this.#enter(results, null)
    }
  }

  #newPath(): string {
    return join(this.#folder, `${Date.now().toString(36)}-${this.#counter++}-${randomBytes(4).toString('hex')}.json`)
  }

  async #writeFile(path: string, text: string): Promise<void> {
    try {
      failpoint('outbox.writing')
      const file = await open(`${path}.tmp`, 'wx', 0o600)
      try {
        await file.writeFile(text)
        await file.sync()
      } finally {
        await file.close()
      }
      await rename(`${path}.tmp`, path)
      await syncFolder(this.#folder)
    } catch (error) {
      await rm(`${path}.tmp`, { force: true }).catch(() => {})
      throw error
    }
  }

  #refused(error: Error): void {
    if (this.#trouble === null) this.#log.error({ err: error, folder: this.#folder }, 'outbox.writeFailed')
    this.#trouble = error.message
  }

  /** Writes what lives in memory alone, and as much again for a trial. @returns whether the disk takes results now */
  mend(): Promise<boolean> {
    this.#mending ??= this.#mend().finally(() => {
      this.#mending = undefined
    })
    return this.#mending
  }

  async #mend(): Promise<boolean> {
    try {
      const unwritten = [...this.#entries.values()].filter(({ file }) => file === null).map(({ result }) => result)
      for (let at = 0; at < unwritten.length; at += MOST_PER_FILE) {
        const some = unwritten.slice(at, at + MOST_PER_FILE)
        const path = this.#newPath()
        await this.#writeFile(path, JSON.stringify(some))
        // Some may have been acknowledged while they were written.
        this.#enter(
          some.filter((result) => this.#entries.has(keyOf(result))),
          path,
        )
      }
      // Room for one small result is no room yet.
      const trial = join(this.#folder, `trial-${randomBytes(4).toString('hex')}`)
      await this.#writeFile(trial, ' '.repeat(TRIAL_BYTES))
      await unlink(trial)
      if (this.#trouble !== null) this.#log.info({ written: unwritten.length }, 'outbox.mended')
      this.#trouble = null
      return true
    } catch (error) {
      this.#refused(error as Error)
      return false
    }
  }

  /** The oldest results, at most so many, of at most so many bytes together (but at least one). */
  batch(most: number, mostBytes: number): Result[] {
    const results: Result[] = []
    let bytes = 0
    for (const entry of this.#entries.values()) {
      if (results.length >= most || (results.length > 0 && bytes + entry.bytes > mostBytes)) break
      results.push(entry.instead ?? entry.result)
      bytes += entry.bytes
    }
    return results
  }

  /** The dispatcher has these for good, whatever it thinks of them. Unknown ones are ignored. */
  acknowledged(verdicts: readonly Pick<Verdict, 'campaign' | 'step' | 'index' | 'fences'>[]): void {
    for (const verdict of verdicts) {
      const entry = this.#entries.get(keyOf(verdict))
      if (!entry) continue
      this.#drop(entry)
      if (entry.file === null) continue
      const left = this.#left.get(entry.file)! - 1
      this.#left.set(entry.file, left)
      if (left > 0) continue
      this.#left.delete(entry.file)
      void unlink(entry.file).catch((error) => this.#log.warn({ err: error }, 'outbox.unlinkFailed'))
    }
  }

  #drop({ result, bytes }: Entry): void {
    this.#entries.delete(keyOf(result))
    this.#bytes -= bytes
  }
}

async function holdsResults(folder: string): Promise<boolean> {
  return (await namesIn(folder)).some((name) => name.endsWith('.json') || name.endsWith('.bad'))
}

/** None where there is no such folder. */
async function namesIn(folder: string): Promise<string[]> {
  return readdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return []
    throw error
  })
}
