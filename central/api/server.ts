/**
 * The API over HTTP: turns the route table and the handlers into a Fastify server. What is checked here for every
 * request: token, role, form. What a refusal looks like is decided here and nowhere else.
 */
import swagger from '@fastify/swagger'
import Fastify, { type FastifyError, type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import {
  hasZodFastifySchemaValidationErrors,
  jsonSchemaTransform,
  serializerCompiler,
  validatorCompiler,
} from 'fastify-type-provider-zod'
import { answerBrokenHttp } from '../../shared/broken-http.ts'
import { ERRORS, type ErrorCode, IndraftError } from '../../shared/errors.ts'
import type { StoredFile } from '../../shared/files/attempt-files.ts'
import { type NodeHandler, serveFile } from '../../shared/files/server.ts'
import type { Log } from '../../shared/log.ts'
import { type People, type Principal, requireRole } from '../people.ts'
import { storeRefusal } from '../redis.ts'
import { diskRefusal } from '../state-disk.ts'
import { CampaignRefused } from './campaigns.ts'
import { type DataRoute, type FileRoute, type Given, type Reply, ROUTES, type Route, type RouteName } from './routes.ts'
import { type ErrorReply, errorSchema } from './views.ts'

const MAX_BODY_BYTES = 64 * 1024
/** Requests with a large body (submissions) that are read and checked at a time, and how long a further one waits. */
const LARGE_AT_ONCE = 2
const LARGE_WAIT_MS = 5000
/** For a body of the API; those of /files may take as long as the whole server allows. */
const BODY_TIMEOUT_MS = 60_000
/** An output of tens of gigabytes over a slow line arrives as one request. */
const REQUEST_TIMEOUT_MS = 3_600_000
const HEADERS_TIMEOUT_MS = 15_000
const KEEP_ALIVE_MS = 30_000
const MAX_CONNECTIONS = 4096
const CONNECTIONS_CHECKED_MS = 5000

/** A file, nothing (an empty one), or a promise of one. */
export type FileAnswer = StoredFile | 'empty' | { retryAfterMs: number }
export type Handlers = { [R in DataRoute]: (given: Given<R>, caller: Principal) => Promise<Reply<R>> } & {
  [R in FileRoute]: (given: Given<R>, caller: Principal) => Promise<FileAnswer>
}

export interface ServerParts {
  people: People
  handlers: Handlers
  log: Log
  tls: { cert: string; key: string } | null
  /** Serves /files/*, the relays' and pilots' part, with tokens of its own. */
  files: NodeHandler | null
  /** Throws while the service cannot do its work. */
  ready: () => Promise<void>
  onRefused?: (code: ErrorCode) => void
  /** A minute unless given. */
  bodyTimeoutMs?: number
}

const NOBODY: Principal = { subject: 'nobody', groups: [], roles: [] }

export async function buildServer(parts: ServerParts): Promise<FastifyInstance> {
  const { tls, log, people, handlers } = parts
  const checked = { connectionsCheckingInterval: CONNECTIONS_CHECKED_MS }
  const slots = new Slots(LARGE_AT_ONCE)
  const app = Fastify({
    bodyLimit: MAX_BODY_BYTES,
    forceCloseConnections: true,
    routerOptions: { maxParamLength: 1024 },
    requestTimeout: REQUEST_TIMEOUT_MS,
    keepAliveTimeout: KEEP_ALIVE_MS,
    clientErrorHandler: answerBrokenHttp(parts.onRefused),
    frameworkErrors: (error: FastifyError, request: FastifyRequest, reply: FastifyReply) =>
      refuse(error, request, reply, parts),
    ...(tls ? { https: { ...checked, cert: tls.cert, key: tls.key, minVersion: 'TLSv1.2' } } : { http: checked }),
  }) as unknown as FastifyInstance
  app.server.headersTimeout = HEADERS_TIMEOUT_MS
  app.server.maxConnections = MAX_CONNECTIONS
  app.setValidatorCompiler(validatorCompiler)
  app.setSerializerCompiler(serializerCompiler)
  app.setErrorHandler((error: FastifyError, request, reply) => refuse(error, request, reply, parts))
  app.setNotFoundHandler((_request, reply) => {
    parts.onRefused?.('request.notFound')
    reply.code(404).send({ code: 'request.notFound', message: 'There is no such address.' } satisfies ErrorReply)
  })
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: { title: 'Indraft', version: '1', description: 'Campaigns, tasks, sites and pilots.' },
      components: { securitySchemes: { bearer: { type: 'http', scheme: 'bearer' } } },
    },
    transform: jsonSchemaTransform,
  })
  await app.register(async (scope) => {
    for (const [name, route] of Object.entries(ROUTES) as [RouteName, Route][]) {
      scope.route({
        method: route.method,
        url: route.path,
        schema: openApiSchema(name, route),
        ...(route.bodyLimit === undefined ? {} : { bodyLimit: route.bodyLimit }),
        // IMPORTANT: before the body is read, so that nobody without a token makes us read one (test/central/abuse.test.ts).
        onRequest: async (request, reply) => {
          if (route.role !== null) {
            const caller = await people.identify(request.headers.authorization)
            requireRole(caller, route.role)
            callers.set(request, caller)
          }
          if (route.bodyLimit !== undefined) await slots.take(reply)
          limitBodyTime(request, parts.bodyTimeoutMs ?? BODY_TIMEOUT_MS, parts.onRefused)
        },
        handler: async (request, reply) => {
          const { params, query, body } = request
          const given = { ...(route.params && { params }), ...(route.query && { query }), ...(route.body && { body }) }
          const handler = handlers[name] as (given: unknown, caller: Principal) => Promise<unknown>
          const answer = await handler(given, callers.get(request) ?? NOBODY)
          return route.reply ? answer : sendFile(answer as FileAnswer, request, reply, log)
        },
      })
    }
  })
  app.get('/openapi.json', { schema: { hide: true } }, async () => app.swagger())
  app.get('/healthz', { schema: { hide: true } }, async () => ({ ok: true }))
  app.get('/readyz', { schema: { hide: true } }, async () => {
    await parts.ready()
    return { ok: true }
  })
  if (parts.files) await mountFiles(app, parts.files)
  await app.ready()
  return app
}

const callers = new WeakMap<FastifyRequest, Principal>()

/** How many may go on at a time; each gives its place back when its answer is out or its connection gone. */
class Slots {
  #free: number
  readonly #waiting = new Set<() => void>()

  constructor(count: number) {
    this.#free = count
  }

  /** @throws IndraftError dispatcher.busy when none comes free in time */
  async take(reply: FastifyReply): Promise<void> {
    if (this.#free > 0) this.#free--
    else await this.#wait()
    let isHeld = true
    const release = () => {
      if (!isHeld) return
      isHeld = false
      const [next] = this.#waiting
      if (!next) this.#free++
      else {
        this.#waiting.delete(next)
        next()
      }
    }
    if (reply.raw.destroyed) return release()
    reply.raw.once('finish', release)
    reply.raw.once('close', release)
  }

  async #wait(): Promise<void> {
    const turn = Promise.withResolvers<void>()
    this.#waiting.add(turn.resolve)
    const timer = setTimeout(() => {
      const message = 'Enough submissions are being checked now: ask again later.'
      turn.reject(new IndraftError('dispatcher.busy', message, { retryAfterMs: LARGE_WAIT_MS }))
      this.#waiting.delete(turn.resolve)
    }, LARGE_WAIT_MS)
    try {
      await turn.promise
    } finally {
      clearTimeout(timer)
      this.#waiting.delete(turn.resolve)
    }
  }
}

/** Ends the connection of a request whose body has not arrived in time. */
function limitBodyTime({ raw }: FastifyRequest, ms: number, onRefused: ServerParts['onRefused']): void {
  if (raw.complete) return
  const timer = setTimeout(() => {
    if (raw.complete) return
    onRefused?.('request.invalid')
    raw.destroy()
  }, ms)
  timer.unref()
  raw.once('end', () => clearTimeout(timer))
  raw.once('close', () => clearTimeout(timer))
}

function openApiSchema(name: RouteName, route: Route) {
  return {
    operationId: name,
    summary: route.summary,
    ...(route.role === null ? {} : { security: [{ bearer: [] }] }),
    ...(route.params ? { params: route.params } : {}),
    ...(route.query ? { querystring: route.query } : {}),
    ...(route.body ? { body: route.body } : {}),
    response: { ...(route.reply ? { 200: route.reply } : {}), '4xx': errorSchema, '5xx': errorSchema },
  }
}

function sendFile(answer: FileAnswer, request: FastifyRequest, reply: FastifyReply, log: Log): unknown {
  if (answer === 'empty') return reply.type('application/octet-stream').send(Buffer.alloc(0))
  if ('retryAfterMs' in answer) {
    return reply
      .code(202)
      .header('retry-after', String(Math.ceil(answer.retryAfterMs / 1000)))
      .send(answer)
  }
  reply.hijack()
  serveFile(answer, log)(request.raw, reply.raw)
  return reply
}

/** In a scope of its own, whose bodies nobody reads but the file service. */
async function mountFiles(app: FastifyInstance, files: NodeHandler): Promise<void> {
  await app.register(async (scope) => {
    scope.removeAllContentTypeParsers()
    scope.addContentTypeParser('*', (_request, _payload, done) => done(null))
    scope.route({
      method: ['GET', 'HEAD', 'PUT'],
      url: '/files/*',
      exposeHeadRoute: false,
      schema: { hide: true },
      handler: (request, reply) => {
        reply.hijack()
        files(request.raw, reply.raw)
      },
    })
  })
}

function refuse(error: FastifyError, request: FastifyRequest, reply: FastifyReply, parts: ServerParts): void {
  const body = refusalOf(error)
  if (body.code === 'internal.error' || diskRefusal(error))
    parts.log.error({ err: error, url: request.url }, 'api.requestFailed')
  else parts.log.info({ code: body.code, url: request.url, detail: body.message }, 'api.requestRefused')
  parts.onRefused?.(body.code)
  if (body.retryAfterMs !== undefined) reply.header('retry-after', String(Math.ceil(body.retryAfterMs / 1000)))
  reply.code(ERRORS[body.code].status || 400).send(body)
}

function refusalOf(thrown: FastifyError): ErrorReply {
  const error = storeRefusal(thrown) ?? diskRefusal(thrown) ?? thrown
  if (error instanceof IndraftError) {
    return {
      code: error.code,
      message: error.message,
      ...(error.path === undefined ? {} : { path: error.path }),
      ...(error.retryAfterMs === undefined ? {} : { retryAfterMs: error.retryAfterMs }),
      ...(error instanceof CampaignRefused ? { problems: error.problems } : {}),
    }
  }
  if (hasZodFastifySchemaValidationErrors(error)) {
    const first = error.validation[0]
    const path = `${error.validationContext ?? ''}${(first?.instancePath ?? '').replaceAll('/', '.')}`
    return { code: 'request.invalid', message: first?.message ?? 'does not fit', path }
  }
  // Fastify's own: a body that is no JSON, too large, of another content type.
  const status = (error as { statusCode?: number }).statusCode ?? 500
  if (status < 500) return { code: 'request.invalid', message: error.message }
  return { code: 'internal.error', message: ERRORS['internal.error'].meaning }
}
