/**
 * What a peer of a newer release says in words that this one does not know: read as the nearest general word, never a
 * reason to refuse a whole message. What was said is kept as text where people look for it. A word of the wrong type is
 * as wrong as ever, and a word on which the meaning of a message hangs (`role`, `end`) has no substitute.
 *
 * Callers: messages.ts; knownCode also the API's client.
 */
import { z } from 'zod'
import { ERROR_CODES } from '../errors.ts'

/** Reads by way of `known`, writes as it is: a schema with a way back, for what the API shows of a message too. */
export function readAs<S extends z.ZodType>(known: (said: unknown) => unknown, schema: S) {
  return z.codec(z.unknown(), schema, {
    decode: (said) => known(said) as z.input<S>,
    encode: (value) => value,
  })
}

const CODES: ReadonlySet<unknown> = new Set(ERROR_CODES)
const MESSAGE_LENGTH = 1000
const DETAIL_LENGTH = 500

/** One of these words; `otherwise` where it is another. */
export function knownWord<const W extends string>(words: readonly [W, ...W[]], otherwise: W) {
  const known: ReadonlySet<unknown> = new Set(words)
  return readAs((said) => (typeof said === 'string' && !known.has(said) ? otherwise : said), z.enum(words))
}

/** A list of these words; others are left out. */
export function knownWords<const W extends string>(words: readonly [W, ...W[]]) {
  const known: ReadonlySet<unknown> = new Set(words)
  return readAs(
    (said) => (Array.isArray(said) ? said.filter((word) => typeof word !== 'string' || known.has(word)) : said),
    z.array(z.enum(words)),
  )
}

/** A refusal by another code is code.unknown, or dispatcher.busy where it says when to ask again. */
export function knownCode(refused: unknown): unknown {
  if (!isRecord(refused) || typeof refused.code !== 'string' || typeof refused.message !== 'string') return refused
  if (CODES.has(refused.code)) return refused
  const code = typeof refused.retryAfterMs === 'number' ? 'dispatcher.busy' : 'code.unknown'
  return { ...refused, code, message: `${refused.code}: ${refused.message}`.slice(0, MESSAGE_LENGTH) }
}

/** A failure for another reason is one of the node: its retries are charged to the infrastructure. */
export function knownReason(result: unknown): unknown {
  if (!isRecord(result) || typeof result.reason !== 'string' || CODES.has(result.reason)) return result
  const detail = [result.reason, result.detail].filter((part) => typeof part === 'string').join(': ')
  return { ...result, reason: 'node.fault', detail: detail.slice(0, DETAIL_LENGTH) }
}

/** Orders of other kinds are left out and counted in `ignored`. */
export function knownOrders(kinds: readonly string[]): (reply: unknown) => unknown {
  const known: ReadonlySet<unknown> = new Set(kinds)
  const isKnown = (order: unknown) => !isRecord(order) || typeof order.kind !== 'string' || known.has(order.kind)
  return (reply) => {
    if (!isRecord(reply) || !Array.isArray(reply.orders)) return reply
    const { ignored: _said, ...rest } = reply
    const orders = reply.orders.filter(isKnown)
    const left = reply.orders.length - orders.length
    return { ...rest, orders, ...(left > 0 ? { ignored: left } : {}) }
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
