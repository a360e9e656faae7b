/**
 * The content of an image in one word, for the trace. Where the name says it, that; for a file, its SHA-256, computed once
 * for each version of the file and kept in the folder of images, so that neither every task nor every pilot of a site that
 * shares this folder reads gigabytes for it. An unpacked folder has none.
 */
import { createHash } from 'node:crypto'
import { mkdir, readFile, rename, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { checksumFile } from '../shared/files/checksum.ts'

export class ImageDigests {
  readonly #folder: string
  readonly #known = new Map<string, Promise<string | null>>()
  readonly #said = new Map<string, string>()

  constructor(folder: string) {
    this.#folder = folder
  }

  /** Whether this was not said before for this image. */
  isNews(image: string, digest: string): boolean {
    if (this.#said.get(image) === digest) return false
    this.#said.set(image, digest)
    return true
  }

  /** What the name alone says. */
  static ofName(image: string): string | null {
    return /[#@](sha256:[0-9a-f]{64})$/.exec(image)?.[1] ?? null
  }

  /** @param path of the image as it is started; null where it is a folder or cannot be read. Never throws. */
  async of(path: string): Promise<string | null> {
    if (!path.startsWith('/')) return null
    const facts = await stat(path).catch(() => null)
    if (!facts?.isFile()) return null
    const version = `${path} ${facts.size} ${facts.mtimeMs} ${facts.ino}`
    const known = this.#known.get(version) ?? this.#compute(path, version).catch(() => null)
    this.#known.set(version, known)
    return await known
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
