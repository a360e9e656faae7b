/** One tick with real files and a batch system of the test's own: what is left when it dies at any of its steps. */
import { mkdtempSync, rmSync } from 'node:fs'
import { readdir, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { silentLog } from '../../shared/log.ts'
import type { QueuedJob } from './absorb.ts'
import type { Start } from './decide.ts'
import { endTeller, readEndRecords, readProgress, writeEndRecord } from './end-record.ts'
import { foldersOf, readState, realPorts, writeState } from './files.ts'
import { parseSiteFile, type SiteFile } from './site-file.ts'
import { emptyState } from './state.ts'
import { NotStarted, type Ports, tick } from './tick.ts'

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
    expect(await stateNow()).toMatchObject({ pilots: {}, submissions: [nowMs] })
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
  })

  it('dry runs change nothing', async () => {
    const outcome = await tick(site, portsOf(), silentLog, true)
    expect(outcome).toMatchObject({ decision: { starts: [{ kind: 'cpu', nodes: 1 }] } })
    expect(await readdir(folder)).toEqual([])
    expect(jobs).toEqual([])
  })

  it('a state file that cannot be read starts nothing', async () => {
    await tick(site, portsOf(), silentLog)
    await writeFile(foldersOf(site).state, '{"version": 2}')
    await expect(tick(site, portsOf(), silentLog)).rejects.toThrow('is not a state file of this version')
    expect(jobs).toHaveLength(1)
  })
})

describe('end records', () => {
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
