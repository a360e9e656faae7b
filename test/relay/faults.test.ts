/** What can go wrong around a relay, one fault a test: pilots that die, a relay that crashes, a centre that is away. */
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { heldDigest } from '../../shared/held.ts'
import { pack } from '../../shared/protocol/codec.ts'
import type { Message } from '../../shared/protocol/messages.ts'
import { indices, parseRanges } from '../../shared/ranges.ts'
import { digestOf } from '../../shared/signing.ts'
import {
  codeOf,
  failedWith,
  resultOf,
  resultsOf,
  type SimulatedHolder,
  tasksOf,
} from '../conformance/simulated-holder.ts'
import { RelayBench } from './bench.ts'
import { until } from './relay-in-parts.ts'

let at: RelayBench
beforeEach(async () => {
  at = await RelayBench.open()
})
afterEach(() => at?.close())

async function dies(one: SimulatedHolder): Promise<void> {
  at.clock.jump(one.timings.lostAfterMs + 1)
  at.relay.dispatcher.sweep()
}

describe('relay - work that cannot be read', () => {
  it.each(['template', 'bundle'] as const)(
    'relay - one bad %s fails its own tasks and starves nobody',
    async (kind) => {
      await at.pilot('a')
      const bad = { bytes: pack({ kind, bundle: 5 }), signature: new Uint8Array(64), key: 'x' }
      const lease = { bundle: 'bad', campaign: 'c2', step: 'sim', fences: [7], tasks: '0-1' }
      at.centre.give({ tasks: '0-3' })
      const { grant, template } = at.centre.work[0]!
      const given =
        kind === 'template'
          ? { grant: { ...grant, lease, template: digestOf(bad.bytes) }, template: bad }
          : { grant: { ...grant, lease, bundle: bad }, template }
      at.centre.work.unshift(given)
      await at.buffered(4)
      await at.atCentre(2)
      expect(at.centre.results).toMatchObject([0, 1].map((index) => ({ ...failedUnread, index })))
      await at.settled()
    },
  )
})

const failedUnread = { campaign: 'c2', fences: [7], end: 'failed', reason: 'campaign.invalid', site: 'ALPHA' }

describe('relay - a pilot that dies', () => {
  it('relay - what it had not started goes back into the buffer, what it had is reported as lost', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0-3' })
    await at.buffered(4)
    const [lease] = await a.takeAll()
    await a.beat({ started: [{ ...lease!, tasks: '1' }] })
    await dies(a)
    await at.buffered(3)
    await at.atCentre(1)
    expect(at.centre.results[0]).toMatchObject({ index: 1, end: 'failed', reason: 'node.lost', pilot: 'a' })
    expect(codeOf(await a.ask('beat', a.beatBody()))).toBe('session.unknown')
  })

  it('relay - a task that loses its pilot twice before it is said to run is reported as lost', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0' })
    await at.buffered(1)
    await a.takeAll()
    await dies(a)
    await at.buffered(1)
    expect(at.centre.results).toEqual([])
    const b = await at.pilot('b')
    await b.takeAll()
    await dies(b)
    await at.atCentre(1)
    expect(at.centre.results[0]).toMatchObject({ index: 0, reason: 'node.lost', pilot: 'b' })
  })

  it('relay - its late success goes up although it was reported as lost', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0' })
    await at.buffered(1)
    const [lease] = await a.takeAll()
    await a.beat({ started: [lease!] })
    await dies(a)
    await at.atCentre(1)
    await a.hello()
    await a.report([resultOf(lease!, 0)])
    await at.atCentre(2)
    expect(at.centre.results[1]).toMatchObject({ index: 0, end: 'done', fences: lease!.fences })
    expect(at.centre.results[0]!.fences).toEqual(lease!.fences)
  })

  it('relay - its late success counts while the centre is away and was not told yet that it is lost', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0' })
    await at.buffered(1)
    const [lease] = await a.takeAll()
    await a.beat({ started: [lease!] })
    at.centre.isCut = true
    await dies(a)
    expect(at.relay.outgoing.waiting).toBe(1)
    await at.restart()
    await a.hello()
    expect(await a.report([resultOf(lease!, 0)])).toEqual(['accepted'])
    at.centre.isCut = false
    await at.settled()
    expect(at.centre.results.at(-1)).toMatchObject({ index: 0, end: 'done', fences: lease!.fences })
    expect(at.relay.buffer.counts().leases).toBe(0)
  })

  it('relay - its late success ends the newer attempt, and only the success goes up', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0' })
    await at.buffered(1)
    const [old] = await a.takeAll()
    await dies(a)
    const b = await at.pilot('b')
    const [newer] = await b.takeAll()
    await a.hello()
    expect(await a.report([resultOf(old!, 0)])).toEqual(['accepted'])
    const { orders } = await b.beat()
    expect(orders).toMatchObject([{ kind: 'attempt.cancel', attempt: { index: 0, fences: newer!.fences } }])
    expect(await b.report([resultOf(newer!, 0, failedWith('attempt.cancelled'))])).toEqual(['duplicate'])
    await at.settled()
    expect(at.centre.results).toMatchObject([{ index: 0, end: 'done', fences: old!.fences }])
    expect((await b.beat()).orders).toEqual([])
  })

  it.each(['while it waits to go up', 'once the centre has it'])(
    'relay - after its late success the newer pilot gives the task back, and nobody gets it: %s',
    async (when) => {
      const a = await at.pilot('a')
      at.centre.give({ tasks: '0-1' })
      await at.buffered(2)
      const [old] = await a.takeAll()
      await dies(a)
      const b = await at.pilot('b')
      const [newer] = await b.takeAll()
      at.centre.isCut = when === 'while it waits to go up'
      await a.hello()
      expect(await a.report([resultOf(old!, 0)])).toEqual(['accepted'])
      if (!at.centre.isCut) {
        await at.settled()
        await at.restart()
      }
      await b.pull({ returned: [newer!] }, 0)
      expect([at.relay.buffer.returns(1), at.centre.returned]).toEqual([[], []])
      expect((await a.pull({})).grants.flatMap(({ lease }) => tasksOf(lease))).toEqual(['c1/sim/1'])
      at.centre.isCut = false
      await at.settled()
      expect(at.centre.results).toMatchObject([{ index: 0, end: 'done', fences: old!.fences }])
    },
  )

  it('relay - its late failure is not told to the centre while the task waits here', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0' })
    await at.buffered(1)
    const [old] = await a.takeAll()
    await dies(a)
    await a.hello()
    expect(await a.report([resultOf(old!, 0, failedWith('payload.exit'))])).toEqual(['stale'])
    expect(at.relay.outgoing.waiting).toBe(0)
    expect(at.relay.buffer.counts().free).toBe(1)
  })
  it('relay - a success under a fence of its own that it never gave is refused', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0' })
    await at.buffered(1)
    const [held] = await a.takeAll()
    const [fence, own] = held!.fences
    expect(await a.report([resultOf({ ...held!, fences: [fence!, own! + 1_000_000] }, 0)])).toEqual(['refused'])
    expect(at.relay.outgoing.waiting).toBe(0)
    expect(await a.report([resultOf(held!, 0)])).toEqual(['accepted'])
  })
})

describe('relay - a crash of its own', () => {
  it('relay - sessions, leases and the reply to the last pull are as before', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0-3' })
    await at.buffered(4)
    const body = a.pullBody({}, 2)
    const before = await a.ask('pull', body)
    await at.restart()
    expect(await a.ask('pull', body)).toEqual(before)
    expect(codeOf(await a.ask('beat', a.beatBody()))).toBe('orders')
    expect(at.relay.buffer.counts()).toMatchObject({ free: 2, held: 2 })
  })

  it('relay - a template outlives its last lease by longer than a pull that called it known stays open', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0-3' })
    await at.buffered(4)
    const [lease] = await a.takeAll()
    await a.report(resultsOf(lease!))
    await at.settled()
    expect(at.relay.buffer.counts().leases).toBe(0)
    at.relay.dispatcher.sweep()
    expect(at.relay.buffer.steps.templateNames()).toHaveLength(1)
    at.clock.jump(11 * 60_000)
    at.relay.dispatcher.sweep()
    expect(at.relay.buffer.steps.templateNames()).toEqual([])
  })

  it('relay - results that were acknowledged go up after it', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0-3' })
    await at.buffered(4)
    const [lease] = await a.takeAll()
    at.centre.isCut = true
    expect(await a.report(resultsOf(lease!))).toEqual(Array(4).fill('accepted'))
    await at.restart()
    expect(await a.report(resultsOf(lease!))).toEqual(Array(4).fill('duplicate'))
    expect(at.centre.results).toEqual([])
    at.centre.isCut = false
    await at.atCentre(4)
    await at.settled()
    expect(at.relay.buffer.counts().leases).toBe(0)
  })

  it('relay - its session with the centre goes on, and confirms nothing that it had not kept', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0' })
    await at.buffered(1)
    await until('a beat that confirms', () => at.centre.beats.some((beat) => beat.processed > 0))
    const { incarnation } = at.centre.hellos[0]!
    await at.relay.crash()
    const kept = at.centre.sequence
    // The centre answered one more pull, whose reply the crash swallowed.
    at.centre.sequence = kept + 5
    const beats = at.centre.beats.length
    await at.start()
    await until('beats after the restart', () => at.centre.beats.length > beats)
    expect(at.centre.hellos.at(-1)!.incarnation).toBe(incarnation)
    expect(at.centre.beats[beats]).toMatchObject({ session: 'centre-1' })
    expect(at.centre.beats[beats]!.processed).toBeLessThanOrEqual(kept)
    expect((await a.takeAll()).flatMap(tasksOf)).toEqual(['c1/sim/0'])
  })

  it('relay - nobody is declared dead for its own absence', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0' })
    await at.buffered(1)
    const held = await a.takeAll()
    await at.relay.crash()
    at.clock.jump(10 * a.timings.lostAfterMs)
    await at.start()
    at.relay.dispatcher.sweep()
    expect(await a.report(held.flatMap((lease) => resultsOf(lease)))).toEqual(['accepted'])
  })

  it('relay - an empty journal is a new incarnation', async () => {
    const a = await at.pilot('a')
    await until('hello', () => at.centre.hellos.length === 1)
    await at.relay.crash()
    for (const name of readdirSync(at.folder)) if (name.startsWith('journal')) rmSync(join(at.folder, name))
    await at.start()
    await until('hello again', () => at.centre.hellos.length === 2)
    expect(at.centre.hellos[1]!.incarnation).not.toBe(at.centre.hellos[0]!.incarnation)
    expect(codeOf(await a.ask('beat', a.beatBody()))).toBe('session.unknown')
  })

  it('relay - a damaged journal is moved aside and the relay starts empty', async () => {
    await at.relay.crash()
    rmSync(join(at.folder, 'journal.sqlite-wal'), { force: true })
    writeFileSync(
      join(at.folder, 'journal.sqlite'),
      'this is no database, and long enough to be read as one'.repeat(100),
    )
    await at.start()
    expect(readdirSync(at.folder).some((name) => name.startsWith('journal.damaged-'))).toBe(true)
    await at.pilot('a')
  })
})

describe('relay - a centre that is away', () => {
  it('relay - pilots are fed from the buffer and results wait', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0-7' })
    await at.buffered(8)
    at.centre.isCut = true
    await until('the link counts as down', () => !at.relay.upstream.isUp)
    const leases = await a.takeAll()
    expect(leases.flatMap(tasksOf)).toHaveLength(8)
    expect(await a.report(leases.flatMap((lease) => resultsOf(lease)))).toEqual(Array(8).fill('accepted'))
    expect(at.relay.outgoing.waiting).toBe(8)
    at.centre.isCut = false
    await at.atCentre(8)
  })

  it('relay - in the last tenth of a lease nothing of it is started', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0', leaseMs: 1000_000 })
    await at.buffered(1)
    at.centre.isCut = true
    await until('the last beat', () => !at.relay.upstream.isUp || at.centre.beats.length > 0)
    at.clock.jump(920_000)
    await a.hello()
    expect((await a.pull({})).reason).toBe('noWork')
    expect(at.relay.buffer.counts().free).toBe(1)
  })

  it('relay - where the centre ended the session, buffered work is dropped and results still go up', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0-3' })
    await at.buffered(4)
    const reply = await a.pull({}, 1)
    a.confirm()
    at.centre.forgetSession('centre-2')
    await until('the new session', () => at.centre.beats.some((beat) => beat.session === 'centre-2'))
    expect(at.relay.buffer.counts().free).toBe(0)
    expect(at.centre.beats.findLast((beat) => beat.session === 'centre-2')!.held).toEqual({
      count: 0,
      digest: heldDigest([]),
    })
    await a.report(reply.grants.flatMap(({ lease }) => resultsOf(lease)))
    await at.atCentre(1)
    await at.settled()
    await until('the lease is gone', () => at.relay.buffer.counts().leases === 0)
  })
})

describe('relay - what the centre wants', () => {
  it('relay - a cancelled campaign leaves the buffer and is ended at pilots until they have', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0-3' })
    await at.buffered(4)
    const reply = await a.pull({}, 1)
    a.confirm()
    at.centre.orders.push({ kind: 'campaign.cancel', campaign: 'c1', version: 2 })
    await until('the rest is given back', () => at.centre.returned.length > 0)
    expect(at.centre.returned).toMatchObject([{ bundle: 'b1', tasks: '1-3', fences: [1000] }])
    for (let beat = 0; beat < 2; beat++) {
      expect((await a.beat()).orders).toMatchObject([{ kind: 'campaign.cancel', campaign: 'c1' }])
    }
    await a.report(reply.grants.flatMap(({ lease }) => resultsOf(lease, failedWith('attempt.cancelled'))))
    await at.settled()
    at.relay.dispatcher.sweep()
    expect((await a.beat()).orders).toEqual([])
    expect(at.relay.buffer.counts().leases).toBe(0)
  })

  it.each(['gives back', 'loses'])('relay - what a pilot %s of a cancelled campaign goes to no other', async (how) => {
    const [a, b] = [await at.pilot('a'), await at.pilot('b')]
    at.centre.give({ tasks: '0-3' })
    await at.buffered(4)
    const [lease] = await a.takeAll()
    at.centre.orders.push({ kind: 'campaign.cancel', campaign: 'c1', version: 2 })
    await until('the pilot is told', async () => (await a.beat()).orders.length > 0)
    if (how === 'loses') await dies(a)
    else expect(await a.pull({ returned: [lease!] })).toMatchObject({ grants: [], reason: 'noWork' })
    await b.hello()
    expect(await b.pull({})).toMatchObject({ grants: [], reason: 'noWork' })
    await until('all is given back', () => at.centre.returned.length > 0)
    expect(at.centre.returned).toMatchObject([{ bundle: 'b1', tasks: '0-3', fences: [1000] }])
    await until('the lease is gone', () => at.relay.buffer.counts().leases === 0)
  })

  it('relay - work that avoids a node waits while another pilot could take it', async () => {
    const a = await at.pilot('a')
    const b = await at.pilot('b')
    at.centre.give({ tasks: '0', avoidNodes: ['node-of-a'] })
    await at.buffered(1)
    expect((await a.pull({})).reason).toBe('nothingFits')
    await b.bye()
    a.confirm()
    expect((await a.pull({})).grants).toHaveLength(1)
  })

  it('relay - the centre is told where tasks run, in one entry for each node and lease', async () => {
    const [a, b] = [await at.pilot('a'), await at.pilot('b')]
    at.centre.give({ tasks: '0-3' })
    await at.buffered(4)
    const of = async (holder: SimulatedHolder) => {
      const [grant] = (await holder.pull({}, 2)).grants
      holder.confirm()
      return grant!.lease
    }
    const [ofA, ofB] = [await of(a), await of(b)]
    at.centre.isCut = true
    for (const index of indices(parseRanges(ofA.tasks))) await a.beat({ started: [{ ...ofA, tasks: `${index}` }] })
    // What a pilot says of itself does not count: the relay knows its node from its hello.
    await b.beat({ started: [{ ...ofB, node: 'elsewhere' }] })
    at.centre.isCut = false
    await until('all are told', () => at.centre.beats.flatMap((beat) => beat.started).length >= 2)
    const told = at.centre.beats.flatMap((beat) => beat.started).map(({ tasks, node }) => ({ tasks, node }))
    expect(told.sort((one, other) => (one.node! < other.node! ? -1 : 1))).toEqual([
      { tasks: ofA.tasks, node: 'node-of-a' },
      { tasks: ofB.tasks, node: 'node-of-b' },
    ])
  })

  it('relay - what pilots started is told to the centre, with what they count', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0-1' })
    await at.buffered(2)
    const [lease] = await a.takeAll()
    await a.beat({ started: [lease!], counters: { tasks_done: 3 } })
    const told = (beat: Message<'beat'>) => beat.started.length > 0 && beat.counters.tasks_done === 3
    await until('a beat with both', () => at.centre.beats.some(told))
    expect(at.centre.beats.find(told)!.started).toMatchObject([{ bundle: 'b1', fences: [1000], tasks: '0-1' }])
    expect(at.centre.beats.some((beat) => beat.pilots.some((one) => one.pilot === 'a' && one.state === 'active'))).toBe(
      true,
    )
  })
})

describe('relay - files on a shared file system', () => {
  const output = (fences: number[], final: string) => ({
    path: 'out.txt',
    sizeBytes: 1,
    checksum: `sha256:${'0'.repeat(64)}`,
    url: pathToFileURL(`${final}.attempt-${fences.join('-')}`).href,
  })

  it.each(['accepted', 'duplicate', 'stale'] as const)('relay - an attempt judged %s', async (verdict) => {
    at.centre.verdict = verdict
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0' })
    await at.buffered(1)
    const [lease] = await a.takeAll()
    const final = join(at.folder, 'out.txt')
    writeFileSync(`${final}.attempt-${lease!.fences.join('-')}`, 'x')
    await a.report([resultOf(lease!, 0, { outputs: [output(lease!.fences, final)] })])
    await at.settled()
    await until('published', () => !readdirSync(at.folder).some((name) => name.includes('.attempt-')))
    if (verdict === 'stale') expect(readdirSync(at.folder)).not.toContain('out.txt')
    else expect(readFileSync(final, 'utf8')).toBe('x')
  })

  it('relay - what an attempt left of which the centre never hears is removed', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0' })
    await at.buffered(1)
    const [old] = await a.takeAll()
    await dies(a)
    const b = await at.pilot('b')
    const [newer] = await b.takeAll()
    const final = join(at.folder, 'out.txt')
    for (const { fences } of [old!, newer!]) writeFileSync(`${final}.attempt-${fences.join('-')}`, fences.join())
    await a.hello()
    expect(await a.report([resultOf(old!, 0, { outputs: [output(old!.fences, final)] })])).toEqual(['accepted'])
    expect(await b.report([resultOf(newer!, 0, { outputs: [output(newer!.fences, final)] })])).toEqual(['duplicate'])
    await until('nothing is left', () => !readdirSync(at.folder).some((name) => name.includes('.attempt-')))
    expect(readFileSync(final, 'utf8')).toBe(old!.fences.join())
  })

  it('relay - only a name that the attempt may have is ever renamed', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0' })
    await at.buffered(1)
    const [lease] = await a.takeAll()
    const other = join(at.folder, 'precious.attempt-1-2')
    writeFileSync(other, 'x')
    const forged = { ...output([1, 2], join(at.folder, 'precious')) }
    await a.report([resultOf(lease!, 0, { outputs: [forged] })])
    await at.settled()
    expect(readFileSync(other, 'utf8')).toBe('x')
  })
})
