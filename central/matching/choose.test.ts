import { expect, test } from 'vitest'
import type { OfferEntry } from '../../shared/protocol/messages.ts'
import { sampleNeeds } from '../../test/sample-messages.ts'
import { choose, type MatchContext, type QueueEntry } from './choose.ts'

const GiB = 2 ** 30
const needs = {
  ...sampleNeeds,
  cores: 1,
  memoryBytes: GiB,
  scratchBytes: 0,
  gpus: 0,
  arch: [],
  network: 'none' as const,
  runtime: 'host' as const,
  walltimeMs: 3600_000,
  allowSites: [],
  denySites: [],
}
const queue = (change: Partial<QueueEntry> = {}): QueueEntry => ({
  group: '/a',
  campaign: 'c1',
  step: 's',
  matchClass: 'm',
  avoid: '',
  avoidUntilMs: 0,
  refused: new Map(),
  needs,
  priority: 0,
  createdMs: 1000,
  tasks: 100,
  remaining: 100,
  meanWallMs: null,
  room: Infinity,
  ...change,
})
const entry = (change: Partial<OfferEntry> = {}, shape: Partial<OfferEntry['shape']> = {}): OfferEntry => ({
  shape: {
    cores: 8,
    memoryBytes: 16 * GiB,
    scratchBytes: 100 * GiB,
    gpus: 0,
    gpuMemoryBytes: 0,
    arch: 'x86_64',
    runtimes: ['host'],
    network: 'outgoing',
    ...shape,
  },
  count: 1,
  timeLeftMs: null,
  aheadMs: 0,
  node: null,
  ...change,
})
const context = (change: Partial<MatchContext> = {}): MatchContext => ({
  site: 'ALPHA',
  labels: { jurisdiction: 'EU' },
  nowMs: 50_000,
  activeSites: 1,
  shares: new Map(),
  hasOtherSite: () => false,
  otherNodes: () => [],
  ...change,
})
const picked = (queues: QueueEntry[], offer: OfferEntry[], about: Partial<MatchContext> = {}) => {
  const { picks, reason } = choose(queues, offer, context(about))
  return reason ?? picks.map((pick) => `${pick.queue.campaign}:${pick.tasks}`).join(' ')
}

test.each<[string, Partial<QueueEntry>, OfferEntry, Partial<MatchContext>, string]>([
  ['what fits fills the slots', {}, entry(), {}, 'c1:8'],
  ['several nodes of a shape', {}, entry({ count: 3 }), {}, 'c1:24'],
  ['no more than is queued', { tasks: 5 }, entry(), {}, 'c1:5'],
  ['no more than the limits allow', { room: 3 }, entry(), {}, 'c1:3'],
  ['nothing where the limits are reached', { room: 0 }, entry(), {}, 'limits'],
  ['memory is counted', {}, entry({}, { memoryBytes: 3 * GiB }), {}, 'c1:3'],
  ['too few cores', { needs: { ...needs, cores: 9 } }, entry(), {}, 'nothingFits'],
  ['too little time left', {}, entry({ timeLeftMs: 3599_000 }), {}, 'nothingFits'],
  ['another architecture', { needs: { ...needs, arch: ['aarch64'] } }, entry(), {}, 'nothingFits'],
  ['no container runtime', { needs: { ...needs, runtime: 'container' } }, entry(), {}, 'nothingFits'],
  ['no way out', { needs: { ...needs, network: 'outgoing' } }, entry({}, { network: 'proxy' }), {}, 'nothingFits'],
  ['a GPU that is not there', { needs: { ...needs, gpus: 1 } }, entry(), {}, 'nothingFits'],
  ['an allowed site', { needs: { ...needs, allowSites: ['ALPHA'] } }, entry(), {}, 'c1:8'],
  ['an allowed label', { needs: { ...needs, allowSites: ['label:jurisdiction=EU'] } }, entry(), {}, 'c1:8'],
  ['a site not allowed', { needs: { ...needs, allowSites: ['BETA'] } }, entry(), {}, 'nothingFits'],
  ['a site denied', { needs: { ...needs, denySites: ['ALPHA'] } }, entry(), {}, 'nothingFits'],
  ['an avoided site without alternative', { avoid: 'ALPHA', avoidUntilMs: 60_000 }, entry(), {}, 'c1:8'],
  [
    'an avoided site with an alternative',
    { avoid: 'ALPHA', avoidUntilMs: 60_000 },
    entry(),
    { hasOtherSite: () => true },
    'nothingFits',
  ],
  [
    'an avoidance that is over',
    { avoid: 'ALPHA', avoidUntilMs: 40_000 },
    entry(),
    { hasOtherSite: () => true },
    'c1:8',
  ],
  ['a site that others avoid', { avoid: 'BETA', avoidUntilMs: 60_000 }, entry(), { hasOtherSite: () => true }, 'c1:8'],
  ['one of two avoided sites', { avoid: 'BETA,ALPHA', avoidUntilMs: 60_000 }, entry(), {}, 'c1:8'],
  ['a site that refused these tasks', { avoid: '!ALPHA,BETA', avoidUntilMs: 60_000 }, entry(), {}, 'nothingFits'],
  ['a refusal that is over', { avoid: '!ALPHA', avoidUntilMs: 40_000 }, entry(), {}, 'c1:8'],
  ['a site that refused the step', { refused: new Map([['ALPHA', 60_000]]) }, entry(), {}, 'nothingFits'],
  ['a step that another site refused', { refused: new Map([['BETA', 60_000]]) }, entry(), {}, 'c1:8'],
  ['a refusal of the step that is over', { refused: new Map([['ALPHA', 40_000]]) }, entry(), {}, 'c1:8'],
  [
    'an avoided site whose alternative refused it',
    { avoid: '!BETA,ALPHA', avoidUntilMs: 60_000 },
    entry(),
    { hasOtherSite: (_needs, except) => !except.has('BETA') },
    'c1:8',
  ],
  ['ahead, run times unknown: one more a slot', { remaining: 1000 }, entry({ aheadMs: 9000 }), {}, 'c1:16'],
  ['ahead, run times known', { meanWallMs: 1000, remaining: 1000 }, entry({ aheadMs: 9000 }), {}, 'c1:80'],
  [
    'ahead near the end of a step',
    { meanWallMs: 1000, remaining: 100 },
    entry({ aheadMs: 9000 }),
    { activeSites: 5 },
    'c1:18',
  ],
])('matching - %s', (_title, change, offered, about, expected) => {
  expect(picked([queue(change)], [offered], about)).toBe(expected)
})

test('matching - nothing queued is said so', () => {
  expect(picked([], [entry()])).toBe('noWork')
})

test('matching - higher priority first, then the older, then what waits longest', () => {
  const old = queue({ campaign: 'old', createdMs: 1, tasks: 3 })
  const young = queue({ campaign: 'young', createdMs: 2 })
  const urgent = queue({ campaign: 'urgent', priority: 9, createdMs: 3, tasks: 2 })
  expect(picked([young, old, urgent], [entry()])).toBe('urgent:2 old:3 young:3')
})

test('matching - groups share what runs, whoever queued more', () => {
  const a = queue({ campaign: 'a', tasks: 1000 })
  const b = queue({ campaign: 'b', group: '/b', tasks: 1000 })
  const shares = (of: number, ofB: number, weightB = 1) =>
    new Map([
      ['/a', { leasedCores: of, weight: 1 }],
      ['/b', { leasedCores: ofB, weight: weightB }],
    ])
  expect(picked([a, b], [entry()], { shares: shares(0, 0) })).toBe('a:4 b:4')
  expect(picked([a, b], [entry()], { shares: shares(100, 0) })).toBe('b:8')
  expect(picked([a, b], [entry()], { shares: shares(0, 0, 3) })).toBe('a:2 b:6')
})

test('matching - a limit of a campaign holds over all its queues', () => {
  const fresh = queue({ room: 5 })
  const retries = queue({ room: 5, avoid: 'BETA', tasks: 3 })
  expect(picked([fresh, retries], [entry()])).toBe('c1:3 c1:2')
})

test('matching - a node that tasks avoid is passed over while another could take them', () => {
  const offer = [entry({ node: 'n1' })]
  expect(choose([queue()], offer, context()).picks[0]?.node).toBe('')
  expect(choose([queue()], offer, context({ otherNodes: () => ['n2'] })).picks[0]).toMatchObject({
    node: 'n1',
    others: ['n2'],
  })
})
