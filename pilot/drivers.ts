/**
 * How files come and go: one table of URL schemes. A new kind of storage is one more row. Whatever goes wrong ends as
 * one of the stage.* reasons.
 *
 *   file:           a shared file system, read and written by the pilot itself
 *   http:, https:   fetched by the dispatcher's file server, which caches
 *   store:          an attempt's files at the dispatcher
 */
import { lstat, mkdir, readFile, rename, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type ErrorCode, IndraftError, isIndraftError } from '../shared/errors.ts'
import { type FileClient, fileAddress } from '../shared/files/client.ts'
import { type AttemptRef, attemptPath } from '../shared/ids.ts'
import { check, unpack } from '../shared/protocol/codec.ts'
import type { OutputRecord } from '../shared/protocol/messages.ts'
import { type Manifest, manifestSchema } from '../shared/protocol/work.ts'
import type { FileServer } from './access.ts'
import { isDoneWithin, isEndedWithin } from './hanging.ts'
import type { SitePolicy } from './policy.ts'
import { dropShared, fetchShared, storeShared } from './shared-files.ts'

const TRANSFERS_AT_ONCE = 4
/** Transfers that are told to end do so within this, but for those that hang in a file system. */
const END_AT_MOST_MS = 5000
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
  /** Most bytes that its inputs may have together. */
  maxBytes: number
}

export interface OutputFile {
  attempt: AttemptRef
  /** As the template names it. */
  path: string
  /** Leads to the same file for as long as it takes; see held.ts. */
  location: string
  sizeBytes: number
  /** `sha256:...`. */
  checksum: string
}

interface Driver {
  fetch(url: string, target: string, checksum: string | null, transfer: Transfer): Promise<void>
  /** @returns the URL to report */
  store?(file: OutputFile, url: string | null, transfer: Transfer): Promise<string>
  /** Where what was stored of an attempt that failed would stay for ever. */
  drop?(stored: string): Promise<void>
}

const throughServer: Driver = {
  fetch: (url, target, checksum, transfer) => fetchFrom(transfer, fileAddress.fetch(url, checksum), target, checksum),
}

export const DRIVERS: Readonly<Record<string, Driver>> = {
  'file:': { fetch: fetchShared, store: storeShared, drop: dropShared },
  'http:': throughServer,
  'https:': throughServer,
  'store:': {
    fetch: (url, target, checksum, transfer) =>
      fetchFrom(transfer, fileAddress.attempt(url.slice('store:'.length)), target, checksum),
    store: async (file, _url, transfer) => {
      const address = fileAddress.attempt(`${attemptPath(file.attempt)}/${file.path}`)
      const put = (client: FileClient, url: string) =>
        client.putFile(url + address, file.location, file.checksum, transfer)
      const { url, sizeBytes } = await atServer(transfer, put)
      if (sizeBytes === file.sizeBytes) return url
      throw new IndraftError('file.checksum', `promised ${file.sizeBytes} bytes, the server has ${sizeBytes}`)
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
    // One that hung may come here long after its attempt's folder was removed.
    transfer.signal.throwIfAborted()
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
  entry: Pick<Manifest['entries'][number], 'url' | 'written' | 'checksum' | 'sizeBytes'>,
  target: string,
  transfer: Transfer,
): Promise<void> {
  const within = { ...transfer, maxBytes: entry.sizeBytes }
  try {
    if (entry.written !== undefined) {
      try {
        return await fetchInput(entry.written, target, entry.checksum, within)
      } catch (error) {
        if (!isIndraftError(error, 'stage.inputMissing')) throw error
      }
    }
    await fetchInput(entry.url, target, entry.checksum, within)
  } catch (error) {
    if (!isIndraftError(error, 'payload.scratch')) throw error
    throw new IndraftError('stage.inputChecksum', `more than its ${entry.sizeBytes} bytes: ${error.message}`, {
      cause: error,
    })
  }
}

/**
 * Several transfers, a few at a time: all of them or none. When one fails, or the attempt is ended, the others are ended
 * as well, and it rejects when none is under way any more, but for what hangs: that is left.
 * @param act is given a transfer that ends with the others
 * @param undo takes back what came through when not all did, at any time; never throws
 * @throws what the first that fails throws; link.closed where the attempt was ended
 */
export async function transferAll<T, R>(
  items: readonly T[],
  transfer: Transfer,
  act: (item: T, i: number, transfer: Transfer) => Promise<R>,
  undo: (brought: R) => Promise<void> = async () => {},
): Promise<R[]> {
  const failed = new AbortController()
  const signal = AbortSignal.any([transfer.signal, failed.signal])
  const together = { ...transfer, signal }
  const errors: unknown[] = []
  const brought: R[] = []
  let next = 0
  const worker = async () => {
    for (let i = next++; i < items.length && !signal.aborted; i = next++) {
      try {
        const one = await act(items[i]!, i, together)
        if (signal.aborted) await undo(one)
        else brought[i] = one
      } catch (error) {
        errors.push(error)
        failed.abort()
      }
    }
  }
  const workers = Array.from({ length: Math.min(TRANSFERS_AT_ONCE, items.length) }, worker)
  await isEndedWithin(END_AT_MOST_MS, signal, Promise.all(workers))
  if (!signal.aborted) return brought
  await isDoneWithin(END_AT_MOST_MS, undoEach(brought, undo))
  throw errors[0] ?? new IndraftError('link.closed', 'the attempt was ended')
}

/** One after the other: where they hang too, they hold one thread. */
async function undoEach<R>(brought: readonly R[], undo: (brought: R) => Promise<void>): Promise<void> {
  // Those that did not come through left holes, which are passed over.
  for (const one of brought.filter(() => true)) await undo(one)
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

/** Takes back what was stored of an attempt that failed after all, where that is to be done here. Never throws. */
export async function dropOutput({ url }: OutputRecord): Promise<void> {
  await driverFor(url, 'stage.outFailed')
    .drop?.(url)
    .catch(() => {})
}

/** The manifest of an earlier step's winners. Kept in `folder` by its digest: tasks of one step share it. */
export async function fetchManifest(digest: string, folder: string, transfer: Transfer): Promise<Manifest> {
  const kept = join(folder, digest.replace(/[^a-z0-9]/g, '-'))
  // Tasks start side by side; each fetches under a name of its own, and any of them is right.
  const mine = `${kept}.${Math.random().toString(36).slice(2)}`
  try {
    if (!(await isFile(kept))) {
      await mkdir(folder, { recursive: true, mode: 0o700 })
      // It is the centre's, and no part of the task's scratch.
      await fetchFrom({ ...transfer, maxBytes: Number.POSITIVE_INFINITY }, fileAddress.blob(digest), mine, digest)
      await rename(mine, kept)
    }
    const bytes = await readFile(kept)
    return check(manifestSchema, bytes[0] === 0x7b ? JSON.parse(bytes.toString()) : unpack(bytes), 'manifest')
  } catch (error) {
    for (const left of [mine, `${mine}.part`]) await rm(left, { force: true })
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
