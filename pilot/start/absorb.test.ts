import { describe, expect, it } from 'vitest'
import { onEndRecord, onQueue, onTime, type QueuedJob } from './absorb.ts'
import type { EndRecord } from './end-record.ts'
import { folderTag, parseSiteFile } from './site-file.ts'
import { emptyState, newStarted, type Started, type State } from './state.ts'

const MIN = 60_000
const HOUR = 60 * MIN
const NOW = 1000 * HOUR
const site = parseSiteFile(
  `{indraft: 1, folder: /v, credential: /c, starter: slurm, accounts: {p: {nodeHours: 1000, until: "${new Date(NOW + HOUR).toISOString()}"}},
    kinds: {cpu: {time: 12h, leastTime: 30min, account: p, nodesPerJob: 4, shape: {cores: 8}}}}`,
  'site.yaml',
)
const ID = `cpu.${folderTag(site)}00000001`
const moment = (nowMs = NOW) => ({ nowMs, random: () => 0.5 })
const stateWith = (change: Partial<Started> = {}) => {
  const start = newStarted({
    ...{ id: ID, kind: 'cpu', account: 'p', nodes: 1, timeMs: 12 * HOUR, submittedAtMs: NOW - 3 * HOUR },
    ...{ because: 'demand', jobId: '7', state: 'running', runningSinceMs: NOW - 2 * HOUR, seenAtMs: NOW - 10 * MIN },
    ...{ nodeNames: ['n1'], waitedAtMs: NOW - 2.1 * HOUR, ...change },
  })
  return { ...emptyState(), pilots: { [ID]: start } as Record<string, Started> }
}
const waits = { state: 'queued', runningSinceMs: null, seenAtMs: null, nodeNames: [] } satisfies Partial<Started>
const job = (state: QueuedJob['state'], nodes: string[], nodeCount = Math.max(1, nodes.length)): QueuedJob => ({
  ...{ jobId: '7', id: ID, state, nodes, nodeCount, reason: '' },
})
const ends = (state: ReturnType<typeof stateWith>, node: string, livedMs: number, code = 200, nowMs = NOW) => {
  const record: EndRecord = {
    ...{ version: 1, start: ID, pilot: node, node, job: '7', code, reason: 'why', livedMs },
    work: { 'c/s': { done: 9, failed: 0, medianMs: 1000 } },
  }
  onEndRecord(state, site, `${ID}-${node}.json`, record, moment(nowMs))
}
/** What is left of it: toMatchObject would take anything for {}. */
const left = ({ pilots, scopes, vanished, usedMs }: State) => ({
  ...{ pilots: Object.keys(pilots), scopes: Object.keys(scopes), vanished: Object.keys(vanished), usedMs },
})
const NOTHING = { pilots: [], scopes: [], vanished: [], usedMs: {} }
const usedHours = (state: ReturnType<typeof stateWith>) => (state.usedMs.p ?? 0) / HOUR
/** Looks, finds these, and again when a late record would have come. */
const looks = (state: ReturnType<typeof stateWith>, jobs: QueuedJob[], nowMs = NOW) => {
  onQueue(state, site, jobs, moment(nowMs))
  onTime(state, site, moment(nowMs + 2 * MIN))
}

describe('absorb - node-hours, as the batch system charges them', () => {
  it('all nodes of a job for as long as its longest pilot, when the last one has ended', () => {
    const state = stateWith({ nodes: 4 })
    for (const node of ['n1', 'n2', 'n3']) ends(state, node, 10 * MIN)
    // It counts with all that it asked for until then.
    expect([usedHours(state), Object.keys(state.pilots)]).toEqual([0, [ID]])
    ends(state, 'n4', 2 * HOUR)
    expect([usedHours(state), state.pilots]).toEqual([8, {}])
  })

  it.each<[string, Partial<Started>, number]>([
    ['from the last look that saw it wait', {}, 2.1],
    ['from its submission, if no look did', { waitedAtMs: null }, 3],
    ['not more than it asked for', { timeMs: HOUR }, 1],
    ['every node of several, whoever has spoken', { nodes: 4, ended: 3, longestMs: HOUR }, 4 * 2.1],
  ])('a job that is gone without a word: %s', (_title, change, hours) => {
    const state = stateWith(change)
    looks(state, [])
    expect(state.pilots).toEqual({})
    expect(usedHours(state)).toBeCloseTo(hours, 5)
  })

  it('a pilot of a submission that nobody knows any more: its own life', () => {
    const state = { ...stateWith(), pilots: {} }
    ends(state, 'n1', HOUR)
    expect(usedHours(state)).toBe(1)
  })

  it('one that waits again has used what it had, and proves nothing until it runs', () => {
    const state = stateWith({ nodes: 2, ended: 1, longestMs: HOUR })
    onQueue(state, site, [job('queued', [], 2)], moment())
    expect(usedHours(state)).toBeCloseTo(2 * 2.1, 5)
    const again = { ...waits, ended: 0, longestMs: 0, waitedAtMs: NOW, jobId: '7' }
    expect(state.pilots[ID]).toMatchObject(again)
    onQueue(state, site, [job('queued', [], 2)], moment(NOW + HOUR))
    expect(usedHours(state)).toBeCloseTo(2 * 2.1, 5)
    expect(state.pilots[ID]!.waitedAtMs).toBe(NOW + HOUR)
    onQueue(state, site, [job('running', ['n1', 'n2'])], moment(NOW + 2 * HOUR))
    expect(state.pilots[ID]).toMatchObject({ state: 'running', runningSinceMs: NOW + 2 * HOUR })
  })
})

describe('absorb - jobs that are found in the queue and not in the state', () => {
  it.each<[string, QueuedJob]>([
    ['waits', job('queued', [], 4)],
    ['runs', job('running', ['n1', 'n2', 'n3', 'n4'])],
  ])('one of four nodes that %s counts as four, until all of them have ended', (_title, found) => {
    const state = { ...stateWith(), pilots: {} as Record<string, Started> }
    onQueue(state, site, [found], moment())
    expect(state.pilots[ID]).toMatchObject({ nodes: 4, state: found.state, account: 'p', timeMs: 12 * HOUR })
    for (const node of ['n1', 'n2', 'n3']) ends(state, node, HOUR)
    expect(Object.keys(state.pilots)).toEqual([ID])
    ends(state, 'n4', HOUR)
    expect([usedHours(state), state.pilots]).toEqual([4, {}])
  })

  it('one that ran before anybody knew of it, and is gone without a word: the time that it may have had', () => {
    const state = { ...stateWith(), pilots: {} as Record<string, Started> }
    onQueue(state, site, [job('running', ['n1'])], moment())
    looks(state, [], NOW + HOUR)
    expect(usedHours(state)).toBe(12)
  })

  it('one whose pilots have all ended is not taken over while its script ends, nor however long its epilogue runs', () => {
    const state = stateWith()
    ends(state, 'n1', HOUR)
    looks(state, [job('running', ['n1'])])
    for (const hours of [0, 1, 30]) looks(state, [job('completing', ['n1'])], NOW + hours * HOUR)
    expect(left(state)).toEqual({ ...NOTHING, usedMs: { p: HOUR } })
    expect(state.over).toEqual({})
  })

  it.each(['queued', 'running'] as const)('requeued and %s it counts again, soon after its pilots ended', (word) => {
    const state = stateWith()
    ends(state, 'n1', HOUR)
    looks(state, [job(word, [])], NOW + 6 * MIN)
    expect(state.pilots[ID]).toMatchObject({ state: word })
  })

  it('one that is completing while its pilots have not spoken is known as before', () => {
    const state = stateWith()
    looks(state, [job('completing', ['n1'])])
    expect(state.pilots[ID]).toMatchObject({ state: 'running', missingSinceMs: null })
  })
})

describe('absorb - jobs that leave the queue before they ran', () => {
  it('withdrawn: nothing is charged and nothing held against anybody', () => {
    const state = stateWith({ ...waits, isWithdrawn: true })
    looks(state, [])
    expect(left(state)).toEqual(NOTHING)
  })

  it('withdrawn, but it began just then: it is a pilot as others are', () => {
    const state = stateWith({ ...waits, isWithdrawn: true })
    looks(state, [job('running', ['n1'])])
    expect(state.pilots[ID]).toMatchObject({ state: 'running', isWithdrawn: false })
  })

  it('taken out by the batch system, because its account ends too soon: the same', () => {
    const state = stateWith(waits)
    looks(state, [], NOW + 40 * MIN)
    expect(left(state)).toEqual(NOTHING)
  })

  it('the same where that end was far when it was submitted: then it had to begin with all of its time', () => {
    const state = stateWith({ ...waits, timeMs: 2 * HOUR })
    looks(state, [], NOW - 50 * MIN)
    expect(left(state)).toEqual(NOTHING)
  })

  it('taken out by somebody long before that end: held against the class here', () => {
    const state = stateWith(waits)
    looks(state, [], NOW)
    expect(left(state)).toMatchObject({ pilots: [], scopes: ['here:cpu'] })
    expect(state.scopes['here:cpu']).toMatchObject({ code: 700, strikes: 1 })
  })

  it.each([
    ['gone without a word', (state: ReturnType<typeof stateWith>) => looks(state, [])],
    [
      'under another name than the one it was sent to',
      (state: ReturnType<typeof stateWith>) => ends(state, 'n9.cluster', MIN),
    ],
  ])('a canary that ends %s: the next one waits its time', (_title, act) => {
    const state = stateWith({ canaryOf: 'n9' })
    const latch = { sinceMs: 0, untilMs: 1, times: 1, kind: 'cpu', reason: 'bad' }
    const withLatch = { ...state, latches: { n9: latch } }
    act(withLatch)
    expect(withLatch.latches.n9.untilMs).toBeGreaterThanOrEqual(NOW + site.nodes.latch)
    expect(left(withLatch)).toMatchObject({ pilots: [], scopes: [] })
    expect(withLatch.latches.n9.times).toBe(1)
  })
})

describe('absorb - a kind that is renamed or gone while its pilots run', () => {
  const renamed = { ...site, kinds: { fat: site.kinds.cpu! } }
  const record = (node: string): EndRecord => ({
    ...{ version: 1, start: ID, pilot: node, node, job: '7', code: 500, reason: 'why', livedMs: HOUR, work: {} },
  })
  it('they are counted and charged as they end', () => {
    const state = stateWith({ nodes: 2 })
    for (const node of ['n1', 'n2'])
      expect(onEndRecord(state, renamed, `${node}.json`, record(node), moment())).toMatchObject({
        event: 'pilot.ended',
      })
    expect([state.pilots, usedHours(state)]).toEqual([{}, 2])
  })

  it.each<[string, Partial<Started>, number]>([
    ['they vanish', {}, 2.1],
    ['they leave the queue before they ran, near the end of their account', { ...waits, timeMs: 2 * HOUR }, 0],
  ])('%s', (_title, change, hours) => {
    const state = stateWith(change)
    onQueue(state, renamed, [], moment())
    onTime(state, renamed, moment(NOW + 2 * MIN))
    expect(state.pilots).toEqual({})
    expect(usedHours(state)).toBeCloseTo(hours, 5)
  })

  it('one of which nothing is known, and whose kind is not: of others', () => {
    const state = emptyState()
    expect(onEndRecord(state, renamed, 'a.json', record('n1'), moment())).toMatchObject({ event: 'pilot.ofOthers' })
    expect(state.usedMs).toEqual({})
  })
})
