/**
 * The asking end of shared/files/server.ts, and of any plain HTTP server: fetches into files, hands files in. A file
 * appears under its name only whole and with the right checksum; a broken transfer goes on where it stopped.
 *
 * Repeating: a refusal (4xx) is final at once, except 408, 425 and 429; everything else (5xx, broken or refused
 * connections, silence) is repeated with growing pauses until the caller's signal or `giveUpAfterMs` ends it.
 */
import { createReadStream } from 'node:fs'
import { type FileHandle, open, rename, rm, stat, unlink } from 'node:fs/promises'
import type { LookupFunction } from 'node:net'
import type { Dispatcher } from 'undici'
import { z } from 'zod'
import { type Clock, systemClock } from '../clock.ts'
import { ERROR_CODES, type ErrorCode, IndraftError } from '../errors.ts'
import { type AcceptedPage, acceptedPageSchema } from './accepted.ts'
import { checksumFile, sameChecksum } from './checksum.ts'
import { type Room, within } from './room.ts'

export interface FileClientOptions {
  /** PEM of the only authority that servers may come from; null for the system's authorities. */
  ca: string | null
  /** Sent as `Authorization: Bearer`; null for none. A function is asked for each request. */
  token: string | (() => string) | null
  clock?: Clock
  /** Most connections to one server at a time. */
  connections?: number
  /** Follow this many redirects; the centre and relays make none. */
  redirects?: number
  /** Milliseconds without an answer after which a server is silent; a relay may first have to fetch, so two minutes. */
  answerMs?: number
  /** Called before each request, those that redirects lead to included; throws where nothing may be asked. */
  mayAsk?: (url: URL) => void
  /** In the place of the system's look-up of names. */
  lookup?: LookupFunction
}

export interface TransferOptions {
  capability?: string | null
  /** Ends the transfer and its repeats. */
  signal?: AbortSignal
  /** Repeats end after this many milliseconds without success; for ever without. */
  giveUpAfterMs?: number
}

export interface GetOptions extends TransferOptions {
  /** Of any algorithm in checksum.ts; null takes what comes. */
  checksum?: string | null
  maxBytes?: number
  /** Of the disk that is written to. */
  room?: Room
}

const PAUSE_MS = { first: 200, longest: 15_000 }
/** Silence for this long in a transfer is a broken connection. */
const SILENCE_MS = 30_000
const SURE_DATE_MS = 60_000
const REPEATED_STATUS = new Set([408, 425, 429])

const putReplySchema = z.object({ sizeBytes: z.number(), checksum: z.string(), url: z.string() })
export type PutReply = z.infer<typeof putReplySchema>

/** Ways to name a file at a server; each gives the path for FileClient. */
export const fileAddress = {
  blob: (digest: string) => `/files/blob/${digest.replace(/^sha256:/, '')}`,
  fetch: (url: string, checksum: string | null) =>
    `/files/fetch?${new URLSearchParams({ url, ...(checksum === null ? {} : { checksum }) })}`,
  accepted: (from: string | null) => `/files/accepted${from === null ? '' : `?${new URLSearchParams({ from })}`}`,
  /** @param attemptAndPath `campaign/step/index/fences/path`, what follows `store:` */
  attempt: (attemptAndPath: string) => `/files/attempt/${attemptAndPath.split('/').map(encodeURIComponent).join('/')}`,
}

export class FileClient {
  readonly #options: FileClientOptions
  readonly #token: FileClientOptions['token']
  readonly #clock: Clock
  readonly #closed = new AbortController()
  #agent: Promise<Dispatcher> | undefined

  constructor(options: FileClientOptions) {
    this.#options = options
    this.#token = options.token
    this.#clock = options.clock ?? systemClock
  }

  /** With the first request: an idle pilot does without a third of its memory. */
  async #connect(): Promise<Dispatcher> {
    const { Agent, interceptors } = await import('undici')
    const { connections = 8, ca, lookup, answerMs = 4 * SILENCE_MS, mayAsk, redirects } = this.#options
    const agent = new Agent({
      connections,
      connect: { timeout: 10_000, ...(ca === null ? {} : { ca }), ...(lookup ? { lookup } : {}) },
      headersTimeout: answerMs,
      bodyTimeout: SILENCE_MS,
      keepAliveTimeout: 10_000,
    })
    return agent.compose(
      ...(mayAsk ? [askFirst(mayAsk)] : []),
      ...(redirects ? [interceptors.redirect({ maxRedirections: redirects })] : []),
    )
  }

  /** Transfers under way end with link.closed. */
  async close(): Promise<void> {
    this.#closed.abort()
    await (await this.#agent)?.destroy()
  }

  /**
   * Fetches into `target`, through `<target>.part`, which is continued when it is there already and either the server
   * can tell that it is of the same content, or a checksum will.
   * @returns what arrived @throws IndraftError file.checksum | file.tooLarge | store.full | request.notFound | a server's
   * code | link.timeout after giveUpAfterMs; link.closed when the signal ended it
   */
  async getToFile(url: string, target: string, options: GetOptions = {}): Promise<{ sizeBytes: number }> {
    const part = `${target}.part`
    let checksumFailures = 0
    let content: string | undefined
    const note = (validator: string | undefined) => {
      content = validator
    }
    await this.#repeat(options, async () => {
      await this.#continuePart(url, part, options, content, note)
      if (!options.checksum) return
      const found = await checksumFile(part, options.checksum, options.signal)
      if (sameChecksum(found, options.checksum)) return
      await unlink(part)
      // Once may be a part left by other content; the second time it is what the server has.
      const error = new IndraftError('file.checksum', `promised ${options.checksum}, received ${found}`)
      throw ++checksumFailures > 1 ? error : new Repeatable('checksum', error)
    })
    const file = await open(part, 'r+')
    try {
      await file.sync()
      await rename(part, target)
      return { sizeBytes: (await file.stat()).size }
    } finally {
      await file.close()
    }
  }

  /** @returns the size, or null where there is no such file @throws as getToFile */
  async size(url: string, options: TransferOptions = {}): Promise<number | null> {
    try {
      return await this.#repeat(options, async () => {
        const { headers, body } = await this.#ask('HEAD', url, options, {})
        await body.dump()
        return Number(headers['content-length'])
      })
    } catch (error) {
      if (error instanceof IndraftError && error.code === 'request.notFound') return null
      throw error
    }
  }

  /** One page. @throws as getToFile; request.notFound from a centre that knows no such address */
  async listAccepted(url: string, options: TransferOptions = {}): Promise<AcceptedPage> {
    return await this.#repeat(options, async () => {
      const { body } = await this.#ask('GET', url, options, {})
      return acceptedPageSchema.parse(await body.json())
    })
  }

  /**
   * Hands a file in; durable at the server when it resolves. Repeating is harmless.
   * @param checksum `sha256:<hex>` of the file @throws as getToFile, and file.conflict
   */
  async putFile(url: string, source: string, checksum: string, options: TransferOptions = {}): Promise<PutReply> {
    return await this.#repeat(options, async () => {
      const { size } = await stat(source)
      const stream = createReadStream(source)
      try {
        const headers = { 'indraft-checksum': checksum, 'content-length': String(size) }
        const { body } = await this.#ask('PUT', url, options, headers, stream)
        return putReplySchema.parse(await body.json())
      } finally {
        stream.destroy()
      }
    })
  }

  /**
   * @param content the server's name for what the part is of; undefined where it gave none
   * @param note told what it says now
   */
  async #continuePart(
    url: string,
    part: string,
    options: GetOptions,
    content: string | undefined,
    note: (content: string | undefined) => void,
  ): Promise<void> {
    const maxBytes = options.maxBytes ?? Number.POSITIVE_INFINITY
    const size = await stat(part).then(
      (facts) => facts.size,
      () => 0,
    )
    // Nothing would show that the rest is of another version.
    const had = content || options.checksum ? size : 0
    const range = { range: `bytes=${had}-`, ...(content ? { 'if-range': content } : {}) }
    let reply: Dispatcher.ResponseData
    try {
      reply = await this.#ask('GET', url, options, had > 0 ? range : {})
    } catch (error) {
      if (!(error instanceof IndraftError) || error.code !== 'file.range' || had === 0) throw error
      // The part is as long as the file (then it is whole, the checksum will tell) or longer (then it is another's).
      if (options.checksum && sameChecksum(await checksumFile(part, options.checksum), options.checksum)) return
      await unlink(part)
      throw new Repeatable('range', error)
    }
    const now = validatorOf(reply.headers)
    note(now)
    const isPart = reply.statusCode === 206
    const isSame = content === undefined || now === undefined || now === content
    if (isPart && !(isSame && String(reply.headers['content-range']).startsWith(`bytes ${had}-`))) {
      reply.body.on('error', () => {}).destroy()
      await rm(part, { force: true })
      throw new Repeatable(
        'range',
        new IndraftError('file.range', 'the server answered with another part than was asked'),
      )
    }
    const start = isPart ? had : 0
    const { 'content-length': length } = reply.headers
    try {
      const total = start + Number(length ?? 0)
      if (total > maxBytes) throw new IndraftError('file.tooLarge', `${total} bytes; at most ${maxBytes} are accepted`)
      const file = await open(part, isPart ? 'r+' : 'w')
      try {
        const claim = await options.room?.claim(length === undefined ? null : Number(length))
        const body = claim ? within(reply.body, claim) : reply.body
        await writeBody(body, file, start, maxBytes).finally(() => claim?.end())
      } finally {
        await file.close()
      }
    } finally {
      // Where it was not read to its end.
      reply.body.on('error', () => {}).destroy()
    }
  }

  async #ask(
    method: 'GET' | 'HEAD' | 'PUT',
    url: string,
    options: TransferOptions,
    headers: Record<string, string>,
    body?: ReturnType<typeof createReadStream>,
  ): Promise<Dispatcher.ResponseData> {
    this.#agent ??= this.#connect()
    const dispatcher = await this.#agent
    const { request } = await import('undici')
    const reply = await request(url, {
      method,
      dispatcher,
      headers: {
        ...headers,
        ...(this.#token === null ? {} : { authorization: `Bearer ${tokenOf(this.#token)}` }),
        ...(options.capability ? { 'indraft-capability': options.capability } : {}),
      },
      ...(body === undefined ? {} : { body }),
      ...(options.signal === undefined ? {} : { signal: options.signal }),
    })
    if (reply.statusCode >= 200 && reply.statusCode < 300) return reply
    throw await refusalFrom(reply)
  }

  async #repeat<T>(options: TransferOptions, attempt: () => Promise<T>): Promise<T> {
    const endsAtMs = this.#clock.monotonicMs() + (options.giveUpAfterMs ?? Number.POSITIVE_INFINITY)
    for (let pauseMs = PAUSE_MS.first; ; pauseMs = Math.min(pauseMs * 2, PAUSE_MS.longest)) {
      try {
        return await attempt()
      } catch (error) {
        if (options.signal?.aborted) throw new IndraftError('link.closed', 'the transfer was ended', { cause: error })
        if (this.#closed.signal.aborted)
          throw new IndraftError('link.closed', 'the client was closed', { cause: error })
        if (!mayRepeat(error)) throw error
        if (this.#clock.monotonicMs() + pauseMs > endsAtMs) {
          if (error instanceof Repeatable && error.cause instanceof IndraftError) throw error.cause
          throw new IndraftError('link.timeout', `gave up: ${(error as Error).message}`, { cause: error })
        }
        const ending = [this.#closed.signal, ...(options.signal ? [options.signal] : [])]
        await this.#clock.sleep(pauseMs * (0.75 + Math.random() / 2), AbortSignal.any(ending))
      }
    }
  }
}

function askFirst(mayAsk: (url: URL) => void): Dispatcher.DispatcherComposeInterceptor {
  return (dispatch) => (options, handler) => {
    // Joined, not resolved: in `//host/path` the host would take the place of the one that is asked.
    mayAsk(new URL(new URL(options.origin ?? '').origin + options.path))
    return dispatch(options, handler)
  }
}

/**
 * What names this very version of a content, as RFC 9110 13.1.5 wants it for If-Range: a strong tag, or a date that is
 * old enough that a second version cannot have the same.
 */
function validatorOf(headers: Dispatcher.ResponseData['headers']): string | undefined {
  const { etag, date, 'last-modified': modified } = headers
  if (typeof etag === 'string') return etag.startsWith('"') ? etag : undefined
  if (typeof modified !== 'string' || typeof date !== 'string') return undefined
  return Date.parse(date) - Date.parse(modified) >= SURE_DATE_MS ? modified : undefined
}

/** A failure that the same request may not meet again; the cause is what is thrown when it does. */
class Repeatable extends Error {
  constructor(what: string, cause: IndraftError) {
    super(what, { cause })
  }
}

function mayRepeat(error: unknown): boolean {
  if (error instanceof Repeatable) return true
  if (error instanceof IndraftError) return false
  const code = (error as NodeJS.ErrnoException | null)?.code ?? ''
  // undici's errors and the sockets'; the rest (a full disk, a missing source, a bug) is not the connection's.
  return (
    (code.startsWith('UND_ERR_') && code !== 'UND_ERR_INVALID_ARG') ||
    [
      'ECONNREFUSED',
      'ECONNRESET',
      'EPIPE',
      'ETIMEDOUT',
      'EHOSTUNREACH',
      'ENETUNREACH',
      'ENOTFOUND',
      'EAI_AGAIN',
    ].includes(code)
  )
}

const refusalSchema = z.object({ code: z.enum(ERROR_CODES), message: z.string() })

async function refusalFrom(reply: Dispatcher.ResponseData): Promise<Error> {
  const status = reply.statusCode
  const text = await reply.body.text().catch(() => '')
  const parsed = refusalSchema.safeParse(parseJson(text))
  const error = parsed.success
    ? new IndraftError(parsed.data.code, parsed.data.message)
    : new IndraftError(codeOfStatus(status), `the server answered ${status}`)
  return status >= 500 || REPEATED_STATUS.has(status) ? new Repeatable(error.message, error) : error
}

function codeOfStatus(status: number): ErrorCode {
  if (status === 401) return 'auth.invalid'
  if (status === 403) return 'auth.forbidden'
  if (status === 404 || status === 410) return 'request.notFound'
  if (status === 409) return 'file.conflict'
  if (status === 413) return 'file.tooLarge'
  if (status === 416) return 'file.range'
  return status >= 500 || REPEATED_STATUS.has(status) ? 'file.unreachable' : 'request.invalid'
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return null
  }
}

async function writeBody(
  body: AsyncIterable<Uint8Array>,
  file: FileHandle,
  start: number,
  maxBytes: number,
): Promise<void> {
  let position = start
  for await (const chunk of body) {
    if (position + chunk.length > maxBytes) throw new IndraftError('file.tooLarge', `more than ${maxBytes} bytes`)
    for (let offset = 0; offset < chunk.length; ) {
      const { bytesWritten } = await file.write(chunk, offset, chunk.length - offset, position + offset)
      offset += bytesWritten
    }
    position += chunk.length
  }
}

function tokenOf(token: string | (() => string)): string {
  return typeof token === 'string' ? token : token()
}
