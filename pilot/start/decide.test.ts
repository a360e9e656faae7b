import { describe, expect, it } from 'vitest'
import type { Message } from '../../shared/protocol/messages.ts'
import { decide, shouldLook } from './decide.ts'
import { offerOf, shouldAsk } from './demand.ts'
import { parseSiteFile } from './site-file.ts'
import { emptyState, newStarted, type Started, type State } from './state.ts'

const MIN = 60_000
const HOUR = 60 * MIN
const NOW = 1000 * HOUR
const siteOf = (more = '', kinds = 'cpu: {time: 10h, shape: {cores: 8}}') =>
  parseSiteFile(
    `{indraft: 1, folder: /v, credential: /c, starter: slurm, caps: {running: 10, queued: 4, startsATick: 3}, ${more}
      kinds: {${kinds}}}`,
    'site.yaml',
  )
const site = siteOf()
const started = (change: Partial<Started> = {}): Started =>
  newStarted({
    ...{ id: `cpu.${Math.abs(change.submittedAtMs ?? 0)}`, kind: 'cpu', account: null, nodes: 1, timeMs: 10 * HOUR },
    ...{ submittedAtMs: NOW - HOUR, because: 'demand', jobId: '1', state: 'running', runningSinceMs: NOW - HOUR },
    ...{ seenAtMs: NOW, nodeNames: ['n1'], ...change },
  })
const pilots = (count: number, change: Partial<Started> = {}) =>
  Object.fromEntries(Array.from({ length: count }, (_, at) => [`cpu.${at}`, started({ id: `cpu.${at}`, ...change })]))
const queued: Partial<Started> = { state: 'queued', runningSinceMs: null, nodeNames: [], submittedAtMs: NOW - MIN }
const fits = (tasks: number, change: Partial<Message<'demanded'>['fits'][number]> = {}) => ({
  ...{ entry: 0, group: 'g', work: 'c/s', tasks, perNode: 8, estimateMs: null, ...change },
})
const says = (change: Partial<Message<'demanded'>> = {}): State['demand'] => ({
  askedAtMs: NOW,
  answer: { fits: [], idlePilots: 0, isWhole: true, reason: null, ...change },
})
let number = 0
const decided = (state: Partial<State>, given = site, random = () => 0.5) =>
  decide(
    { ...emptyState(), ...state },
    given,
    { nowMs: NOW, random },
    { isStopped: false, newId: () => `id${number++}` },
  )

describe('decide - how many', () => {
  it.each<[string, Partial<State>, number, string]>([
    ['no work, nothing starts', { demand: says({ reason: 'noWork' }) }, 0, 'noWork'],
    ['one task, one node', { demand: says({ fits: [fits(1)] }) }, 1, ''],
    ['nine tasks, two nodes', { demand: says({ fits: [fits(9)] }) }, 2, ''],
    ['a thousand: as many as one tick may', { demand: says({ fits: [fits(1000)] }) }, 3, 'caps.startsATick is 3'],
    [
      'a thousand of a second: two nodes for ten minutes',
      { demand: says({ fits: [fits(9600, { estimateMs: 1000 })] }) },
      2,
      '',
    ],
    ['less idle pilots', { demand: says({ fits: [fits(16)], idlePilots: 1 }) }, 1, ''],
    ['less those that wait', { demand: says({ fits: [fits(16)] }), pilots: pilots(1, queued) }, 1, ''],
    [
      'less those that have just begun',
      { demand: says({ fits: [fits(16)] }), pilots: pilots(1, { runningSinceMs: NOW - MIN }) },
      1,
      '',
    ],
    ['not less those that work', { demand: says({ fits: [fits(16)] }), pilots: pilots(1) }, 2, ''],
    [
      'up to the nodes that may run',
      { demand: says({ fits: [fits(1000)] }), pilots: pilots(9) },
      1,
      'caps.running is 10 nodes',
    ],
    [
      'up to the jobs that may wait',
      { demand: says({ fits: [fits(1000)] }), pilots: pilots(3, queued) },
      1,
      'caps.queued is 4 jobs',
    ],
    [
      'up to the submissions of an hour',
      { demand: says({ fits: [fits(1000)] }), submissions: Array(19).fill(NOW) },
      1,
      'caps.submissionsAnHour is 20',
    ],
    [
      'up to the calls of an hour',
      { demand: says({ fits: [fits(1000)] }), calls: Array(58).fill(NOW) },
      2,
      'caps.slurmCallsAnHour is 60',
    ],
    ['nobody answers: one probe', {}, 1, 'nobody says what would fit: 1 on trial'],
    ['the probe is on trial', { pilots: pilots(1, { runningSinceMs: NOW - MIN }) }, 0, '1 on trial, 0 outlived'],
    ['it outlived: one more', { pilots: pilots(1) }, 1, ''],
    [
      'a canary that waits is no pilot on trial',
      { pilots: { ...pilots(1), 'cpu.c': started({ ...queued, id: 'cpu.c', canaryOf: 'n7' }) } },
      1,
      '',
    ],
    ['three have: three more', { pilots: pilots(3) }, 3, ''],
    [
      'the centre is away, the buffer has some: that much',
      { demand: says({ fits: [fits(8)], isWhole: false }) },
      1,
      '',
    ],
    [
      'the centre is away, the buffer is empty: as if nobody answered',
      { demand: says({ isWhole: false, reason: 'noWork' }) },
      1,
      'nobody says',
    ],
  ])('decide - %s', (_title, state, count, why) => {
    const { starts, why: whys } = decided(state)
    expect(starts.reduce((sum, { nodes }) => sum + nodes, 0)).toBe(count)
    expect(whys.join('\n')).toContain(why)
  })

  it('decide - several nodes go in one job, as many as are wanted', () => {
    const many = siteOf('', 'cpu: {time: 10h, nodesPerJob: 4, shape: {cores: 8}}')
    expect(decided({ demand: says({ fits: [fits(8 * 6)] }) }, many).starts.map(({ nodes }) => nodes)).toEqual([4, 2])
  })

  it.each<[string, string, Partial<State>, number[], string]>([
    ['no more than may run', '', { pilots: pilots(7) }, [3], 'caps.running is 10 nodes'],
    ['no more than may be of its kind', 'most: 6, ', {}, [4, 2], 'kinds.cpu.most is 6 nodes'],
    ['and none beyond', 'most: 2, ', { pilots: pilots(2) }, [], 'kinds.cpu.most is 2 nodes'],
    [
      'one alone after a back-off',
      '',
      { scopes: { 'here:cpu': { strikes: 1, sinceMs: 0, untilMs: 1, code: 400, reason: '', isLiftable: false } } },
      [1],
      'one probe goes first',
    ],
  ])('decide - jobs of up to four nodes: %s', (_title, more, state, nodes, why) => {
    const given = siteOf('', `cpu: {time: 10h, nodesPerJob: 4, ${more}shape: {cores: 8}}`)
    const decision = decided({ demand: says({ fits: [fits(1000)] }), ...state }, given)
    expect(decision.starts.map((start) => start.nodes)).toEqual(nodes)
    expect(decision.why.join('\n')).toContain(why)
  })

  it('decide - after a back-off one node goes first, however many are wanted', () => {
    const scopes = {
      'here:cpu': { strikes: 1, sinceMs: NOW - HOUR, untilMs: NOW - 1, code: 400, reason: '', isLiftable: false },
    }
    const { starts, why } = decided({ demand: says({ fits: [fits(1000)] }), scopes })
    expect(starts).toMatchObject([{ nodes: 1, because: 'probe' }])
    expect(why.join()).toContain('one probe goes first')
  })
})

describe('decide - which', () => {
  const two = (accounts: string, a = '', b = '') =>
    siteOf(
      `accounts: {${accounts}},`,
      `a: {time: 10h, account: x, shape: {cores: 8}${a}}, b: {time: 10h, account: y, shape: {cores: 8}${b}}`,
    )
  const both = says({ fits: [fits(1000), fits(1000, { entry: 1 })] })
  const kinds = (state: Partial<State>, given: ReturnType<typeof siteOf>) =>
    decided(state, given).starts.map(({ kind }) => kind)

  it('decide - the account with least for its share goes next', () => {
    const given = two('x: {share: 1}, y: {share: 2}')
    const demand = both
    expect(kinds({ demand }, given).sort()).toEqual(['a', 'b', 'b'])
    const many = Object.fromEntries(
      [0, 1, 2, 3].map((at) => [`b.${at}`, started({ id: `b.${at}`, kind: 'b', account: 'y' })]),
    )
    expect(kinds({ demand, pilots: many }, given)).toEqual(['a', 'a', expect.any(String)])
  })

  it('decide - of the kinds of one account the one with least for its share goes next', () => {
    const given = siteOf('', 'a: {time: 10h, share: 1, shape: {cores: 8}}, b: {time: 10h, share: 2, shape: {cores: 8}}')
    for (const random of [() => 0, () => 0.99]) {
      const { starts } = decided({ demand: both }, given, random)
      expect(starts.map(({ kind }) => kind).sort()).toEqual(['a', 'b', 'b'])
    }
  })

  it('decide - who is as near to its share goes by lot', () => {
    const given = two('x: {}, y: {}')
    const first = new Set(
      [0.1, 0.9].map((low) => {
        let turn = 0
        return decided({ demand: both }, given, () => (turn++ % 2 === 0 ? low : 0.5)).starts[0]!.kind
      }),
    )
    expect(first).toEqual(new Set(['a', 'b']))
  })

  it('decide - work that both kinds fit is not counted twice', () => {
    expect(kinds({ demand: says({ fits: [fits(16), fits(16, { entry: 1 })] }) }, two('x: {}, y: {}'))).toHaveLength(2)
  })

  it('decide - what runs counts for the account it was submitted with, though its kind is gone by now', () => {
    const pilot = started({ id: 'old.1', kind: 'old', account: 'x' })
    const { starts } = decided(
      { demand: says({ fits: [fits(1000)] }), pilots: { 'old.1': pilot } },
      two('x: {nodeHours: 15}, y: {}'),
    )
    expect(starts.map(({ timeMs }) => timeMs / MIN)).toEqual([300])
  })

  it.each<[string, string, Partial<State>, number[], string]>([
    ['has enough', 'x: {nodeHours: 100}', {}, [600, 600, 600], ''],
    ['is used up', 'x: {nodeHours: 100}', { usedMs: { x: 99.9 * HOUR } }, [], 'account x: 0.1 of 100 node-hours left'],
    ['has two hours left', 'x: {nodeHours: 100}', { usedMs: { x: 98 * HOUR } }, [120], 'account x: 0.0 of 100'],
    [
      'what runs counts with all it asked for',
      'x: {nodeHours: 25}',
      { pilots: { 'a.1': started({ id: 'a.1', kind: 'a', account: 'x' }) } },
      [600, 300],
      'account x: 0.0 of 25',
    ],
    ['ends in three hours', `x: {until: "${new Date(NOW + 3 * HOUR).toISOString()}"}`, {}, [180, 180, 180], ''],
    ['ends in five minutes', `x: {until: "${new Date(NOW + 5 * MIN).toISOString()}"}`, {}, [], 'account x ends before'],
  ])('decide - an account that %s', (_title, account, state, minutes, why) => {
    const given = two(`${account}, y: {}`)
    const decision = decided({ demand: says({ fits: [fits(1000)] }), ...state }, given)
    expect(decision.starts.map(({ timeMs }) => timeMs / MIN)).toEqual(minutes)
    expect(decision.why.join('\n')).toContain(why)
  })

  it('decide - what waits for a node does not run beyond the end of its account', () => {
    const until = NOW + 3 * HOUR
    const given = two(`x: {until: "${new Date(until).toISOString()}"}, y: {}`)
    const { starts } = decided({ demand: both }, given)
    expect(new Map(starts.map(({ kind, endsByMs }) => [kind, endsByMs]))).toEqual(
      new Map([
        ['a', until],
        ['b', undefined],
      ]),
    )
  })

  it.each([
    ['a year', 8760, 600, undefined],
    ['twice the time', 20, 600, undefined],
    ['less than that', 19.9, 600, 10],
    ['less than the time', 3, 180, 10],
  ])('decide - the batch system may give less time near the end of an account: %s', (_title, hours, minutes, least) => {
    const given = two(`x: {until: "${new Date(NOW + hours * HOUR).toISOString()}"}, y: {}`)
    const [start] = decided({ demand: says({ fits: [fits(1)] }) }, given).starts
    expect(start!.timeMs / MIN).toBe(minutes)
    expect(start!.leastTimeMs).toBe(least === undefined ? undefined : least * MIN)
  })

  const groups = (more: string, a: string, b: string, fitting: string[]) => {
    const given = siteOf(more, `a: {time: 10h, shape: {cores: 8}${a}}, b: {time: 10h, shape: {cores: 8}${b}}`)
    const all = fitting.flatMap((group) => [0, 1].map((entry) => fits(1000, { entry, group, work: `${group}/s` })))
    return decided({ demand: says({ fits: all }) }, given).starts.map(({ kind }) => kind)
  }
  it.each<[string, string[], string[]]>([
    ['of the one only, pilots of its kind', ['/a'], ['a', 'a', 'a']],
    ['of a group below the other', ['/b/of/it'], ['b', 'b', 'b']],
    ['of both, by their shares', ['/a', '/b'], ['a', 'b', 'b']],
    ['of neither, none', ['/c', '/bb'], []],
  ])('decide - kinds that allow one group each, and work %s', (_title, fitting, kinds) => {
    const own = [', settings: {allowGroups: [/a]}', ', share: 2, settings: {allowGroups: "/b"}'] as const
    expect(groups('', ...own, fitting).sort()).toEqual(kinds)
  })
  it('decide - groups that all pilots allow count for kinds that name none', () => {
    expect(groups('pilots: {allowGroups: [/a]},', '', '', ['/b'])).toEqual([])
    expect(groups('pilots: {allowGroups: [/a]},', '', '', ['/a'])).toHaveLength(3)
    const all = groups('pilots: {allowGroups: [/a]},', '', ', settings: {allowGroups: []}', ['/b'])
    expect(all).toEqual(['b', 'b', 'b'])
  })
})

describe('decide - nodes, STOP, waiting jobs', () => {
  const latches = { n7: { sinceMs: NOW - HOUR, untilMs: NOW - 1, times: 1, kind: 'cpu', reason: 'bad' } }
  it('decide - banned and latched nodes are excluded, and said', () => {
    const scopes = {
      'node:n2': { strikes: 1, sinceMs: NOW, untilMs: NOW + HOUR, code: 500, reason: '', isLiftable: false },
    }
    const later = { n7: { ...latches.n7, untilMs: NOW + 1 } }
    const { starts, why } = decided({ demand: says({ fits: [fits(1)] }), scopes, latches: later })
    expect(starts).toMatchObject([{ exclude: ['n2', 'n7'], canaryOf: null }])
    expect(why[0]).toBe('not on n2,n7')
  })
  it('decide - when the latch is old one canary goes there, where there is work for it', () => {
    expect(decided({ demand: says({ fits: [fits(1)] }), latches }).starts[0]).toMatchObject({
      canaryOf: 'n7',
      exclude: [],
      nodes: 1,
    })
    expect(decided({ demand: says({ reason: 'noWork' }), latches }).starts).toEqual([])
    const trying = { 'cpu.1': started({ id: 'cpu.1', canaryOf: 'n7' }) }
    expect(
      decided({ demand: says({ fits: [fits(1)] }), latches, pilots: trying }).starts.map(({ canaryOf }) => canaryOf),
    ).toEqual([null])
  })
  const four = Object.fromEntries(
    ['n4', 'n5', 'n6', 'n7'].map((node, at) => [node, { ...latches.n7, untilMs: NOW - 10 + at }]),
  )
  const canariesOf = (state: Partial<State>, given = site) =>
    decided({ demand: says({ fits: [fits(1000)] }), latches: four, ...state }, given).starts.flatMap(
      ({ canaryOf }) => canaryOf ?? [],
    )
  const banned = (kind: string) => ({
    [`here:${kind}`]: { strikes: 1, sinceMs: NOW, untilMs: NOW + 1, code: 400, reason: '', isLiftable: false },
  })
  it.each<[string, Partial<State>, string[]]>([
    ['one at a time, the longest due first', {}, ['n4']],
    ['none while another is under way', { pilots: { 'cpu.c': started({ id: 'cpu.c', canaryOf: 'n9' }) } }, []],
    ['none before their time', { canariesFromMs: NOW + 1 }, []],
    ['and then the next', { canariesFromMs: NOW }, ['n4']],
    ['not kept off by a clock that was a day ahead', { canariesFromMs: NOW + 24 * HOUR }, ['n4']],
    ['though as many jobs wait as may', { pilots: pilots(4, queued) }, ['n4']],
    ['none where all nodes are taken', { pilots: pilots(10) }, []],
    ['none of a kind that may not start', { scopes: banned('cpu') }, []],
    ['none while nobody says what there is', { demand: null }, []],
    ['but where one of its kind has proven it', { demand: null, pilots: pilots(1) }, ['n4']],
  ])('decide - canaries: %s', (_title, state, nodes) => {
    expect(canariesOf(state)).toEqual(nodes)
  })
  it.each<[string, string, number, State['demand'], (string | null)[]]>([
    ['its own has work', 'a', 2 * HOUR, says({ fits: [fits(1), fits(1, { entry: 1, work: 'c/t' })] }), ['a']],
    ['its own has none, but it is due only now', 'a', 0, says({ fits: [fits(1, { entry: 1 })] }), []],
    ['its own had none for long', 'a', HOUR, says({ fits: [fits(1, { entry: 1 })] }), ['b']],
    ['its own is gone', 'old', 0, says({ fits: [fits(1, { entry: 1 })] }), ['b']],
    ['no kind has any', 'a', 2 * HOUR, says({ reason: 'noWork' }), []],
  ])('decide - canaries of the kind that latched, or another: %s', (_title, kind, overdueMs, demand, kinds) => {
    const given = siteOf('', 'a: {time: 10h, shape: {cores: 8}}, b: {time: 10h, shape: {cores: 8}}')
    const due = { n7: { ...latches.n7, kind, untilMs: NOW - overdueMs } }
    const { starts } = decided({ demand, latches: due }, given)
    expect(starts.filter(({ canaryOf }) => canaryOf !== null).map((start) => start.kind)).toEqual(kinds)
  })
  it('decide - canaries: they take no place among the jobs that wait', () => {
    const waiting = pilots(4, { ...queued, canaryOf: 'n4' })
    const decision = decided({ demand: says({ fits: [fits(1000)] }), latches: four, pilots: waiting })
    expect(decision.starts.map(({ canaryOf }) => canaryOf)).toEqual([null, null, null])
  })
  it.each<[string, number, number, State['demand'], number]>([
    ['for an hour, while there is room', 59, 8, says({ fits: [fits(1000)] }), 0],
    ['for longer', 61, 8, says({ fits: [fits(1000)] }), 1],
    ['for longer, and nobody says what there is', 61, 8, null, 1],
    ['in place of one that has work', 3, 9, says({ fits: [fits(1000)] }), 1],
    ['a moment only', 1, 9, says({ fits: [fits(1000)] }), 0],
    ['in the place of nobody', 3, 9, says({ reason: 'noWork' }), 0],
  ])('decide - a canary that waits %s', (_title, ageMin, others, demand, count) => {
    const canary = started({ ...queued, id: 'cpu.c', canaryOf: 'n4', submittedAtMs: NOW - ageMin * MIN })
    const { withdraw } = decided({ demand, latches: four, pilots: { ...pilots(others), 'cpu.c': canary } })
    expect(withdraw).toHaveLength(count)
  })
  it('decide - what is withdrawn already is not withdrawn again, nor on its way', () => {
    const gone = { ...pilots(2, { ...queued, isWithdrawn: true, submittedAtMs: NOW - HOUR }) }
    for (const isStopped of [true, false]) {
      const state = { ...emptyState(), demand: says({ reason: 'noWork' }), pilots: gone }
      const moment = { nowMs: NOW, random: () => 0.5 }
      expect(decide(state, site, moment, { isStopped, newId: () => 'x' }).withdraw).toEqual([])
    }
    expect(decided({ demand: says({ fits: [fits(8)] }), pilots: gone }).starts).toHaveLength(1)
  })
  it('decide - STOP: nothing starts, what waits is withdrawn', () => {
    const state = { ...emptyState(), demand: says({ fits: [fits(1000)] }), pilots: { ...pilots(2, queued) } }
    const decision = decide(state, site, { nowMs: NOW, random: () => 0.5 }, { isStopped: true, newId: () => 'x' })
    expect(decision).toMatchObject({ starts: [], withdraw: [{ id: 'cpu.0' }, { id: 'cpu.1' }] })
  })
  it.each([
    ['nothing is there for it any more', 3, says({ reason: 'noWork' }), 1],
    ['it is younger than a moment', 1, says({ reason: 'noWork' }), 0],
    ['there is work', 3, says({ fits: [fits(1)] }), 0],
    ['nobody knows', 3, null, 0],
    [
      'the relay has other work in hand, but the centre is away',
      3,
      says({ fits: [fits(1, { entry: 1 })], isWhole: false }),
      0,
    ],
    ['there is other work only', 3, says({ fits: [fits(1, { entry: 1 })] }), 1],
  ])('decide - a waiting job, and %s', (_title, ageMin, demand, count) => {
    const waiting = pilots(1, { ...queued, submittedAtMs: NOW - ageMin * MIN })
    expect(decided({ demand, pilots: waiting }).withdraw).toHaveLength(count)
  })
})

describe('decide - calls', () => {
  const looked = (ago: number) => ({ lookedAtMs: NOW - ago * MIN })
  it.each<[string, Partial<State>, boolean]>([
    ['nothing wanted, nothing known', { demand: says(), ...looked(600) }, false],
    ['nothing wanted, never looked', { demand: says() }, false],
    ['wanted, never looked: the state may be lost', { demand: says({ fits: [fits(1)] }) }, true],
    ['pilots run, looked a moment ago', { demand: says(), pilots: pilots(1), ...looked(1) }, false],
    ['pilots run, looked ten minutes ago', { demand: says(), pilots: pilots(1), ...looked(10) }, true],
    [
      'more are wanted, looked two minutes ago',
      { demand: says({ fits: [fits(1)] }), pilots: pilots(1), ...looked(2) },
      true,
    ],
    [
      'one is withdrawn, and nobody has seen yet whether it is gone',
      { demand: says(), pilots: pilots(1, { ...queued, isWithdrawn: true }), ...looked(2) },
      true,
    ],
    ['at full use nothing hurries', { demand: says({ fits: [fits(1)] }), pilots: pilots(10), ...looked(2) }, false],
    [
      'an order without an answer',
      { demand: says(), pilots: pilots(1, { state: 'submitting', submittedAtMs: NOW - MIN }), ...looked(1) },
      true,
    ],
    [
      'the calls of this hour are used up',
      { demand: says(), pilots: pilots(1), calls: Array(60).fill(NOW), ...looked(99) },
      false,
    ],
  ])('look - %s', (_title, state, expected) => {
    expect(shouldLook({ ...emptyState(), ...state }, site, NOW)).toBe(expected)
  })

  it.each<[string, string, Partial<State>, number]>([
    ['all of its time', '{}', {}, 600],
    ['what its account has left', '{nodeHours: 100}', { usedMs: { x: 99.5 * HOUR } }, 30],
    ['what is left until its end', `{until: "${new Date(NOW + 2 * HOUR).toISOString()}"}`, {}, 120],
    ['nothing', '{nodeHours: 100}', { usedMs: { x: 101 * HOUR } }, 0],
  ])('ask - a pilot would have %s', (_title, account, state, minutes) => {
    const given = siteOf(`accounts: {x: ${account}},`, 'a: {time: 10h, account: x, shape: {cores: 8}}')
    expect(offerOf({ ...emptyState(), ...state }, given, NOW)).toMatchObject([{ count: 1, timeLeftMs: minutes * MIN }])
  })

  it.each([
    ['never asked', site, null, true],
    ['asked a minute ago, no answer', site, { askedAtMs: NOW - MIN, answer: null }, false],
    ['asked two minutes ago', site, { askedAtMs: NOW - 2 * MIN, answer: null }, true],
    ['switched off', siteOf('ask: {enabled: false},'), null, false],
  ])('ask - %s', (_title, given, demand, expected) => {
    expect(shouldAsk({ ...emptyState(), demand }, given, NOW)).toBe(expected)
  })
})
