/**
 * What every dispatcher must do, whoever implements it: simulated holders drive it through the real codec over a link
 * with chosen faults. Plug one in with `conformance(name, makeDispatcher)`; see model.test.ts for the shortest use.
 *
 * A scenario is named for the rule that it holds. It knows nothing of how the dispatcher keeps its state: it sees
 * answers, the outcome of each task, and what the dispatcher's own invariants say.
 */
import { afterEach, describe, expect, it } from 'vitest'
import type { Clock } from '../../shared/clock.ts'
import { heldDigest } from '../../shared/held.ts'
import { type FrameHandler, type Link, memoryLink } from '../../shared/link.ts'
import { decode, encode, pack } from '../../shared/protocol/codec.ts'
import type { LeasePart, Message, Result } from '../../shared/protocol/messages.ts'
import { MAX_MESSAGE_BYTES } from '../../shared/protocol/version.ts'
import { countRanges, formatRanges, parseRanges, takeFirst } from '../../shared/ranges.ts'
import { SAMPLES } from '../sample-messages.ts'
import { churn, countingAccepted } from './churn.ts'
import { NO_FAULTS } from './faulty-link.ts'
import { codeOf, failedWith, NODE, resultOf, resultsOf, SimulatedHolder, tasksOf } from './simulated-holder.ts'

export interface DispatcherUnderTest {
  handler: FrameHandler
  /** The site that requests come from. */
  site: string
  /** What its holders are. */
  role: 'pilot' | 'relay'
  /** The clock that links and holders use; the dispatcher's own where it takes one. */
  clock: Clock
  /** How much shorter than usual its intervals are on that clock; faults and timeouts are shortened alike. */
  timeScale: number
  /** Makes so many tasks of one core and architecture x86_64, with several infrastructure retries and no payload ones, ready to be granted. */
  seed(count: number): Promise<string[]>
  /** Of every seeded task, by `campaign/step/index`: done, failed, or another word while it is open. */
  outcome(): Promise<Map<string, string>>
  /**
   * Successes accepted so far, where the dispatcher counts them itself. It may decide a pull that is overtaken by its
   * own duplicate and then answer only the duplicate, so replies alone may show fewer.
   */
  acceptedSuccesses?(): number
  /** Everything that should never be so, in words; empty is right. */
  invariants(): Promise<string[]>
  /** Lets so many milliseconds of the dispatcher's own time pass, with all that falls due. */
  advance(ms: number): Promise<void>
  close(): Promise<void>
}

export interface Carrier {
  name: string
  /** Puts the handler behind a transport; `open` gives a link to it. */
  serve(handler: FrameHandler, site: string, clock: Clock): Promise<{ open(): Promise<Link>; close(): Promise<void> }>
}

export const inMemory: Carrier = {
  name: 'in memory',
  serve: async (handler, site, clock) => ({
    open: async () => memoryLink({ site }, handler, clock),
    close: async () => {},
  }),
}

export interface SuiteOptions {
  carriers?: Carrier[]
  /** Tasks of each run under faults. */
  churnTasks?: number
  /** Only the scenarios whose titles match; all where not given. */
  only?: RegExp
  /** Scenarios that this dispatcher is known not to pass, by title, with the reason; they are reported as todo. */
  knownGaps?: Record<string, string>
}

export function conformance(name: string, make: () => Promise<DispatcherUnderTest>, options: SuiteOptions = {}): void {
  const { carriers = [inMemory], churnTasks = 300, only = /./, knownGaps = {} } = options
  describe.each(carriers)(`conformance - ${name} $name`, (carrier) => {
    let close: (() => Promise<void>)[] = []
    afterEach(async () => {
      for (const end of close.reverse()) await end()
      close = []
    })

    async function start() {
      const dispatcher = await make()
      close.push(() => dispatcher.close())
      const accepted = new Map<string, number>()
      const handler = countingAccepted(dispatcher.handler, accepted)
      const served = await carrier.serve(handler, dispatcher.site, dispatcher.clock)
      close.push(() => served.close())
      const open = async () => {
        const link = await served.open()
        close.push(() => link.close())
        return link
      }
      const holder = async (holderName: string) => {
        const made = new SimulatedHolder(await open(), dispatcher.role, holderName)
        await made.hello()
        return made
      }
      /** Time passes while these holders beat; a refused beat is theirs to find out later. */
      const pass = async (ms: number, ...alive: SimulatedHolder[]) => {
        const steps = Math.max(12, Math.ceil((24 * ms) / (60_000 * dispatcher.timeScale)))
        for (let step = 0; step < steps; step++) {
          for (const one of alive) await one.ask('beat', one.beatBody())
          await dispatcher.advance(ms / steps)
        }
        for (const one of alive) await one.ask('beat', one.beatBody())
      }
      const silence = (ms: number) => dispatcher.advance(ms)
      const allDone = async () => {
        await expectOutcome(dispatcher, 'done')
        expect(await dispatcher.invariants()).toEqual([])
      }
      return { dispatcher, open, accepted, holder, pass, silence, allDone }
    }

    const scenario = (title: string, body: () => Promise<void>) => {
      if (!only.test(title)) return
      const gap = knownGaps[title]
      if (gap === undefined) it(title, body)
      else it.fails(`${title} (known gap: ${gap})`, body)
    }

    scenario('hello - the same incarnation again is the same session', async () => {
      const { holder } = await start()
      const a = await holder('a')
      const first = a.session
      await a.hello()
      expect(a.session).toBe(first)
      expect((await holder('b')).session).not.toBe(first)
    })

    scenario('hello - a new incarnation voids the old session and frees what it held', async () => {
      const { dispatcher, holder, pass, allDone } = await start()
      const seeded = await dispatcher.seed(4)
      const a = await holder('a')
      const held = await a.takeAll()
      expect(held.flatMap(tasksOf).sort()).toEqual(seeded)
      const before = { ...a.beatBody() }
      a.incarnation = 'i2'
      await a.hello()
      expect(a.session).not.toBe(before.session)
      expect(codeOf(await a.ask('beat', before))).toBe('session.unknown')
      expect(codeOf(await a.ask('pull', a.pullBody({ session: before.session, sequence: 9 })))).toBe('session.unknown')
      await pass(a.timings.confirmMs, a)
      const again = await takeWithin(a, pass)
      expect(again.flatMap(tasksOf).sort()).toEqual(seeded)
      await a.report(again.flatMap((lease) => resultsOf(lease)))
      await allDone()
    })

    scenario('pull - a repeat after a lost reply gets the same grants', async () => {
      const { dispatcher, holder, allDone } = await start()
      const seeded = await dispatcher.seed(8)
      const a = await holder('a')
      const body = a.pullBody({}, 2)
      const lost = await a.ask('pull', body)
      const again = await a.ask('pull', body)
      expect(again).toEqual(lost)
      expect((lost.body as Message<'grants'>).grants).not.toHaveLength(0)
      const granted = (await a.pull({ sequence: body.sequence }, 2)).grants.map((grant) => grant.lease)
      a.confirm()
      const rest = await a.takeAll()
      expect([...granted, ...rest].flatMap(tasksOf).sort()).toEqual(seeded)
      await a.report([...granted, ...rest].flatMap((lease) => resultsOf(lease)))
      await allDone()
    })

    scenario('pull - one older than the last is refused', async () => {
      const { dispatcher, holder } = await start()
      await dispatcher.seed(4)
      const a = await holder('a')
      const first = a.pullBody({}, 1)
      await a.pull({}, 1)
      a.confirm()
      await a.pull({}, 1)
      expect(codeOf(await a.ask('pull', first))).toBe('session.sequence')
      expect(await dispatcher.invariants()).toEqual([])
    })

    scenario('pull - nothing is granted twice', async () => {
      const { dispatcher, holder, allDone } = await start()
      const seeded = await dispatcher.seed(40)
      const holders = await Promise.all(['a', 'b', 'c'].map(holder))
      const leases = await Promise.all(holders.map((one) => one.takeAll(8)))
      expect(leases.flat().flatMap(tasksOf).sort()).toEqual(seeded)
      const results = leases.map((held) => held.flatMap((lease) => resultsOf(lease)))
      await Promise.all(holders.map((one, i) => (results[i]!.length > 0 ? one.report(results[i]!) : undefined)))
      await allDone()
    })

    scenario('pull - one with results never waits for work', async () => {
      const { dispatcher, holder } = await start()
      await dispatcher.seed(1)
      const a = await holder('a')
      const b = await holder('b')
      const [lease] = await a.takeAll()
      let bIsBack = false
      const waiting = b.pull({ waitMs: b.timings.pullWaitMs }).finally(() => {
        bIsBack = true
      })
      const reply = await a.pull({ finished: resultsOf(lease!), waitMs: a.timings.pullWaitMs })
      expect(reply.verdicts).toMatchObject([{ verdict: 'accepted' }])
      expect(bIsBack).toBe(false)
      // Ends the other pull by giving it what it waits for.
      await dispatcher.seed(1)
      await waiting
    })

    scenario('pull - one that waits gets the work that comes meanwhile', async () => {
      const { dispatcher, holder } = await start()
      const a = await holder('a')
      let back = false
      const waiting = a.pull({ waitMs: a.timings.pullWaitMs }).finally(() => {
        back = true
      })
      await dispatcher.advance(a.timings.pullWaitMs / 20)
      expect(back).toBe(false)
      const seeded = await dispatcher.seed(2)
      const leases = (await waiting).grants.map((grant) => grant.lease)
      expect(leases).not.toEqual([])
      a.confirm()
      leases.push(...(await a.takeAll()))
      expect(leases.flatMap(tasksOf).sort()).toEqual(seeded)
    })

    scenario('pull - with nothing to give says why and when to ask again', async () => {
      const { holder } = await start()
      const a = await holder('a')
      const reply = await a.pull({})
      expect(reply.grants).toEqual([])
      expect(reply.reason).not.toBeNull()
      expect(reply.askAgainMs).toBeGreaterThan(0)
    })

    scenario('pull - never grants what does not fit the offer', async () => {
      const { dispatcher, holder } = await start()
      await dispatcher.seed(3)
      const a = await holder('a')
      const offer = a.offer(NODE.cores).map((entry) => ({ ...entry, shape: { ...entry.shape, arch: 'riscv64' } }))
      const runtimeless = a.offer(NODE.cores).map((entry) => ({ ...entry, shape: { ...entry.shape, runtimes: [] } }))
      for (const one of [offer, runtimeless, []]) {
        const reply = await a.pull({ offer: one })
        a.confirm()
        expect(reply.grants).toEqual([])
      }
      expect(await a.takeAll()).not.toEqual([])
    })

    scenario('grant - one that was never confirmed comes back', async () => {
      const { dispatcher, holder, pass, allDone } = await start()
      const seeded = await dispatcher.seed(4)
      const a = await holder('a')
      const b = await holder('b')
      const lost = (await a.pull({}, 100)).grants.map((grant) => grant.lease)
      expect(lost.length).toBeGreaterThan(0)
      await pass(1.5 * a.timings.confirmMs, a, b)
      const taken = await takeWithin(b, pass, a)
      expect(taken.flatMap(tasksOf).sort()).toEqual(seeded)
      for (const lease of taken) {
        const old = lost.find((one) => one.bundle === lease.bundle)
        if (old) expect(lease.fences).not.toEqual(old.fences)
      }
      await b.report(taken.flatMap((lease) => resultsOf(lease)))
      await allDone()
    })

    scenario('grant - beats renew confirmed leases for as long as they come', async () => {
      const { dispatcher, holder, pass, allDone } = await start()
      await dispatcher.seed(4)
      const a = await holder('a')
      const b = await holder('b')
      const held = await a.takeAll()
      await pass(3 * Math.max(a.timings.confirmMs, Math.min(a.timings.leaseMs, 10 * a.timings.confirmMs)), a, b)
      expect(await b.takeAll()).toEqual([])
      expect(await a.report(held.flatMap((lease) => resultsOf(lease)))).toEqual(Array(4).fill('accepted'))
      await allDone()
    })

    scenario('grant - confirmed by the next pull as well as by a beat', async () => {
      const { dispatcher, holder, pass } = await start()
      await dispatcher.seed(4)
      const a = await holder('a')
      const b = await holder('b')
      await a.pull({}, 100)
      a.confirm()
      await a.pull({}, 0)
      await pass(1.5 * a.timings.confirmMs, a, b)
      expect((await b.takeAll()).flatMap(tasksOf)).toHaveLength(0)
    })

    scenario('duplicates - every message twice does what one does', async () => {
      const { dispatcher, holder, allDone } = await start()
      await dispatcher.seed(6)
      const a = await holder('a')
      const twice = async <T extends 'hello' | 'pull' | 'report' | 'beat' | 'inventory' | 'bye'>(
        type: T,
        body: Message<T>,
      ) => [await a.ask(type, body), await a.ask(type, body)] as const
      await twice('hello', a.helloBody())
      const held = await a.takeAll()
      const [first, ...others] = held.flatMap((lease) => resultsOf(lease))
      const [once, again] = await twice('pull', a.pullBody({ finished: [first!] }, 0))
      expect(once).toEqual(again)
      a.sequence++
      a.confirm()
      const reports = await twice('report', { session: a.session, results: others })
      const verdicts = reports.map((reply) => (reply.body as Message<'reported'>).verdicts.map((one) => one.verdict))
      expect(verdicts).toEqual([others.map(() => 'accepted'), others.map(() => 'duplicate')])
      expect(await a.report([first!])).toEqual(['duplicate'])
      const nothing = { ...a.beatBody(), held: [] }
      await twice('beat', nothing)
      const inventory = { session: a.session, processed: a.processed, part: 0, parts: 1, leases: [] }
      await twice('inventory', inventory)
      const [bye] = await twice('bye', { session: a.session, code: 200, reason: '', returned: [] })
      expect(bye.type).toBe('farewell')
      await allDone()
    })

    scenario('duplicates - of a hello that comes late voids nothing', async () => {
      const { dispatcher, holder } = await start()
      await dispatcher.seed(2)
      const a = await holder('a')
      const hello = a.helloBody()
      const held = await a.takeAll()
      await a.ask('hello', hello)
      expect(await a.report(held.flatMap((lease) => resultsOf(lease)))).toEqual(['accepted', 'accepted'])
    })

    scenario('results - a late success wins over a newer attempt', async () => {
      const { dispatcher, holder, pass, silence, allDone } = await start()
      await dispatcher.seed(2)
      const a = await holder('a')
      const b = await holder('b')
      const old = await a.takeAll()
      await silenceUntilDead(a, silence)
      await b.hello()
      await pass(b.timings.confirmMs / 4, b)
      const newer = await takeWithin(b, pass)
      expect(newer.flatMap(tasksOf).sort()).toEqual(old.flatMap(tasksOf).sort())
      await a.hello()
      expect(await a.report(old.flatMap((lease) => resultsOf(lease)))).toEqual(['accepted', 'accepted'])
      // Of another attempt than the winner: some call it a duplicate, some stale; it is never accepted.
      const second = await b.report(newer.flatMap((lease) => resultsOf(lease)))
      expect(second.filter((verdict) => verdict !== 'duplicate' && verdict !== 'stale')).toEqual([])
      await allDone()
    })

    scenario('results - a late failure takes nothing from a newer attempt', async () => {
      const { dispatcher, holder, pass, silence, allDone } = await start()
      await dispatcher.seed(2)
      const a = await holder('a')
      const b = await holder('b')
      const old = await a.takeAll()
      await silenceUntilDead(a, silence)
      await b.hello()
      await pass(b.timings.confirmMs / 4, b)
      const newer = await takeWithin(b, pass)
      await a.hello()
      const late = await a.report(old.flatMap((lease) => resultsOf(lease, failedWith('payload.exit'))))
      expect(late.filter((verdict) => verdict === 'accepted')).toEqual([])
      expect(await b.report(newer.flatMap((lease) => resultsOf(lease)))).toEqual(['accepted', 'accepted'])
      await allDone()
    })

    scenario('results - a failure after the success changes nothing', async () => {
      const { dispatcher, holder, allDone } = await start()
      await dispatcher.seed(1)
      const a = await holder('a')
      const [lease] = await a.takeAll()
      expect(await a.report(resultsOf(lease!))).toEqual(['accepted'])
      const [after] = await a.report(resultsOf(lease!, failedWith('payload.exit')))
      expect(after).not.toBe('accepted')
      await allDone()
    })

    scenario('results - under a fence that was never given are not accepted', async () => {
      const { dispatcher, holder, allDone } = await start()
      await dispatcher.seed(2)
      const a = await holder('a')
      const held = await a.takeAll()
      const forged = held.map((lease) => ({ ...lease, fences: lease.fences.map((fence) => fence + 1_000_000) }))
      const verdicts = await a.report(forged.flatMap((lease) => resultsOf(lease)))
      expect(verdicts.filter((verdict) => verdict === 'accepted' || verdict === 'duplicate')).toEqual([])
      expect(await a.report(held.flatMap((lease) => resultsOf(lease)))).toEqual(['accepted', 'accepted'])
      await allDone()
    })

    scenario('results - of tasks that do not exist are judged, and harm nothing', async () => {
      const { dispatcher, holder, allDone } = await start()
      await dispatcher.seed(1)
      const a = await holder('a')
      const [lease] = await a.takeAll()
      const odd: Result[] = [
        resultOf(lease!, 4_000_000_000),
        resultOf({ ...lease!, campaign: 'c9999999999' }, 0),
        resultOf({ ...lease!, step: 'none' }, 0),
        resultOf({ ...lease!, bundle: 'b999999' }, 77),
        resultOf({ ...lease!, campaign: '{x}:*', step: '../..' }, 0),
      ]
      const verdicts = await a.report(odd)
      expect(verdicts).toHaveLength(odd.length)
      expect(verdicts.filter((verdict) => verdict === 'accepted')).toEqual([])
      expect(await a.report(resultsOf(lease!))).toEqual(['accepted'])
      await allDone()
    })

    scenario('results - may come from a holder that never held the lease', async () => {
      const { dispatcher, holder, allDone } = await start()
      await dispatcher.seed(2)
      const a = await holder('a')
      const b = await holder('b')
      const held = await a.takeAll()
      expect(await b.report(held.flatMap((lease) => resultsOf(lease)))).toEqual(['accepted', 'accepted'])
      expect(await a.report(held.flatMap((lease) => resultsOf(lease)))).toEqual(['duplicate', 'duplicate'])
      await allDone()
    })

    scenario('session - one that was silent too long must say hello', async () => {
      const { dispatcher, holder, pass, silence, allDone } = await start()
      const seeded = await dispatcher.seed(3)
      const a = await holder('a')
      const held = await a.takeAll()
      const dead = a.session
      await silenceUntilDead(a, silence)
      for (const answer of [
        await a.ask('beat', a.beatBody()),
        await a.ask('pull', a.pullBody()),
        await a.ask('report', { session: a.session, results: held.flatMap((lease) => resultsOf(lease)) }),
        await a.ask('inventory', { session: a.session, processed: a.processed, part: 0, parts: 1, leases: held }),
      ]) {
        expect(codeOf(answer)).toBe('session.unknown')
      }
      await a.hello()
      expect(a.session).not.toBe(dead)
      const again = await takeWithin(a, pass)
      expect(again.flatMap(tasksOf).sort()).toEqual(seeded)
      await a.report(again.flatMap((lease) => resultsOf(lease)))
      await allDone()
    })

    scenario('session - one that was never given is refused', async () => {
      const { holder } = await start()
      const a = await holder('a')
      for (const session of ['none', '*', '../x', `${a.session}x`]) {
        expect(codeOf(await a.ask('beat', a.beatBody({ session })))).toBe('session.unknown')
        expect(codeOf(await a.ask('pull', a.pullBody({ session })))).toBe('session.unknown')
      }
      await a.beat()
    })

    scenario('give-back - returned tasks go to others, the rest stays', async () => {
      const { dispatcher, holder, allDone } = await start()
      const seeded = await dispatcher.seed(6)
      const a = await holder('a')
      const b = await holder('b')
      const held = await a.takeAll()
      const parts = held.map((lease) => takeFirst(parseRanges(lease.tasks), Math.ceil(countOf(lease) / 2)))
      const returned = held.map((lease, i) => ({ ...lease, tasks: formatRanges(parts[i]!.taken) }))
      const kept = held
        .map((lease, i) => ({ ...lease, tasks: formatRanges(parts[i]!.rest) }))
        .filter((lease) => lease.tasks !== '')
      await a.pull({ returned }, 0)
      a.confirm()
      const taken = await b.takeAll()
      expect(taken.flatMap(tasksOf).sort()).toEqual(returned.flatMap(tasksOf).sort())
      expect([...taken, ...kept].flatMap(tasksOf).sort()).toEqual(seeded)
      await b.report(taken.flatMap((lease) => resultsOf(lease)))
      if (kept.length > 0) await a.report(kept.flatMap((lease) => resultsOf(lease)))
      await allDone()
    })

    scenario('give-back - under an old fence takes nothing from the new holder', async () => {
      const { dispatcher, holder, allDone } = await start()
      await dispatcher.seed(3)
      const a = await holder('a')
      const b = await holder('b')
      const old = await a.takeAll()
      await a.pull({ returned: old }, 0)
      a.confirm()
      const newer = await b.takeAll()
      await a.pull({ returned: old }, 0)
      a.confirm()
      expect(await a.takeAll()).toEqual([])
      expect(await b.report(newer.flatMap((lease) => resultsOf(lease)))).toEqual(Array(3).fill('accepted'))
      await allDone()
    })

    scenario('bye - gives everything back and ends the session', async () => {
      const { dispatcher, holder, pass, allDone } = await start()
      const seeded = await dispatcher.seed(4)
      const a = await holder('a')
      const b = await holder('b')
      const held = await a.takeAll()
      await a.bye(held)
      expect(codeOf(await a.ask('pull', a.pullBody()))).toBe('session.unknown')
      const taken = await takeWithin(b, pass)
      expect(taken.flatMap(tasksOf).sort()).toEqual(seeded)
      await b.report(taken.flatMap((lease) => resultsOf(lease)))
      await allDone()
    })

    scenario('held-list - a confirmed lease that the holder no longer lists comes back', async () => {
      const { dispatcher, holder, pass, allDone } = await start()
      const seeded = await dispatcher.seed(4)
      const a = await holder('a')
      const b = await holder('b')
      await a.takeAll()
      a.forgetAll()
      for (let beat = 0; beat < 3; beat++) {
        const { orders } = await a.beat()
        if (orders.some((order) => order.kind === 'holder.inventory')) await a.inventory([])
      }
      const taken = await takeWithin(b, pass, a)
      expect(taken.flatMap(tasksOf).sort()).toEqual(seeded)
      await b.report(taken.flatMap((lease) => resultsOf(lease)))
      await allDone()
    })

    scenario('held-list - of one too long to be sent the digest comes instead, and takes nothing back', async () => {
      const { dispatcher, holder, allDone } = await start()
      await dispatcher.seed(4)
      const a = await holder('a')
      const b = await holder('b')
      const leases = await a.takeAll()
      const digest = heldDigest(leases.map(({ bundle, fences }) => ({ bundle, fence: fences.at(-1)! })))
      for (let beat = 0; beat < 3; beat++) {
        expect((await a.beat({ held: { count: leases.length, digest } })).orders).toEqual([])
      }
      expect(await b.takeAll()).toEqual([])
      const verdicts = await a.report(leases.flatMap((lease) => resultsOf(lease)))
      expect(new Set(verdicts)).toEqual(new Set(['accepted']))
      await allDone()
    })

    scenario('held-list - judges nothing that was granted later', async () => {
      const { dispatcher, holder, pass } = await start()
      await dispatcher.seed(4)
      const a = await holder('a')
      const b = await holder('b')
      const before = a.beatBody()
      const granted = (await a.pull({}, 100)).grants.map((grant) => grant.lease)
      // A beat that left before the grants came: it lists nothing and says so for an earlier sequence.
      await a.ask('beat', before)
      await a.ask('inventory', { session: a.session, processed: before.processed, part: 0, parts: 1, leases: [] })
      a.confirm()
      await pass(a.timings.confirmMs / 2, a, b)
      expect(await b.takeAll()).toEqual([])
      const verdicts = await a.report(granted.flatMap((lease) => resultsOf(lease)))
      expect(verdicts).toEqual(granted.flatMap(tasksOf).map(() => 'accepted'))
    })

    scenario('inventory - what it lists stays, what it lacks comes back', async () => {
      const { dispatcher, holder, pass, allDone } = await start()
      await dispatcher.seed(6)
      const a = await holder('a')
      const b = await holder('b')
      const held = await a.takeAll()
      const kept = held.slice(0, Math.floor(held.length / 2))
      const gone = held.slice(kept.length)
      await a.inventory(kept)
      const taken: LeasePart[] = []
      for (let turn = 0; turn < 20 && taken.flatMap(tasksOf).length < gone.flatMap(tasksOf).length; turn++) {
        taken.push(...(await b.takeAll()))
        if (taken.length === 0) await pass(b.timings.confirmMs / 10, b)
      }
      expect(taken.flatMap(tasksOf).sort()).toEqual(gone.flatMap(tasksOf).sort())
      await b.report(taken.flatMap((lease) => resultsOf(lease)))
      if (kept.length > 0) {
        const verdicts = await a.report(kept.flatMap((lease) => resultsOf(lease)))
        expect(new Set(verdicts)).toEqual(new Set(['accepted']))
      }
      await allDone()
    })

    scenario('garbage - is refused by code and the dispatcher lives', async () => {
      const { dispatcher, open, holder, allDone } = await start()
      await dispatcher.seed(1)
      const link = await open()
      const send = async (frame: Uint8Array) => codeOf(decode(await link.request(frame, 60_000)))
      expect(await send(Buffer.from('garbage'))).toBe('message.garbled')
      expect(await send(Buffer.of(0))).toBe('message.garbled')
      expect(await send(Buffer.alloc(MAX_MESSAGE_BYTES + 1))).toBe('message.tooLarge')
      expect(await send(Buffer.concat([Buffer.of(0), pack([2, 'hello', {}])]))).toBe('protocol.version')
      expect(await send(Buffer.concat([Buffer.of(0), pack([1, 'shout', {}])]))).toBe('message.unknown')
      expect(await send(Buffer.concat([Buffer.of(0), pack([1, 'pull', { session: 5 }])]))).toBe('message.invalid')
      expect(await send(encode('welcome', SAMPLES.welcome.full))).toBe('message.unknown')
      const a = await holder('a')
      const odd = a.beatBody({ counters: { __proto__: 5, 'a b\n"{}': Number.MAX_VALUE }, gauges: { constructor: 1 } })
      await a.ask('beat', odd)
      const [lease] = await a.takeAll()
      expect(await a.report(resultsOf(lease!))).toEqual(['accepted'])
      await allDone()
    })

    scenario('names - odd ones of a holder are just names', async () => {
      const { dispatcher, open, allDone } = await start()
      await dispatcher.seed(3)
      for (const odd of ['a:b', '{x}', 'a b"\\\n', '../../etc/passwd', '\u{1f680}', 'x'.repeat(200)]) {
        const one = new SimulatedHolder(await open(), dispatcher.role, odd)
        const answer = await one.ask('hello', one.helloBody())
        if (answer.type === 'refused') continue
        await one.hello()
        const leases = await one.takeAll(1)
        if (leases.length > 0) await one.report(leases.flatMap((lease) => resultsOf(lease)))
      }
      await allDone()
    })

    const FAULTS = [
      ['no faults', NO_FAULTS],
      ['10 % of requests and replies lost', { ...NO_FAULTS, lostRequests: 0.1, lostReplies: 0.1 }],
      ['20 % duplicates in any order', { ...NO_FAULTS, duplicates: 0.2, delayMs: [0, 400] }],
      ['5 s round trips', { ...NO_FAULTS, delayMs: [2400, 2600] }],
      [
        '20 % lost, 20 % double, up to 2 s late',
        { lostRequests: 0.1, lostReplies: 0.1, duplicates: 0.2, delayMs: [0, 1000] },
      ],
    ] as const
    for (const [faultName, faults] of FAULTS) {
      scenario(`every task ends exactly once - ${faultName}`, async () => {
        const { dispatcher, open, accepted } = await start()
        await churn(dispatcher, open, accepted, {
          seed: 7,
          tasks: churnTasks,
          holders: 6,
          faults,
          crashes: 0,
          failures: 0,
        })
      })
    }
    scenario('every task ends exactly once - with holders that die and tasks that fail', async () => {
      const { dispatcher, open, accepted } = await start()
      const faults = { lostRequests: 0.05, lostReplies: 0.05, duplicates: 0.1, delayMs: [0, 300] as const }
      await churn(dispatcher, open, accepted, {
        seed: 11,
        tasks: churnTasks,
        holders: 6,
        faults,
        crashes: 0.03,
        failures: 0.03,
      })
    })
  })
}

function countOf(lease: LeasePart): number {
  return countRanges(parseRanges(lease.tasks))
}

/** A dispatcher that stood still meanwhile forgives the silence, and the beat that shows it begins another one. */
async function silenceUntilDead(one: SimulatedHolder, silence: (ms: number) => Promise<void>): Promise<void> {
  for (let round = 0; round < 5; round++) {
    await silence(one.timings.lostAfterMs * 1.2)
    await silence(one.timings.lostAfterMs * 0.2)
    if (codeOf(await one.ask('beat', one.beatBody())) === 'session.unknown') return
  }
  throw new Error(`${one.name} was silent for longer than lostAfterMs, again and again, and is not dead`)
}

/** Takes all there is, giving the dispatcher time to notice what has become free. */
async function takeWithin(
  one: SimulatedHolder,
  pass: (ms: number, ...alive: SimulatedHolder[]) => Promise<void>,
  ...others: SimulatedHolder[]
): Promise<LeasePart[]> {
  const leases: LeasePart[] = []
  for (let turn = 0; turn < 20; turn++) {
    const more = await one.takeAll()
    leases.push(...more)
    if (more.length === 0 && leases.length > 0) break
    await pass(one.timings.confirmMs / 10, one, ...others)
  }
  return leases
}

async function expectOutcome(dispatcher: DispatcherUnderTest, state: string): Promise<void> {
  // A dispatcher may take some time to settle what it has acknowledged (a relay hands it on).
  let open: [string, string][] = []
  for (let turn = 0; turn < 100; turn++) {
    open = [...(await dispatcher.outcome())].filter(([, is]) => is !== state)
    if (open.length === 0) break
    await dispatcher.advance(1000 * dispatcher.timeScale)
  }
  expect(open).toEqual([])
}
