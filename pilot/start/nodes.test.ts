import { describe, expect, it } from 'vitest'
import type { EndRecord } from './end-record.ts'
import {
  excludedNodes,
  forgetUnknown,
  judgeCanary,
  judgeLiving,
  learn,
  mayTryCanary,
  noteCanary,
  postponeCanary,
  shareBounds,
  suspicion,
} from './nodes.ts'
import { parseSiteFile } from './site-file.ts'
import { emptyState, newStarted } from './state.ts'

const site = parseSiteFile(
  '{indraft: 1, folder: /v, credential: /c, starter: slurm, kinds: {cpu: {time: 12h, shape: {cores: 8}}}}',
  'site.yaml',
)
const sample = (done: number, failed: number, medianMs: number | null = 60_000) => ({ done, failed, medianMs })
const end = (node: string, work: EndRecord['work'], code = 200): EndRecord => ({
  ...{ version: 1, start: 'cpu.1', pilot: 'p', node, job: null, code, reason: '', livedMs: 3_600_000, work },
})
const step = (done: number, failed: number, medianMs: number | null = 60_000) => ({
  'c/s': sample(done, failed, medianMs),
})

describe('black holes', () => {
  it.each([
    [0, 0, 0, 1],
    [5, 5, 0.48, 1],
    [0, 100, 0, 0.05],
    [50, 100, 0.39, 0.61],
  ])('share - %i of %i is truly between %f and %f', (failed, total, least, most) => {
    const bounds = shareBounds(failed, total)
    expect(bounds.least).toBeCloseTo(least, 1)
    expect(bounds.most).toBeCloseTo(most, 1)
  })

  it.each<[string, ReturnType<typeof sample>, ReturnType<typeof sample>[], string | null]>([
    [
      'all fail here, none elsewhere',
      sample(0, 8, null),
      [sample(100, 0), sample(90, 1)],
      '8 of 8 tasks failed here, 1 % on 2 others',
    ],
    ['too few to say', sample(0, 4, null), [sample(100, 0)], null],
    ['nobody to compare with', sample(0, 50, null), [], null],
    ['others did too little', sample(0, 50, null), [sample(4, 0)], null],
    ['they fail everywhere: the campaign is at fault', sample(5, 45), [sample(10, 90), sample(8, 80)], null],
    ['a few failures among many', sample(95, 5), [sample(100, 0), sample(100, 0)], null],
    [
      'a third of the others are as bad, and ate most tasks by far',
      sample(0, 900, null),
      [sample(0, 900, null), sample(0, 1000, null), ...Array(4).fill(sample(8, 0))],
      '900 of 900 tasks failed here, 33 % on 6 others',
    ],
    ['half fail here, a tenth elsewhere', sample(30, 30), [sample(90, 10), sample(90, 10)], '30 of 60'],
    [
      'done in no time, sixty times faster',
      sample(50, 0, 1000),
      [sample(40, 0), sample(40, 0, 70_000)],
      'tasks end after 1000 ms here',
    ],
    ['ten times faster may be a better machine', sample(50, 0, 6000), [sample(40, 0)], null],
    ['slower is no black hole', sample(50, 0, 600_000), [sample(40, 0)], null],
    [
      'fast, but so is one of the others: the median decides',
      sample(50, 0, 1000),
      [sample(40, 0, 900), sample(40, 0, 60_000), sample(40, 0, 61_000)],
      'tasks end',
    ],
  ])('suspicion - %s', (_title, own, others, expected) => {
    const found = suspicion(own, others, site.nodes)
    if (expected === null) expect(found).toBeNull()
    else expect(found).toContain(expected)
  })

  it('latch - stays however long the node stands idle, until a canary does well; then it begins anew', () => {
    const state = emptyState()
    for (const node of ['n1', 'n2']) learn(state, site, 'cpu', end(node, step(50, 0)), 0)
    const [found] = learn(state, site, 'cpu', end('n3', step(0, 20, null)), 0)
    expect(found).toMatchObject({ node: 'n3', why: expect.stringContaining('20 of 20') })
    expect(excludedNodes(state, site, 10 * 86_400_000).nodes).toEqual(['n3'])
    // Still bad: latched for longer.
    expect(judgeCanary(state, site, 'n3', end('n3', step(0, 5, null)), 3_600_000)).toContain('latched on')
    expect(state.latches.n3).toMatchObject({ times: 2, untilMs: 3 * 3_600_000 })
    // Found nothing to do: nothing is known.
    expect(judgeCanary(state, site, 'n3', end('n3', {}, 300), 4 * 3_600_000)).toContain('undecided')
    expect(judgeCanary(state, site, 'n3', end('n3', step(5, 0, 100)), 5 * 3_600_000)).toContain('latched on')
    expect(judgeCanary(state, site, 'n3', end('n3', {}, 500), 5 * 3_600_000)).toContain('latched on')
    expect(judgeCanary(state, site, 'n3', end('n3', step(4, 1)), 6 * 3_600_000)).toBe('released')
    expect(excludedNodes(state, site, 6 * 3_600_000).nodes).toEqual([])
    expect(learn(state, site, 'cpu', end('n3', step(20, 1)), 7 * 3_600_000)).toEqual([])
  })

  it('latch - a latched node is no measure for the others: the next bad one is found too', () => {
    const state = emptyState()
    learn(state, site, 'cpu', end('n1', step(50, 0)), 0)
    learn(state, site, 'cpu', end('n2', step(0, 500, null)), 0)
    learn(state, site, 'cpu', end('n3', step(0, 12, null)), 0)
    expect(Object.keys(state.latches)).toEqual(['n2', 'n3'])
    expect(learn(state, site, 'cpu', end('n1', step(50, 0)), 0)).toEqual([])
  })

  it('latch - one that ate all it could before others had ended is found by their first word', () => {
    const state = emptyState()
    expect(learn(state, site, 'fat', end('n2', step(0, 60, null)), 0)).toEqual([])
    expect(learn(state, site, 'cpu', end('n1', step(2, 0)), 1)).toEqual([])
    const why = '60 of 60 tasks failed here, 0 % on 1 other'
    expect(learn(state, site, 'cpu', end('n1', step(40, 0)), 2)).toEqual([{ node: 'n2', why }])
    // Its canary is a pilot of the kind that worked there.
    expect(state.latches).toMatchObject({ n2: { kind: 'fat', sinceMs: 2 } })
    expect(learn(state, site, 'cpu', end('n1', step(40, 0)), 3)).toEqual([])
  })

  it('latch - a living pilot is judged by what it did so far, and is to be ended', () => {
    const state = emptyState()
    const living = ['n1', 'n2', 'n3'].map((node) => ({ ...end(node, step(40, 0)), start: `cpu.${node}` }))
    living.push({ ...end('n4', step(0, 300, null)), start: 'cpu.n4' })
    for (const { start } of living) {
      state.pilots[start] = newStarted({
        ...{ id: start, kind: 'cpu', account: null, nodes: 1, timeMs: 0, submittedAtMs: 0, because: 'demand' },
        ...{ jobId: '1', state: 'running', runningSinceMs: 0, seenAtMs: 0 },
      })
    }
    expect(judgeLiving(state, site, living, 0)).toMatchObject([{ start: 'cpu.n4', node: 'n4', isNew: true }])
    expect(Object.keys(state.latches)).toEqual(['n4'])
    // It lives still: whoever was to end it did not, and is told again.
    expect(judgeLiving(state, site, living, 0)).toMatchObject([{ start: 'cpu.n4', node: 'n4', isNew: false }])
    // Counted only at their ends.
    expect(state.work).toEqual({})
  })

  it('latch - a living pilot on a node that another one showed to be bad is to be ended; its canary is not', () => {
    const state = emptyState()
    const living = ['cpu.on', 'cpu.canary'].map((start) => ({ ...end('n3', step(0, 1, null)), start }))
    for (const start of ['cpu.on', 'cpu.canary'])
      state.pilots[start] = newStarted({
        ...{ id: start, kind: 'cpu', account: null, nodes: 1, timeMs: 0, submittedAtMs: 0, because: 'demand' },
        ...{ state: 'running', runningSinceMs: 0, seenAtMs: 0, canaryOf: start === 'cpu.canary' ? 'n3' : null },
      })
    learn(state, site, 'cpu', end('n1', step(50, 0)), 0)
    expect(judgeLiving(state, site, living, 0)).toEqual([])
    learn(state, site, 'cpu', end('n3', step(0, 20, null)), 0)
    const why = '20 of 20 tasks failed here, 0 % on 1 other'
    expect(judgeLiving(state, site, living, 0)).toEqual([{ start: 'cpu.on', node: 'n3', why, isNew: false }])
  })

  it.each([
    [300, 'undecided'],
    [500, 'latched on'],
    [600, 'undecided'],
    [700, 'undecided'],
  ])('latch - a canary that did nothing and ends with %i leaves it %s', (code, said) => {
    const state = emptyState()
    const latch = { sinceMs: 0, untilMs: 1, times: 1, kind: 'cpu', reason: 'bad' }
    state.latches.n3 = { ...latch }
    expect(judgeCanary(state, site, 'n3', end('n3', {}, code), 10)).toContain(said)
    const untilMs = said === 'undecided' ? 10 + site.nodes.latch / 4 : 10 + 2 * site.nodes.latch
    expect(state.latches.n3).toMatchObject({ untilMs, times: said === 'undecided' ? 1 : 2 })
  })

  it('latch - five canaries in an hour of twenty submissions; one in vain holds off all of them', () => {
    const state = emptyState()
    for (const node of ['n3', 'n4'])
      state.latches[node] = { sinceMs: 0, untilMs: 1, times: 1, kind: 'cpu', reason: 'bad' }
    const from = () => [0, 11, 12, 59, 60].filter((minute) => mayTryCanary(state, site, minute * 60_000))
    expect(from()).toEqual([0, 11, 12, 59, 60])
    noteCanary(state, site, 0)
    expect(from()).toEqual([12, 59, 60])
    postponeCanary(state, site, 'n3', 0)
    expect(from()).toEqual([60])
    expect(state.latches).toMatchObject({ n3: { untilMs: site.nodes.latch }, n4: { untilMs: 1 } })
  })

  it('latch - nodes that are gone from the batch system are forgotten, others not', () => {
    const state = emptyState()
    for (const node of ['n3', 'gone'])
      state.latches[node] = { sinceMs: 0, untilMs: 1, times: 1, kind: 'cpu', reason: 'bad' }
    for (const node of ['n4', 'away']) {
      state.scopes[`node:${node}`] = {
        ...{ strikes: 1, sinceMs: 0, untilMs: 1, code: 500, reason: '', isLiftable: false },
      }
      state.vanished[node] = 1
    }
    // What it did must not latch it again.
    learn(state, site, 'cpu', end('gone', step(0, 20, null)), 0)
    expect(forgetUnknown(state, new Set(['n1', 'n3', 'n4'])).sort()).toEqual(['away', 'gone'])
    expect(state).toMatchObject({ latches: { n3: {} }, vanished: { n4: 1 } })
    expect([Object.keys(state.latches), Object.keys(state.scopes), Object.keys(state.vanished)]).toEqual([
      ['n3'],
      ['node:n4'],
      ['n4'],
    ])
    expect(learn(state, site, 'cpu', end('n1', step(50, 0)), 1)).toEqual([])
  })

  it('latch - what a node did more than a day ago is no measure any more', () => {
    const state = emptyState()
    learn(state, site, 'cpu', end('n1', step(50, 0)), 0)
    expect(learn(state, site, 'cpu', end('n2', step(0, 20, null)), 86_400_001)).toEqual([])
    learn(state, site, 'cpu', end('n1', step(50, 0)), 86_400_002)
    expect(Object.keys(state.latches)).toEqual(['n2'])
  })

  it('exclude - the latest findings, up to the most that the site file names', () => {
    const state = emptyState()
    const few = { ...site, nodes: { ...site.nodes, mostExcluded: 2 } }
    for (const [at, node] of ['n1', 'n2', 'n3'].entries()) {
      state.scopes[`node:${node}`] = {
        strikes: 1,
        sinceMs: at,
        untilMs: 1000,
        code: 500,
        reason: '',
        isLiftable: false,
      }
    }
    expect(excludedNodes(state, few, 500)).toEqual({ nodes: ['n2', 'n3'], more: 1 })
    expect(excludedNodes(state, few, 1000)).toEqual({ nodes: [], more: 0 })
  })
})
