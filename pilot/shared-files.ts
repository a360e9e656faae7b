/**
 * Files on a file system that the site shares, read and written by the pilot itself, as far as the site lets payloads:
 * what is checked is what is opened (held.ts), since others write there too.
 */
import { createReadStream, createWriteStream } from 'node:fs'
import { type FileHandle, mkdir, open, realpath, rename, rm, stat } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { IndraftError } from '../shared/errors.ts'
import { checksumFile, sameChecksum, startChecksum } from '../shared/files/checksum.ts'
import type { OutputFile, Transfer } from './drivers.ts'
import { holdFile, holdFolder } from './held.ts'
import { enforceFolder, enforceWrite, places } from './policy.ts'

/** @throws IndraftError policy.refused | file.tooLarge | file.checksum; the system's errors */
export async function fetchShared(
  url: string,
  target: string,
  checksum: string | null,
  { policy, own, maxBytes, signal }: Transfer,
): Promise<void> {
  const source = await realpath(fileURLToPath(url))
  enforceFolder(policy, source, own)
  const { handle, real } = await holdFile(source)
  try {
    // What was opened, whatever was put into its place since the look.
    enforceFolder(policy, real, own)
    const facts = await handle.stat()
    if (!facts.isFile()) throw new IndraftError('stage.inputMissing', `${source} is not a regular file`)
    if (facts.size > maxBytes) throw new IndraftError('file.tooLarge', `${facts.size} bytes`)
    // Where it hung until now, the target's folder may be gone.
    signal.throwIfAborted()
    const content = handle.createReadStream({ autoClose: false })
    await pipeline(content, createWriteStream(target), { signal })
  } finally {
    await handle.close()
  }
  if (checksum === null) return
  const found = await checksumFile(target, checksum, signal)
  if (!sameChecksum(found, checksum)) throw new IndraftError('file.checksum', `promised ${checksum}, found ${found}`)
}

/**
 * Under a name of this attempt's own beside the final one: whoever knows which attempt won gives it the final name.
 * Whole, as its record says, and on disk before it has even that name.
 * @throws IndraftError policy.refused | file.checksum; the system's errors
 */
export async function storeShared(file: OutputFile, url: string | null, transfer: Transfer): Promise<string> {
  const { policy, own, signal } = transfer
  const final = resolve(fileURLToPath(url!))
  // Where it would lie by now, links followed, before any folder is made. What has the final name itself is not touched.
  for (const place of await places([dirname(final)])) await enforceWrite(policy, join(place, basename(final)), own)
  await mkdir(dirname(final), { recursive: true })
  const folder = await holdFolder(dirname(final))
  try {
    await enforceWrite(policy, join(folder.real, basename(final)), own)
    const named = `${basename(final)}.attempt-${file.attempt.fences.join('-')}`
    const temporary = join(folder.location, `${named}.${process.pid}.tmp`)
    try {
      await copyHeld(file, temporary, signal)
      await rename(temporary, join(folder.location, named))
    } catch (error) {
      await rm(temporary, { force: true })
      throw error
    }
    return pathToFileURL(join(dirname(final), named)).href
  } finally {
    await folder.handle.close()
  }
}

/** What storeShared wrote, of an attempt that did not end well after all: nobody else would ever remove it. */
export async function dropShared(url: string): Promise<void> {
  await rm(fileURLToPath(url), { force: true })
}

async function copyHeld(file: OutputFile, target: string, signal: AbortSignal): Promise<void> {
  const { mode } = await stat(file.location)
  const copy = await open(target, 'wx', 0o600)
  try {
    await writeAsRecorded(file, copy, signal)
    // As the payload made it, also where nobody may write it; but nobody becomes this account by starting it.
    await copy.chmod(mode & 0o777)
    await copy.sync()
  } finally {
    await copy.close()
  }
}

/** @throws IndraftError file.checksum for other content than its record says */
async function writeAsRecorded(file: OutputFile, copy: FileHandle, signal: AbortSignal): Promise<void> {
  const running = startChecksum(file.checksum)
  let sizeBytes = 0
  const counted = async function* () {
    for await (const chunk of createReadStream(file.location, { signal })) {
      running.update(chunk as Buffer)
      sizeBytes += (chunk as Buffer).length
      yield chunk as Buffer
    }
  }
  await copy.writeFile(counted())
  const found = running.finish()
  if (sizeBytes === file.sizeBytes && sameChecksum(found, file.checksum)) return
  const promised = `${file.sizeBytes} bytes of ${file.checksum}`
  throw new IndraftError('file.checksum', `promised ${promised}, found ${sizeBytes} bytes of ${found}`)
}
