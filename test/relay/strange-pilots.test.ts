/**
 * What a pilot that is broken, or somebody with its credential, may say: it harms its own tasks at most. After each
 * message the relay still serves another pilot and still speaks to the centre.
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { IndraftError } from '../../shared/errors.ts'
import { encode } from '../../shared/protocol/codec.ts'
import type { Message, ReplyTo, Result } from '../../shared/protocol/messages.ts'
import { codeOf, resultOf, type SimulatedHolder } from '../conformance/simulated-holder.ts'
import { seeded } from '../seeded.ts'
import { RelayBench } from './bench.ts'
import { until } from './relay-in-parts.ts'
import { ScriptedCentre } from './scripted-centre.ts'

/** One that does not understand successes of task 1. */
class PickyCentre extends ScriptedCentre {
  isPicky = false

  override async onReport(peer: unknown, report: Message<'report'>): Promise<ReplyTo<'report'>> {
    const at = report.results.findIndex(({ index, end }) => this.isPicky && index === 1 && end === 'done')
    if (at >= 0) throw new IndraftError('message.invalid', 'strange', { path: `report.results.${at}.outputs` })
    return super.onReport(peer, report)
  }
}

let at: RelayBench<PickyCentre>
beforeEach(async () => {
  at = await RelayBench.open({ centre: new PickyCentre() })
})
afterEach(() => at?.close())

const random = seeded(41)
/** That no packing makes shorter than three quarters. */
const noise = (length: number) =>
  Array.from({ length }, () => 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789'[random.below(62)]).join(
    '',
  )

const outputAt = (url: string, checksum = `sha256:${'0'.repeat(64)}`) => ({ path: 'o', sizeBytes: 1, checksum, url })

/** Two tasks at a pilot. */
async function working(name = 'a') {
  const pilot = await at.pilot(name)
  at.centre.give({ tasks: '0-1' })
  await at.buffered(2)
  const [lease] = await pilot.takeAll()
  return { pilot, lease: lease! }
}

async function isServed(): Promise<void> {
  const other: SimulatedHolder = await at.pilot('other')
  expect((await other.beat()).orders).toEqual([])
}

it('strange pilots - a mark of the journal that a pilot made up proves nothing, and shuts nobody out', async () => {
  const a = await at.pilot('a')
  const { mark } = await a.beat()
  for (const seen of [
    { ...mark, sequence: Number.MAX_SAFE_INTEGER },
    { epoch: mark.epoch, sequence: mark.sequence + 1000 },
  ]) {
    expect(codeOf(await a.ask('hello', { ...a.helloBody(), seen }))).toBe('welcome')
    expect(codeOf(await a.ask('beat', a.beatBody({ seen })))).toBe('orders')
  }
  await isServed()
  expect(at.relay.journal.hasLost).toBe(false)
})

it.each(['file://elsewhere/x', 'file:///x%2Fy', 'file:///x%00y'])(
  'strange pilots - an output at %s is no file here, and holds up no result',
  async (place) => {
    const { pilot, lease } = await working()
    const url = `${place}.attempt-${lease.fences.join('-')}`
    await pilot.report([resultOf(lease, 0, { outputs: [outputAt(url)] }), resultOf(lease, 1)])
    await at.settled()
    expect(at.centre.results.map(({ index }) => index)).toEqual([0, 1])
    expect(at.relay.publications.waiting).toBe(0)
  },
)

it('strange pilots - a checksum that is none is refused', async () => {
  const { pilot, lease } = await working()
  const result = resultOf(lease, 0, { outputs: [outputAt('store:x', 'sha256:00\r\nx: y')] })
  expect(codeOf(await pilot.ask('report', { session: pilot.session, results: [result] }))).toBe('message.invalid')
})

it('strange pilots - times that cannot be added up are refused, and what a task takes stays a number', async () => {
  const { pilot, lease } = await working()
  const result = resultOf(lease, 0, { wallMs: Number.MAX_VALUE, stageInMs: Number.MAX_VALUE })
  expect(codeOf(await pilot.ask('report', { session: pilot.session, results: [result] }))).toBe('message.invalid')
  expect(at.relay.buffer.steps.estimateMs(lease)).toBeNull()
})

it('strange pilots - of what they count only sums that can be told go up', async () => {
  const [a, b] = [await at.pilot('a'), await at.pilot('b')]
  const many = () => Object.fromEntries(Array.from({ length: 400 }, () => [noise(80), 1]))
  await a.beat({ counters: { ...many(), tasks_done: 1e308, tasks_failed: 2 } })
  await b.beat({ counters: { ...many(), tasks_done: 1e308, tasks_failed: 3 } })
  const told = () => at.centre.beats.findLast(({ counters }) => counters.tasks_failed === 5)
  await until('both are told', () => told() !== undefined)
  expect(told()!.counters).toEqual({ tasks_done: Number.MAX_SAFE_INTEGER, tasks_failed: 5 })
})

it('strange pilots - a node described at length does not keep the relay from the centre', async () => {
  for (const [name, cores] of [
    ['a', 4],
    ['b', 5],
  ] as const) {
    const pilot = at.holder(name)
    const { nodes, ...hello } = pilot.helloBody()
    const labels = { described: noise(40_000) }
    expect(codeOf(await pilot.ask('hello', { ...hello, nodes: [{ ...nodes[0]!, cores, labels }] }))).toBe('welcome')
  }
  const [hellos, beats] = [at.centre.hellos.length, at.centre.beats.length]
  await at.restart()
  await until('the next hello', () => at.centre.hellos.length > hellos)
  await until('the next beat', () => at.centre.beats.length > beats)
})

it('strange pilots - a result that fits its message and not ours goes up as failed, and holds up none', async () => {
  const { pilot, lease } = await working()
  at.centre.isCut = true
  const large = largest(pilot, resultOf(lease, 0))
  expect(await pilot.report([large])).toEqual(['accepted'])
  expect(await pilot.report([resultOf(lease, 1)])).toEqual(['accepted'])
  // Longer by more than the pilot's session has over ours.
  at.centre.forgetSession(noise(190))
  at.centre.isCut = false
  await at.settled()
  const ended = at.centre.results.toSorted((one, other) => one.index - other.index)
  expect(ended).toMatchObject([
    { index: 0, end: 'failed', reason: 'stage.outFailed', outputs: [] },
    { index: 1, end: 'done' },
  ])
})

/** With as many bytes in it as a report of this pilot carries, but for a few. */
function largest(pilot: SimulatedHolder, result: Result): Result {
  const paths = Array.from({ length: 100 }, () => noise(1024))
  const cutTo = (length: number, first: number): Result => ({
    ...result,
    outputs: paths.map((path, index) => ({
      ...outputAt('store:x'),
      path: path.slice(0, index === 0 ? first : length),
    })),
  })
  const fits = (length: number, first: number) => {
    try {
      encode('report', { session: pilot.session, results: [cutTo(length, first)] })
      return true
    } catch {
      return false
    }
  }
  const length = mostOf(1024, (one) => fits(one, 1))
  return cutTo(
    length,
    mostOf(1024, (first) => fits(length, first)),
  )
}

/** The largest number up to a limit for which it holds, as for all before it. */
function mostOf(limit: number, holds: (one: number) => boolean): number {
  let [low, high] = [1, limit]
  while (low < high) {
    const middle = Math.ceil((low + high) / 2)
    if (holds(middle)) low = middle
    else high = middle - 1
  }
  return low
}

it('strange pilots - a result that the centre does not understand goes up as one of which nothing is known', async () => {
  const { pilot, lease } = await working()
  at.centre.isPicky = true
  const left = join(at.folder, `out.attempt-${lease.fences.join('-')}`)
  writeFileSync(left, 'x')
  await pilot.report([0, 1].map((index) => resultOf(lease, index, { outputs: [outputAt(pathToFileURL(left).href)] })))
  await at.settled()
  const ended = at.centre.results.toSorted((one, other) => one.index - other.index)
  expect(ended).toMatchObject([
    { index: 0, end: 'done' },
    { index: 1, end: 'failed', reason: 'node.fault' },
  ])
})
