/**
 * The dispatcher's side of the protocol: who gives work. Central and the relay each implement Dispatcher over their
 * own store; this file turns frames into calls and whatever goes wrong into `refused`, counted by code.
 */
import { type ErrorCode, IndraftError, type Refusal } from './errors.ts'
import type { FrameHandler, Peer } from './link.ts'
import type { Log } from './log.ts'
import { decode, encode } from './protocol/codec.ts'
import { type Message, REPLY_OF, type ReplyTo, type RequestType } from './protocol/messages.ts'
import { commonVersion, SPOKEN_VERSIONS } from './protocol/version.ts'

/**
 * Each handler is idempotent: the same message twice has the effect of one. A handler refuses by throwing IndraftError;
 * anything else it throws is a bug, logged and answered with internal.error.
 */
export interface Dispatcher {
  onHello(peer: Peer, hello: Message<'hello'>): Promise<ReplyTo<'hello'>>
  onPull(peer: Peer, pull: Message<'pull'>): Promise<ReplyTo<'pull'>>
  onReport(peer: Peer, report: Message<'report'>): Promise<ReplyTo<'report'>>
  onBeat(peer: Peer, beat: Message<'beat'>): Promise<ReplyTo<'beat'>>
  onInventory(peer: Peer, inventory: Message<'inventory'>): Promise<ReplyTo<'inventory'>>
  onBye(peer: Peer, bye: Message<'bye'>): Promise<ReplyTo<'bye'>>
  /** A dispatcher without it refuses the question; who asks then does without an answer. */
  onDemand?(peer: Peer, demand: Message<'demand'>): Promise<ReplyTo<'demand'>>
}

export interface DispatcherEvents {
  /** Every refusal, whatever its cause; for the counter `indraft_messages_refused_total{code}`. */
  onRefused?: (code: ErrorCode, peer: Peer) => void
  /** Every request answered well, with its duration. */
  onAnswered?: (type: RequestType, durationMs: number) => void
}

/** @param explain what to answer to an error that is not ours but no bug either, as of a store that is away */
export function frameHandler(
  dispatcher: Dispatcher,
  log: Log,
  events: DispatcherEvents = {},
  explain: (error: unknown) => IndraftError | undefined = () => undefined,
  spoken: readonly number[] = SPOKEN_VERSIONS,
): FrameHandler {
  return async (peer, frame) => {
    const startMs = performance.now()
    // An answer is in the version of its request; to what cannot be read, in the oldest.
    let version = spoken[0]!
    try {
      const decoded = decode(frame, spoken)
      const { type, body } = decoded
      version = decoded.version
      if (!Object.hasOwn(REPLY_OF, type)) throw new IndraftError('message.unknown', `"${type}" is not a request`)
      const request = type as RequestType
      const answer = await dispatch(dispatcher, peer, request, body)
      const chosen = request === 'hello' ? commonVersion(spoken, (body as Message<'hello'>).speaks ?? []) : undefined
      const whole = chosen === undefined ? answer : { ...(answer as object), version: chosen }
      const reply = encode(REPLY_OF[request], whole as never, version)
      events.onAnswered?.(request, performance.now() - startMs)
      return reply
    } catch (error) {
      const refused = refusalOf(explain(error) ?? error)
      if (refused.code === 'internal.error') log.error({ err: error, site: peer.site }, 'message.handlerFailed')
      else log.warn({ code: refused.code, site: peer.site, detail: refused.message }, 'message.refused')
      events.onRefused?.(refused.code, peer)
      const body: Message<'refused'> = {
        code: refused.code,
        message: refused.message.slice(0, 1000),
        ...(refused.path === undefined ? {} : { path: refused.path.slice(0, 500) }),
        ...(refused.retryAfterMs === undefined ? {} : { retryAfterMs: refused.retryAfterMs }),
      }
      return encode('refused', body, version)
    }
  }
}

function refusalOf(error: unknown): Refusal {
  if (error instanceof IndraftError) return error.refusal
  return { code: 'internal.error', message: 'internal error' }
}

function dispatch(dispatcher: Dispatcher, peer: Peer, type: RequestType, body: unknown): Promise<unknown> {
  switch (type) {
    case 'hello':
      return dispatcher.onHello(peer, body as Message<'hello'>)
    case 'pull':
      return dispatcher.onPull(peer, body as Message<'pull'>)
    case 'report':
      return dispatcher.onReport(peer, body as Message<'report'>)
    case 'beat':
      return dispatcher.onBeat(peer, body as Message<'beat'>)
    case 'inventory':
      return dispatcher.onInventory(peer, body as Message<'inventory'>)
    case 'bye':
      return dispatcher.onBye(peer, body as Message<'bye'>)
    case 'demand':
      if (!dispatcher.onDemand) throw new IndraftError('message.unknown', 'demand is not answered here')
      return dispatcher.onDemand(peer, body as Message<'demand'>)
  }
}
