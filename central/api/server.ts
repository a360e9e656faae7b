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
import { ERRORS, type ErrorCode, IndraftError } from '../../shared/errors.ts'
import type { StoredFile } from '../../shared/files/attempt-files.ts'
import { type NodeHandler, serveFile } from '../../shared/files/server.ts'
import type { Log } from '../../shared/log.ts'
import { type People, type Principal, requireRole } from '../people.ts'
import { CampaignRefused } from './campaigns.ts'
import { type DataRoute, type FileRoute, type Given, type Reply, ROUTES, type Route, type RouteName } from './routes.ts'
import { type ErrorReply, errorSchema } from './views.ts'

/** Fits a table of 16 MiB with its escapes. */
const MAX_BODY_BYTES = 32 * 1024 * 1024

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
}

const NOBODY: Principal = { subject: 'nobody', groups: [], roles: [] }

export async function buildServer(parts: ServerParts): Promise<FastifyInstance> {
  const { tls, log, people, handlers } = parts
  const app = Fastify({
    bodyLimit: MAX_BODY_BYTES,
    forceCloseConnections: true,
    routerOptions: { maxParamLength: 1024 },
    ...(tls ? { https: { cert: tls.cert, key: tls.key, minVersion: 'TLSv1.2' } } : {}),
  }) as unknown as FastifyInstance
  app.setValidatorCompiler(validatorCompiler)
  app.setSerializerCompiler(serializerCompiler)
  app.setErrorHandler((error: FastifyError, request, reply) => refuse(error, request, reply, parts))
  app.setNotFoundHandler((_request, reply) => {
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
        preValidation: async (request) => {
          if (route.role === null) return
          const caller = await people.identify(request.headers.authorization)
          requireRole(caller, route.role)
          callers.set(request, caller)
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
  if (body.code === 'internal.error') parts.log.error({ err: error, url: request.url }, 'api.requestFailed')
  else parts.log.info({ code: body.code, url: request.url, detail: body.message }, 'api.requestRefused')
  parts.onRefused?.(body.code)
  reply.code(ERRORS[body.code].status || 400).send(body)
}

function refusalOf(error: FastifyError): ErrorReply {
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
