/** One tick with real files and a batch system of the test's own: what is left when it dies at any of its steps. */
import { mkdtempSync, rmSync } from 'node:fs'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { silentLog } from '../../shared/log.ts'
import type { QueuedJob } from './absorb.ts'
import type { Start } from './decide.ts'
import { askToLeave, endTeller, readEndRecords, readProgress, removeEndRecords, writeEndRecord } from './end-record.ts'
import { foldersOf, readState, realPorts, writeState } from './files.ts'
import { folderTag, parseSiteFile, type SiteFile } from './site-file.ts'
import { emptyState, newStarted } from './state.ts'
import { NotStarted, NotStartedForNodes, type Ports, tick } from './tick.ts'

let folder: string
let site: SiteFile
let nowMs: number
let jobs: (QueuedJob & { order: Start })[]
let tasks: number
let calls: string[]

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-tick-'))
  site = parseSiteFile(
    `{indraft: 1, folder: ${folder}, credential: /none, starter: slurm, kinds: {cpu: {time: 12h, shape: {cores: 8}}}}`,
    'site.yaml',
  )
  nowMs = 1_000_000_000_000
  jobs = []
  tasks = 8
  calls = []
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

class Killed extends Error {}

/** Real files; the batch system and the relay are the test's. Dies at its step number `diesAt`, before or after it. */
function portsOf(diesAt = Number.POSITIVE_INFINITY): Ports & { steps: () => number } {
  const real = realPorts(site, {})
  let step = 0
  const at = async <T>(act: () => Promise<T>): Promise<T> => {
    if (++step >= diesAt) throw new Killed()
    const result = await act()
    if (++step >= diesAt) throw new Killed()
    return result
  }
  return {
    ...real,
    // The lock of a process that was killed is another test's: here its death frees it.
    lock: async () => ({ isHeld: async () => step < diesAt, release: async () => {} }),
    readState: () => at(() => real.readState()),
    writeState: (state) => at(() => real.writeState(state)),
    endRecords: () => at(() => real.endRecords()),
    removeEndRecords: (files) => at(() => real.removeEndRecords(files)),
    progress: () => at(() => real.progress()),
    askToLeave: (alive, why) => at(() => real.askToLeave(alive, why)),
    isStopped: () => at(() => real.isStopped()),
    ask: () =>
      at(async () => ({
        fits: tasks > 0 ? [{ entry: 0, group: 'g', work: 'c/s', tasks, perNode: 8, estimateMs: null }] : [],
        ...{ idlePilots: 0, isWhole: true, reason: null },
      })),
    starter: {
      queue: () =>
        at(async () => {
          calls.push('squeue')
          return jobs
        }),
      start: (order) =>
        at(async () => {
          calls.push('sbatch')
          jobs.push({ jobId: String(jobs.length + 1), id: order.id, state: 'queued', nodes: [], reason: '', order })
          return String(jobs.length)
        }),
      withdraw: async () => {},
      end: async () => {},
    },
    nowMs: () => nowMs,
    steps: () => step,
  }
}
const stateNow = () => readState(foldersOf(site).state)
/** What is left there: toMatchObject would take anything for {}. */
const left = async () => {
  const { pilots, scopes, vanished, usedMs } = await stateNow()
  return { pilots: Object.keys(pilots), scopes: Object.keys(scopes), vanished: Object.keys(vanished), usedMs }
}
const NOTHING = { pilots: [], scopes: [], vanished: [], usedMs: {} }
const later = async (ms: number) => {
  nowMs += ms
  return tick(site, portsOf(), silentLog)
}
const endOf = (id: string, code = 300, livedMs = 700_000) =>
  writeEndRecord(foldersOf(site).ends, {
    ...{ version: 1, start: id, pilot: `p-${id}`, node: 'n1', job: '1', code, reason: 'why', livedMs },
    work: { 'c/s': { done: 8, failed: 0, medianMs: 1000 } },
  })

describe('tick - killed at any step', () => {
  const steps = Array.from({ length: 22 }, (_, at) => at + 1)
  it.each(steps)('step %i of the tick that starts a pilot: one job in the end, known by its number', async (diesAt) => {
    // Not the first tick of all, which looks at the queue in any case.
    await writeState(foldersOf(site).state, { ...emptyState(), lookedAtMs: nowMs - 60_000 })
    await tick(site, portsOf(diesAt), silentLog).catch((error) => expect(error).toBeInstanceOf(Killed))
    for (let minute = 0; minute < 8; minute++) await later(60_000)
    expect(jobs).toHaveLength(1)
    const { pilots } = await stateNow()
    expect(Object.values(pilots)).toMatchObject([{ id: jobs[0]!.id, jobId: '1', state: 'queued' }])
    expect(calls.filter((call) => call === 'squeue').length).toBeLessThanOrEqual(8)
    expect((await readdir(folder)).filter((name) => name.startsWith('state.json.'))).toEqual([])
  })

  it.each(steps)('step %i of the tick that counts an end: it counts once', async (diesAt) => {
    await tick(site, portsOf(), silentLog)
    await endOf(jobs.pop()!.id)
    tasks = 0
    nowMs += 60_000
    await tick(site, portsOf(diesAt), silentLog).catch((error) => expect(error).toBeInstanceOf(Killed))
    for (let minute = 0; minute < 3; minute++) await later(60_000)
    const state = await stateNow()
    expect(state.pilots).toEqual({})
    expect(state.usedMs).toEqual({ '': 700_000 })
    expect(state.work['c/s']!.n1).toMatchObject({ done: 8 })
    expect(state.scopes['class:cpu']).toMatchObject({ strikes: 1 })
    expect(await readdir(foldersOf(site).ends)).toEqual([])
  })
})

describe('tick - answers of the batch system', () => {
  it('a refused submission is forgotten at once', async () => {
    const ports = portsOf()
    ports.starter.start = async () => {
      throw new NotStarted('Invalid account')
    }
    const outcome = await tick(site, ports, silentLog)
    expect(outcome).toMatchObject({ errors: [expect.stringContaining('Invalid account')] })
    expect(await left()).toEqual({ ...NOTHING, scopes: ['here:cpu'] })
    expect((await stateNow()).submissions).toEqual([nowMs])
    expect((await stateNow()).scopes['here:cpu']).toMatchObject({
      ...{ code: 400, strikes: 1, reason: 'not taken by the batch system: Invalid account' },
    })
    // The kind waits, as after a ban.
    await later(60_000)
    expect(calls.filter((call) => call === 'sbatch')).toEqual([])
  })

  it('refused in passing, and then taken: the next tick starts more, whether or not the first one runs', async () => {
    tasks = 1000
    const ports = portsOf()
    ports.starter.start = () => Promise.reject(new NotStarted('Job violates accounting/QOS policy (job submit limit)'))
    await tick(site, ports, silentLog)
    await later(60 * 60_000)
    expect(jobs.map(({ order }) => order.because)).toEqual(['probe'])
    await later(60_000)
    expect(jobs.length).toBeGreaterThan(1)
    expect((await left()).scopes).toEqual([])
  })

  it('a queue that cannot be read while nothing is known: nothing starts until it can be', async () => {
    const ports = portsOf()
    ports.starter.queue = () => Promise.reject(new Error('squeue did not answer within 60 s'))
    for (let minute = 0; minute < 3; minute++) {
      nowMs += 60_000
      const outcome = await tick(site, ports, silentLog)
      expect(outcome).toMatchObject({ errors: [/could not be read/].map((one) => expect.stringMatching(one)) })
    }
    expect([jobs, (await stateNow()).lookedAtMs]).toEqual([[], null])
    await later(60_000)
    expect(jobs).toHaveLength(1)
    // What it once read is good enough to go on with.
    tasks = 1000
    nowMs += 600_000
    await tick(site, { ...ports, starter: { ...portsOf().starter, queue: ports.starter.queue } }, silentLog)
    expect(jobs.length).toBeGreaterThan(1)
  })

  it('refused for a node that is gone from the cluster: that is forgotten, and the next tick starts', async () => {
    const latch = { sinceMs: 0, untilMs: nowMs + 1e9, times: 1, kind: 'cpu', reason: 'bad' }
    await writeState(foldersOf(site).state, { ...emptyState(), lookedAtMs: nowMs, latches: { n3: latch, gone: latch } })
    const ports = portsOf()
    const { start } = ports.starter
    ports.starter.start = async (order) => {
      if (order.exclude.includes('gone')) throw new NotStartedForNodes('Invalid node name specified')
      return start(order)
    }
    ports.starter.nodeNames = async () => ['n1', 'n2', 'n3']
    expect(await tick(site, ports, silentLog)).toMatchObject({
      errors: [/specified/, /knows no gone: forgotten/].map((one) => expect.stringMatching(one)),
    })
    expect(await left()).toEqual(NOTHING)
    nowMs += 60_000
    expect(await tick(site, ports, silentLog)).toMatchObject({ errors: [] })
    expect(jobs.map(({ order }) => order.exclude)).toEqual([['n3']])
  })

  it.each<[string, (() => Promise<string[]>) | undefined]>([
    ['all are known', async () => ['n1', 'n3']],
    ['nobody says which there are', async () => []],
    ['the question fails', () => Promise.reject(new Error('sinfo: no'))],
    ['there is nobody to ask', undefined],
  ])('refused for a node, and %s: a refusal as any other', async (_title, nodeNames) => {
    const latch = { sinceMs: 0, untilMs: nowMs + 1e9, times: 1, kind: 'cpu', reason: 'bad' }
    await writeState(foldersOf(site).state, { ...emptyState(), lookedAtMs: nowMs, latches: { n3: latch } })
    const ports = portsOf()
    ports.starter.start = () => Promise.reject(new NotStartedForNodes('Invalid node name specified'))
    if (nodeNames) ports.starter.nodeNames = nodeNames
    await tick(site, ports, silentLog)
    expect(await stateNow()).toMatchObject({ latches: { n3: latch }, scopes: { 'here:cpu': { code: 400 } } })
  })

  it('a canary that is refused says nothing about its kind: others start, and it comes later', async () => {
    const latch = { sinceMs: 0, untilMs: 1, times: 1, kind: 'cpu', reason: 'bad' }
    await writeState(foldersOf(site).state, { ...emptyState(), lookedAtMs: nowMs, latches: { n3: latch } })
    const ports = portsOf()
    const { start } = ports.starter
    ports.starter.start = (order) =>
      order.canaryOf === null ? start(order) : Promise.reject(new NotStarted('Requested node configuration'))
    await tick(site, ports, silentLog)
    expect(jobs).toHaveLength(1)
    expect(await stateNow()).toMatchObject({
      ...{ latches: { n3: { untilMs: nowMs + site.nodes.latch } }, canariesFromMs: nowMs + site.nodes.latch },
    })
    expect(await left()).toMatchObject({ pilots: [jobs[0]!.id], scopes: [] })
  })

  it('a canary that is taken: the next one after a quarter of what an hour may have', async () => {
    const latch = { sinceMs: 0, untilMs: 1, times: 1, kind: 'cpu', reason: 'bad' }
    await writeState(foldersOf(site).state, { ...emptyState(), lookedAtMs: nowMs, latches: { n3: latch, n4: latch } })
    await tick(site, portsOf(), silentLog)
    expect(jobs.map(({ order }) => order.canaryOf)).toEqual(['n3', null])
    expect((await stateNow()).canariesFromMs).toBe(nowMs + 12 * 60_000)
  })

  it('of two kinds one is refused: the other starts in the same tick, and the refused one is tried once', async () => {
    site = parseSiteFile(
      `{indraft: 1, folder: ${folder}, credential: /none, starter: slurm, caps: {startsATick: 4},
        kinds: {a: {time: 12h, shape: {cores: 8}}, b: {time: 12h, shape: {cores: 8}}}}`,
      'site.yaml',
    )
    const ports = portsOf()
    ports.random = () => 0
    ports.ask = async () => ({
      fits: [0, 1].map((entry) => ({
        ...{ entry, group: 'g', work: 'c/s', tasks: 1000, perNode: 8, estimateMs: null },
      })),
      ...{ idlePilots: 0, isWhole: true, reason: null },
    })
    const { start } = ports.starter
    const asked: string[] = []
    ports.starter.start = (order) => {
      asked.push(order.kind)
      return order.kind === 'a' ? Promise.reject(new NotStarted('Invalid account')) : start(order)
    }
    await tick(site, ports, silentLog)
    expect(asked.sort()).toEqual(['a', 'b', 'b'])
    expect(jobs).toHaveLength(2)
  })

  it('a waiting job that a STOP file takes out: one call, nothing held against anybody', async () => {
    await later(0)
    const withdrawn: string[] = []
    const stopped = () => {
      const ports = portsOf()
      ports.isStopped = async () => true
      ports.starter.withdraw = async (starts) => {
        withdrawn.push(...starts.map(({ id }) => id))
        jobs = []
      }
      return ports
    }
    const [{ id }] = jobs as [(typeof jobs)[0]]
    for (let minute = 0; minute < 20; minute++) {
      nowMs += 60_000
      await tick(site, stopped(), silentLog)
    }
    expect(withdrawn).toEqual([id])
    expect(await left()).toEqual(NOTHING)
  })

  it.each(['the answer is lost', 'the tick dies'])(
    'one that is withdrawn, and %s: nothing is held against anybody',
    async (fate) => {
      await later(0)
      tasks = 0
      nowMs += 180_000
      const ports = portsOf()
      ports.starter.withdraw = async () => {
        jobs = []
        if (fate === 'the tick dies') ports.writeState = () => Promise.reject(new Killed())
        throw new Error('scancel did not answer within 60 s')
      }
      await tick(site, ports, silentLog).catch((error) => expect(error).toBeInstanceOf(Killed))
      expect(jobs).toEqual([])
      // The next tick looks first of all.
      for (let look = 0; look < 3; look++) await later(10 * 60_000)
      expect(await left()).toEqual(NOTHING)
    },
  )

  it('one that was to be withdrawn, and was not: it is known as waiting, and withdrawn again', async () => {
    await later(0)
    tasks = 0
    const asked: string[] = []
    for (let minute = 0; minute < 20; minute++) {
      nowMs += 60_000
      const ports = portsOf()
      ports.starter.withdraw = async (starts) => {
        asked.push(...starts.map(({ id }) => id))
        if (asked.length < 2) throw new Error('scancel: no')
        jobs = []
      }
      await tick(site, ports, silentLog)
    }
    expect(asked).toHaveLength(2)
    expect(await left()).toEqual(NOTHING)
  })

  it('one of which nobody knows is found in the queue, under its name', async () => {
    const ports = portsOf()
    const start = ports.starter.start
    ports.starter.start = async (order) => {
      await start(order)
      throw new Error('Socket timed out on send/recv operation')
    }
    await tick(site, ports, silentLog)
    expect(Object.values((await stateNow()).pilots)).toMatchObject([{ jobId: null, state: 'submitting' }])
    await later(60_000)
    expect(Object.values((await stateNow()).pilots)).toMatchObject([{ jobId: '1', state: 'queued' }])
    expect(jobs).toHaveLength(1)
  })

  it('a pilot that vanished is noticed, and young ones are held against the node at the second time', async () => {
    for (let round = 0; round < 2; round++) {
      await later(20 * 60_000)
      expect(jobs).toHaveLength(1)
      Object.assign(jobs[0]!, { state: 'running', nodes: ['n4'] })
      await later(150_000)
      jobs.pop()
      tasks = 0
      await later(11 * 60_000)
      await later(150_000)
      expect((await stateNow()).pilots).toEqual({})
      tasks = 8
    }
    const { scopes, vanished } = await stateNow()
    expect(vanished).toEqual({ n4: 2 })
    expect(scopes['node:n4']).toMatchObject({ code: 500, reason: 'ended young and without a word' })
    expect(scopes['here:cpu']).toMatchObject({ code: 700, reason: 'ended young and without a word' })
  })

  it('a record that comes a minute after its job is gone from the queue still counts', async () => {
    await later(0)
    const [{ id, order }] = jobs as [(typeof jobs)[0]]
    jobs = [{ jobId: '1', id, state: 'running', nodes: ['n4'], reason: '', order }]
    await later(150_000)
    jobs = []
    tasks = 0
    await later(600_000)
    expect((await stateNow()).pilots[id]).toMatchObject({ missingSinceMs: nowMs })
    await later(60_000)
    await endOf(id, 200)
    await later(30_000)
    expect(await left()).toMatchObject({ pilots: [], scopes: [], vanished: [] })
  })

  it('a lock that was taken over: nothing is started any more', async () => {
    const ports = portsOf()
    ports.lock = async () => ({ isHeld: async () => false, release: async () => {} })
    const outcome = await tick(site, ports, silentLog)
    expect(outcome).toMatchObject({ errors: ['the lock was taken over: nothing more is started'] })
    expect(jobs).toEqual([])
  })

  it('dry runs change nothing', async () => {
    const outcome = await tick(site, portsOf(), silentLog, true)
    expect(outcome).toMatchObject({ decision: { starts: [{ kind: 'cpu', nodes: 1 }] } })
    expect(await readdir(folder)).toEqual([])
    expect(jobs).toEqual([])
  })

  it('a state file of an earlier build is read', async () => {
    await tick(site, portsOf(), silentLog)
    const path = foldersOf(site).state
    const { canariesFromMs: _, over: __, ...old } = JSON.parse(await readFile(path, 'utf8'))
    for (const pilot of Object.values(old.pilots as Record<string, object>))
      for (const key of ['waitedAtMs', 'longestMs', 'isWithdrawn']) Reflect.deleteProperty(pilot, key)
    await writeFile(path, JSON.stringify(old))
    expect(await tick(site, portsOf(), silentLog)).toMatchObject({ errors: [], state: { over: {}, canariesFromMs: 0 } })
  })

  it('a state file that cannot be read starts nothing', async () => {
    await tick(site, portsOf(), silentLog)
    await writeFile(foldersOf(site).state, '{"version": 2}')
    await expect(tick(site, portsOf(), silentLog)).rejects.toThrow('is not a state file of this version')
    expect(jobs).toHaveLength(1)
  })
})

describe('tick - others of this account', () => {
  it('jobs of another site file with kinds of the same name are theirs', async () => {
    jobs.push(
      ...['cpu.0123456789ab', 'cpu.89abcdef', `cpu.${folderTag(site)}89abcdef`].map((id, at) => ({
        ...{ jobId: String(at), id, state: 'running' as const, nodes: ['n7'], reason: '' },
        order: {} as Start,
      })),
    )
    tasks = 0
    await writeState(foldersOf(site).state, { ...emptyState(), demand: null })
    tasks = 8
    await tick(site, portsOf(), silentLog)
    const known = Object.keys((await stateNow()).pilots)
    expect(known.filter((id) => jobs.slice(0, 3).some((job) => job.id === id))).toEqual([
      `cpu.${folderTag(site)}89abcdef`,
    ])
    expect(jobs.at(-1)!.id).toMatch(new RegExp(`^cpu\\.${folderTag(site)}[0-9a-f]{8}$`))
  })
})

describe('tick - the clock', () => {
  it('set back by a day: it asks and looks and starts as if nothing had been', async () => {
    await tick(site, portsOf(), silentLog)
    await endOf(jobs.pop()!.id, 400)
    tasks = 0
    await later(60_000)
    nowMs -= 86_400_000
    tasks = 16
    await later(0)
    expect((await stateNow()).demand).toMatchObject({ askedAtMs: nowMs, answer: { fits: [{ tasks: 16 }] } })
    // What was held against the class is so for as long as it was to be, from now.
    expect(jobs).toEqual([])
    await later(14 * 60_000)
    expect(jobs).toHaveLength(1)
    expect((await stateNow()).lookedAtMs).toBeLessThanOrEqual(nowMs)
  })
})

describe('tick - a black hole among the nodes of one job', () => {
  /** Two jobs: one of a single node, one of three, with a black hole in each of them. */
  const holes = async () => {
    const started = (id: string, nodes: number) =>
      newStarted({
        ...{ id, kind: 'cpu', account: null, nodes, timeMs: 1e7, submittedAtMs: nowMs - 1e6, because: 'demand' },
        ...{ jobId: id, state: 'running', runningSinceMs: nowMs - 1e6, seenAtMs: nowMs },
      })
    const pilots = { 'cpu.one': started('cpu.one', 1), 'cpu.three': started('cpu.three', 3) }
    await writeState(foldersOf(site).state, { ...emptyState(), lookedAtMs: nowMs, pilots })
    jobs.push(
      ...['cpu.one', 'cpu.three'].map((id) => ({
        jobId: id,
        id,
        state: 'running' as const,
        nodes: [],
        reason: '',
        order: {} as Start,
      })),
    )
    tasks = 0
    const alive = (start: string, node: string, done: number, failed: number) =>
      writeEndRecord(
        foldersOf(site).ends,
        {
          ...{ version: 1, start, pilot: node, node, job: start, code: 100, reason: 'alive', livedMs: 6e5 },
          work: { 'c/s': { done, failed, medianMs: done > 0 ? 60_000 : null } },
        },
        true,
      )
    await alive('cpu.three', 'n1', 40, 0)
    await alive('cpu.three', 'n2', 0, 300)
    await alive('cpu.three', 'n3', 40, 0)
    await alive('cpu.one', 'n4', 0, 300)
  }
  const files = async () => (await readdir(foldersOf(site).ends)).sort()

  it('its pilot alone is asked to end, without a call; the job of one node is cancelled', async () => {
    await holes()
    const cancelled: string[] = []
    const ports = portsOf()
    ports.starter.end = async (starts) => void cancelled.push(...starts.map(({ id }) => id))
    await tick(site, ports, silentLog)
    expect(await files()).toEqual([
      ...['cpu.one-n4.alive', 'cpu.three-n1.alive', 'cpu.three-n2.alive', 'cpu.three-n2.leave', 'cpu.three-n3.alive'],
    ])
    expect(await readFile(join(foldersOf(site).ends, 'cpu.three-n2.leave'), 'utf8')).toBe(
      '300 of 300 tasks failed here, 0 % on 2 others\n',
    )
    expect(cancelled).toEqual(['cpu.one'])
    expect(Object.keys((await stateNow()).latches).sort()).toEqual(['n2', 'n4'])
    // It has ended: what asked it goes with its record, and nothing is held against the class.
    await writeEndRecord(foldersOf(site).ends, {
      ...{
        version: 1,
        start: 'cpu.three',
        pilot: 'n2',
        node: 'n2',
        job: '1',
        code: 500,
        reason: 'the site asks',
        livedMs: 7e5,
      },
      work: { 'c/s': { done: 0, failed: 310, medianMs: null } },
    })
    await later(60_000)
    expect(await files()).toEqual(['cpu.one-n4.alive', 'cpu.three-n1.alive', 'cpu.three-n3.alive'])
    expect(await left()).toMatchObject({ scopes: [] })
    expect((await stateNow()).pilots['cpu.three']).toMatchObject({ ended: 1 })
  })

  it('a call that fails is made again with the next look, until the pilot has ended', async () => {
    await holes()
    const cancelled: string[][] = []
    const ports = portsOf()
    ports.starter.end = async (starts) => {
      cancelled.push(starts.map(({ id }) => id))
      if (cancelled.length === 1) throw new Error('Unable to contact slurm controller')
    }
    const { askToLeave: ask } = ports
    let asked = 0
    ports.askToLeave = (alive, why) => (asked++ === 0 ? Promise.reject(new Error('EROFS')) : ask(alive, why))
    expect(await tick(site, ports, silentLog)).toMatchObject({
      errors: [/EROFS/, /Unable to contact/].map((one) => expect.stringMatching(one)),
    })
    expect(Object.keys((await stateNow()).latches).sort()).toEqual(['n2', 'n4'])
    nowMs += 10 * 60_000
    expect(await tick(site, ports, silentLog)).toMatchObject({ errors: [] })
    expect(cancelled).toEqual([['cpu.one'], ['cpu.one']])
    expect(await files()).toContain('cpu.three-n2.leave')
    // Gone, and so is what it said.
    await removeEndRecords(foldersOf(site).ends, ['cpu.one-n4.alive'])
    nowMs += 10 * 60_000
    await tick(site, ports, silentLog)
    expect(cancelled).toHaveLength(2)
  })

  it.each(Array.from({ length: 18 }, (_, at) => at + 1))(
    'killed at step %i: it is asked in the end',
    async (diesAt) => {
      await holes()
      await tick(site, portsOf(diesAt), silentLog).catch((error) => expect(error).toBeInstanceOf(Killed))
      for (let minute = 0; minute < 3; minute++) await later(10 * 60_000)
      expect(await files()).toContain('cpu.three-n2.leave')
      expect(Object.keys((await stateNow()).latches)).toContain('n2')
    },
  )
})

describe('end records', () => {
  it('a pilot that is asked to end hears why, once; one that is not hears nothing', async () => {
    const { ends } = foldersOf(site)
    const tellerOf = (startId: string | null) =>
      endTeller({ endFolder: ends, startId, node: 'n1' }, { name: 'p', job: '1', livedMs: () => 1 }, silentLog, {
        ...{ progress: 5, asked: 5 },
      })
    const heard: string[] = []
    const [asked, other, byHand] = [tellerOf('cpu.1'), tellerOf('cpu.2'), tellerOf(null)]
    for (const one of [asked, other, byHand]) one.whenAsked((why) => void heard.push(why))
    await expect.poll(() => readdir(ends)).toContain('cpu.1-p.alive')
    await askToLeave(ends, 'cpu.1-p.alive', 'tasks fail here')
    await expect.poll(() => heard).toEqual(['tasks fail here'])
    for (const one of [asked, other, byHand]) await one.tell({ code: 500, reason: 'asked' })
    expect(heard).toEqual(['tasks fail here'])
    await removeEndRecords(ends, ['cpu.1-p.json'])
    expect((await readdir(ends)).filter((name) => name.startsWith('cpu.1'))).toEqual([])
  })

  it('a pilot has one file there: while it lives what it did so far, at its end how it ended', async () => {
    const { ends } = foldersOf(site)
    await writeEndRecord(
      ends,
      {
        ...{ version: 1, start: 'cpu.1', pilot: 'p', node: 'n1', job: '1', code: 100, reason: '' },
        livedMs: 1,
        work: {},
      },
      true,
    )
    expect(await readdir(ends)).toEqual(['cpu.1-p.alive'])
    expect(await readEndRecords(ends)).toEqual([])
    expect(await readProgress(ends)).toMatchObject([{ record: { code: 100 } }])
    const config = { endFolder: ends, startId: 'cpu.1', node: 'n1' }
    const teller = endTeller(config, { name: 'p', job: '1', livedMs: () => 5000 }, silentLog)
    const result = (end: 'done' | 'failed', wallMs: number, reason: string | null = null) =>
      teller.tally.add({ campaign: 'c', step: 's', end, wallMs, reason } as never)
    for (const wallMs of [100, 300, 200]) result('done', wallMs)
    result('failed', 5, 'payload.exit')
    // Says nothing about the node.
    result('failed', 0, 'attempt.cancelled')
    await teller.tell({ code: 300, reason: 'no more work' })
    expect(await readdir(ends)).toEqual(['cpu.1-p.json'])
    const [found] = await readEndRecords(ends)
    expect(found!.record).toMatchObject({
      code: 300,
      livedMs: 5000,
      work: { 'c/s': { done: 3, failed: 1, medianMs: 200 } },
    })
  })
})
