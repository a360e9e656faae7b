/**
 * The link over NATS request/reply. Subjects: `indraft.site.<site>` up, `_INBOX_<site>.>` down; the server's
 * permissions see to it that a site's credential opens that site's subjects and no others, so the site in the subject
 * is proven. Nothing is published without a reply being awaited: the client drops what was published while the
 * connection was down, silently.
 */
import {
  connect,
  credsAuthenticator,
  type NatsConnection,
  NoRespondersError,
  RequestError,
  TimeoutError,
} from '@nats-io/transport-node'
import { IndraftError } from './errors.ts'
import type { FrameHandler, Link, LinkServer } from './link.ts'
import type { Log } from './log.ts'

const MINIMUM_SERVER = [2, 10] as const

export interface NatsOptions {
  /** `nats://host:port` or `tls://host:port`. */
  url: string
  /** Shown in the server's connection list. */
  name: string
  /** NATS credentials file content (a JWT and its seed), or what gives it at each connection; or user and password. */
  creds?: string | (() => string) | undefined
  user?: string | undefined
  password?: string | undefined
  /** PEM of the authority that signed the server's certificate; TLS is used when given. */
  ca?: string | undefined
  /** Prefix for reply subjects that this credential may subscribe to. */
  inboxPrefix?: string | undefined
}

/** Connects and stays connected: retries for ever, also the first time when `waitForServer`. */
export async function connectNats(options: NatsOptions, waitForServer = true): Promise<NatsConnection> {
  const connection = await connect({
    servers: options.url,
    name: options.name,
    maxReconnectAttempts: -1,
    reconnectDelayHandler: reconnectDelays(),
    waitOnFirstConnect: waitForServer,
    pingInterval: 10_000,
    maxPingOut: 2,
    ...(options.ca === undefined ? {} : { tls: { ca: options.ca } }),
    ...(options.creds === undefined
      ? {}
      : { authenticator: credsAuthenticator(() => new TextEncoder().encode(textOf(options.creds!))) }),
    ...(options.user === undefined ? {} : { user: options.user, pass: options.password ?? '' }),
    ...(options.inboxPrefix === undefined ? {} : { inboxPrefix: options.inboxPrefix }),
  })
  const [major = 0, minor = 0] = (connection.info?.version ?? '0.0').split('.').map(Number)
  if (major < MINIMUM_SERVER[0] || (major === MINIMUM_SERVER[0] && minor < MINIMUM_SERVER[1])) {
    await connection.close()
    throw new Error(
      `nats-server ${connection.info?.version} is too old: ${MINIMUM_SERVER.join('.')} or newer is needed`,
    )
  }
  return connection
}

function textOf(creds: string | (() => string)): string {
  return typeof creds === 'string' ? creds : creds()
}

const RECONNECT_MS = { least: 250, jitter: 250 }
const STEP_MS = 100

/**
 * The client compares times of the wall clock: after a step back it would not connect again until the clock has come to
 * where it was. So the first delay after a step is one that is over, whatever the clock says (test/link-nats.test.ts).
 */
function reconnectDelays(): () => number {
  const ahead = () => Date.now() - performance.now()
  let known = ahead()
  return () => {
    const before = known
    known = ahead()
    if (known < before - STEP_MS) return Number.NEGATIVE_INFINITY
    return RECONNECT_MS.least + Math.random() * RECONNECT_MS.jitter
  }
}

/** Whether the connection stands now. */
export function watchUp(connection: NatsConnection): () => boolean {
  let up = true
  void (async () => {
    for await (const { type } of connection.status()) {
      if (type === 'disconnect') up = false
      if (type === 'reconnect') up = true
    }
  })()
  return () => up && !connection.isClosed()
}

export function siteSubject(site: string): string {
  return `indraft.site.${site}`
}

/**
 * The asking end at `site`. Owns the connection: close() ends it. A request under way when the connection breaks ends
 * with link.timeout at once, because its reply is lost; one made while there is none leaves when it is back, because
 * what the client is given meanwhile it drops.
 */
export function natsLink(connection: NatsConnection, site: string): Link {
  let up = true
  let back = Promise.withResolvers<void>()
  const waiting = new Set<(error: IndraftError) => void>()
  const failAll = (why: string) => {
    for (const fail of waiting) fail(new IndraftError('link.timeout', why))
  }
  void (async () => {
    for await (const status of connection.status()) {
      if (status.type === 'reconnect') {
        up = true
        back.resolve()
      }
      if (status.type !== 'disconnect') continue
      if (up) back = Promise.withResolvers<void>()
      up = false
      failAll('the connection broke')
    }
  })()
  return {
    get isUp() {
      return up && !connection.isClosed()
    },
    async request(frame, timeoutMs) {
      const endsAtMs = performance.now() + timeoutMs
      if (!up) await within(timeoutMs, back.promise)
      const broken = Promise.withResolvers<never>()
      waiting.add(broken.reject)
      try {
        const leftMs = Math.max(1, endsAtMs - performance.now())
        const reply = connection.request(siteSubject(site), frame, { timeout: leftMs })
        reply.catch(() => {})
        return (await Promise.race([reply, broken.promise])).data
      } catch (cause) {
        if (cause instanceof IndraftError) throw cause
        const code = linkCode(cause, connection.isClosed())
        waiting.delete(broken.reject)
        // Nobody serves this subject now, so whoever took the other requests is gone with them.
        if (code === 'link.noResponder') failAll('nobody is there to answer any more')
        throw new IndraftError(code, undefined, { cause })
      } finally {
        waiting.delete(broken.reject)
      }
    },
    async close() {
      failAll('the link was closed')
      await connection.close()
      back.resolve()
    },
  }
}

/** @throws IndraftError link.timeout when it takes longer */
async function within(ms: number, event: Promise<void>): Promise<void> {
  const late = Promise.withResolvers<never>()
  const timer = setTimeout(() => late.reject(new IndraftError('link.timeout', 'there is no connection')), ms)
  try {
    await Promise.race([event, late.promise])
  } finally {
    clearTimeout(timer)
  }
}

/** Only a connection that was closed on this side is final; whatever else goes wrong may pass. */
function linkCode(cause: unknown, isClosed: boolean): 'link.timeout' | 'link.noResponder' | 'link.closed' {
  if (cause instanceof TimeoutError) return 'link.timeout'
  if (cause instanceof NoRespondersError) return 'link.noResponder'
  if (cause instanceof RequestError) return cause.isNoResponders() ? 'link.noResponder' : 'link.timeout'
  return isClosed ? 'link.closed' : 'link.timeout'
}

/** Reply subjects that a site's credential may subscribe to. */
export function siteInboxPrefix(site: string): string {
  return `_INBOX_${site}`
}

export interface ServeNatsOptions {
  /** Where those who ask at a site hear replies; by default each site has a prefix of its own. */
  inboxPrefixOf?: (site: string) => string
  /** A request that named a reply subject which is not its site's, or none: neither handled nor answered. */
  onDropped?: (site: string) => void
}

/**
 * The answering end for all sites (`site` undefined) or one. Several processes share the load as one queue group.
 * Does not own the connection.
 *
 * IMPORTANT: the requester names the reply subject and the server does not hold it to its permissions there, so without
 * the check a site could have us publish in another site's name (test/link-nats.test.ts).
 */
export function serveNats(
  connection: NatsConnection,
  handler: FrameHandler,
  log: Log,
  site?: string | undefined,
  { inboxPrefixOf = siteInboxPrefix, onDropped }: ServeNatsOptions = {},
): LinkServer {
  const subscription = connection.subscribe(siteSubject(site ?? '*'), {
    queue: 'dispatchers',
    callback: (error, message) => {
      if (error) return log.error({ err: error }, 'link.subscriptionFailed')
      const from = message.subject.slice(siteSubject('').length)
      if (!isInbox(message.reply, inboxPrefixOf(from))) {
        log.warn({ site: from, reply: message.reply?.slice(0, 200) }, 'link.requestDropped')
        onDropped?.(from)
        return
      }
      handler({ site: from }, message.data)
        .then((reply) => message.respond(reply))
        .catch((cause) => log.error({ err: cause, site: from }, 'link.handlerFailed'))
    },
  })
  return {
    async close() {
      await subscription.drain()
    },
  }
}

function isInbox(reply: string | undefined, prefix: string): boolean {
  return reply?.startsWith(`${prefix}.`) === true && !/[*>\s]/.test(reply)
}
