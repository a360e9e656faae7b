/**
 * The narrow transport: request bytes up, one reply down. Nothing else of NATS (or of files on a shared file system)
 * is seen by those who decide. A link promises nothing: a request may be lost, doubled or late, before or after it was
 * handled. Callers repeat, handlers are idempotent.
 *
 * Here: the interface and an in-memory implementation; link-nats.ts carries it over NATS.
 */
import { type Clock, systemClock } from './clock.ts'
import { IndraftError } from './errors.ts'

/** Who sent a request, as far as the transport proves it. */
export interface Peer {
  /** The site whose credential opened the link; at a relay always its own site. */
  site: string
}

export type FrameHandler = (peer: Peer, frame: Uint8Array) => Promise<Uint8Array>

/** The asking end. */
export interface Link {
  /** @throws IndraftError link.timeout | link.noResponder | link.closed */
  request(frame: Uint8Array, timeoutMs: number): Promise<Uint8Array>
  /** Whether the transport believes itself connected; only for people and metrics. */
  readonly isUp: boolean
  close(): Promise<void>
}

/** The answering end. One handler; what it throws is the transport's to log, the requester then times out. */
export interface LinkServer {
  close(): Promise<void>
}

/** Joins any number of links to one handler within a process. */
export function memoryLink(peer: Peer, handler: FrameHandler, clock: Clock = systemClock): Link {
  let closed = false
  return {
    get isUp() {
      return !closed
    },
    async request(frame, timeoutMs) {
      if (closed) throw new IndraftError('link.closed')
      const late = new AbortController()
      const timeout = clock.sleep(timeoutMs, late.signal).then(() => {
        if (!late.signal.aborted) throw new IndraftError('link.timeout')
        return new Uint8Array()
      })
      try {
        return await Promise.race([handler(peer, frame), timeout])
      } finally {
        late.abort()
      }
    },
    async close() {
      closed = true
    },
  }
}
