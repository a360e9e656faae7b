/** A journal that lost something: what pilots were told is safe still goes up, and nothing is waited for in vain. */
import { copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { frameHandler } from '../../shared/dispatcher.ts'
import { memoryLink } from '../../shared/link.ts'
import { silentLog } from '../../shared/log.ts'
import { resultOf, resultsOf, SimulatedHolder, tasksOf } from '../conformance/simulated-holder.ts'
import { type FastClock, fastClock } from '../fast-clock.ts'
import { type RelayInParts, relayInParts, until } from './relay-in-parts.ts'
import { ScriptedCentre } from './scripted-centre.ts'

let clock: FastClock
let centre: ScriptedCentre
let relay: RelayInParts
let folder: string
let journal: string
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-journal-damage-'))
  journal = join(folder, 'journal.sqlite')
  clock = fastClock(20)
  centre = new ScriptedCentre()
  relay = await startRelay()
})
afterEach(async () => {
  await relay.crash()
  rmSync(folder, { recursive: true, force: true })
})

function startRelay(): Promise<RelayInParts> {
  const link = memoryLink({ site: 'ALPHA' }, frameHandler(centre, silentLog), clock)
  return relayInParts({ clock, link, folder })
}

/** Stops the relay, lets `damage` have its files, and starts it again. */
async function restart(damage: () => void = () => {}): Promise<void> {
  await relay.crash()
  damage()
  relay = await startRelay()
}

async function pilot(name: string): Promise<SimulatedHolder> {
  const link = memoryLink({ site: 'ALPHA' }, (peer, frame) => relay.handler(peer, frame), clock)
  const made = new SimulatedHolder(link, 'pilot', name)
  await made.hello()
  return made
}

function sql(text: string): void {
  const database = new DatabaseSync(journal)
  database.exec(text)
  database.close()
}

const buffered = (tasks: number) => until(`${tasks} tasks in the buffer`, () => relay.buffer.counts().free === tasks)
const indices = () => centre.results.map(({ index }) => index).sort((a, b) => a - b)
const damaged = () => readdirSync(folder).filter((name) => /^journal\.damaged-[^.]*$/.test(name))

describe('journal - damaged', () => {
  /** Results 0 to 199 are acknowledged and the centre is away. */
  async function withResults(): Promise<void> {
    const a = await pilot('a')
    centre.give({ tasks: '0-199', capability: 'opens-b1' })
    await buffered(200)
    centre.isCut = true
    const results = (await a.takeAll()).flatMap((lease) => resultsOf(lease))
    for (let from = 0; from < 200; from += 50) await a.report(results.slice(from, from + 50))
    expect(relay.outgoing.waiting).toBe(200)
  }

  /** Overwrites the middle of every page that `from` of them come after. */
  function flip(path: string, from: number, most: number): void {
    const bytes = readFileSync(path)
    for (let page = from; page < Math.min(from + most, bytes.length / 4096); page++) {
      bytes.fill(0xff, page * 4096, page * 4096 + 2048)
    }
    writeFileSync(path, bytes)
  }

  it('journal - flipped pages set it aside; acknowledged results that can be read still go up', async () => {
    await withResults()
    const { incarnation } = relay.journal
    centre.isCut = false
    await restart(() => flip(journal, 12, 4))
    expect(damaged()).toHaveLength(1)
    expect(relay.journal.incarnation).not.toBe(incarnation)
    await until('results at the centre', () => centre.results.length > 0 && relay.outgoing.waiting === 0)
    expect(centre.results.length).toBeGreaterThan(50)
    expect(new Set(indices()).size).toBe(centre.results.length)
    // What opens their outputs came along, so they are no failures of the relay's making.
    expect(relay.buffer.capabilities.ofAttempt({ campaign: 'c1', step: 'sim', fences: [1000] })).toBe('opens-b1')
    expect(centre.hellos.at(-1)!.incarnation).toBe(relay.journal.incarnation)
  })

  it('journal - cut short it is set aside, and the relay serves on', async () => {
    await withResults()
    await restart(() => truncateSync(journal, 5 * 4096))
    expect(damaged()).toHaveLength(1)
    centre.isCut = false
    const b = await pilot('b')
    centre.give({ bundle: 'b2', tasks: '0', fence: 2000 })
    await buffered(1)
    expect((await b.takeAll()).flatMap(tasksOf)).toEqual(['c1/sim/0'])
  })

  it('journal - a second damage on the same day does not overwrite what the first left', async () => {
    for (const text of ['one', 'two']) await restart(() => writeFileSync(journal, text.repeat(2000)))
    expect(damaged()).toHaveLength(2)
  })
})

describe('journal - gone back', () => {
  it('journal - pilots that saw more show it; what it forgot that it gave is a late success, not refused', async () => {
    const a = await pilot('a')
    centre.give({ tasks: '0-1' })
    await buffered(2)
    await relay.crash()
    copyFileSync(journal, join(folder, 'before'))
    relay = await startRelay()
    const leases = await a.takeAll()
    expect(leases.flatMap(tasksOf)).toHaveLength(2)
    const { sequence, incarnation } = relay.journal
    await restart(() => {
      for (const suffix of ['-wal', '-shm']) rmSync(journal + suffix, { force: true })
      copyFileSync(join(folder, 'before'), journal)
    })
    expect(relay.journal.sequence).toBeLessThan(sequence)
    await a.hello()
    const answer = await a.ask('pull', { ...a.pullBody({}, 0), seen: { epoch: incarnation, sequence } })
    expect(answer.type).toBe('grants')
    expect(relay.journal.hasLost).toBe(true)
    expect(await a.report(leases.flatMap((lease) => resultsOf(lease)))).toEqual(['accepted', 'accepted'])
    await until('both at the centre', () => centre.results.length === 2)
    expect(relay.buffer.counts()).toMatchObject({ free: 0 })
  })
})

describe('journal - single rows', () => {
  it('journal - a lease that cannot be read is set aside, the others are not starved', async () => {
    await pilot('a')
    centre.give({ bundle: 'b1', tasks: '0-3' })
    centre.give({ bundle: 'b2', tasks: '4-7', fence: 2000 })
    await buffered(8)
    await restart(() => sql("UPDATE lease SET free = 'no ranges' WHERE bundle = 'b1'"))
    expect([...relay.buffer.leases()].map(({ bundle }) => bundle)).toEqual(['b2'])
    await relay.crash()
    sql("UPDATE bundle SET grant_body = x'c1c1c1'")
    relay = await startRelay()
    expect([...relay.buffer.leases()]).toEqual([])
    expect(relay.journal.hasLost).toBe(true)
  })

  it('journal - a task of which every trace is lost is reported as lost, so that the centre runs it again', async () => {
    const a = await pilot('a')
    centre.give({ tasks: '0-3' })
    await buffered(4)
    const [first] = await a.takeAll(1)
    centre.isCut = true
    await a.report([resultOf(first!, Number(first!.tasks))])
    await restart(() => sql("UPDATE result SET body = x'c1'"))
    centre.isCut = false
    await until('its result', () => centre.results.length === 1)
    expect(centre.results[0]).toMatchObject({ index: Number(first!.tasks), end: 'failed', reason: 'node.lost' })
    await until('settled', () => relay.outgoing.waiting === 0)
  })
})

describe('journal - past fences', () => {
  it('journal - a late success after a restart, under a fence taken back before it, is accepted', async () => {
    const a = await pilot('a')
    centre.give({ tasks: '0' })
    await buffered(1)
    const [lease] = await a.takeAll()
    clock.jump(a.timings.lostAfterMs + 1)
    relay.dispatcher.sweep()
    await buffered(1)
    await restart()
    const b = await pilot('b')
    const [newer] = await b.takeAll()
    expect(newer).toBeDefined()
    await a.hello()
    expect(await a.report(resultsOf(lease!))).toEqual(['accepted'])
    const { orders } = await b.beat()
    expect(orders).toMatchObject([{ kind: 'attempt.cancel', attempt: { fences: newer!.fences } }])
    await until('at the centre', () => centre.results.length === 1)
  })
})
