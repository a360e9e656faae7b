/**
 * Images that come by URL: fetched through the dispatcher, checked, and kept in one folder under their checksum. Where
 * that folder is on the site's shared file system all pilots of the site share it: of those who want the same image at
 * the same time one fetches and the others wait.
 *
 * What always holds: a file under its checksum's name is whole and was checked.
 */
import { createHash } from 'node:crypto'
import { lstat, mkdir, readdir, rename, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Clock } from '../shared/clock.ts'
import { IndraftError, isIndraftError } from '../shared/errors.ts'
import { checksumFile } from '../shared/files/checksum.ts'
import { fileAddress } from '../shared/files/client.ts'
import { parseImageName } from '../shared/image-name.ts'
import type { Log } from '../shared/log.ts'
import { atServer, type Transfer } from './drivers.ts'

const LOOK_MS = 500
/** Who fetches shows this often that it is alive; silent for longer than STALE_MS, another one takes over. */
const ALIVE_MS = 5_000
const STALE_MS = 30_000
/** An image that nobody used for so long is removed. */
const UNUSED_MS = 14 * 86_400_000

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

  /** Removes what has not been used for two weeks. Never throws. */
  async tidy(): Promise<void> {
    const { folder, clock, log } = this.#options
    for (const name of await readdir(folder).catch(() => [])) {
      const path = join(folder, name)
      const facts = await stat(path).catch(() => null)
      if (!facts || clock.wallMs() - facts.mtimeMs < UNUSED_MS) continue
      await rm(path, { recursive: true, force: true }).catch(() => {})
      log.info({ path }, 'image.removed')
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
    for (let running = this.#fetching.get(key); running; running = this.#fetching.get(key)) {
      try {
        return await running
      } catch (error) {
        // The task that fetched was ended; this one goes on for itself.
        if (!isIndraftError(error, 'link.closed') || transfer.signal.aborted) throw error
      }
    }
    const fetching = this.#locateOnce(url, sha256, transfer).finally(() => this.#fetching.delete(key))
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

  async #locateOnce(url: string, sha256: string, transfer: Transfer): Promise<string> {
    const { folder, clock } = this.#options
    const path = join(folder, `${sha256}.sif`)
    const fetched = join(folder, `${sha256}.${createHash('sha256').update(url).digest('hex').slice(0, 16)}`)
    const lock = `${fetched}.fetching`
    let seenMs = clock.monotonicMs()
    let seen = ''
    for (;;) {
      if (transfer.signal.aborted) throw new IndraftError('link.closed', 'the attempt was ended')
      if (await isThere(path)) {
        const now = clock.wallMs() / 1000
        await utimes(path, now, now).catch(() => {})
        return path
      }
      try {
        await mkdir(folder, { recursive: true, mode: 0o700 })
        await writeFile(lock, '', { flag: 'wx' })
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw imageError(error, url)
        // Times of the file server's clock are compared with each other only.
        const shown = await stat(lock).then(
          ({ mtimeMs, ino }) => `${ino} ${mtimeMs}`,
          () => '',
        )
        if (shown !== seen) [seen, seenMs] = [shown, clock.monotonicMs()]
        else if (clock.monotonicMs() - seenMs > STALE_MS) await rm(lock, { force: true })
        await clock.sleep(LOOK_MS, transfer.signal)
        continue
      }
      await this.#fetch(url, sha256, { path, fetched, lock }, transfer)
    }
  }

  async #fetch(
    url: string,
    sha256: string,
    { path, fetched, lock }: Record<'path' | 'fetched' | 'lock', string>,
    transfer: Transfer,
  ): Promise<void> {
    const { clock, log } = this.#options
    const startMs = clock.monotonicMs()
    const alive = setInterval(() => {
      const now = clock.wallMs() / 1000
      utimes(lock, now, now).catch(() => {})
    }, ALIVE_MS)
    try {
      const checksum = `sha256:${sha256}`
      const { capability, signal, giveUpAfterMs } = transfer
      const options = { capability, signal, giveUpAfterMs, checksum }
      const { sizeBytes } = await atServer(transfer, (client, server) =>
        client.getToFile(server + fileAddress.fetch(url, checksum), fetched, options),
      )
      // Whoever comes second with the same content from elsewhere puts it in the place of the same content.
      await rename(fetched, path)
      log.info({ url, path, sizeBytes, ms: Math.round(clock.monotonicMs() - startMs) }, 'image.fetched')
    } catch (error) {
      throw imageError(error, url)
    } finally {
      clearInterval(alive)
      await rm(lock, { force: true }).catch(() => {})
    }
  }
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
