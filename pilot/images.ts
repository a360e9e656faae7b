/**
 * Images that come by URL: fetched through the dispatcher, checked, and kept in one folder under their checksum. Where
 * that folder is on the site's shared file system all pilots of the site share it: of those who want the same image at
 * the same time one fetches and the others wait.
 *
 * What always holds: a file under its checksum's name is whole and was checked. Who fetches writes to files of its own
 * until then, as turns can overlap (turn.ts); what an ended fetch had so far is left to the next.
 */
import { createHash } from 'node:crypto'
import { lstat, mkdir, readdir, rename, rm, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import type { Clock } from '../shared/clock.ts'
import { IndraftError, isIndraftError } from '../shared/errors.ts'
import { checksumFile } from '../shared/files/checksum.ts'
import { fileAddress } from '../shared/files/client.ts'
import { parseImageName } from '../shared/image-name.ts'
import type { Log } from '../shared/log.ts'
import { atServer, type Transfer } from './drivers.ts'
import { Queue, type Turn } from './turn.ts'

const LOOK_MS = 500
/** An image that nobody used for so long is removed. */
const UNUSED_MS = 14 * 86_400_000
/** Images, what is fetched of them, whose turn it is, and the digests of image-digest.ts. */
const OURS = /^([0-9a-f]{64}\.(sif$|[0-9a-f]{16}(\.|$))|digest-[0-9a-f]{32}(\.|$))/

export interface ImageStoreOptions {
  folder: string
  clock: Clock
  log: Log
}

export class ImageStore {
  readonly #options: ImageStoreOptions
  /** By address and checksum: tasks of one pilot that start together share one fetch. */
  readonly #fetching = new Map<string, Promise<string>>()

  constructor(options: ImageStoreOptions) {
    this.#options = options
  }

  /** Removes what pilots made and has not been used for two weeks; the folder may be one where a site has more. Never throws. */
  async tidy(): Promise<void> {
    const { folder, clock, log } = this.#options
    for (const name of (await readdir(folder).catch(() => [])).filter((one) => OURS.test(one))) {
      const path = join(folder, name)
      const facts = await lstat(path).catch(() => null)
      if (!facts?.isFile() || clock.wallMs() - facts.mtimeMs < UNUSED_MS) continue
      await rm(path, { force: true }).then(
        () => log.info({ path }, 'image.removed'),
        (error) => log.warn({ path, err: error }, 'image.notRemoved'),
      )
    }
  }

  /**
   * The image as the container runtime takes it: a path, or as it was where it is a registry's.
   * @throws IndraftError campaign.invalid | image.missing | image.damaged (not the promised checksum) |
   * stage.inFailed (nobody answers) | node.scratchFull
   */
  async locate(image: string, transfer: Transfer): Promise<string> {
    const name = parseImageName(image)
    if (typeof name === 'string') throw new IndraftError('campaign.invalid', `image "${image.slice(0, 200)}": ${name}`)
    if (name.kind === 'path') return name.path
    if (name.kind !== 'url') return image
    const { url, sha256 } = name
    // IMPORTANT: by address too. Who names somebody else's image at a bad address fails alone (images.test.ts, "bad address").
    const key = `${sha256} ${url}`
    const endsAtMs = this.#options.clock.monotonicMs() + transfer.giveUpAfterMs
    for (let running = this.#fetching.get(key); running; running = this.#fetching.get(key)) {
      try {
        return await orEnded(running, transfer.signal)
      } catch (error) {
        // The task that fetched was ended; this one goes on for itself.
        if (!isIndraftError(error, 'link.closed') || transfer.signal.aborted) throw error
      }
    }
    const fetching = this.#locateOnce(url, sha256, transfer, endsAtMs).finally(() => this.#fetching.delete(key))
    this.#fetching.set(key, fetching)
    return await fetching
  }

  /** The runtime finds this image damaged. Where it is ours and has changed it is removed, to be fetched anew. */
  async distrust(path: string): Promise<void> {
    const { folder, log } = this.#options
    const sha256 = /^([0-9a-f]{64})\.sif$/.exec(path.startsWith(`${folder}/`) ? path.slice(folder.length + 1) : '')?.[1]
    if (!sha256) return
    const found = await checksumFile(path, 'sha256').catch(() => null)
    if (found === null || found === `sha256:${sha256}`) return
    log.error({ path, found }, 'image.spoilt')
    await rm(path, { force: true }).catch(() => {})
  }

  /**
   * Waits for its turn no longer than `giveUpAfterMs` without anything arriving, at whosever turn it is: a dead address costs
   * all pilots together that much.
   */
  async #locateOnce(url: string, sha256: string, transfer: Transfer, endsAtMs: number): Promise<string> {
    const { folder, clock } = this.#options
    const path = join(folder, `${sha256}.sif`)
    const begun = join(folder, `${sha256}.${createHash('sha256').update(url).digest('hex').slice(0, 16)}`)
    const queue = new Queue(`${begun}.fetching`, clock)
    let owner: string | null = null
    let mostBytes = 0
    for (;;) {
      if (transfer.signal.aborted) throw ended()
      if (await isThere(path)) {
        const nowS = clock.wallMs() / 1000
        await utimes(path, nowS, nowS).catch(() => {})
        return path
      }
      const turn = await mkdir(folder, { recursive: true, mode: 0o700 })
        .then(() => queue.take())
        .catch((error) => {
          throw imageError(error, url)
        })
      for (const word of queue.aside.splice(0)) await removeBegun(`${begun}.${word}`)
      const inTime = { ...transfer, giveUpAfterMs: leftMs(clock, endsAtMs) }
      if (turn !== null && (await this.#fetchIn(turn, { url, sha256, path, begun }, inTime))) continue
      const bytes = await sizeOf(`${begun}.${queue.owner}.part`)
      // Another one may have begun anew, or with what was there; neither has arrived just now.
      if (queue.owner !== owner) [owner, mostBytes] = [queue.owner, bytes]
      if (bytes > mostBytes) [mostBytes, endsAtMs] = [bytes, clock.monotonicMs() + transfer.giveUpAfterMs]
      if (leftMs(clock, endsAtMs) === 0) {
        const waited = 'another pilot of this site fetches it, and nothing has arrived'
        throw new IndraftError('stage.inFailed', `image ${url.slice(0, 200)}: ${waited}`)
      }
      await clock.sleep(LOOK_MS, transfer.signal)
    }
  }

  /** @returns false where it failed and another has taken over meanwhile @throws IndraftError as locate */
  async #fetchIn(turn: Turn, wanted: Wanted, transfer: Transfer): Promise<boolean> {
    const own = `${wanted.begun}.${turn.word}`
    const left = `${wanted.begun}.part`
    try {
      if (await isThere(wanted.path)) return true
      await rename(left, `${own}.part`).catch(() => {})
      await this.#fetch(wanted, own, transfer)
      return true
    } catch (cause) {
      const error = imageError(cause, wanted.url)
      const isHeld = await turn.isHeld()
      if (isHeld && error.code !== 'node.scratchFull') await rename(`${own}.part`, left).catch(() => {})
      await removeBegun(own)
      if (await isThere(wanted.path)) return true
      if (isHeld) throw error
      this.#options.log.warn({ url: wanted.url, err: error }, 'image.fetchOvertaken')
      return false
    } finally {
      await turn.end()
    }
  }

  async #fetch({ url, sha256, path }: Wanted, own: string, transfer: Transfer): Promise<void> {
    const { clock, log } = this.#options
    const startMs = clock.monotonicMs()
    const checksum = `sha256:${sha256}`
    const { capability, signal, giveUpAfterMs } = transfer
    const options = { capability, signal, giveUpAfterMs, checksum }
    const { sizeBytes } = await atServer(transfer, (client, server) =>
      client.getToFile(server + fileAddress.fetch(url, checksum), own, options),
    )
    // Whoever comes second with the same content puts it in the place of the same content.
    await rename(own, path)
    log.info({ url, path, sizeBytes, ms: Math.round(clock.monotonicMs() - startMs) }, 'image.fetched')
  }
}

interface Wanted {
  url: string
  sha256: string
  /** Where it is when it is whole. */
  path: string
  /** What the names of its parts begin with. */
  begun: string
}

function ended(): IndraftError {
  return new IndraftError('link.closed', 'the attempt was ended')
}

function leftMs(clock: Clock, endsAtMs: number): number {
  return Math.max(0, endsAtMs - clock.monotonicMs())
}

/** What others wait for as well goes on; who is ended does not wait for it. @throws IndraftError link.closed */
async function orEnded<T>(running: Promise<T>, signal: AbortSignal): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>()
  const stop = () => reject(ended())
  if (signal.aborted) stop()
  signal.addEventListener('abort', stop, { once: true })
  try {
    return await Promise.race([promise, running])
  } finally {
    signal.removeEventListener('abort', stop)
  }
}

async function removeBegun(own: string): Promise<void> {
  for (const path of [own, `${own}.part`]) await rm(path, { force: true }).catch(() => {})
}

async function sizeOf(path: string): Promise<number> {
  return await lstat(path).then(
    ({ size }) => size,
    () => 0,
  )
}

async function isThere(path: string): Promise<boolean> {
  return await lstat(path).then(
    (facts) => facts.isFile(),
    () => false,
  )
}

function imageError(error: unknown, url: string): IndraftError {
  const system = (error as NodeJS.ErrnoException).code ?? ''
  const named = (code: ConstructorParameters<typeof IndraftError>[0]) =>
    new IndraftError(code, `image ${url.slice(0, 200)}: ${(error as Error).message}`, { cause: error })
  if (['ENOSPC', 'EDQUOT'].includes(system)) return named('node.scratchFull')
  if (error instanceof IndraftError) {
    if (error.code === 'request.notFound') return named('image.missing')
    if (error.code === 'file.checksum') return named('image.damaged')
    if (error.code === 'file.tooLarge') return named('image.missing')
    // The relay's own word on what it fetches.
    if (error.code === 'link.closed' || error.code === 'policy.refused') return error
  }
  return named('stage.inFailed')
}
