/**
 * Files of attempts in a folder: `<root>/attempt/<campaign>/<step>/<index>/<fences>/<path>`. Written once: a file
 * appears under its name complete, checked and on disk, or not at all, and is never replaced by other content. Used by
 * the relay for what pilots hand in and by central for what relays bring up.
 */
import { randomUUID } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { type FileHandle, link, lstat, mkdir, open, readdir, rm, rmdir, stat, unlink } from 'node:fs/promises'
import { dirname, join, sep } from 'node:path'
import type { Readable } from 'node:stream'
import { IndraftError, isIndraftError } from '../errors.ts'
import type { AttemptName } from './capability.ts'
import { checksumFile, sameChecksum, startChecksum } from './checksum.ts'
import { syncFolder } from './durable.ts'

/** Content that can be read, whole or in part. */
export interface StoredFile {
  sizeBytes: number
  /** Where it lies on this machine. */
  location: string
  /** Both ends included, in bytes; the whole file without. */
  read(start?: number, end?: number): Readable
}

export interface PutOutcome {
  sizeBytes: number
  checksum: string
  /** False where the same content was there already. */
  created: boolean
}

const MAX_PATH_LENGTH = 1024

/**
 * The parts of an output path. @throws IndraftError request.invalid for anything that could leave the attempt's folder:
 * absolute, empty or dotted parts, backslashes, control characters, over-long
 */
export function safeParts(path: string): string[] {
  const parts = path.split('/')
  const bad = (part: string) =>
    part === '' || part === '.' || part === '..' || Buffer.byteLength(part) > 255 || hasControls(part)
  if (path.length > MAX_PATH_LENGTH || path.includes('\\') || parts.some(bad)) {
    throw new IndraftError(
      'request.invalid',
      `path "${path.slice(0, 80)}": expected a relative path without "." and ".."`,
    )
  }
  return parts
}

function hasControls(text: string): boolean {
  for (let i = 0; i < text.length; i++) if (text.charCodeAt(i) < 32) return true
  return false
}

/** `campaign/step/index/fence.fence`, as attemptPath of shared/ids.ts. */
export function attemptFolder(attempt: AttemptName): string {
  return [...safeParts(attempt.campaign), ...safeParts(attempt.step), attempt.index, attempt.fences.join('.')].join('/')
}

/** Reads `campaign/step/index/fences/path...`, undefined where it is not of that form. */
export function parseAttemptUrl(path: string): { attempt: AttemptName; path: string } | undefined {
  const match = /^([^/]+)\/([^/]+)\/(\d{1,10})\/(\d{1,16}(?:\.\d{1,16}){0,3})\/(.+)$/s.exec(path)
  if (!match) return undefined
  const [, campaign, step, index, fences, rest] = match as unknown as [string, string, string, string, string, string]
  return { attempt: { campaign, step, index: Number(index), fences: fences.split('.').map(Number) }, path: rest }
}

/**
 * Whether an output at the dispatcher is not this attempt's own, whatever its record says: an attempt speaks for no
 * other's files, nor for what lies outside its folder.
 */
export function isForeign(attempt: AttemptName, { path, url }: { path: string; url: string }): boolean {
  if (!url.startsWith('store:')) return false
  try {
    return url !== `store:${attemptFolder(attempt)}/${safeParts(path).join('/')}`
  } catch (error) {
    if (isIndraftError(error, 'request.invalid')) return true
    throw error
  }
}

export class AttemptFiles {
  readonly root: string

  /** @param root is made when it is missing */
  constructor(root: string) {
    this.root = root
  }

  /** Where a file of an attempt lies or would lie. @throws IndraftError request.invalid */
  locate(attempt: AttemptName, path: string): string {
    return join(this.root, 'attempt', attemptFolder(attempt), ...safeParts(path))
  }

  /**
   * Throws away what an earlier process left half-written. Call once, before anything is put.
   * @param untouchedForMs only files that were not written to for so long: others may be a process's beside this one
   */
  async clearIncoming(untouchedForMs = 0): Promise<void> {
    const folder = join(this.root, 'incoming')
    if (untouchedForMs === 0) return await rm(folder, { recursive: true, force: true })
    for (const name of await readdir(folder).catch(() => [])) {
      const path = join(folder, name)
      const found = await stat(path).catch(() => null)
      if (found && Date.now() - found.mtimeMs > untouchedForMs) await rm(path, { force: true })
    }
  }

  /** @returns null where there is no such file @throws IndraftError request.invalid */
  async find(attempt: AttemptName, path: string): Promise<StoredFile | null> {
    return await storedFile(this.locate(attempt, path))
  }

  /**
   * Durable when it resolves. The same content twice is harmless, also at the same time.
   * @param checksum `sha256:<hex>` promised by the sender; null takes what comes
   * @throws IndraftError file.checksum | file.conflict | file.tooLarge | request.invalid
   */
  async put(
    attempt: AttemptName,
    path: string,
    content: AsyncIterable<Uint8Array>,
    checksum: string | null,
    maxBytes = Number.POSITIVE_INFINITY,
  ): Promise<PutOutcome> {
    const target = this.locate(attempt, path)
    const written = await writeChecked(join(this.root, 'incoming'), content, checksum ?? 'sha256', maxBytes)
    try {
      if (checksum !== null && !sameChecksum(written.checksum, checksum)) {
        throw new IndraftError('file.checksum', `promised ${checksum}, received ${written.checksum}`)
      }
      const created = await this.#placeInFolder(written.location, target)
      if (!created && !sameChecksum(await checksumFile(target, written.checksum), written.checksum)) {
        throw new IndraftError('file.conflict', `${path} is there with other content`)
      }
      return { sizeBytes: written.sizeBytes, checksum: written.checksum, created }
    } finally {
      await unlink(written.location).catch(() => {})
    }
  }

  async #placeInFolder(location: string, target: string): Promise<boolean> {
    for (let tries = 0; ; tries++) {
      await makeFolder(dirname(target), this.root)
      try {
        return await place(location, target)
      } catch (error) {
        // The folder was just dropped as empty beside us.
        if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || tries >= 3) throw error
      }
    }
  }

  /** Removes the attempt's folder and its parents where they are empty. */
  async dropEmpty(attempt: AttemptName): Promise<void> {
    const top = join(this.root, 'attempt')
    const folder = join(top, attemptFolder(attempt))
    const inside = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => [])
    const folders = inside.filter((entry) => entry.isDirectory()).map((entry) => join(entry.parentPath, entry.name))
    for (const deepest of folders.sort((a, b) => b.length - a.length)) await rmdir(deepest).catch(() => {})
    for (let at = folder; at.startsWith(top + sep); at = dirname(at)) {
      const isGone = await rmdir(at).then(
        () => true,
        () => false,
      )
      if (!isGone) return
    }
  }

  /** Every attempt that has files here, with the age of its folder in milliseconds. */
  async attempts(): Promise<{ attempt: AttemptName; ageMs: number }[]> {
    const found: { attempt: AttemptName; ageMs: number }[] = []
    const top = join(this.root, 'attempt')
    const folders = async (at: string) =>
      (await readdir(at, { withFileTypes: true }).catch(() => [])).flatMap((entry) =>
        entry.isDirectory() ? [join(at, entry.name)] : [],
      )
    for (const campaign of await folders(top))
      for (const step of await folders(campaign))
        for (const index of await folders(step))
          for (const fences of await folders(index)) {
            const named = parseAttemptUrl(`${fences.slice(top.length + 1)}/x`)
            const facts = await stat(fences).catch(() => null)
            if (named && facts) found.push({ attempt: named.attempt, ageMs: Date.now() - facts.mtimeMs })
          }
    return found
  }

  /** Paths of all files of an attempt, relative to its folder. */
  async list(attempt: AttemptName): Promise<string[]> {
    const folder = join(this.root, 'attempt', attemptFolder(attempt))
    const entries = await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => [])
    return entries
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1))
  }
}

/** @returns null where nothing (or no regular file) is there */
export async function storedFile(location: string): Promise<StoredFile | null> {
  const facts = await lstat(location).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return null
    throw error
  })
  if (!facts?.isFile()) return null
  return {
    sizeBytes: facts.size,
    location,
    read: (start, end) =>
      createReadStream(location, { ...(start === undefined ? {} : { start }), ...(end === undefined ? {} : { end }) }),
  }
}

/**
 * Writes a stream under a name nobody else uses, computes its checksum and syncs it; removes it again on failure.
 * @param like the checksum algorithm, by name or example
 */
export async function writeChecked(
  folder: string,
  content: AsyncIterable<Uint8Array>,
  like: string,
  maxBytes = Number.POSITIVE_INFINITY,
): Promise<{ location: string; sizeBytes: number; checksum: string }> {
  const running = startChecksum(like)
  await mkdir(folder, { recursive: true })
  const location = join(folder, randomUUID())
  const file = await open(location, 'wx', 0o600)
  let sizeBytes = 0
  try {
    for await (const chunk of content) {
      sizeBytes += chunk.length
      if (sizeBytes > maxBytes) throw new IndraftError('file.tooLarge', `more than ${maxBytes} bytes`)
      running.update(chunk)
      await writeAll(file, chunk)
    }
    await file.sync()
  } catch (error) {
    await file.close()
    await unlink(location).catch(() => {})
    throw error
  }
  await file.close()
  return { location, sizeBytes, checksum: running.finish() }
}

async function writeAll(file: FileHandle, chunk: Uint8Array): Promise<void> {
  for (let offset = 0; offset < chunk.length; ) offset += (await file.write(chunk, offset)).bytesWritten
}

/** Gives a finished file its name unless the name is taken; durable when it resolves. @returns whether it was free */
export async function place(location: string, target: string): Promise<boolean> {
  try {
    // link, not rename: of two writers of one name the second must find out.
    await link(location, target)
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code
    if (code === 'EEXIST') return false
    throw error
  }
  await syncFolder(dirname(target))
  return true
}

/** Makes a folder and its parents up to `root`, each durable. @throws IndraftError file.conflict where a file is in the way */
async function makeFolder(folder: string, root: string): Promise<void> {
  let first: string | undefined
  try {
    first = await mkdir(folder, { recursive: true, mode: 0o700 })
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code
    if (code === 'EEXIST' || code === 'ENOTDIR')
      throw new IndraftError('file.conflict', 'a file is where a folder is needed')
    throw error
  }
  if (first === undefined) return
  for (let at = folder; at.length >= first.length; at = dirname(at)) await syncFolder(at)
  if (first.length > root.length) await syncFolder(dirname(first))
}
