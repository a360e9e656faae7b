/**
 * One encode, one decode. A frame is one byte that says how the rest is packed (0 plain, 1 raw deflate), then msgpack
 * of `[version, type, body]`. Decoding never throws anything but IndraftError: whatever arrives on a socket ends in
 * a message or a code.
 */
import { deflateRawSync, inflateRawSync } from 'node:zlib'
import { Packr } from 'msgpackr'
import type { z } from 'zod'
import { IndraftError } from '../errors.ts'
import { MESSAGES, type Message, type MessageType } from './messages.ts'
import { MAX_MESSAGE_BYTES, PROTOCOL_VERSION, SPOKEN_VERSIONS } from './version.ts'

const PLAIN = 0
const DEFLATED = 1
const DEFLATE_FROM_BYTES = 512
/** A small frame may not unpack to more than this (a bomb). */
const MAX_UNPACKED_BYTES = 1024 * 1024

const packr = new Packr({ useRecords: false, int64AsType: 'number' })

/** msgpack bytes of any plain value, as messages and signed work use them. */
export function pack(value: unknown): Uint8Array<ArrayBuffer> {
  return packr.pack(value) as Uint8Array<ArrayBuffer>
}

/** @throws IndraftError message.garbled */
export function unpack(bytes: Uint8Array): unknown {
  try {
    return packr.unpack(bytes)
  } catch (cause) {
    throw new IndraftError('message.garbled', undefined, { cause })
  }
}

/** @throws IndraftError message.invalid with the path of the first field that does not fit. */
export function check<S extends z.ZodType>(schema: S, value: unknown, what: string): z.infer<S> {
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  const path = [what, ...(issue?.path ?? [])].join('.')
  throw new IndraftError('message.invalid', `${path}: ${issue?.message ?? 'does not fit'}`, { path })
}

/**
 * @param version one of SPOKEN_VERSIONS. Where two differ in a message, this is where the older form is made (and read, in decode)
 * @throws IndraftError message.tooLarge; the caller splits its batch.
 */
export function encode<T extends MessageType>(type: T, body: Message<T>, version = PROTOCOL_VERSION): Uint8Array {
  const plain = packr.pack([version, type, body])
  const small = plain.length >= DEFLATE_FROM_BYTES ? deflateRawSync(plain, { level: 1 }) : plain
  const deflated = small.length < plain.length
  const frame = Buffer.concat([Buffer.of(deflated ? DEFLATED : PLAIN), deflated ? small : plain])
  if (frame.length > MAX_MESSAGE_BYTES || plain.length > MAX_UNPACKED_BYTES) {
    throw new IndraftError('message.tooLarge', `${type} of ${frame.length} bytes`)
  }
  return frame
}

export interface Decoded<T extends MessageType = MessageType> {
  version: number
  type: T
  body: Message<T>
}

/** @throws IndraftError message.* or protocol.version */
export function decode(frame: Uint8Array, spoken: readonly number[] = SPOKEN_VERSIONS): Decoded {
  if (frame.length > MAX_MESSAGE_BYTES) throw new IndraftError('message.tooLarge', `${frame.length} bytes`)
  if (frame.length < 2 || frame[0]! > DEFLATED) throw new IndraftError('message.garbled')
  const value = unpack(frame[0] === DEFLATED ? inflate(frame.subarray(1)) : frame.subarray(1))
  if (!Array.isArray(value) || value.length < 3) throw new IndraftError('message.garbled')
  const [version, type, body] = value as unknown[]
  if (typeof version !== 'number' || typeof type !== 'string') throw new IndraftError('message.garbled')
  if (!spoken.includes(version)) {
    throw new IndraftError('protocol.version', `version ${version}; spoken here: ${spoken.join(', ')}`)
  }
  if (!Object.hasOwn(MESSAGES, type)) throw new IndraftError('message.unknown', `"${type.slice(0, 40)}"`)
  const known = type as MessageType
  return { version, type: known, body: check(MESSAGES[known], body, known) as Message<MessageType> }
}

function inflate(bytes: Uint8Array): Uint8Array {
  try {
    return inflateRawSync(bytes, { maxOutputLength: MAX_UNPACKED_BYTES })
  } catch (cause) {
    throw new IndraftError('message.garbled', undefined, { cause })
  }
}
