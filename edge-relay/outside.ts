/**
 * Files from outside that payloads of this site need: from where, how long and how much. A relay stands inside the site
 * and is asked by URL, so what it fetches could be a service that only trusts the inside; hence two rules. An address of
 * a loopback, link-local or private network is never asked, whatever name or redirect leads there, unless `fetchFrom`
 * names it. Where `fetchFrom` names anything, nothing else is fetched; a redirect may lead from there to public places.
 *
 * Pilots ask only what signed work names; that is theirs to keep, and this file is for when one does not.
 */
import { type LookupAddress, lookup as systemLookup } from 'node:dns'
import { stat } from 'node:fs/promises'
import { BlockList, isIP, type LookupFunction } from 'node:net'
import type { Clock } from '../shared/clock.ts'
import { IndraftError } from '../shared/errors.ts'
import { FileClient } from '../shared/files/client.ts'
import type { Room } from '../shared/files/room.ts'
import type { Log } from '../shared/log.ts'

/** Of RFC 6890 and its successors: what is not a public host's. IPv4 within IPv6 is judged as IPv4. */
const NOT_PUBLIC = new BlockList()
for (const [network, bits] of [
  ['0.0.0.0', 8],
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['127.0.0.0', 8],
  ['169.254.0.0', 16],
  ['172.16.0.0', 12],
  ['192.0.0.0', 24],
  ['192.168.0.0', 16],
  ['198.18.0.0', 15],
  ['224.0.0.0', 4],
  ['240.0.0.0', 4],
] as const) {
  NOT_PUBLIC.addSubnet(network, bits, 'ipv4')
}
for (const [network, bits] of [
  ['::', 127],
  ['64:ff9b::', 96],
  ['64:ff9b:1::', 48],
  ['2001::', 32],
  ['2002::', 16],
  ['fc00::', 7],
  ['fe80::', 10],
  ['ff00::', 8],
] as const) {
  NOT_PUBLIC.addSubnet(network, bits, 'ipv6')
}

export function isPublicAddress(address: string): boolean {
  return isIP(address) !== 0 && !NOT_PUBLIC.check(address, isIP(address) === 6 ? 'ipv6' : 'ipv4')
}

const REDIRECTS = 5
/** A server that says nothing for this long is not waited for. */
const ANSWER_MS = 30_000
/** Without success for this long the pilot is told; it asks again by itself. */
const GIVE_UP_MS = 30_000
const LOOK_MS = 1000
const PROGRESS_MS = 10_000

export interface OutsideOptions {
  /** Beginnings of URLs; see above. */
  fetchFrom: readonly string[]
  /** One file takes at most this long, milliseconds. */
  fetchTimeMs: number
  /** On the disk that is written to. */
  room?: Room
  /** Milliseconds; default ANSWER_MS and GIVE_UP_MS. */
  patience?: { answerMs: number; giveUpMs: number }
  clock: Clock
  log: Log
}

export class Outside {
  readonly #options: OutsideOptions
  readonly #allowed: readonly URL[]
  /** Hosts that `fetchFrom` names: their addresses may be private. */
  readonly #named: ReadonlySet<string>
  readonly #client: FileClient
  readonly #giveUpMs: number

  /** @throws IndraftError request.invalid where fetchFrom has something else than http(s) URLs */
  constructor(options: OutsideOptions) {
    this.#options = options
    this.#allowed = options.fetchFrom.map(readAllowed)
    this.#named = new Set(this.#allowed.map((url) => url.hostname))
    const { answerMs, giveUpMs } = options.patience ?? { answerMs: ANSWER_MS, giveUpMs: GIVE_UP_MS }
    this.#giveUpMs = giveUpMs
    const mayAsk = (url: URL) => this.#checkHop(url)
    const lookup = publicLookup(this.#named)
    this.#client = new FileClient({ ca: null, token: null, redirects: REDIRECTS, answerMs, mayAsk, lookup })
  }

  async close(): Promise<void> {
    await this.#client.close()
  }

  /**
   * @param target path to write to
   * @throws IndraftError policy.refused | request.notFound | file.checksum | file.tooLarge | file.unreachable | link.timeout |
   * store.full
   */
  async fetch(url: URL, checksum: string | null, target: string, maxBytes: number): Promise<void> {
    if (this.#allowed.length > 0 && !this.#isAllowed(url)) {
      throw new IndraftError('policy.refused', `${shown(url)} is not among the addresses that this site fetches from`)
    }
    this.#checkHop(url)
    const { clock, log, fetchTimeMs, room } = this.#options
    const startMs = clock.monotonicMs()
    const ending = new AbortController()
    let shownMs = startMs
    let why: IndraftError | undefined
    const end = (error: IndraftError) => {
      why ??= error
      ending.abort()
    }
    const look = setInterval(async () => {
      const nowMs = clock.monotonicMs()
      if (nowMs - startMs > fetchTimeMs) {
        end(new IndraftError('file.unreachable', `${shown(url)} took longer than ${fetchTimeMs / 1000} s`))
      }
      if (nowMs - shownMs < PROGRESS_MS) return
      shownMs = nowMs
      const bytes = await stat(`${target}.part`).then(
        ({ size }) => size,
        () => 0,
      )
      log.info({ url: shown(url), bytes, ms: Math.round(nowMs - startMs) }, 'outside.fetching')
    }, LOOK_MS)
    try {
      const limits = { maxBytes, giveUpAfterMs: this.#giveUpMs, ...(room ? { room } : {}) }
      const options = { checksum, signal: ending.signal, ...limits }
      const { sizeBytes } = await this.#client.getToFile(url.href, target, options)
      log.info({ url: shown(url), bytes: sizeBytes, ms: Math.round(clock.monotonicMs() - startMs) }, 'outside.fetched')
    } catch (error) {
      const failed = why ?? error
      log.warn({ url: shown(url), err: failed }, 'outside.notFetched')
      throw failed
    } finally {
      clearInterval(look)
    }
  }

  #isAllowed(url: URL): boolean {
    return this.#allowed.some((allowed) => {
      const top = allowed.href
      if (!url.href.startsWith(top)) return false
      // Whole names only: /images is not /images-of-others.
      return top.endsWith('/') || /^([/?#]|$)/.test(url.href.slice(top.length))
    })
  }

  /** Also where a redirect leads. A named host is asked for what is named only. */
  #checkHop(url: URL): void {
    if (this.#isAllowed(url)) return
    const host = url.hostname.replace(/^\[|\]$/g, '')
    if (this.#named.has(url.hostname)) {
      throw new IndraftError('policy.refused', `${shown(url)} is not among the addresses that this site fetches from`)
    }
    if (isIP(host) !== 0 && !isPublicAddress(host)) throw notPublic(host, host)
  }
}

/** The system's look-up, refused where a name that nobody named leads to anything but public addresses. */
function publicLookup(named: ReadonlySet<string>): LookupFunction {
  return (hostname, options, callback) => {
    systemLookup(hostname, { ...options, all: true }, (error, addresses: LookupAddress[]) => {
      const wrong = named.has(hostname) ? undefined : addresses?.find(({ address }) => !isPublicAddress(address))
      const first = addresses?.[0]
      if (error || wrong || !first) {
        const why = error ?? (wrong ? notPublic(hostname, wrong.address) : new Error(`${hostname} has no address`))
        callback(why, options.all ? [] : '')
      } else if (options.all) callback(null, addresses)
      else callback(null, first.address, first.family)
    })
  }
}

function notPublic(host: string, address: string): IndraftError {
  const leads = host === address ? '' : ` leads to ${address}, which`
  return new IndraftError('policy.refused', `${host}${leads} is no public address; fetchFrom of the relay may name it`)
}

function readAllowed(text: string): URL {
  const url = URL.parse(text)
  if (url && /^https?:$/.test(url.protocol) && !url.username && !url.password && !url.hash) return url
  throw new IndraftError('request.invalid', `fetchFrom "${text}": expected the beginning of an http or https URL`)
}

/** Without its query, which may hold a signature. */
function shown(url: URL): string {
  return `${url.origin}${url.pathname}`.slice(0, 200)
}
