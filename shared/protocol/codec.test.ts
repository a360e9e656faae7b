import { deflateRawSync } from 'node:zlib'
import { describe, expect, it } from 'vitest'
import { SAMPLES } from '../../test/sample-messages.ts'
import { seeded } from '../../test/seeded.ts'
import { IndraftError } from '../errors.ts'
import { decode, encode, pack, unpack } from './codec.ts'
import { MESSAGES, type MessageType, REPLY_OF } from './messages.ts'
import { MAX_MESSAGE_BYTES, PROTOCOL_VERSION } from './version.ts'

const TYPES = Object.keys(MESSAGES) as MessageType[]
const plain = (value: unknown) => Buffer.concat([Buffer.of(0), pack(value)])
const deflated = (bytes: Uint8Array) => Buffer.concat([Buffer.of(1), deflateRawSync(bytes)])
const message = (type: string, body: unknown, version: unknown = PROTOCOL_VERSION) => plain([version, type, body])

function codeOf(frame: Uint8Array): string {
  try {
    decode(frame)
  } catch (error) {
    if (error instanceof IndraftError) return error.code
    throw error
  }
  return 'decoded'
}

describe.each(TYPES)('codec - %s', (type) => {
  it.each(['full', 'small'] as const)('a %s sample comes back as it went', (size) => {
    const body = SAMPLES[type][size]
    const frame = encode(type, body)
    expect(frame.length).toBeLessThanOrEqual(MAX_MESSAGE_BYTES)
    const decoded = decode(frame)
    expect(decoded).toMatchObject({ version: PROTOCOL_VERSION, type })
    expect(unpack(pack(decoded.body))).toEqual(unpack(pack(body)))
  })

  it('unknown fields are ignored', () => {
    const decoded = decode(message(type, { ...SAMPLES[type].small, fromTheFuture: [1, { a: 2 }] }))
    expect(decoded.body).not.toHaveProperty('fromTheFuture')
  })

  it('each missing field is refused by its path', () => {
    for (const field of Object.keys(SAMPLES[type].small)) {
      const { [field]: _gone, ...rest } = SAMPLES[type].small as Record<string, unknown>
      try {
        decode(message(type, rest))
        expect.unreachable(`${type} without ${field} was decoded`)
      } catch (error) {
        expect(error).toMatchObject({ code: 'message.invalid', path: `${type}.${field}` })
      }
    }
  })

  it.each([[null], [5], ['text'], [[]], [new Uint8Array(3)], [undefined]])('%j as the body is refused', (body) => {
    expect(codeOf(message(type, body))).toBe('message.invalid')
  })
})

describe('codec - every request has a reply', () => {
  it('and every message is a request, a reply, or refused', () => {
    const used = new Set<string>([...Object.keys(REPLY_OF), ...Object.values(REPLY_OF), 'refused'])
    expect([...used].sort()).toEqual([...TYPES].sort())
  })
})

describe('codec - what is not a message', () => {
  const bomb = deflated(Buffer.alloc(40_000_000))
  const nested = (depth: number) => Buffer.concat([Buffer.of(0), Buffer.alloc(depth, 0x91), Buffer.of(0xc0)])
  const cases: [string, Uint8Array, string][] = [
    ['nothing', Buffer.of(), 'message.garbled'],
    ['one byte', Buffer.of(0), 'message.garbled'],
    ['an unknown packing', Buffer.of(2, 0xc0), 'message.garbled'],
    ['text', Buffer.from('GET / HTTP/1.1\r\n\r\n'), 'message.garbled'],
    ['JSON', Buffer.from('{"type":"hello"}'), 'message.garbled'],
    ['a number', plain(5), 'message.garbled'],
    ['a map', plain({ type: 'hello' }), 'message.garbled'],
    ['too short an array', plain([1, 'hello']), 'message.garbled'],
    ['a version that is text', message('hello', {}, '1'), 'message.garbled'],
    ['a type that is a number', plain([1, 5, {}]), 'message.garbled'],
    [
      'bytes after the message',
      Buffer.concat([message('farewell', SAMPLES.farewell.full), Buffer.of(1)]),
      'message.garbled',
    ],
    ['deflate that is none', Buffer.of(1, 1, 2, 3, 4), 'message.garbled'],
    ['deflate cut short', deflated(pack([1, 'hello', SAMPLES.hello.full])).subarray(0, 60), 'message.garbled'],
    ['a deflate bomb of 40 MB in 39 kB', bomb, 'message.garbled'],
    ['48 kB and a byte', Buffer.alloc(MAX_MESSAGE_BYTES + 1), 'message.tooLarge'],
    ['a megabyte', Buffer.alloc(1_000_000), 'message.tooLarge'],
    ['nesting 40,000 deep', nested(40_000), 'message.garbled'],
    ['nesting 900,000 deep, deflated', deflated(Buffer.alloc(900_000, 0x91)), 'message.garbled'],
    ['nesting 400 deep', nested(400), 'message.garbled'],
    ['an array of four thousand million', Buffer.of(0, 0xdd, 0xff, 0xff, 0xff, 0xff), 'message.garbled'],
    ['a map of four thousand million', Buffer.of(0, 0xdf, 0xff, 0xff, 0xff, 0xff), 'message.garbled'],
    ['a text of four gigabytes', Buffer.of(0, 0xdb, 0xff, 0xff, 0xff, 0xff), 'message.garbled'],
    ['the next version', message('hello', SAMPLES.hello.full, 2), 'protocol.version'],
    ['version 0', message('hello', SAMPLES.hello.full, 0), 'protocol.version'],
    ['version 1.5', message('hello', SAMPLES.hello.full, 1.5), 'protocol.version'],
    ['version NaN', message('hello', SAMPLES.hello.full, Number.NaN), 'protocol.version'],
    ['an unknown type', message('hallo', {}), 'message.unknown'],
    ['a type named like a method', message('toString', {}), 'message.unknown'],
    ['a type named like the prototype', message('__proto__', {}), 'message.unknown'],
    ['a type named like the constructor', message('constructor', {}), 'message.unknown'],
    ['a type of 40,000 letters', message('x'.repeat(40_000), {}), 'message.unknown'],
  ]
  it.each(cases)('%s', (_title, frame, code) => {
    expect(codeOf(frame)).toBe(code)
  })

  it('a bomb is small on the wire and never unpacked', () => {
    expect(bomb.length).toBeLessThan(MAX_MESSAGE_BYTES)
  })

  it('many big arrays inside one another take no memory', () => {
    const levels = 2000
    const room = Buffer.alloc(900_000)
    for (let level = 0; level < levels; level++) {
      room[level * 5] = 0xdd
      room.writeUInt32BE(800_000, level * 5 + 1)
    }
    const before = process.memoryUsage().rss
    expect(codeOf(deflated(room))).toBe('message.garbled')
    expect(process.memoryUsage().rss - before).toBeLessThan(200e6)
  })
})

describe('codec - keys of the prototype', () => {
  const raw = (key: string) => Buffer.concat([Buffer.of(0x81), pack(key), pack({ polluted: 1 })])

  it.each(['__proto__', 'constructor', 'prototype'])('%s in a message touches no object', (key) => {
    const body = { ...SAMPLES.beat.small, counters: { [`${key}`]: 1 } }
    codeOf(message('beat', body))
    unpack(raw(key))
    codeOf(Buffer.concat([Buffer.of(0, 0x93, 1), pack('farewell'), raw(key)]))
    expect(({} as Record<string, unknown>).polluted).toBeUndefined()
    expect(Object.keys(Object.prototype)).toEqual([])
  })
})

describe('codec - one message leaves nothing behind for the next', () => {
  it('a record definition (an extension we never send) changes no later integer', () => {
    codeOf(Buffer.concat([Buffer.of(0), Buffer.of(0xd4, 0x72, 0x41, 0x91, 0xa1, 0x61, 0x05)]))
    expect(unpack(Buffer.of(0x41))).toBe(65)
    expect(decode(message('farewell', { mark: { epoch: 'e', sequence: 65 } })).body).toEqual({
      mark: { epoch: 'e', sequence: 65 },
    })
  })
})

describe('codec - numbers', () => {
  it.each([
    ['a fence past 2^53', { ...SAMPLES.pull.small, sequence: 2 ** 53 + 2 }],
    ['a negative duration', { ...SAMPLES.pull.small, waitMs: -1 }],
    ['an infinite duration', { ...SAMPLES.pull.small, waitMs: Number.POSITIVE_INFINITY }],
    ['not a number', { ...SAMPLES.pull.small, waitMs: Number.NaN }],
    ['sequence 0', { ...SAMPLES.pull.small, sequence: 0 }],
    ['half a sequence', { ...SAMPLES.pull.small, sequence: 1.5 }],
    ['a sequence as text', { ...SAMPLES.pull.small, sequence: '1' }],
  ])('%s is refused', (_title, body) => {
    expect(codeOf(message('pull', body))).toBe('message.invalid')
  })

  it('a fence of microseconds keeps every digit', () => {
    const fence = Number.MAX_SAFE_INTEGER
    const body = { ...SAMPLES.inventory.full, leases: [{ ...SAMPLES.inventory.full.leases[0]!, fences: [fence, 1] }] }
    expect(decode(encode('inventory', body)).body).toMatchObject({ leases: [{ fences: [fence, 1] }] })
  })
})

describe('codec - sending', () => {
  it('a message that does not fit is the caller`s to split', () => {
    const random = seeded(5)
    const results = Array.from({ length: 250 }, (_, index) => ({
      ...SAMPLES.report.full.results[0]!,
      index,
      tail: Array.from({ length: 400 }, () => String.fromCharCode(33 + random.below(90))).join(''),
    }))
    expect(() => encode('report', { session: 's', results })).toThrow(
      expect.objectContaining({ code: 'message.tooLarge' }),
    )
  })

  it('what repeats is deflated', () => {
    const results = Array.from({ length: 200 }, (_, index) => ({ ...SAMPLES.report.full.results[0]!, index }))
    const frame = encode('report', { session: 's', results })
    expect(frame[0]).toBe(1)
    expect(frame.length).toBeLessThan(12_000)
    expect(decode(frame).body).toEqual({ session: 's', results })
  })
})

describe('codec - mutated frames', () => {
  it.each(TYPES)('%s ends in a message or a code, whatever is changed', (type) => {
    const random = seeded(TYPES.indexOf(type) + 1)
    const bytes = pack([PROTOCOL_VERSION, type, SAMPLES[type].full])
    for (let round = 0; round < 400; round++) {
      const copy = Buffer.from(bytes)
      for (let change = random.below(4); change >= 0; change--) copy[random.below(copy.length)] = random.below(256)
      const cut = random.chance(0.2) ? copy.subarray(0, random.below(copy.length)) : copy
      const frame = random.chance(0.3) ? deflated(cut) : Buffer.concat([Buffer.of(0), cut])
      if (random.chance(0.2)) frame[random.below(frame.length)] = random.below(256)
      expect(codeOf(frame)).toMatch(/^(decoded|message\.(garbled|invalid|unknown|tooLarge)|protocol\.version)$/)
    }
  })
})
