/** What a peer of a newer release may say in words that this one does not know: read as a general word, not refused. */
import { describe, expect, it } from 'vitest'
import { z } from 'zod'
import { SAMPLES } from '../../test/sample-messages.ts'
import { IndraftError } from '../errors.ts'
import { decode, pack } from './codec.ts'
import { type MessageType, nodeFactsSchema, resultSchema } from './messages.ts'
import { PROTOCOL_VERSION } from './version.ts'

/** Through the bytes that such a peer would send. */
const read = (type: MessageType, body: object): Record<string, unknown> =>
  decode(Buffer.concat([Buffer.of(0), pack([PROTOCOL_VERSION, type, body])])).body as never

const attempt = { campaign: 'c', step: 's', index: 0, bundle: 'b', fences: [1] }
const mark = { epoch: 'e', sequence: 1 }

describe('newer peer - a refusal', () => {
  it('by a code that is not known here keeps it as text', () => {
    expect(read('refused', { code: 'dispatcher.moved', message: 'to another place', path: 'x' })).toEqual({
      code: 'code.unknown',
      message: 'dispatcher.moved: to another place',
      path: 'x',
    })
  })

  it('that says when to ask again is one to be repeated', () => {
    expect(read('refused', { code: 'dispatcher.moving', message: 'soon there', retryAfterMs: 500 })).toMatchObject({
      code: 'dispatcher.busy',
      message: 'dispatcher.moving: soon there',
      retryAfterMs: 500,
    })
  })

  it('with a long message still fits', () => {
    expect(read('refused', { code: 'new.code', message: 'm'.repeat(1000) }).message).toHaveLength(1000)
  })

  it('by a code like a name of the prototype is read too', () => {
    for (const code of ['constructor', '__proto__']) {
      expect(read('refused', { code, message: '' })).toMatchObject({ code: 'code.unknown' })
    }
  })
})

describe('newer peer - orders', () => {
  it('of kinds that are not known here are left out and counted; the others stand', () => {
    const orders = [
      { kind: 'attempt.suspend', attempt },
      { kind: 'holder.inventory' },
      { kind: 'holder.move', to: 'elsewhere' },
    ]
    expect(read('orders', { mark, orders })).toEqual({ mark, orders: [{ kind: 'holder.inventory' }], ignored: 2 })
  })

  it('all known: nothing is counted, whatever the peer says', () => {
    expect(read('orders', { mark, orders: [], ignored: 7 })).toEqual({ mark, orders: [] })
  })

  it.each([
    ['a known kind with a wrong field', [{ kind: 'attempt.cancel', attempt: 7 }]],
    ['no kind at all', [{ attempt }]],
    ['no object', [7]],
  ])('%s is refused as ever', (_title, orders) => {
    expect(() => read('orders', { mark, orders })).toThrow(IndraftError)
  })
})

describe('newer peer - a result', () => {
  const result = { ...SAMPLES.report.full.results[0]!, end: 'failed' as const }

  it('that failed for a reason not known here is charged to the infrastructure, the reason kept', () => {
    const results = [{ ...result, reason: 'payload.tooHot', detail: '91 degrees' }]
    expect(read('report', { session: 's', results }).results).toMatchObject([
      { reason: 'node.fault', detail: 'payload.tooHot: 91 degrees' },
    ])
  })

  it('without a detail has the reason as one; one in a pull too', () => {
    const finished = [{ ...result, reason: 'payload.tooHot', detail: null }]
    expect(read('pull', { ...SAMPLES.pull.small, finished }).finished).toMatchObject([
      { reason: 'node.fault', detail: 'payload.tooHot' },
    ])
  })
})

describe('newer peer - single words', () => {
  const at = (value: unknown, path: string) =>
    path.split('.').reduce((inner, key) => (inner as Record<string, unknown>)[key], value)
  const changed = (value: unknown, path: readonly string[], word: unknown): unknown => {
    const [key, ...rest] = path
    if (key === undefined) return word
    const copy = (Array.isArray(value) ? [...value] : { ...(value as object) }) as Record<string, unknown>
    copy[key] = changed(copy[key], rest, word)
    return copy
  }
  const cases: [MessageType, string, unknown][] = [
    ['grants', 'reason', 'noWork'],
    ['grants', 'verdicts.0.verdict', 'stale'],
    ['reported', 'verdicts.0.verdict', 'stale'],
    ['welcome', 'inventory', 'list'],
    ['beat', 'pilots.0.state', 'active'],
    ['hello', 'nodes.0.network', 'none'],
    ['demanded', 'reason', 'noWork'],
  ]
  it.each(cases)('%s %s', (type, path, expected) => {
    const whole = SAMPLES[type].full
    expect(at(read(type, changed(whole, path.split('.'), 'fromTheFuture') as object), path)).toBe(expected)
    expect(() => read(type, changed(whole, path.split('.'), 7) as object)).toThrow(IndraftError)
  })

  it('a way to run payloads that is not known here is left out', () => {
    const { nodes } = SAMPLES.hello.full
    const hello = { ...SAMPLES.hello.full, nodes: [{ ...nodes[0], runtimes: ['host', 'microvm'] }] }
    expect(at(read('hello', hello), 'nodes.0.runtimes')).toEqual(['host'])
  })

  it('a word on which the meaning hangs is refused as ever', () => {
    expect(() => read('hello', { ...SAMPLES.hello.full, role: 'broker' })).toThrow(IndraftError)
    const results = [{ ...SAMPLES.report.full.results[0]!, end: 'half' }]
    expect(() => read('report', { session: 's', results })).toThrow(IndraftError)
  })
})

it('newer peer - what is read so can be shown as well, by the API among others', () => {
  expect(z.encode(resultSchema, SAMPLES.report.full.results[0]!)).toEqual(SAMPLES.report.full.results[0])
  expect(z.encode(nodeFactsSchema, SAMPLES.hello.full.nodes[0]!)).toEqual(SAMPLES.hello.full.nodes[0])
})
