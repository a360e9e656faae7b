/**
 * How files come and go: one table of URL schemes. A new kind of storage is one more row. Whatever goes wrong ends as
 * one of the stage.* reasons.
 *
 *   file:           a shared file system, read and written by the pilot itself
 *   http:, https:   fetched by the dispatcher's file server, which caches
 *   store:          an attempt's files at the dispatcher
 */
import { constants, createWriteStream } from 'node:fs'
import { copyFile, lstat, mkdir, open, readFile, readlink, realpath, rename, rm } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { type ErrorCode, IndraftError, isIndraftError } from '../shared/errors.ts'
import { checksumFile, sameChecksum } from '../shared/files/checksum.ts'
import { type FileClient, fileAddress } from '../shared/files/client.ts'
import { type AttemptRef, attemptPath } from '../shared/ids.ts'
import { check, unpack } from '../shared/protocol/codec.ts'
import type { OutputRecord } from '../shared/protocol/messages.ts'
import { type Manifest, manifestSchema } from '../shared/protocol/work.ts'
import type { FileServer } from './access.ts'
import { enforceFolder, enforceWrite, type SitePolicy } from './policy.ts'

const TRANSFERS_AT_ONCE = 4
/** Between two looks for a new credential. */
const RENEWAL_LOOK_MS = 500

export interface Transfer {
  /** The dispatcher's file server, as of now. */
  files: () => FileServer
  capability: string | null
  signal: AbortSignal
  giveUpAfterMs: number
  policy: SitePolicy
  /** The pilot's folders and credential: never an input, never overwritten. */
  own: readonly string[]
  /** Most bytes that one input may have. */
  maxBytes: number
}

export interface OutputFile {
  attempt: AttemptRef
  /** As the template names it. */
  path: string
  location: string
  sizeBytes: number
  /** `sha256:...`. */
  checksum: string
}

interface Driver {
  fetch(url: string, target: string, checksum: string | null, transfer: Transfer): Promise<void>
  /** @returns the URL to report */
  store?(file: OutputFile, url: string | null, transfer: Transfer): Promise<string>
}

const throughServer: Driver = {
  fetch: (url, target, checksum, transfer) => fetchFrom(transfer, fileAddress.fetch(url, checksum), target, checksum),
}

export const DRIVERS: Readonly<Record<string, Driver>> = {
  'file:': { fetch: fetchShared, store: storeShared },
  'http:': throughServer,
  'https:': throughServer,
  'store:': {
    fetch: (url, target, checksum, transfer) =>
      fetchFrom(transfer, fileAddress.attempt(url.slice('store:'.length)), target, checksum),
    store: async (file, _url, transfer) => {
      const address = fileAddress.attempt(`${attemptPath(file.attempt)}/${file.path}`)
      const put = (client: FileClient, url: string) =>
        client.putFile(url + address, file.location, file.checksum, transfer)
      return (await atServer(transfer, put)).url
    },
  },
}

function driverFor(url: string, reason: ErrorCode): Driver {
  const scheme = /^[a-z0-9+.-]+:/i.exec(url)?.[0].toLowerCase() ?? ''
  const driver = Object.hasOwn(DRIVERS, scheme) ? DRIVERS[scheme] : undefined
  if (!driver) throw new IndraftError(reason, `no driver for "${url.slice(0, 80)}"`)
  return driver
}

/** @throws IndraftError stage.inputMissing | stage.inputChecksum | stage.inFailed | node.scratchFull | policy.refused */
export async function fetchInput(
  url: string,
  target: string,
  checksum: string | null,
  transfer: Transfer,
): Promise<void> {
  const driver = driverFor(url, 'stage.inFailed')
  try {
    await mkdir(dirname(target), { recursive: true })
    await driver.fetch(url, target, checksum, transfer)
  } catch (error) {
    throw stageError(error, 'in', url)
  }
}

/**
 * One winner's output. On a shared file system it has one of two names at any time, and loses the first for the second;
 * the other way round an older file of the final name would be taken for it.
 * @throws as fetchInput
 */
export async function fetchWinner(
  entry: Pick<Manifest['entries'][number], 'url' | 'written' | 'checksum'>,
  target: string,
  transfer: Transfer,
): Promise<void> {
  if (entry.written !== undefined) {
    try {
      return await fetchInput(entry.written, target, entry.checksum, transfer)
    } catch (error) {
      if (!isIndraftError(error, 'stage.inputMissing')) throw error
    }
  }
  await fetchInput(entry.url, target, entry.checksum, transfer)
}

/** Several transfers, a few at a time. @throws what the first that fails throws */
export async function transferAll<T>(items: readonly T[], act: (item: T, i: number) => Promise<void>): Promise<void> {
  let next = 0
  const worker = async () => {
    for (let i = next++; i < items.length; i = next++) await act(items[i]!, i)
  }
  await Promise.all(Array.from({ length: Math.min(TRANSFERS_AT_ONCE, items.length) }, worker))
}

/** @throws IndraftError stage.outFailed | policy.refused */
export async function storeOutput(file: OutputFile, url: string | null, transfer: Transfer): Promise<OutputRecord> {
  const driver = driverFor(url ?? 'store:', 'stage.outFailed')
  if (!driver.store) throw new IndraftError('stage.outFailed', `nothing can be written to "${url?.slice(0, 80)}"`)
  try {
    const stored = await driver.store(file, url, transfer)
    return { path: file.path, sizeBytes: file.sizeBytes, checksum: file.checksum, url: stored }
  } catch (error) {
    throw stageError(error, 'out', url ?? file.path)
  }
}

/** The manifest of an earlier step's winners. Kept in `folder` by its digest: tasks of one step share it. */
export async function fetchManifest(digest: string, folder: string, transfer: Transfer): Promise<Manifest> {
  const kept = join(folder, digest.replace(/[^a-z0-9]/g, '-'))
  // Tasks start side by side; each fetches under a name of its own, and any of them is right.
  const mine = `${kept}.${Math.random().toString(36).slice(2)}`
  try {
    if (!(await isFile(kept))) {
      await mkdir(folder, { recursive: true, mode: 0o700 })
      await fetchFrom(transfer, fileAddress.blob(digest), mine, digest)
      await rename(mine, kept)
    }
    const bytes = await readFile(kept)
    return check(manifestSchema, bytes[0] === 0x7b ? JSON.parse(bytes.toString()) : unpack(bytes), 'manifest')
  } catch (error) {
    await rm(mine, { force: true })
    throw stageError(error, 'in', `manifest ${digest}`)
  }
}

async function isFile(path: string): Promise<boolean> {
  return await lstat(path).then(
    (facts) => facts.isFile(),
    () => false,
  )
}

/**
 * At the dispatcher's file server; begun anew at the next one where the pilot changes over to another meanwhile, or to a
 * new credential. A server that does not know the old one any more is the first sign of that: the new one is waited for.
 */
export async function atServer<T>(
  { files, signal, giveUpAfterMs = 0 }: Pick<Transfer, 'files' | 'signal'> & { giveUpAfterMs?: number },
  act: (client: FileClient, url: string) => Promise<T>,
): Promise<T> {
  const endsAtMs = performance.now() + giveUpAfterMs
  for (;;) {
    const { client, url } = files()
    if (url === null) throw new IndraftError('file.unreachable', 'the dispatcher serves no files')
    try {
      return await act(client, url)
    } catch (error) {
      const isChanged = () => files().client !== client
      if (isIndraftError(error, 'auth.invalid')) {
        while (!isChanged() && !signal.aborted && performance.now() < endsAtMs) await sleep(RENEWAL_LOOK_MS)
      } else if (!isIndraftError(error, 'link.closed')) throw error
      if (signal.aborted || !isChanged()) throw error
    }
  }
}

async function fetchFrom(transfer: Transfer, address: string, target: string, checksum: string | null): Promise<void> {
  const { capability, signal, giveUpAfterMs, maxBytes } = transfer
  const options = { capability, signal, giveUpAfterMs, checksum, maxBytes }
  await atServer(transfer, (client, url) => client.getToFile(url + address, target, options))
}

async function fetchShared(url: string, target: string, checksum: string | null, transfer: Transfer): Promise<void> {
  const source = await realpath(fileURLToPath(url))
  enforceFolder(transfer.policy, source, transfer.own)
  const file = await open(source, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  try {
    // What was opened, whatever was put into its place since the look.
    enforceFolder(transfer.policy, await readlink(`/proc/self/fd/${file.fd}`), transfer.own)
    const facts = await file.stat()
    if (!facts.isFile()) throw new IndraftError('stage.inputMissing', `${source} is not a regular file`)
    if (facts.size > transfer.maxBytes) throw new IndraftError('file.tooLarge', `${facts.size} bytes`)
    const content = file.createReadStream({ autoClose: false })
    await pipeline(content, createWriteStream(target), { signal: transfer.signal })
  } finally {
    await file.close()
  }
  if (checksum === null) return
  const found = await checksumFile(target, checksum, transfer.signal)
  if (!sameChecksum(found, checksum)) throw new IndraftError('file.checksum', `promised ${checksum}, found ${found}`)
}

/**
 * Under a name of this attempt's own beside the final one: whoever knows which attempt won gives it the final name.
 * Whole and on disk before it has even that name.
 */
async function storeShared(file: OutputFile, url: string | null, transfer: Transfer): Promise<string> {
  const final = resolve(fileURLToPath(url!))
  await enforceWrite(transfer.policy, final, transfer.own)
  await mkdir(dirname(final), { recursive: true })
  await enforceWrite(transfer.policy, join(await realpath(dirname(final)), basename(final)), transfer.own)
  const named = `${final}.attempt-${file.attempt.fences.join('-')}`
  const temporary = `${named}.${process.pid}.tmp`
  try {
    await copyFile(file.location, temporary)
    const written = await open(temporary, 'r+')
    try {
      await written.sync()
    } finally {
      await written.close()
    }
    await rename(temporary, named)
  } catch (error) {
    await rm(temporary, { force: true })
    throw error
  }
  return pathToFileURL(named).href
}

/** What a failed transfer is called in a result. */
function stageError(error: unknown, way: 'in' | 'out', what: string): IndraftError {
  const system = (error as NodeJS.ErrnoException | null)?.code
  const detail = `${what.slice(0, 200)}: ${(error as Error).message}`
  const named = (code: ErrorCode) => new IndraftError(code, detail, { cause: error })
  if (error instanceof IndraftError && /^(stage|policy|node)\./.test(error.code)) return error
  if (way === 'out') return named('stage.outFailed')
  if (system === 'ENOSPC' || system === 'EDQUOT') return named('node.scratchFull')
  if (system === 'ENOENT' || system === 'ENOTDIR') return named('stage.inputMissing')
  if (error instanceof IndraftError && error.code === 'request.notFound') return named('stage.inputMissing')
  if (error instanceof IndraftError && error.code === 'file.checksum') return named('stage.inputChecksum')
  if (error instanceof IndraftError && error.code === 'file.tooLarge') return named('payload.scratch')
  return named('stage.inFailed')
}
