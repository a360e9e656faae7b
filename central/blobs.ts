/**
 * Immutable bytes by their SHA-256, one file each: plans, table rows, signed templates, manifests, result blocks.
 * A blob that has a name here is whole and on disk: it is written under a temporary name, fsynced, then renamed.
 * Anyone at the centre may use it; writing the same bytes twice is harmless.
 */
import { randomBytes } from 'node:crypto'
import { access, mkdir, open, readFile, rename, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { syncFolder } from '../shared/files/durable.ts'
import type { Digest } from '../shared/ids.ts'
import { digestOf } from '../shared/signing.ts'

export interface BlobStore {
  /** Durable when it resolves. */
  put(bytes: Uint8Array): Promise<Digest>
  /** @throws Error ENOENT where the blob is not here */
  get(digest: string): Promise<Buffer>
  has(digest: string): Promise<boolean>
  /** Where the file is or would be, for serving it. @throws RangeError where the text is no digest */
  path(digest: string): string
}

export function folderBlobs(folder: string): BlobStore {
  const path = (digest: string) => {
    const hex = /^sha256:([0-9a-f]{64})$/.exec(digest)?.[1]
    if (!hex) throw new RangeError(`not a digest: "${digest.slice(0, 80)}"`)
    return join(folder, hex.slice(0, 2), hex)
  }
  const has = (digest: string) =>
    access(path(digest)).then(
      () => true,
      () => false,
    )
  return {
    path,
    has,
    get: (digest) => readFile(path(digest)),
    async put(bytes) {
      const digest = digestOf(bytes)
      if (await has(digest)) return digest
      const target = path(digest)
      await makeFolder(dirname(target))
      const temporary = `${target}.${randomBytes(6).toString('hex')}`
      try {
        const file = await open(temporary, 'wx')
        try {
          await file.writeFile(bytes)
          await file.sync()
        } finally {
          await file.close()
        }
        await rename(temporary, target)
        await syncFolder(dirname(target))
      } finally {
        await rm(temporary, { force: true })
      }
      return digest
    },
  }
}

/** Its parent is mostly there: asked for `recursive` at once, Node says ENOENT where the disk is read-only. */
async function makeFolder(folder: string): Promise<void> {
  try {
    await mkdir(folder)
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code
    if (code === 'ENOENT') await mkdir(folder, { recursive: true })
    else if (code !== 'EEXIST') throw error
  }
}

/** Makes a rename in this folder survive a power cut. */
