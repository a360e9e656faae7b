/** A journal that lost something: what pilots were told is safe still goes up, and nothing is waited for in vain. */
import { copyFileSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { resultOf, resultsOf, tasksOf } from '../conformance/simulated-holder.ts'
import { RelayBench } from './bench.ts'
import { until } from './relay-in-parts.ts'

let at: RelayBench
beforeEach(async () => {
  at = await RelayBench.open()
})
afterEach(() => at?.close())

const journal = () => join(at.folder, 'journal.sqlite')

function sql(text: string): void {
  const database = new DatabaseSync(journal(), { timeout: 5000 })
  // Where there is such a thing.
  database.enableDefensive?.(false)
  database.exec(text)
  database.close()
}

const indices = () => at.centre.results.map(({ index }) => index).sort((a, b) => a - b)
const damaged = () => readdirSync(at.folder).filter((name) => /^journal\.damaged-[^.]*$/.test(name))

describe('journal - damaged', () => {
  /** Results 0 to 199 are acknowledged and the centre is away. */
  async function withResults(): Promise<void> {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0-199', capability: 'opens-b1' })
    await at.buffered(200)
    at.centre.isCut = true
    const results = (await a.takeAll()).flatMap((lease) => resultsOf(lease))
    for (let from = 0; from < 200; from += 50) await a.report(results.slice(from, from + 50))
    expect(at.relay.outgoing.waiting).toBe(200)
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
    const { incarnation } = at.relay.journal
    at.centre.isCut = false
    await at.restart(() => flip(journal(), 12, 4))
    expect(damaged()).toHaveLength(1)
    expect(at.relay.journal.incarnation).not.toBe(incarnation)
    await until('results at the centre', () => at.centre.results.length > 0 && at.relay.outgoing.waiting === 0)
    expect(at.centre.results.length).toBeGreaterThan(50)
    expect(new Set(indices()).size).toBe(at.centre.results.length)
    // What opens their outputs came along, so they are no failures of the relay's making.
    expect(at.relay.buffer.capabilities.ofAttempt({ campaign: 'c1', step: 'sim', fences: [1000] })).toBe('opens-b1')
    expect(at.centre.hellos.at(-1)!.incarnation).toBe(at.relay.journal.incarnation)
  })

  it('journal - cut short it is set aside, and the relay serves on', async () => {
    await withResults()
    await at.restart(() => truncateSync(journal(), 5 * 4096))
    expect(damaged()).toHaveLength(1)
    at.centre.isCut = false
    const b = await at.pilot('b')
    at.centre.give({ bundle: 'b2', tasks: '0', fence: 2000 })
    await at.buffered(1)
    expect((await b.takeAll()).flatMap(tasksOf)).toEqual(['c1/sim/0'])
  })

  it('journal - a second damage on the same day does not overwrite what the first left', async () => {
    for (const text of ['one', 'two']) await at.restart(() => writeFileSync(journal(), text.repeat(2000)))
    expect(damaged()).toHaveLength(2)
  })
})

describe('journal - gone back', () => {
  it('journal - pilots that saw more show it; what it forgot that it gave is a late success, not refused', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0-1' })
    await at.buffered(2)
    await at.relay.crash()
    copyFileSync(journal(), join(at.folder, 'before'))
    await at.start()
    const leases = await a.takeAll()
    expect(leases.flatMap(tasksOf)).toHaveLength(2)
    const { mark } = await a.beat()
    await at.restart(() => {
      for (const suffix of ['-wal', '-shm']) rmSync(journal() + suffix, { force: true })
      copyFileSync(join(at.folder, 'before'), journal())
    })
    expect(at.relay.journal.sequence).toBeLessThan(mark.sequence)
    await a.hello()
    const answer = await a.ask('pull', { ...a.pullBody({}, 0), seen: mark })
    expect(answer.type).toBe('grants')
    expect(at.relay.journal.hasLost).toBe(true)
    expect(await a.report(leases.flatMap((lease) => resultsOf(lease)))).toEqual(['accepted', 'accepted'])
    await until('both at the centre', () => at.centre.results.length === 2)
    expect(at.relay.buffer.counts()).toMatchObject({ free: 0 })
  })
})

describe('journal - single rows', () => {
  it('journal - a lease that cannot be read is set aside, the others are not starved', async () => {
    await at.pilot('a')
    at.centre.give({ bundle: 'b1', tasks: '0-3' })
    at.centre.give({ bundle: 'b2', tasks: '4-7', fence: 2000 })
    await at.buffered(8)
    await at.restart(() => sql("UPDATE lease SET free = 'no ranges' WHERE bundle = 'b1'"))
    expect([...at.relay.buffer.leases()].map(({ bundle }) => bundle)).toEqual(['b2'])
    await at.relay.crash()
    sql("UPDATE bundle SET grant_body = x'c1c1c1'")
    await at.start()
    expect([...at.relay.buffer.leases()]).toEqual([])
    expect(at.relay.journal.hasLost).toBe(true)
  })

  it('journal - a task of which every trace is lost is reported as lost, so that the centre runs it again', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0-3' })
    await at.buffered(4)
    const [first] = await a.takeAll(1)
    at.centre.isCut = true
    await a.report([resultOf(first!, Number(first!.tasks))])
    await at.restart(() => sql("UPDATE result SET body = x'c1'"))
    at.centre.isCut = false
    await until('its result', () => at.centre.results.length === 1)
    expect(at.centre.results[0]).toMatchObject({ index: Number(first!.tasks), end: 'failed', reason: 'node.lost' })
    await until('settled', () => at.relay.outgoing.waiting === 0)
  })
})

describe('journal - going bad while the relay runs', () => {
  /** The centre is away: the result of task 0 is under way to it, those of the others wait in the journal. */
  async function withWaiting(): Promise<void> {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0-9' })
    await at.buffered(10)
    const results = (await a.takeAll()).flatMap((lease) => resultsOf(lease)).sort((one, two) => one.index - two.index)
    at.centre.isCut = true
    await a.report(results.slice(0, 1))
    await until('it is under way', () => at.centre.reports > 0)
    expect(await a.report(results.slice(1))).toEqual(Array(9).fill('accepted'))
  }

  it('journal - a result that cannot be read any more is reported as lost at once, the others go up', async () => {
    await withWaiting()
    sql("UPDATE result SET body = x'c1' WHERE attempt LIKE '%/5/%' OR attempt LIKE '%/6/%'")
    at.centre.isCut = false
    await at.atCentre(10)
    expect(indices()).toEqual([...Array(10).keys()])
    const failed = at.centre.results.filter(({ end }) => end === 'failed')
    expect(failed.map(({ index, reason }) => [index, reason]).sort()).toEqual([
      [5, 'node.lost'],
      [6, 'node.lost'],
    ])
    await at.settled()
    expect(at.relay.buffer.counts().leases).toBe(0)
  })

  it('journal - a file that does not let itself be read ends the relay; started again it hands up what it was told', async () => {
    await at.relay.crash()
    const failures: Error[] = []
    await at.start({ events: { onFailed: (error) => failures.push(error) } })
    await withWaiting()
    // But for task 0 the index leads to rows that are not there: reading by it fails, and only the whole check sees it.
    sql(`
      CREATE TABLE other (number INTEGER PRIMARY KEY, attempt TEXT NOT NULL UNIQUE, body BLOB NOT NULL);
      INSERT INTO other SELECT iif(attempt LIKE '%/0/%', 0, 1000) + number, attempt, body FROM result;
      PRAGMA writable_schema = ON;
      UPDATE sqlite_schema SET rootpage = (
        SELECT sum(rootpage) FROM sqlite_schema WHERE name IN ('sqlite_autoindex_result_1', 'sqlite_autoindex_other_1')
      ) - rootpage WHERE name IN ('sqlite_autoindex_result_1', 'sqlite_autoindex_other_1');
      PRAGMA schema_version = 999`)
    at.centre.isCut = false
    await until('it cannot go on', () => failures.length > 0)
    expect(failures.map(({ message }) => message)).toEqual([expect.stringContaining('malformed')])
    await expect(at.relay.journal.committed()).rejects.toThrow('malformed')
    await at.restart()
    expect(damaged()).toHaveLength(1)
    await until('all at the centre', () => new Set(indices()).size === 10)
    expect(at.centre.results.every(({ end }) => end === 'done')).toBe(true)
  })
})

describe('journal - past fences', () => {
  it('journal - a late success after a restart, under a fence taken back before it, is accepted', async () => {
    const a = await at.pilot('a')
    at.centre.give({ tasks: '0' })
    await at.buffered(1)
    const [lease] = await a.takeAll()
    at.clock.jump(a.timings.lostAfterMs + 1)
    at.relay.dispatcher.sweep()
    await at.buffered(1)
    await at.restart()
    const b = await at.pilot('b')
    const [newer] = await b.takeAll()
    expect(newer).toBeDefined()
    await a.hello()
    expect(await a.report(resultsOf(lease!))).toEqual(['accepted'])
    const { orders } = await b.beat()
    expect(orders).toMatchObject([{ kind: 'attempt.cancel', attempt: { fences: newer!.fences } }])
    await until('at the centre', () => at.centre.results.length === 1)
  })
})
