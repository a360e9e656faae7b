import { describe, expect, it } from 'vitest'
import { SAMPLES } from '../test/sample-messages.ts'
import { type Dispatcher, frameHandler } from './dispatcher.ts'
import { type ErrorCode, IndraftError } from './errors.ts'
import { silentLog } from './log.ts'
import { decode, encode } from './protocol/codec.ts'
import { MESSAGES, type Message, type MessageType, REPLY_OF, type RequestType } from './protocol/messages.ts'

const REQUESTS = Object.keys(REPLY_OF) as RequestType[]
const PEER = { site: 'ALPHA' }

/** A dispatcher that keeps what it was asked and answers by the book, unless told otherwise. */
function recording(answers: Partial<Dispatcher> = {}) {
  const asked: { type: string; site: string; body: unknown }[] = []
  const refused: ErrorCode[] = []
  const answered: string[] = []
  const note =
    <T extends RequestType>(type: T) =>
    async (peer: { site: string }, body: unknown) => {
      asked.push({ type, site: peer.site, body })
      return SAMPLES[REPLY_OF[type]].full as never
    }
  const dispatcher: Dispatcher = {
    onHello: note('hello'),
    onPull: note('pull'),
    onReport: note('report'),
    onBeat: note('beat'),
    onInventory: note('inventory'),
    onBye: note('bye'),
    onDemand: note('demand'),
    ...answers,
  }
  const handle = frameHandler(dispatcher, silentLog, {
    onRefused: (code) => refused.push(code),
    onAnswered: (type) => answered.push(type),
  })
  return { handle, asked, refused, answered }
}
const refusedWith = async (reply: Promise<Uint8Array>) => {
  const { type, body } = decode(await reply)
  expect(type).toBe('refused')
  return body as Message<'refused'>
}

describe('dispatcher - frames become calls', () => {
  it.each(REQUESTS)('%s is answered with its own reply', async (type) => {
    const { handle, asked, answered, refused } = recording()
    const reply = decode(await handle(PEER, encode(type, SAMPLES[type].full)))
    expect(reply.type).toBe(REPLY_OF[type])
    expect(asked).toMatchObject([{ type, site: 'ALPHA' }])
    expect([answered, refused]).toEqual([[type], []])
  })

  it.each((Object.keys(MESSAGES) as MessageType[]).filter((type) => !(REQUESTS as string[]).includes(type)))(
    '%s is a reply and refused as a request',
    async (type) => {
      const { handle, asked, refused } = recording()
      const { code } = await refusedWith(handle(PEER, encode(type, SAMPLES[type].full as never)))
      expect([code, refused, asked]).toEqual(['message.unknown', ['message.unknown'], []])
    },
  )
})

describe('dispatcher - what goes wrong becomes a code', () => {
  it('a refusal keeps its words, field and time', async () => {
    const { handle, refused } = recording({
      onPull: async () => {
        throw new IndraftError('store.full', 'later', { path: 'pull.offer', retryAfterMs: 250 })
      },
    })
    const reply = await refusedWith(handle(PEER, encode('pull', SAMPLES.pull.full)))
    expect(reply).toEqual({ code: 'store.full', message: 'later', path: 'pull.offer', retryAfterMs: 250 })
    expect(refused).toEqual(['store.full'])
  })

  it('a bug is an internal error that tells nothing', async () => {
    const { handle } = recording({
      onBeat: async () => {
        throw new TypeError('password is hunter2')
      },
    })
    const reply = await refusedWith(handle(PEER, encode('beat', SAMPLES.beat.full)))
    expect(reply).toEqual({ code: 'internal.error', message: 'internal error' })
  })

  it('garbage is refused and the next message answered', async () => {
    const { handle, refused } = recording()
    expect((await refusedWith(handle(PEER, Buffer.from('garbage')))).code).toBe('message.garbled')
    expect((await refusedWith(handle(PEER, new Uint8Array()))).code).toBe('message.garbled')
    expect((await refusedWith(handle(PEER, Buffer.alloc(100_000)))).code).toBe('message.tooLarge')
    expect(refused).toHaveLength(3)
    expect(decode(await handle(PEER, encode('hello', SAMPLES.hello.full))).type).toBe('welcome')
  })

  it('a long name from a peer does not make the refusal too long', async () => {
    const { handle } = recording()
    const counters = { ['x'.repeat(20_000)]: 'no number' as unknown as number }
    const frame = encode('beat', { ...SAMPLES.beat.small, counters })
    expect((await refusedWith(handle(PEER, frame))).code).toBe('message.invalid')
  })

  it('an answer too large to send is an error, not silence', async () => {
    const { handle } = recording({
      onPull: async () => ({ ...SAMPLES.grants.full, grants: Array.from({ length: 200 }, noisyGrant) }),
    })
    expect((await refusedWith(handle(PEER, encode('pull', SAMPLES.pull.full)))).code).toBe('message.tooLarge')
  })
})

function noisyGrant(): Message<'grants'>['grants'][number] {
  const bytes = crypto.getRandomValues(new Uint8Array(1000))
  return { ...SAMPLES.grants.full.grants[0]!, bundle: { bytes, signature: bytes.slice(0, 64), key: 'k' } }
}
