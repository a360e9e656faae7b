/**
 * The content of an image in one word, for the trace. Where the name promises it, that; for a file, whatever its name, its
 * SHA-256, computed once for each version of the file and kept in the folder of images, so that neither every task nor every
 * pilot of a site that shares this folder reads gigabytes for it. An unpacked folder has none.
 */
import { createHash } from 'node:crypto'
import type { Stats } from 'node:fs'
import { mkdir, readFile, rename, stat, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { checksumFile } from '../shared/files/checksum.ts'
import { promisedDigest } from '../shared/image-name.ts'

export class ImageDigests {
  readonly #folder: string
  readonly #known = new Map<string, Promise<string | null>>()
  readonly #said = new Map<string, string>()
  readonly #read = new Map<string, Promise<boolean>>()

  constructor(folder: string) {
    this.#folder = folder
  }

  /** Whether this was not said before for this image. */
  isNews(image: string, digest: string): boolean {
    if (this.#said.get(image) === digest) return false
    this.#said.set(image, digest)
    return true
  }

  /** What the name promises, and the pilot or the runtime holds it to. */
  static ofName(image: string): string | null {
    return promisedDigest(image)
  }

  /** @param path of the image as it is started; null where it is a folder or cannot be read. Never throws. */
  async of(path: string): Promise<string | null> {
    if (!path.startsWith('/')) return null
    const facts = await stat(path).catch(() => null)
    if (!facts?.isFile()) return null
    const version = versionOf(path, facts)
    const known = this.#known.get(version) ?? this.#compute(path, version).catch(() => null)
    this.#known.set(version, known)
    return await known
  }

  /**
   * Whether an image file cannot be read through, or is not what it was. One that was sound is not read again as long as
   * it looks the same. Never throws.
   */
  async isSpoilt(path: string): Promise<boolean> {
    const facts = path.startsWith('/') ? await stat(path).catch(() => null) : null
    if (!facts?.isFile()) return false
    const promised = dirname(path) === this.#folder ? /^([0-9a-f]{64})\.sif$/.exec(basename(path))?.[1] : undefined
    // The store gives one of its own a new time at every use.
    const version = promised === undefined ? versionOf(path, facts) : `${path} ${facts.ino}`
    const reading = this.#read.get(version) ?? this.#isOther(path, promised)
    this.#read.set(version, reading)
    const isSpoilt = await reading
    if (isSpoilt) this.#read.delete(version)
    return isSpoilt
  }

  async #isOther(path: string, promised: string | undefined): Promise<boolean> {
    const before = promised === undefined ? await this.of(path) : `sha256:${promised}`
    const now = await checksumFile(path, 'sha256').catch(() => null)
    return now === null || (before !== null && now !== before)
  }

  async #compute(path: string, version: string): Promise<string> {
    const kept = join(this.#folder, `digest-${createHash('sha256').update(version).digest('hex').slice(0, 32)}`)
    const before = await readFile(kept, 'utf8').catch(() => '')
    if (/^sha256:[0-9a-f]{64}$/.test(before)) return before
    const digest = await checksumFile(path, 'sha256')
    await mkdir(this.#folder, { recursive: true, mode: 0o700 })
    await writeFile(`${kept}.${process.pid}`, digest)
    await rename(`${kept}.${process.pid}`, kept)
    return digest
  }
}

function versionOf(path: string, { size, mtimeMs, ino }: Stats): string {
  return `${path} ${size} ${mtimeMs} ${ino}`
}
