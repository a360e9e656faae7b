/**
 * Files that can be had again: blobs and attempts' files from central, files from outside. Each lies under a key of its
 * own, is written once, and is dropped, longest unused first, when all together are larger than the limit. Two who want
 * the same file at the same time share one fetch.
 */
import { createHash, randomUUID } from 'node:crypto'
import { mkdir, readdir, rename, rm, stat, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import { type StoredFile, storedFile } from '../shared/files/attempt-files.ts'
import type { Log } from '../shared/log.ts'

export class Cache {
  readonly #folder: string
  readonly #limitBytes: number
  readonly #log: Log
  readonly #fetching = new Map<string, Promise<StoredFile | null>>()
  /** Size and last use by file name, oldest use first. */
  readonly #files = new Map<string, number>()
  #bytes = 0

  private constructor(folder: string, limitBytes: number, log: Log) {
    this.#folder = folder
    this.#limitBytes = limitBytes
    this.#log = log
  }

  static async open(folder: string, limitBytes: number, log: Log): Promise<Cache> {
    const cache = new Cache(folder, limitBytes, log)
    await mkdir(folder, { recursive: true, mode: 0o700 })
    const found: { name: string; size: number; usedMs: number }[] = []
    for (const name of await readdir(folder)) {
      // Half-fetched by an earlier process.
      if (!/^[0-9a-f]{64}$/.test(name)) await rm(join(folder, name), { force: true, recursive: true })
      else {
        const { size, mtimeMs } = await stat(join(folder, name))
        found.push({ name, size, usedMs: mtimeMs })
      }
    }
    for (const { name, size } of found.sort((a, b) => a.usedMs - b.usedMs)) {
      cache.#files.set(name, size)
      cache.#bytes += size
    }
    await cache.#evict()
    return cache
  }

  get bytes(): number {
    return this.#bytes
  }

  /** Of all files together. */
  get limitBytes(): number {
    return this.#limitBytes
  }

  /**
   * The file under this key, fetched when it is not here.
   * @param fetch writes it to the path it is given; false where there is no such file
   * @param freshMs older ones are fetched anew
   */
  async get(
    key: string,
    fetch: (target: string) => Promise<boolean>,
    freshMs = Number.POSITIVE_INFINITY,
  ): Promise<StoredFile | null> {
    const name = nameOf(key)
    const kept = await this.#kept(name, freshMs)
    if (kept) return kept
    const running = this.#fetching.get(name)
    if (running) return running
    const fetching = this.#fetch(name, fetch).finally(() => this.#fetching.delete(name))
    this.#fetching.set(name, fetching)
    return fetching
  }

  /** The file under this key where it is here. */
  find(key: string): Promise<StoredFile | null> {
    return this.#kept(nameOf(key), Number.POSITIVE_INFINITY)
  }

  /** Takes over a file of the same file system; nothing happens where it is not there any more. */
  async adopt(key: string, location: string): Promise<void> {
    const name = nameOf(key)
    const path = join(this.#folder, name)
    try {
      await rename(location, path)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return
      throw error
    }
    await this.#enter(name)
  }

  async #kept(name: string, freshMs: number): Promise<StoredFile | null> {
    const size = this.#files.get(name)
    if (size === undefined) return null
    const path = join(this.#folder, name)
    if (freshMs !== Number.POSITIVE_INFINITY) {
      // The time of the fetch must stay readable, so use is not noted.
      const age =
        Date.now() -
        (await stat(path).then(
          ({ mtimeMs }) => mtimeMs,
          () => 0,
        ))
      return age <= freshMs ? storedFile(path) : null
    }
    this.#files.delete(name)
    this.#files.set(name, size)
    const now = new Date()
    await utimes(path, now, now).catch(() => {})
    return storedFile(path)
  }

  async #fetch(name: string, fetch: (target: string) => Promise<boolean>): Promise<StoredFile | null> {
    const temporary = join(this.#folder, `${name}.${randomUUID()}`)
    try {
      if (!(await fetch(temporary))) return null
      await rename(temporary, join(this.#folder, name))
      return await this.#enter(name)
    } finally {
      await rm(temporary, { force: true })
      await rm(`${temporary}.part`, { force: true })
    }
  }

  async #enter(name: string): Promise<StoredFile | null> {
    const file = await storedFile(join(this.#folder, name))
    if (!file) return null
    this.#bytes += file.sizeBytes - (this.#files.get(name) ?? 0)
    this.#files.delete(name)
    this.#files.set(name, file.sizeBytes)
    await this.#evict(name)
    return file
  }

  /** The disk is short of room: about so many bytes of the longest unused go. */
  async dropOldest(bytes: number): Promise<void> {
    await this.#evict(undefined, Math.max(0, this.#bytes - bytes))
  }

  /** Readers that have an evicted file open read on: only its name goes. */
  async #evict(except?: string, limitBytes = this.#limitBytes): Promise<void> {
    for (const [name, size] of this.#files) {
      if (this.#bytes <= limitBytes) return
      if (name === except) continue
      this.#files.delete(name)
      this.#bytes -= size
      await rm(join(this.#folder, name), { force: true })
      this.#log.debug({ name, size }, 'cache.evicted')
    }
  }
}

function nameOf(key: string): string {
  return createHash('sha256').update(key).digest('hex')
}

/** The key under which a file of an attempt is kept. @param attemptAndPath `campaign/step/index/fences/path` */
export function attemptKey(attemptAndPath: string): string {
  return `attempt ${attemptAndPath}`
}
