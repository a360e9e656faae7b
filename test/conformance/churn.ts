/**
 * A small site under faults: several real holders (shared/holder.ts) pull, run nothing for no time, and hand results
 * in, over links that lose, double and delay; some die with what they hold. It ends when every task has ended.
 *
 * Accepted is counted where the dispatcher answers, before a reply can be lost: a success of a task may be accepted
 * once, however often it is handed in.
 */
import { expect } from 'vitest'
import { isIndraftError } from '../../shared/errors.ts'
import { heldDigest } from '../../shared/held.ts'
import { Holder } from '../../shared/holder.ts'
import type { FrameHandler, Link } from '../../shared/link.ts'
import { silentLog } from '../../shared/log.ts'
import { decode } from '../../shared/protocol/codec.ts'
import type { LeasePart, Message, Result } from '../../shared/protocol/messages.ts'
import { indices, parseRanges } from '../../shared/ranges.ts'
import { type Seeded, seeded } from '../seeded.ts'
import { type Faults, faultyLink } from './faulty-link.ts'
import { failedWith, NODE, resultOf, taskName } from './simulated-holder.ts'
import type { DispatcherUnderTest } from './suite.ts'

export interface ChurnOptions {
  seed: number
  tasks: number
  holders: number
  faults: Faults
  /** Share of grants after which the holder dies with what it holds. */
  crashes: number
  /** Share of attempts that fail, charged to the infrastructure. */
  failures: number
}

/** @param accepted from countingAccepted around the dispatcher that `open` leads to */
export async function churn(
  dispatcher: DispatcherUnderTest,
  open: () => Promise<Link>,
  accepted: ReadonlyMap<string, number>,
  options: ChurnOptions,
): Promise<void> {
  const stop = new AbortController()
  const tasks = await dispatcher.seed(options.tasks)
  const random = seeded(options.seed)
  const holders = Array.from({ length: options.holders }, (_, i) =>
    liveSeveralLives(`h${i}`, dispatcher, open, seeded(random.below(2 ** 31)), options, stop.signal),
  )
  try {
    await Promise.race([untilOver(dispatcher, stop.signal), Promise.all(holders)])
  } finally {
    stop.abort()
    await Promise.allSettled(holders)
  }
  await Promise.all(holders)
  const outcome = await dispatcher.outcome()
  expect([...outcome.keys()].sort()).toEqual([...tasks].sort())
  expect([...outcome].filter(([, state]) => state !== 'done')).toEqual([])
  expect(await dispatcher.invariants()).toEqual([])
  expect([...accepted].filter(([, times]) => times !== 1)).toEqual([])
  expect(dispatcher.acceptedSuccesses?.() ?? accepted.size).toBe(tasks.length)
}

async function untilOver(dispatcher: DispatcherUnderTest, signal: AbortSignal): Promise<void> {
  for (let turn = 0; !signal.aborted; turn++) {
    const outcome = await dispatcher.outcome()
    if ([...outcome.values()].every((state) => state === 'done' || state === 'failed')) return
    await dispatcher.clock.sleep(Math.max(500 * dispatcher.timeScale, 20))
    // What has to fall due (a dead holder's leases) is helped along where time can be.
    if (turn > 20) await dispatcher.advance(200 * dispatcher.timeScale)
  }
}

/** Counts each acceptance of a success once per decision: a stored reply that is repeated is the same decision. */
export function countingAccepted(handler: FrameHandler, accepted: Map<string, number>): FrameHandler {
  const answered = new Set<string>()
  return async (peer, frame) => {
    const reply = await handler(peer, frame)
    const answer = decode(reply)
    if (answer.type !== 'grants' && answer.type !== 'reported') return reply
    const request = decode(frame)
    const { verdicts } = answer.body as Message<'grants'>
    const results =
      request.type === 'pull' ? (request.body as Message<'pull'>).finished : (request.body as Message<'report'>).results
    if (request.type === 'pull') {
      const { session, sequence } = request.body as Message<'pull'>
      if (answered.has(`${session}#${sequence}`)) return reply
      answered.add(`${session}#${sequence}`)
    }
    for (const [i, verdict] of verdicts.entries()) {
      if (verdict.verdict !== 'accepted' || results[i]?.end !== 'done') continue
      const name = taskName(verdict)
      accepted.set(name, (accepted.get(name) ?? 0) + 1)
    }
    return reply
  }
}

async function liveSeveralLives(
  name: string,
  dispatcher: DispatcherUnderTest,
  open: () => Promise<Link>,
  random: Seeded,
  options: ChurnOptions,
  signal: AbortSignal,
): Promise<void> {
  for (let life = 0; !signal.aborted; life++) {
    const inner = await open()
    const delayMs = options.faults.delayMs.map((ms) => ms * dispatcher.timeScale) as [number, number]
    const link = faultyLink(inner, dispatcher.clock, random, { ...options.faults, delayMs })
    try {
      await liveOnce(name, `i${life}`, dispatcher, link, random, options, signal)
    } catch (error) {
      if (!signal.aborted) throw error
    } finally {
      await inner.close()
    }
  }
}

/** One incarnation: ends by dying (its link is cut with it) or with the test. */
async function liveOnce(
  name: string,
  incarnation: string,
  dispatcher: DispatcherUnderTest,
  link: Link,
  random: Seeded,
  options: ChurnOptions,
  signal: AbortSignal,
): Promise<void> {
  const { clock, role, timeScale } = dispatcher
  const life = new AbortController()
  const end = AbortSignal.any([signal, life.signal])
  const holder = new Holder({
    link,
    clock,
    log: silentLog,
    role,
    holder: name,
    incarnation,
    software: 'simulated/1',
    nodes: () => [{ ...NODE, node: `node-of-${name}` }],
    requestTimeoutMs: 8000 * timeScale,
  })
  end.addEventListener('abort', () => holder.stop(), { once: true })
  const held = new Map<string, LeasePart>()
  const beats = beatAlong(holder, clock, held, end)
  let finished: Result[] = []
  try {
    await holder.connect()
    while (!end.aborted) {
      const batch = finished
      const { node: _node, timeLeftMs: _time, labels: _labels, ...shape } = NODE
      const pulled = await holder
        .pull({
          offer: [{ shape, count: 1, timeLeftMs: null, aheadMs: 0, node: `node-of-${name}` }],
          finished: batch,
          returned: [],
          waitMs: batch.length > 0 ? 0 : 5000 * timeScale,
          knows: [],
        })
        .catch((error: unknown) => {
          if (isIndraftError(error, 'session.unknown')) return undefined
          throw error
        })
      if (!pulled) continue
      finished = finished.slice(batch.length)
      forget(held, batch)
      const leases = pulled.reply.grants.map((grant) => grant.lease)
      for (const lease of leases) held.set(keyOf(lease), lease)
      holder.processedGrants(pulled.reply.sequence)
      if (leases.length > 0 && random.chance(options.crashes)) return
      const results = leases.flatMap((lease) =>
        [...indices(parseRanges(lease.tasks))].map((index) =>
          resultOf(lease, index, random.chance(options.failures) ? failedWith('stage.inFailed') : {}),
        ),
      )
      if (random.chance(0.3) && results.length > 0) {
        const reported = await holder.report(results).catch((error: unknown) => {
          if (isIndraftError(error, 'session.unknown')) return undefined
          throw error
        })
        // Also handed in once more with the next pull, as a holder does that is not sure.
        if (reported && random.chance(0.5)) forget(held, results)
        else finished.push(...results)
      } else finished.push(...results)
      if (leases.length === 0 && batch.length === 0) await clock.sleep(pulled.reply.askAgainMs, end)
    }
  } finally {
    life.abort()
    await beats
  }
}

const keyOf = (lease: { bundle: string; fences: number[] }) => `${lease.bundle}#${lease.fences.join('.')}`

function forget(held: Map<string, LeasePart>, results: readonly Result[]): void {
  for (const result of results) held.delete(keyOf(result))
}

async function beatAlong(
  holder: Holder,
  clock: DispatcherUnderTest['clock'],
  held: Map<string, LeasePart>,
  end: AbortSignal,
): Promise<void> {
  while (!end.aborted) {
    await clock.sleep(holder.welcome?.timings.beatMs ?? 20, end)
    if (end.aborted || !holder.welcome) continue
    const leases = [...held.values()]
    const list = leases.map(({ bundle, campaign, step, fences }) => ({ bundle, campaign, step, fences }))
    const digest = heldDigest(leases.map((lease) => ({ bundle: lease.bundle, fence: lease.fences.at(-1)! })))
    const reply = await holder
      .beat({
        draining: false,
        started: [],
        held: holder.welcome.inventory === 'list' ? list : { count: leases.length, digest },
        counters: {},
        gauges: {},
        pilots: [],
        usage: [],
      })
      .catch(() => undefined)
    if (reply?.orders.some((order) => order.kind === 'holder.inventory')) {
      await holder.inventory({ part: 0, parts: 1, leases: [...held.values()].slice(0, 200) }).catch(() => undefined)
    }
  }
}
