/**
 * The API from the other side: one typed call per route of the table. Used by the command; refusals come back as
 * IndraftError with the server's code, a server that cannot be reached as Unreachable.
 */
import { Agent, type Dispatcher, request } from 'undici'
import { IndraftError } from '../../shared/errors.ts'
import { knownCode } from '../../shared/protocol/newer.ts'
import type { Problem } from '../campaigns/source.ts'
import { type DataRoute, type FileRoute, type Reply, ROUTES, type Route, type RouteName, type Sent } from './routes.ts'
import { errorSchema } from './views.ts'

export interface ClientOptions {
  /** `https://host:port`, without a path. */
  url: string
  token: string | null
  /** PEM of the authority that signed the server's certificate; null: one that the system knows. */
  ca: string | null
}

/** Nobody answers at the address: the user looks at the address, not at the request. */
export class Unreachable extends Error {}

/** A refusal with all that is wrong with a campaign file. */
export class ApiRefusal extends IndraftError {
  readonly problems: Problem[]

  constructor(reply: {
    code: IndraftError['code']
    message: string
    path?: string | undefined
    retryAfterMs?: number | undefined
    problems?: Problem[] | undefined
  }) {
    super(reply.code, reply.message, {
      ...(reply.path === undefined ? {} : { path: reply.path }),
      ...(reply.retryAfterMs === undefined ? {} : { retryAfterMs: reply.retryAfterMs }),
    })
    this.problems = reply.problems ?? []
  }
}

export type FileReply = { body: Dispatcher.ResponseData['body']; sizeBytes: number | null } | { retryAfterMs: number }

export interface Client {
  call<R extends DataRoute>(route: R, sent: Sent<R>): Promise<Reply<R>>
  /** The caller reads the body to its end, or destroys it. */
  file<R extends FileRoute>(route: R, sent: Sent<R>): Promise<FileReply>
  close(): Promise<void>
}

interface Parts {
  params?: Record<string, unknown>
  query?: Record<string, unknown>
  body?: Record<string, unknown>
}

export function makeClient(options: ClientOptions): Client {
  const agent = new Agent(options.ca === null ? {} : { connect: { ca: options.ca } })
  const send = async (name: RouteName, { params, query, body }: Parts): Promise<Dispatcher.ResponseData> => {
    const route: Route = ROUTES[name]
    try {
      return await request(
        `${options.url.replace(/\/$/, '')}${fillPath(route.path, params ?? {})}${queryText(query)}`,
        {
          dispatcher: agent,
          method: route.method,
          headers: {
            ...(options.token === null ? {} : { authorization: `Bearer ${options.token}` }),
            ...(body === undefined ? {} : { 'content-type': 'application/json' }),
          },
          ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        },
      )
    } catch (cause) {
      const why = (cause as { code?: string }).code ?? (cause instanceof Error ? cause.message : String(cause))
      throw new Unreachable(`cannot reach central at ${options.url} (${why})`, { cause })
    }
  }
  const readText = ({ body }: Dispatcher.ResponseData): Promise<string> =>
    body.text().catch((cause) => {
      throw new Unreachable(`central at ${options.url} broke off its answer`, { cause })
    })
  const refusalOf = async (response: Dispatcher.ResponseData): Promise<Error> => {
    const text = await readText(response)
    // A newer central may refuse by a code that is not known here.
    const parsed = errorSchema.safeParse(knownCode(safeJson(text)))
    if (parsed.success) return new ApiRefusal(parsed.data)
    return new Unreachable(`${options.url} answered ${response.statusCode} in another language: is it central?`)
  }
  return {
    async call(name, sent) {
      const response = await send(name, sent as Parts)
      if (response.statusCode !== 200) throw await refusalOf(response)
      return JSON.parse(await readText(response)) as never
    },
    async file(name, sent) {
      const response = await send(name, sent as Parts)
      if (response.statusCode === 202) return JSON.parse(await readText(response)) as { retryAfterMs: number }
      if (response.statusCode !== 200) throw await refusalOf(response)
      const length = response.headers['content-length']
      return { body: response.body, sizeBytes: typeof length === 'string' ? Number(length) : null }
    },
    close: () => agent.close(),
  }
}

function fillPath(path: string, params: Record<string, unknown>): string {
  const escapePart = (value: unknown) => String(value).split('/').map(encodeURIComponent).join('/')
  return path
    .replace(/:([a-z]+)/g, (_all, name: string) => encodeURIComponent(String(params[name])))
    .replace('*', () => escapePart(params['*']))
}

function queryText(query: Record<string, unknown> | undefined): string {
  const given = Object.entries(query ?? {}).filter(([, value]) => value !== undefined && value !== null)
  const pairs = given.map(([key, value]): [string, string] => [key, String(value)])
  return pairs.length === 0 ? '' : `?${new URLSearchParams(pairs)}`
}

function safeJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
