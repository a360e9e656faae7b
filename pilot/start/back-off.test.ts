import { describe, expect, it } from 'vitest'
import { gateOf, judgeEnd, strike, strikeRefused } from './back-off.ts'
import type { EndRecord } from './end-record.ts'
import { parseSiteFile } from './site-file.ts'
import { emptyState, newStarted, type Started, type State } from './state.ts'

const MIN = 60_000
const NOW = 100 * 60 * MIN
const site = parseSiteFile(
  `{indraft: 1, folder: /v, credential: /c, starter: slurm, backOff: {jitter: 0}, kinds: {
     cpu: {time: 12h, shape: {cores: 8}}, here: {time: 12h, match: cpu, shape: {cores: 8}}, gpu: {time: 12h, shape: {cores: 8}}}}`,
  'site.yaml',
)
const moment = (nowMs = NOW) => ({ nowMs, random: () => 0.5 })
const started = (change: Partial<Started> = {}): Started =>
  newStarted({
    ...{ id: 'cpu.1', kind: 'cpu', account: null, nodes: 1, timeMs: 720 * MIN, submittedAtMs: NOW - 30 * MIN },
    ...{ because: 'demand', jobId: '1', state: 'running', runningSinceMs: NOW - 29 * MIN, seenAtMs: NOW },
    ...{ nodeNames: ['n1'], ...change },
  })
const end = (code: number, livedMin = 20, done = 0, node = 'n1'): EndRecord => ({
  ...{
    version: 1,
    start: 'cpu.1',
    pilot: 'p',
    node,
    job: '1',
    code,
    reason: `reason ${code}`,
    livedMs: livedMin * MIN,
  },
  work: done > 0 ? { 'c/s': { done, failed: 0, medianMs: 1000 } } : {},
})
const stateAfter = (start: Started, ...ends: EndRecord[]): State => {
  const state = emptyState()
  for (const one of ends) judgeEnd(state, site, start, one, moment())
  return state
}
const scopesOf = (state: State) =>
  Object.fromEntries(Object.entries(state.scopes).map(([key, { untilMs }]) => [key, Math.round((untilMs - NOW) / MIN)]))

describe('back-off', () => {
  it.each<[string, EndRecord, Record<string, number>]>([
    ['200 holds nothing against anybody', end(200), {}],
    ['100 neither', end(100), {}],
    ['300 throttles the class', end(300), { 'class:cpu': 5 }],
    ['300 after work too', end(300, 20, 9), { 'class:cpu': 5 }],
    ['300 at the end of its time does not', end(300, 719, 9), {}],
    ['400 throttles the class at this site', end(400), { 'here:cpu': 10 }],
    ['500 bans the node, and nothing else', end(500, 0), { 'node:n1': 60 }],
    ['600 throttles the class', end(600), { 'class:cpu': 10 }],
    ['700 after a short life, the class at this site, shortly', end(700, 5, 3), { 'here:cpu': 1 }],
    ['700 without work, however long', end(700, 40), { 'here:cpu': 1 }],
    ['700 after long work was ended from outside', end(700, 40, 3), {}],
  ])('back-off - %s', (_title, one, expected) => {
    expect(scopesOf(stateAfter(started(), one))).toEqual(expected)
  })

  it.each([
    [1, 5],
    [2, 10],
    [4, 40],
    [5, 60],
    [30, 60],
  ])('back-off - after probe number %i fails the next waits %i min', (strikes, minutes) => {
    const state = emptyState()
    for (let i = 0; i < strikes; i++)
      strike(state, 'class:cpu', { code: 300, reason: '', startedAtMs: NOW }, site, moment())
    expect(scopesOf(state)).toEqual({ 'class:cpu': minutes })
  })

  it('back-off - fifty pilots of one storm are one strike', () => {
    const state = stateAfter(started(), ...Array.from({ length: 50 }, () => end(600)))
    expect(state.scopes['class:cpu']).toMatchObject({ strikes: 1 })
  })

  it('back-off - jitter spreads it by the share that the site file gives', () => {
    const jittered = { ...site, backOff: { ...site.backOff, jitter: 0.3 } }
    const waits = [0, 0.5, 1].map((random) => {
      const state = emptyState()
      strike(state, 'x', { code: 300, reason: '', startedAtMs: NOW }, jittered, { nowMs: NOW, random: () => random })
      return Math.round((state.scopes.x!.untilMs - NOW) / 1000)
    })
    expect(waits).toEqual([210, 300, 390])
  })

  it('back-off - one bad node bans itself; when three agree it is the site', () => {
    const two = stateAfter(started(), end(500, 0, 0, 'n1'), end(500, 0, 0, 'n2'))
    expect(Object.keys(two.scopes)).toEqual(['node:n1', 'node:n2'])
    const three = stateAfter(started(), end(500, 0, 0, 'n1'), end(500, 0, 0, 'n2'), end(500, 0, 0, 'n3'))
    expect(three.scopes['here:cpu']).toMatchObject({ code: 500, reason: '3 nodes agree, the last one: reason 500' })
  })

  it('back-off - banned nodes of more than an hour ago do not agree with one of now', () => {
    const state = emptyState()
    for (const node of ['n1', 'n2']) judgeEnd(state, site, started(), end(500, 0, 0, node), moment(NOW - 61 * MIN))
    judgeEnd(state, site, started(), end(500, 0, 0, 'n3'), moment())
    expect(Object.keys(state.scopes)).toEqual(['node:n1', 'node:n2', 'node:n3'])
  })

  it.each([
    ['that began before it proves nothing', 31, 1],
    ['that began after it opens class and site', 19, 0],
  ])('back-off - struck twenty minutes ago, a good end of a pilot %s', (_title, livedMin, count) => {
    const state = emptyState()
    for (const key of ['class:cpu', 'here:cpu'])
      strike(state, key, { code: 400, reason: '', startedAtMs: NOW - 25 * MIN }, site, moment(NOW - 20 * MIN))
    judgeEnd(state, site, started(), end(200, livedMin, 3), moment())
    expect(Object.keys(state.scopes)).toHaveLength(2 * count)
  })

  const struck = (code: number, agoMin: number, untilMin: number, isLiftable = false) => ({
    ...{ strikes: 2, sinceMs: NOW - agoMin * MIN, untilMs: NOW + untilMin * MIN, code, reason: 'why', isLiftable },
  })
  const probe = (youngMin: number, change: Partial<Started> = {}) =>
    started({ submittedAtMs: NOW - youngMin * MIN, runningSinceMs: NOW - youngMin * MIN, ...change })
  it.each<[string, string, State['scopes'], Started[], boolean, string]>([
    ['nothing held against it', 'cpu', {}, [], false, 'open'],
    [
      'in its back-off',
      'cpu',
      { 'class:cpu': struck(300, 5, 3) },
      [],
      false,
      'back-off for 3 min more, strike 2: 300 why',
    ],
    ['so is another kind that draws the same work', 'here', { 'class:cpu': struck(300, 5, 3) }, [], false, 'back-off'],
    ['but not one of other work', 'gpu', { 'class:cpu': struck(300, 5, 3) }, [], false, 'open'],
    [
      'nor the class elsewhere, where this site is at fault',
      'here',
      { 'here:cpu': struck(400, 5, 3) },
      [],
      false,
      'open',
    ],
    ['back-off over: one probe', 'cpu', { 'class:cpu': struck(300, 30, -1) }, [], false, 'probe'],
    [
      'the probe is under way',
      'cpu',
      { 'class:cpu': struck(300, 30, -1) },
      [probe(0, { runningSinceMs: null })],
      false,
      'one probe is on its way',
    ],
    [
      'the probe is younger than the fizzle time',
      'cpu',
      { 'class:cpu': struck(300, 30, -1) },
      [probe(9)],
      false,
      'one probe is on its way',
    ],
    ['the probe outlived it', 'cpu', { 'class:cpu': struck(300, 30, -1) }, [probe(11)], false, 'probe'],
    [
      'pilots from before the strike are no probe',
      'cpu',
      { 'class:cpu': struck(300, 5, -1) },
      [probe(8)],
      false,
      'probe',
    ],
    ['no work, but the relay has some', 'cpu', { 'class:cpu': struck(300, 5, 3, true) }, [], true, 'open'],
    ['no work, and the relay was wrong before', 'cpu', { 'class:cpu': struck(300, 5, 3, false) }, [], true, 'back-off'],
    ['banned, whatever the relay has', 'cpu', { 'here:cpu': struck(400, 5, 3) }, [], true, 'back-off'],
  ])('gate - %s', (_title, kind, scopes, pilots, isWorkKnown, expected) => {
    const state = { ...emptyState(), scopes, pilots: Object.fromEntries(pilots.map((one) => [one.id, one])) }
    const gate = gateOf(state, site, kind, isWorkKnown, moment())
    expect(gate.isOpen ? (gate.isProbe ? 'probe' : 'open') : gate.why).toMatch(new RegExp(`^${expected}`))
  })

  it('back-off - what the batch system refused waits longer each time; mended in the site file, not at all', () => {
    const state = emptyState()
    const mended = { ...site, kinds: { ...site.kinds, cpu: { ...site.kinds.cpu!, sbatch: ['--account=right'] } } }
    strikeRefused(state, site, 'cpu', 'Invalid account', moment())
    expect(scopesOf(state)).toEqual({ 'here:cpu': 10 })
    expect(gateOf(state, site, 'cpu', true, moment())).toMatchObject({ isOpen: false })
    expect(gateOf(state, site, 'here', true, moment())).toMatchObject({ isOpen: true })
    strikeRefused(state, site, 'cpu', 'Invalid account', moment())
    expect(scopesOf(state)).toEqual({ 'here:cpu': 20 })
    expect(gateOf(state, mended, 'cpu', true, moment())).toEqual({ isOpen: true, isProbe: false })
    strikeRefused(state, mended, 'cpu', 'Invalid partition', moment())
    expect(state.scopes['here:cpu']).toMatchObject({ strikes: 1, reason: expect.stringContaining('partition') })
    expect(gateOf(state, mended, 'cpu', true, moment())).toMatchObject({ isOpen: false })
  })

  it('back-off - the relay is believed once; sent on its word twice for nothing, its word does not lift it', () => {
    const state = emptyState()
    judgeEnd(state, site, started(), end(300, 8), moment())
    expect(state.scopes['class:cpu']!.isLiftable).toBe(true)
    judgeEnd(state, site, started({ submittedAtMs: NOW + MIN }), end(300, 8), moment(NOW + 10 * MIN))
    expect(state.scopes['class:cpu']).toMatchObject({ strikes: 2, isLiftable: false })
    judgeEnd(state, site, started({ submittedAtMs: NOW + 20 * MIN }), end(300, 8, 5), moment(NOW + 30 * MIN))
    expect(state.scopes['class:cpu']).toMatchObject({ strikes: 1, isLiftable: true })
  })
})
