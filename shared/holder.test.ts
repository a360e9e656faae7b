import { describe, expect, it } from 'vitest'
import { type ManualClock, manualClock } from '../test/manual-clock.ts'
import { SAMPLES, sampleResult } from '../test/sample-messages.ts'
import { seeded } from '../test/seeded.ts'
import { IndraftError } from './errors.ts'
import { Holder, type HolderOptions } from './holder.ts'
import type { Link } from './link.ts'
import { silentLog } from './log.ts'
import { decode, encode } from './protocol/codec.ts'
import type { Message, MessageType } from './protocol/messages.ts'

type Sent = { type: MessageType; body: Record<string, unknown> }
/** What the far end does with one request: answers, or the link fails. */
type Step = (sent: Sent) => Uint8Array | Promise<Uint8Array>

/** A link that answers by a script, one step a request, and keeps what was sent through the real codec. */
function scriptedLink(...script: Step[]) {
  const sent: Sent[] = []
  const timeouts: number[] = []
  const link: Link = {
    isUp: true,
    async request(frame, timeoutMs) {
      const { type, body } = decode(frame)
      const request = { type, body: body as Record<string, unknown> }
      sent.push(request)
      timeouts.push(timeoutMs)
      const step = script.shift()
      if (!step) throw new Error(`nothing scripted for ${type} number ${sent.length}`)
      return step(request)
    },
    async close() {},
  }
  return { link, sent, timeouts, left: script }
}

const fails =
  (code: 'link.timeout' | 'link.noResponder' | 'link.closed'): Step =>
  () => {
    throw new IndraftError(code)
  }
const refuses =
  (code: Message<'refused'>['code'], retryAfterMs?: number): Step =>
  () =>
    encode('refused', { code, message: 'no', ...(retryAfterMs === undefined ? {} : { retryAfterMs }) })
const welcomes =
  (session: string, sequence = 0): Step =>
  () =>
    encode('welcome', { ...SAMPLES.welcome.full, session, sequence })
const grants: Step = (sent) => encode('grants', { ...SAMPLES.grants.full, sequence: sent.body.sequence as number })
const orders: Step = () => encode('orders', SAMPLES.orders.full)
const reported: Step = () => encode('reported', SAMPLES.reported.full)
const farewell: Step = () => encode('farewell', SAMPLES.farewell.full)

const PULL = { offer: [], finished: [], returned: [], waitMs: 25_000, knows: [] }
const { session: _s, processed: _p, seen: _e, incarnation: _i, ...BEAT } = SAMPLES.beat.small
const BYE = { code: 200, reason: 'done', returned: [] }

function makeHolder(script: Step[], more: Partial<HolderOptions> = {}) {
  const clock = manualClock()
  const line = scriptedLink(...script)
  const holder = new Holder({
    link: line.link,
    clock,
    log: silentLog,
    role: 'pilot',
    holder: 'p-1',
    incarnation: 'i1',
    software: 'test',
    nodes: () => [],
    ...more,
  })
  return { clock, holder, ...line }
}

/** Moves time until the promise is settled, so that back-off costs no test time. */
async function passing<T>(clock: ManualClock, promise: Promise<T>): Promise<T> {
  let settled = false
  const mark = () => {
    settled = true
  }
  promise.then(mark, mark)
  for (let step = 0; step < 1000 && !settled; step++) await clock.advance(1000)
  if (!settled) throw new Error('still waiting after 1000 s of the test`s clock')
  return promise
}
const typesOf = (sent: Sent[]) => sent.map((one) => one.type)

describe('holder - orders of a newer dispatcher', () => {
  it('are left out, and the next beat says how many there were', async () => {
    const newer: Step = () =>
      encode('orders', {
        ...SAMPLES.orders.small,
        orders: [{ kind: 'holder.move' }, { kind: 'holder.drain' }] as never,
      })
    const { holder, sent } = makeHolder([welcomes('s1'), newer, orders])
    await holder.connect()
    expect((await holder.beat(BEAT)).orders).toEqual([{ kind: 'holder.drain' }])
    await holder.beat(BEAT)
    expect(sent.slice(1).map(({ body }) => (body.counters as Record<string, number>).ordersIgnored)).toEqual([
      undefined,
      1,
    ])
  })
})

describe('holder - hello', () => {
  it('is repeated until it is welcomed', async () => {
    const { clock, holder, sent } = makeHolder([
      fails('link.noResponder'),
      fails('link.timeout'),
      refuses('dispatcher.busy'),
      welcomes('s1', 7),
    ])
    const welcome = await passing(clock, holder.connect())
    expect(welcome.session).toBe('s1')
    expect(typesOf(sent)).toEqual(['hello', 'hello', 'hello', 'hello'])
    expect(holder.processed).toBe(7)
  })

  it('of callers at the same time is one', async () => {
    const { clock, holder, sent } = makeHolder([fails('link.timeout'), welcomes('s1')])
    const all = await passing(clock, Promise.all([holder.connect(), holder.connect(), holder.connect()]))
    expect(all.map((welcome) => welcome.session)).toEqual(['s1', 's1', 's1'])
    expect(sent).toHaveLength(2)
  })

  it('that is refused for good ends with the code', async () => {
    const { holder, sent } = makeHolder([refuses('site.disabled')])
    await expect(holder.connect()).rejects.toMatchObject({ code: 'site.disabled' })
    expect(sent).toHaveLength(1)
  })

  it('tells its owner of the welcome before anything else is sent', async () => {
    const seen: [string, boolean, number][] = []
    const made = makeHolder([welcomes('s1'), welcomes('s1'), welcomes('s2'), orders], {
      onWelcome: async (welcome, isNew) => {
        await made.clock.settle()
        seen.push([welcome.session, isNew, made.sent.length])
      },
    })
    const { clock, holder } = made
    for (let hello = 0; hello < 3; hello++) await passing(clock, holder.connect())
    await holder.beat(BEAT)
    expect(seen).toEqual([
      ['s1', true, 1],
      ['s1', false, 2],
      ['s2', true, 3],
    ])
  })

  it('stops when the holder is stopped', async () => {
    const { clock, holder } = makeHolder([fails('link.timeout'), fails('link.timeout')])
    const connecting = holder.connect()
    await clock.settle()
    holder.stop()
    await expect(passing(clock, connecting)).rejects.toMatchObject({ code: 'link.closed' })
    expect(clock.sleeping).toBe(0)
  })

  it('waits at least as long as the dispatcher asked for', async () => {
    const { clock, holder, sent } = makeHolder([refuses('store.full', 60_000), welcomes('s1')])
    const connecting = holder.connect()
    await clock.advance(59_000)
    expect(sent).toHaveLength(1)
    await clock.advance(2000)
    await connecting
    expect(sent).toHaveLength(2)
  })

  it('asks ever more rarely, at most every 12.5 s', async () => {
    const times: number[] = []
    const { clock, holder } = makeHolder([
      ...Array.from(
        { length: 12 },
        (): Step => () => {
          times.push(clock.monotonicMs())
          throw new IndraftError('link.timeout')
        },
      ),
      welcomes('s1'),
    ])
    await passing(clock, holder.connect())
    const gaps = times.slice(1).map((time, i) => time - times[i]!)
    expect(gaps[0]).toBeLessThanOrEqual(250)
    expect(Math.min(...gaps.slice(-4))).toBeGreaterThanOrEqual(7500)
    expect(Math.max(...gaps)).toBeLessThanOrEqual(12_500)
  })
})

describe('holder - pull', () => {
  it('whose reply was lost is repeated under the same sequence', async () => {
    const { clock, holder, sent } = makeHolder([
      welcomes('s1'),
      fails('link.timeout'),
      fails('link.noResponder'),
      refuses('dispatcher.busy'),
      grants,
      grants,
    ])
    await holder.connect()
    const { reply } = await passing(clock, holder.pull(PULL))
    expect(reply.sequence).toBe(1)
    expect(sent.slice(1).map((one) => one.body.sequence)).toEqual([1, 1, 1, 1])
    await holder.pull(PULL)
    expect(sent.at(-1)!.body.sequence).toBe(2)
  })

  it('carries on from the sequence of the welcome', async () => {
    const { holder, sent } = makeHolder([welcomes('s1', 41), grants])
    await holder.connect()
    await holder.pull(PULL)
    expect(sent.at(-1)!.body).toMatchObject({ session: 's1', sequence: 42, processed: 41 })
  })

  it('confirms grants only once they were processed', async () => {
    const { holder, sent } = makeHolder([welcomes('s1'), grants, grants, orders, grants])
    await holder.connect()
    const { reply } = await holder.pull(PULL)
    await holder.pull(PULL)
    holder.processedGrants(reply.sequence)
    await holder.beat(BEAT)
    await holder.pull(PULL)
    expect(sent.slice(1).map((one) => one.body.processed)).toEqual([0, 0, 1, 1])
    holder.processedGrants(0)
    expect(holder.processed).toBe(1)
  })

  it('is one at a time', async () => {
    let answer!: (frame: Uint8Array) => void
    const { clock, holder, sent } = makeHolder([
      welcomes('s1'),
      () => new Promise((resolve) => (answer = resolve)),
      grants,
    ])
    await holder.connect()
    const first = holder.pull(PULL)
    await clock.settle()
    await expect(holder.pull(PULL)).rejects.toThrow('one pull at a time')
    expect(sent).toHaveLength(2)
    answer(grants(sent[1]!) as Uint8Array)
    await first
    await holder.pull(PULL)
  })

  it('waits at the far end and then some', async () => {
    const { holder, timeouts } = makeHolder([welcomes('s1'), grants])
    await holder.connect()
    await holder.pull({ ...PULL, waitMs: 25_000 })
    expect(timeouts[1]).toBe(35_000)
  })

  it('in a lost session: hello, then the caller builds it anew', async () => {
    const { clock, holder, sent } = makeHolder([welcomes('s1'), refuses('session.unknown'), welcomes('s2'), grants])
    await holder.connect()
    await expect(passing(clock, holder.pull(PULL))).rejects.toMatchObject({ code: 'session.unknown' })
    await holder.pull(PULL)
    expect(typesOf(sent)).toEqual(['hello', 'pull', 'hello', 'pull'])
    expect(sent[3]!.body).toMatchObject({ session: 's2', sequence: 1, processed: 0 })
  })

  it('in a session that lives on keeps its count', async () => {
    const { clock, holder, sent } = makeHolder([
      welcomes('s1'),
      grants,
      refuses('session.unknown'),
      welcomes('s1', 1),
      grants,
    ])
    await holder.connect()
    holder.processedGrants((await holder.pull(PULL)).reply.sequence)
    await expect(passing(clock, holder.pull(PULL))).rejects.toMatchObject({ code: 'session.unknown' })
    await holder.pull(PULL)
    expect(sent.at(-1)!.body).toMatchObject({ session: 's1', processed: 1 })
    expect(sent.at(-1)!.body.sequence).toBeGreaterThan(1)
  })

  it.each(['session.sequence', 'message.invalid', 'site.disabled', 'auth.forbidden'] as const)(
    'refused with %s is not repeated',
    async (code) => {
      const { holder, sent, left } = makeHolder([welcomes('s1'), refuses(code), grants])
      await holder.connect()
      await expect(holder.pull(PULL)).rejects.toMatchObject({ code })
      expect([sent.length, left.length]).toEqual([2, 1])
      await holder.pull(PULL)
    },
  )

  it('answered with something else is an error by code', async () => {
    for (const answer of [orders, reported, () => Buffer.from('garbage'), () => new Uint8Array()] as Step[]) {
      const { holder } = makeHolder([welcomes('s1'), answer])
      await holder.connect()
      await expect(holder.pull(PULL)).rejects.toMatchObject({ code: expect.stringMatching(/^message\./) })
    }
  })

  it('before hello is an error to the caller', async () => {
    const { holder, sent } = makeHolder([])
    await expect(holder.pull(PULL)).rejects.toMatchObject({ code: 'session.unknown' })
    await expect(holder.beat(BEAT)).rejects.toMatchObject({ code: 'session.unknown' })
    expect(sent).toHaveLength(0)
  })

  it('does not repeat one that is too large to send', async () => {
    const { holder, sent } = makeHolder([welcomes('s1')])
    await holder.connect()
    const random = seeded(3)
    const text = () => Array.from({ length: 500 }, () => String.fromCharCode(33 + random.below(90))).join('')
    const finished = Array.from({ length: 256 }, (_, index) => ({ ...sampleResult, index, detail: text() }))
    await expect(holder.pull({ ...PULL, finished })).rejects.toMatchObject({ code: 'message.tooLarge' })
    expect(sent).toHaveLength(1)
  })
})

describe('holder - one that kept its memory over a restart', () => {
  const resume = { session: 's1', processed: 5, seen: { epoch: 'e1', sequence: 9000 } }

  it('goes on in its session and confirms only what it had kept', async () => {
    const { holder, sent } = makeHolder([welcomes('s1', 7), orders, grants], { resume })
    await holder.connect()
    await holder.beat(BEAT)
    await holder.pull(PULL)
    expect(sent[0]!.body.seen).toEqual({ epoch: 'e1', sequence: 9000 })
    expect(sent[1]!.body).toMatchObject({ session: 's1', processed: 5 })
    expect(sent[2]!.body).toMatchObject({ sequence: 8, processed: 5 })
  })

  it('begins anew where the session is another', async () => {
    const news: boolean[] = []
    const onWelcome = (_: unknown, isNew: boolean) => void news.push(isNew)
    const { holder, sent } = makeHolder([welcomes('s2'), grants], { resume, onWelcome })
    await holder.connect()
    await holder.pull(PULL)
    expect(news).toEqual([true])
    expect(sent[1]!.body).toMatchObject({ session: 's2', sequence: 1, processed: 0 })
  })
})

describe('holder - leases count from the sending', () => {
  it('of the request that was answered, not from its answer', async () => {
    const { clock, holder } = makeHolder([
      welcomes('s1'),
      async (sent) => {
        await clock.sleep(5000)
        return grants(sent)
      },
      orders,
    ])
    await clock.advance(100)
    await holder.connect()
    expect(holder.renewedAtMs).toBe(100)
    await clock.advance(900)
    const pulling = holder.pull(PULL)
    await clock.advance(10_000)
    expect((await pulling).sentAtMs).toBe(1000)
    expect(holder.renewedAtMs).toBe(1000)
    await holder.beat(BEAT)
    expect(holder.renewedAtMs).toBe(11_000)
  })

  it('a slow answer never takes back what a later one renewed', async () => {
    const { clock, holder } = makeHolder([
      welcomes('s1'),
      async (sent) => {
        await clock.sleep(5000)
        return grants(sent)
      },
      orders,
    ])
    await holder.connect()
    const pulling = holder.pull(PULL)
    await clock.advance(2000)
    await holder.beat(BEAT)
    await clock.advance(4000)
    await pulling
    expect(holder.renewedAtMs).toBe(2000)
  })
})

describe('holder - the store`s mark', () => {
  const marked =
    (epoch: string, sequence: number): Step =>
    () =>
      encode('orders', { mark: { epoch, sequence }, orders: [] })

  it('shows the highest it has seen of the epoch', async () => {
    const { holder, sent } = makeHolder([
      welcomes('s1'),
      ...[5000, 4000].map((n) => marked('e1', n)),
      marked('e2', 1),
      orders,
    ])
    await holder.connect()
    for (let beat = 0; beat < 4; beat++) await holder.beat(BEAT)
    expect(sent.map((one) => one.body.seen)).toEqual([
      null,
      { epoch: 'e1', sequence: 4711 },
      { epoch: 'e1', sequence: 5000 },
      { epoch: 'e1', sequence: 5000 },
      { epoch: 'e2', sequence: 1 },
    ])
  })
})

describe('holder - report', () => {
  it('is repeated until the dispatcher has it', async () => {
    const { clock, holder, sent } = makeHolder([
      welcomes('s1'),
      fails('link.timeout'),
      refuses('internal.error'),
      fails('link.noResponder'),
      reported,
    ])
    await holder.connect()
    const reply = await passing(clock, holder.report([sampleResult]))
    expect(reply.verdicts).toHaveLength(3)
    expect(new Set(sent.slice(1).map((one) => JSON.stringify(one.body))).size).toBe(1)
  })

  it('may go beside an outstanding pull', async () => {
    let answer!: (frame: Uint8Array) => void
    const { clock, holder, sent } = makeHolder([
      welcomes('s1'),
      () => new Promise((resolve) => (answer = resolve)),
      reported,
    ])
    await holder.connect()
    const pulling = holder.pull(PULL)
    await clock.settle()
    await holder.report([sampleResult])
    answer(grants(sent[1]!) as Uint8Array)
    await pulling
    expect(typesOf(sent)).toEqual(['hello', 'pull', 'report'])
  })

  it('repeated after a beat found a new session goes under the new one', async () => {
    const { clock, holder, sent } = makeHolder([
      welcomes('s1'),
      fails('link.timeout'),
      refuses('session.unknown'),
      welcomes('s2'),
      reported,
    ])
    await holder.connect()
    const reporting = holder.report([sampleResult])
    await clock.settle()
    await expect(holder.beat(BEAT)).rejects.toMatchObject({ code: 'session.unknown' })
    await passing(clock, reporting)
    expect(typesOf(sent)).toEqual(['hello', 'report', 'beat', 'hello', 'report'])
    expect(sent.at(-1)!.body.session).toBe('s2')
  })
})

describe('holder - beat and inventory', () => {
  it('are not repeated: the next one is due soon enough', async () => {
    const { holder, sent } = makeHolder([welcomes('s1'), fails('link.timeout'), refuses('dispatcher.busy'), orders])
    await holder.connect()
    await expect(holder.beat(BEAT)).rejects.toMatchObject({ code: 'link.timeout' })
    await expect(holder.inventory({ part: 0, parts: 1, leases: [] })).rejects.toMatchObject({ code: 'dispatcher.busy' })
    expect((await holder.beat(BEAT)).orders).toHaveLength(5)
    expect(sent).toHaveLength(4)
  })

  it('a beat carries the incarnation', async () => {
    const { holder, sent } = makeHolder([welcomes('s1'), orders])
    await holder.connect()
    await holder.beat(BEAT)
    expect(sent[1]!.body).toMatchObject({ session: 's1', incarnation: 'i1' })
  })
})

describe('holder - bye', () => {
  it('says it once when it is heard', async () => {
    const { holder, sent } = makeHolder([welcomes('s1'), farewell])
    await holder.connect()
    expect(await holder.bye(BYE)).toBe(true)
    expect(sent).toHaveLength(2)
  })

  it.each<[string, Step, number]>([
    ['a dead link', fails('link.timeout'), 3],
    ['a closed link', fails('link.closed'), 1],
    ['a refusal', refuses('site.disabled'), 1],
    ['garbage', () => Buffer.from('?'), 1],
    [
      'a bug below',
      () => {
        throw new TypeError('below')
      },
      3,
    ],
  ])('never throws for %s, and gives up', async (_title, step, tries) => {
    const { holder, sent } = makeHolder([welcomes('s1'), step, step, step, step])
    await holder.connect()
    expect(await holder.bye(BYE)).toBe(false)
    expect(sent).toHaveLength(1 + tries)
  })

  it('works after stop, and needs no session', async () => {
    const { holder } = makeHolder([welcomes('s1'), farewell])
    expect(await holder.bye(BYE)).toBe(false)
    await holder.connect()
    holder.stop()
    expect(await holder.bye(BYE)).toBe(true)
  })
})

describe('beat - timeout', () => {
  it('is short enough for several beats before the session counts as dead', async () => {
    const quick: Step = () =>
      encode('welcome', {
        ...SAMPLES.welcome.full,
        timings: { ...SAMPLES.welcome.full.timings, beatMs: 500, lostAfterMs: 6000 },
      })
    const { holder, timeouts } = makeHolder([quick, orders])
    await holder.connect()
    await holder.beat(BEAT)
    expect(timeouts.at(-1)).toBe(1500)
  })
})
