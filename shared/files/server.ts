/**
 * Files over HTTPS, the same routes at a relay and at central:
 *
 *   GET|HEAD /files/blob/<sha256 hex>
 *   GET      /files/fetch?url=<http(s) URL>&checksum=<checksum>
 *   GET|HEAD /files/attempt/<campaign>/<step>/<index>/<fences>/<path>     with Range
 *   GET      /files/accepted?from=<place>    central alone: accepted.ts
 *   PUT      /files/attempt/...    with Indraft-Checksum; 201 {sizeBytes, checksum, url}
 *
 * This file speaks HTTP and nothing else; who may do what and where the bytes are is the FileService's. Refusals are
 * `{code, message}` with the catalogue's status.
 *
 * The handler is a plain node `(request, response)` function. With node:https: `createServer(tls, handler)`. Within
 * Fastify, in a scope of its own so that bodies are left unread:
 *
 *   app.register(async (scope) => {
 *     scope.removeAllContentTypeParsers()
 *     scope.addContentTypeParser('*', (_request, _payload, done) => done(null))
 *     scope.route({ method: ['GET', 'HEAD', 'PUT'], url: '/files/*', exposeHeadRoute: false,
 *       handler: (request, reply) => { reply.hijack(); handler(request.raw, reply.raw) } })
 *   })
 */
import type { IncomingMessage, ServerResponse } from 'node:http'
import { pipeline } from 'node:stream/promises'
import { ERRORS, type ErrorCode, IndraftError } from '../errors.ts'
import type { Log } from '../log.ts'
import type { AcceptedPage } from './accepted.ts'
import { type PutOutcome, parseAttemptUrl, type StoredFile, safeParts } from './attempt-files.ts'
import { type AttemptName, CAPABILITY_HEADER } from './capability.ts'

export const CHECKSUM_HEADER = 'indraft-checksum'
const LINGER_MS = 5000
/** Of a body that is being sent: longer than a link of one's own may stall, far shorter than what waits for its room. */
const SILENCE_MS = 60_000

export type FileRequest =
  | { verb: 'get'; kind: 'blob'; digest: string }
  | { verb: 'get'; kind: 'fetch'; url: URL; checksum: string | null }
  | { verb: 'get'; kind: 'accepted'; from: string | null }
  | { verb: 'get' | 'put'; kind: 'attempt'; attempt: AttemptName; path: string }

export interface FileService {
  /**
   * @param token of the Authorization header; null where there is none
   * @param capability null where the request shows none
   * @throws IndraftError auth.missing | auth.invalid | auth.forbidden | capability.invalid
   */
  authorize(wanted: FileRequest, token: string | null, capability: string | null): void | Promise<void>
  /** @param digest 64 hexadecimal digits */
  findBlob(digest: string): Promise<StoredFile | null>
  findAttemptFile(attempt: AttemptName, path: string): Promise<StoredFile | null>
  /** @param promisedBytes null where the sender does not say */
  putAttemptFile(
    attempt: AttemptName,
    path: string,
    content: AsyncIterable<Uint8Array>,
    checksum: string,
    promisedBytes: number | null,
  ): Promise<PutOutcome>
  /** Absent where nothing is accepted. @throws IndraftError auth.invalid | request.invalid */
  listAccepted?(token: string, from: string | null): Promise<AcceptedPage>
  /** Absent where nothing is fetched for others. @throws IndraftError file.* | stage.inputMissing */
  fetchFromOutside?(url: URL, checksum: string | null): Promise<StoredFile>
}

export interface FileServerOptions {
  onServed?: (kind: FileRequest['kind'], verb: FileRequest['verb'], bytes: number) => void
  onRefused?: (code: ErrorCode) => void
  /** How long what a refused sender still sends is read, milliseconds. */
  lingerMs?: number
  /** A sender from whom nothing came for so long is cut off, milliseconds. */
  silenceMs?: number
}

export type NodeHandler = (request: IncomingMessage, response: ServerResponse) => void

export function fileHandler(service: FileService, log: Log, options: FileServerOptions = {}): NodeHandler {
  return (request, response) => {
    answer(service, request, response, options).catch((error: unknown) =>
      refuse(error, request, response, log, options),
    )
  }
}

/** Answers with one file, with ranges, for routes of other services. */
export function serveFile(file: StoredFile, log: Log, options: FileServerOptions = {}): NodeHandler {
  return (request, response) => {
    sendFile(request, response, file).catch((error: unknown) => refuse(error, request, response, log, options))
  }
}

async function answer(
  service: FileService,
  request: IncomingMessage,
  response: ServerResponse,
  options: FileServerOptions,
): Promise<void> {
  const wanted = readRequest(request)
  const bearer = /^Bearer (\S+)$/.exec(request.headers.authorization ?? '')?.[1] ?? null
  const capability = request.headers[CAPABILITY_HEADER]
  await service.authorize(wanted, bearer, typeof capability === 'string' ? capability : null)
  if (wanted.verb === 'put') {
    const checksum = request.headers[CHECKSUM_HEADER]
    if (typeof checksum !== 'string' || !/^sha256:[0-9a-f]{64}$/i.test(checksum)) {
      throw new IndraftError('request.invalid', 'header Indraft-Checksum: expected sha256: and 64 hexadecimal digits')
    }
    const content = bodyOf(request, options.silenceMs ?? SILENCE_MS)
    const length = request.headers['content-length']
    const promisedBytes = length === undefined ? null : Number(length)
    const outcome = await service.putAttemptFile(wanted.attempt, wanted.path, content, checksum, promisedBytes)
    options.onServed?.(wanted.kind, wanted.verb, outcome.sizeBytes)
    const { campaign, step, index, fences } = wanted.attempt
    const url = `store:${campaign}/${step}/${index}/${fences.join('.')}/${wanted.path}`
    sendJson(response, 201, { sizeBytes: outcome.sizeBytes, checksum: outcome.checksum, url })
    return
  }
  if (wanted.kind === 'accepted') {
    if (!service.listAccepted || bearer === null) throw noAddress()
    sendJson(response, 200, await service.listAccepted(bearer, wanted.from))
    return
  }
  const file = await findFile(service, wanted)
  if (!file) throw new IndraftError('request.notFound', 'There is no such file.')
  const bytes = await sendFile(request, response, file, contentOf(wanted, file))
  options.onServed?.(wanted.kind, wanted.verb, bytes)
}

/**
 * The content that is sent. A node that dies or is suspended in the middle ends nothing by itself, and what its file
 * was given room for stays taken.
 */
async function* bodyOf(request: IncomingMessage, silenceMs: number): AsyncGenerator<Uint8Array> {
  let isSilent = false
  const cut = () => {
    isSilent = true
    request.destroy()
  }
  const watch = () => {
    let last: NodeJS.Immediate | undefined
    // Where this process stood still what came meanwhile is read first.
    const timer = setTimeout(() => {
      last = setImmediate(cut)
    }, silenceMs)
    return () => {
      clearTimeout(timer)
      clearImmediate(last)
    }
  }
  let unwatch = watch()
  try {
    // What is left half-way stays open: ending it would end the connection before the refusal is sent.
    for await (const chunk of request.iterator({ destroyOnReturn: false })) {
      // A disk that is slow to take it is not the sender's silence.
      unwatch()
      yield chunk
      unwatch = watch()
    }
  } catch (error) {
    if (!isSilent) throw error
    throw new IndraftError('link.timeout', `the sender was silent for ${silenceMs} ms`, { cause: error })
  } finally {
    unwatch()
  }
}

async function findFile(
  service: FileService,
  wanted: Exclude<FileRequest, { kind: 'accepted' }>,
): Promise<StoredFile | null> {
  switch (wanted.kind) {
    case 'blob':
      return await service.findBlob(wanted.digest)
    case 'attempt':
      return await service.findAttemptFile(wanted.attempt, wanted.path)
    case 'fetch':
      if (!service.fetchFromOutside) throw new IndraftError('request.notFound', 'Nothing is fetched from outside here.')
      return await service.fetchFromOutside(wanted.url, wanted.checksum)
  }
}

/** @throws IndraftError request.invalid | request.notFound */
function readRequest(request: IncomingMessage): FileRequest {
  const at = URL.parse(request.url ?? '', 'https://files.invalid')
  if (!at) throw new IndraftError('request.invalid', 'address')
  const isGet = request.method === 'GET' || request.method === 'HEAD'
  // The raw path, because URL already resolves "..": what leaves its folder is to be refused, not repaired.
  const path = decode((request.url ?? '').split('?', 1)[0]!)
  const blob = /^\/files\/blob\/([0-9a-f]{64})$/.exec(path)
  if (blob && isGet) return { verb: 'get', kind: 'blob', digest: blob[1]! }
  if (path === '/files/fetch' && isGet) return readFetch(at)
  if (path === '/files/accepted' && request.method === 'GET') {
    return { verb: 'get', kind: 'accepted', from: at.searchParams.get('from') }
  }
  const named = path.startsWith('/files/attempt/') ? parseAttemptUrl(path.slice('/files/attempt/'.length)) : undefined
  if (named && (isGet || request.method === 'PUT')) {
    for (const part of [named.attempt.campaign, named.attempt.step, named.path]) safeParts(part)
    return { verb: isGet ? 'get' : 'put', kind: 'attempt', ...named }
  }
  throw noAddress()
}

function noAddress(): IndraftError {
  return new IndraftError('request.notFound', 'There is no such address.')
}

function readFetch(at: URL): FileRequest {
  const url = URL.parse(at.searchParams.get('url') ?? '')
  if (!url || (url.protocol !== 'http:' && url.protocol !== 'https:') || url.username || url.password) {
    throw new IndraftError('request.invalid', 'url: expected an http or https URL without user and password')
  }
  return { verb: 'get', kind: 'fetch', url, checksum: at.searchParams.get('checksum') || null }
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch (cause) {
    throw new IndraftError('request.invalid', 'address: malformed escapes', { cause })
  }
}

/** The name of a content that is always the same under its address; what comes from outside may change. */
function contentOf(wanted: FileRequest, file: StoredFile): string | null {
  if (wanted.kind === 'blob') return `"${wanted.digest}"`
  return wanted.kind === 'attempt' ? `"${file.sizeBytes}"` : null
}

/** @param content null where it may be another one the next time @returns bytes sent */
async function sendFile(
  request: IncomingMessage,
  response: ServerResponse,
  file: StoredFile,
  content: string | null = null,
): Promise<number> {
  const condition = request.headers['if-range']
  const isSame = condition === undefined || condition === content
  const range = isSame ? readRange(request.headers.range, file.sizeBytes) : undefined
  const [start, end] = range ?? [0, file.sizeBytes - 1]
  response.statusCode = range ? 206 : 200
  response.setHeader('content-type', 'application/octet-stream')
  response.setHeader('accept-ranges', 'bytes')
  if (content !== null) response.setHeader('etag', content)
  response.setHeader('content-length', end - start + 1)
  if (range) response.setHeader('content-range', `bytes ${start}-${end}/${file.sizeBytes}`)
  if (request.method === 'HEAD' || file.sizeBytes === 0) {
    response.end()
    return 0
  }
  await pipeline(file.read(start, end), response)
  return end - start + 1
}

/** One range as RFC 9110 section 14 has it; several, or another unit, are answered with the whole file. */
function readRange(header: string | undefined, sizeBytes: number): [number, number] | undefined {
  const match = /^bytes=(\d*)-(\d*)$/.exec(header ?? '')
  if (!match || (match[1] === '' && match[2] === '')) return undefined
  const suffix = match[1] === ''
  const start = suffix ? Math.max(0, sizeBytes - Number(match[2])) : Number(match[1])
  const end = suffix || match[2] === '' ? sizeBytes - 1 : Math.min(Number(match[2]), sizeBytes - 1)
  if (start > end) throw new IndraftError('file.range', `the file has ${sizeBytes} bytes`)
  return [start, end]
}

function refuse(
  error: unknown,
  request: IncomingMessage,
  response: ServerResponse,
  log: Log,
  options: FileServerOptions,
): void {
  if (response.headersSent || response.destroyed) {
    // The peer went away, or the disk failed half-way: a cut connection is the only honest answer left.
    log.info({ err: error, path: request.url }, 'file.transferBroken')
    response.destroy()
    return
  }
  const refused = error instanceof IndraftError ? error : new IndraftError(codeOfDisk(error) ?? 'internal.error')
  if (refused !== error) log.error({ err: error, path: request.url }, 'file.requestFailed')
  else log.warn({ code: refused.code, path: request.url, detail: refused.message }, 'file.requestRefused')
  options.onRefused?.(refused.code)
  if (!request.complete) response.once('finish', () => readOn(request, options.lingerMs ?? LINGER_MS))
  sendJson(response, ERRORS[refused.code].status || 500, { code: refused.code, message: refused.message })
}

/**
 * Of a body that is still coming, after the answer: most senders stop when they see it. Closed with bytes unread, a
 * connection is reset, and the answer is lost with it.
 */
function readOn(request: IncomingMessage, lingerMs: number): void {
  const cut = setTimeout(() => request.socket.destroy(), lingerMs)
  request.once('close', () => clearTimeout(cut))
  request.resume()
}

function codeOfDisk(error: unknown): ErrorCode | undefined {
  const code = (error as NodeJS.ErrnoException | null)?.code
  if (code === 'ENOSPC' || code === 'EDQUOT') return 'store.full'
  return code === 'EROFS' ? 'dispatcher.busy' : undefined
}

function sendJson(response: ServerResponse, status: number, body: unknown): void {
  const text = JSON.stringify(body)
  response.statusCode = status
  response.setHeader('content-type', 'application/json')
  response.setHeader('content-length', Buffer.byteLength(text))
  response.end(text)
}
