/**
 * The relay's file server: what pilots may fetch and hand in. Attempts' files are looked for here, then at central;
 * blobs and files from outside are fetched once and cached. A pilot shows the site's bearer token and its lease's
 * capability; the token alone opens nothing.
 */
import { timingSafeEqual } from 'node:crypto'
import { createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { answerBrokenHttp } from '../shared/broken-http.ts'
import type { Clock } from '../shared/clock.ts'
import { type ErrorCode, IndraftError } from '../shared/errors.ts'
import { failpoint } from '../shared/failpoint.ts'
import type { AttemptFiles } from '../shared/files/attempt-files.ts'
import { attemptFolder } from '../shared/files/attempt-files.ts'
import { coversAttempt, verifyCapability } from '../shared/files/capability.ts'
import { type FileClient, fileAddress } from '../shared/files/client.ts'
import { type Room, within } from '../shared/files/room.ts'
import { type FileRequest, type FileService, fileHandler } from '../shared/files/server.ts'
import { closeServer, listen } from '../shared/listening.ts'
import type { Log } from '../shared/log.ts'
import type { CertifiedKey } from '../shared/tls.ts'
import { attemptKey, type Cache } from './cache.ts'
import type { Outside } from './outside.ts'

/** A pilot repeats by itself, so the relay gives up long before the pilot does. */
const CENTRAL_GIVE_UP_MS = 15_000
/** A file from outside that nobody gave a checksum for may have changed after this. */
const UNCHECKED_FRESH_MS = 300_000

/** An output of tens of gigabytes arrives as one request. */
const LIMITS = {
  requestTimeout: 3_600_000,
  headersTimeout: 15_000,
  keepAliveTimeout: 30_000,
  connectionsCheckingInterval: 5000,
}
const MAX_CONNECTIONS = 8192

export interface RelayFilesOptions {
  outbox: AttemptFiles
  cache: Cache
  /** Towards central. */
  client: FileClient
  centralUrl: string
  /** Opens reading of a campaign's attempts at central; null where no lease of it is known. */
  capabilityOf: (campaign: string) => string | null
  /** Towards the world. */
  outside: Outside
  token: string
  capabilityKey: Uint8Array
  clock: Clock
  log: Log
  /** The largest file that a pilot may hand in, or that is fetched, bytes. */
  fileLimitBytes: number
  tls: CertifiedKey
  host: string
  port: number
  /** On the disk of outbox and cache. */
  room: Room
  /** Of one who hands a file in; default: the file server's. */
  silenceMs?: number
  onServed?: (kind: FileRequest['kind'], verb: FileRequest['verb'], bytes: number) => void
  onRefused?: (code: ErrorCode) => void
}

export interface RelayFiles {
  port: number
  close(): Promise<void>
}

export async function serveFiles(options: RelayFilesOptions): Promise<RelayFiles> {
  const { tls, host, port, log, silenceMs, onServed, onRefused } = options
  const handler = fileHandler(fileService(options), log, {
    ...(onServed ? { onServed } : {}),
    ...(onRefused ? { onRefused } : {}),
    ...(silenceMs === undefined ? {} : { silenceMs }),
  })
  const server = createServer({ ...LIMITS, cert: tls.cert, key: tls.key, minVersion: 'TLSv1.2' }, handler)
  server.maxConnections = MAX_CONNECTIONS
  server.on('clientError', answerBrokenHttp(onRefused))
  server.on('tlsClientError', (error) => log.debug({ err: error }, 'file.tlsRefused'))
  await listen(server, port, host)
  return {
    port: (server.address() as AddressInfo).port,
    close: () => closeServer(server),
  }
}

function fileService(options: RelayFilesOptions): FileService {
  const { outbox, cache, client, centralUrl, outside, fileLimitBytes, room } = options
  const fromCentral = (path: string, checksum: string | null, capability: string | null) => async (target: string) =>
    fetched(
      client.getToFile(centralUrl + path, target, {
        capability,
        checksum,
        giveUpAfterMs: CENTRAL_GIVE_UP_MS,
        maxBytes: fileLimitBytes,
        room,
      }),
    )
  return {
    authorize: (wanted, token, capability) => authorize(options, wanted, token, capability),
    findBlob: (digest) => cache.get(`blob ${digest}`, fromCentral(fileAddress.blob(digest), `sha256:${digest}`, null)),
    async findAttemptFile(attempt, path) {
      const here = await outbox.find(attempt, path)
      if (here) return here
      const name = `${attemptFolder(attempt)}/${path}`
      const capability = options.capabilityOf(attempt.campaign)
      return cache.get(attemptKey(name), fromCentral(fileAddress.attempt(name), null, capability))
    },
    async putAttemptFile(attempt, path, content, checksum, promisedBytes) {
      if (promisedBytes !== null && promisedBytes > fileLimitBytes) {
        throw new IndraftError('file.tooLarge', `${promisedBytes} bytes; at most ${fileLimitBytes} are accepted`)
      }
      // Repeated by the pilot, which keeps the file.
      const claim = await room.claim(promisedBytes)
      try {
        const outcome = await outbox.put(attempt, path, within(content, claim), checksum, fileLimitBytes)
        failpoint('file.stored')
        return outcome
      } finally {
        claim.end()
      }
    },
    async fetchFromOutside(url, checksum) {
      // What the cache could not keep would push everything else out of it.
      const maxBytes = Math.min(fileLimitBytes, cache.limitBytes)
      const fetchIt = (target: string) => fetched(outside.fetch(url, checksum, target, maxBytes))
      const fresh = checksum === null ? UNCHECKED_FRESH_MS : undefined
      const file = await cache.get(`fetch ${checksum ?? ''} ${url.href}`, fetchIt, fresh)
      if (!file) throw new IndraftError('request.notFound', `${url.href} is not there`)
      return file
    },
  }
}

/** What is not there is an answer; a server that does not answer is worth another try by the pilot. */
async function fetched(transfer: Promise<unknown>): Promise<boolean> {
  try {
    await transfer
    return true
  } catch (error) {
    if (!(error instanceof IndraftError))
      throw new IndraftError('file.unreachable', (error as Error).message, { cause: error })
    if (error.code === 'request.notFound') return false
    if (error.code === 'link.timeout') throw new IndraftError('file.unreachable', error.message, { cause: error })
    throw error
  }
}

function authorize(options: RelayFilesOptions, wanted: FileRequest, token: string | null, shown: string | null): void {
  if (token === null) throw new IndraftError('auth.missing')
  const expected = Buffer.from(options.token)
  const given = Buffer.from(token)
  if (given.length !== expected.length || !timingSafeEqual(given, expected)) throw new IndraftError('auth.invalid')
  if (shown === null) throw new IndraftError('capability.invalid')
  const capability = verifyCapability(options.capabilityKey, shown, options.clock.wallMs())
  if (wanted.kind !== 'attempt') return
  const isAllowed =
    wanted.verb === 'put' ? coversAttempt(capability, wanted.attempt) : capability.campaign === wanted.attempt.campaign
  if (!isAllowed) throw new IndraftError('capability.invalid', 'The capability is for other attempts.')
}
