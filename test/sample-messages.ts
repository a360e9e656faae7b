/**
 * One full and one small sample of every message, for the codec's tests and the golden files. Full means: every
 * optional field is there and every list has an entry.
 */
import { createPrivateKey } from 'node:crypto'
import type { Shape } from '../shared/fit.ts'
import type { Grant, LeasePart, Message, MessageType, NodeFacts, Result } from '../shared/protocol/messages.ts'
import type { BundleBody, TemplateBody } from '../shared/protocol/work.ts'
import { digestOf, makeSigner } from '../shared/signing.ts'

/** A key for tests and nothing else: the seed is thirty-two bytes of 7 (RFC 8410 form). */
const TEST_KEY = createPrivateKey({
  key: Buffer.concat([Buffer.from('302e020100300506032b657004220420', 'hex'), Buffer.alloc(32, 7)]),
  format: 'der',
  type: 'pkcs8',
})
export const testSigner = makeSigner(TEST_KEY)

export const sampleNeeds: TemplateBody['needs'] = {
  cores: 1,
  memoryBytes: 2 ** 30,
  scratchBytes: 0,
  gpus: 0,
  gpuMemoryBytes: 0,
  walltimeMs: 3_600_000,
  arch: ['x86_64'],
  network: 'none',
  runtime: 'host',
  allowSites: [],
  denySites: ['label:kind=cloud'],
  group: '/vo.example/prod',
}

export const sampleShape: Shape = {
  cores: 4,
  memoryBytes: 8 * 2 ** 30,
  scratchBytes: 0,
  gpus: 0,
  gpuMemoryBytes: 0,
  arch: 'x86_64',
  runtimes: ['host'],
  network: 'none',
}

export const sampleTemplate: TemplateBody = {
  kind: 'template',
  campaign: 'c0123456789',
  campaignName: 'ising',
  step: 'simulate',
  group: '/vo.example/prod',
  subject: 'alice',
  image: 'host',
  command: ['simulate', '--temperature', '$(T)', '--seed', '$(seed)'],
  env: { OMP_NUM_THREADS: '$(cores)' },
  axes: [
    { name: 'T', values: ['1.5', '2.5'] },
    { name: 'seed', values: { from: 1, to: 50, step: 1 } },
  ],
  inputs: [{ url: 'https://data.example/x', from: null, output: null, path: 'x', list: null, checksum: 'adler32:0' }],
  outputs: [{ path: 'result.json', url: null, optional: false }],
  needs: sampleNeeds,
  logBytes: 1_000_000,
  stalledAfterMs: null,
  secrets: [],
}
const signedTemplate = testSigner.template(sampleTemplate)

export const sampleBundle: BundleBody = {
  kind: 'bundle',
  bundle: 'b17',
  campaign: 'c0123456789',
  step: 'simulate',
  template: digestOf(signedTemplate.bytes),
  tasks: '0-9,12',
  rows: null,
  manifests: { '0': digestOf(new Uint8Array()) },
  site: 'ALPHA',
  expiresAtMs: Date.UTC(2030, 0, 1),
}

const lease: LeasePart = {
  bundle: 'b17',
  campaign: 'c0123456789',
  step: 'simulate',
  fences: [1_767_225_600_000_001, 4],
  tasks: '0-9,12',
}
const node: NodeFacts = {
  node: 'n0001',
  cores: 128,
  memoryBytes: 2 ** 38,
  scratchBytes: 0,
  gpus: 4,
  gpuMemoryBytes: 2 ** 36,
  arch: 'x86_64',
  runtimes: ['host', 'container'],
  network: 'proxy',
  timeLeftMs: 86_400_000,
  labels: { jurisdiction: 'EU' },
}
const attempt = { campaign: lease.campaign, step: lease.step, index: 12, bundle: lease.bundle, fences: lease.fences }
export const sampleResult: Result = {
  ...attempt,
  end: 'done',
  reason: null,
  detail: null,
  exitCode: 0,
  signal: null,
  site: 'ALPHA',
  node: 'n0001',
  pilot: 'p-1',
  wallMs: 1234.5,
  cpuMs: 1200,
  maxRssBytes: 12_000_000,
  stageInMs: 3,
  stageOutMs: 4,
  outputs: [
    {
      path: 'result.json',
      sizeBytes: 81,
      checksum: digestOf(new Uint8Array([1])),
      url: 'store:c/s/12/1.4/result.json',
    },
  ],
  stdoutBytes: 0,
  stderrBytes: 5,
  tail: null,
}
const failed: Result = {
  ...sampleResult,
  end: 'failed',
  reason: 'payload.exit',
  detail: 'exit status 3',
  exitCode: 3,
  outputs: [],
  tail: 'Traceback: \u00fcber \u{1f680}',
}
const grant: Grant = {
  bundle: testSigner.bundle(sampleBundle),
  lease,
  template: sampleBundle.template.slice('sha256:'.length, 'sha256:'.length + 16),
  leaseMs: 60_000,
  tries: { '12': 1 },
  avoidNodes: ['n0002'],
  estimateMs: 900,
  capability: 'eyJ9.c2ln',
}
const mark = { epoch: 'e1', sequence: 4711 }
const verdict = { campaign: lease.campaign, step: lease.step, index: 12, fences: lease.fences }
const { node: _node, timeLeftMs: _timeLeft, labels: _labels, ...shape } = node

const groups = ['/vo.example/prod', '/other']

/** Beside them, under names of their own, what came to a message after its samples were released. */
type Samples = { [T in MessageType]: { full: Message<T>; small: Message<T>; groups?: Message<T> } }
export const SAMPLES: Samples = {
  hello: {
    full: { role: 'relay', holder: 'edge', incarnation: 'i1', software: 'indraft/0.1.0', nodes: [node], seen: mark },
    small: { role: 'pilot', holder: 'p-1', incarnation: 'i1', software: 'indraft/0.1.0', nodes: [], seen: null },
    groups: {
      role: 'pilot',
      holder: 'p-1',
      incarnation: 'i1',
      software: 'indraft/0.1.0',
      nodes: [{ ...node, groups }],
      seen: null,
    },
  },
  welcome: {
    full: {
      session: 's1',
      sequence: 3,
      site: 'ALPHA',
      mark,
      timings: { beatMs: 5000, lostAfterMs: 60_000, leaseMs: 60_000, confirmMs: 60_000, pullWaitMs: 25_000 },
      inventory: 'list',
      keys: testSigner.keys,
      filesUrl: 'https://127.0.0.1:8443',
    },
    small: {
      session: 's1',
      sequence: 0,
      site: 'A',
      mark: { epoch: 'e', sequence: 0 },
      timings: { beatMs: 0, lostAfterMs: 0, leaseMs: 0, confirmMs: 0, pullWaitMs: 0 },
      inventory: 'digest',
      keys: {},
      filesUrl: null,
    },
  },
  pull: {
    full: {
      session: 's1',
      sequence: 4,
      processed: 3,
      seen: mark,
      offer: [{ shape, count: 2, timeLeftMs: 3_600_000, aheadMs: 60_000, node: 'n0001' }],
      finished: [sampleResult, failed],
      returned: [lease],
      waitMs: 25_000,
      knows: ['0123456789abcdef'],
    },
    small: {
      session: 's1',
      sequence: 1,
      processed: 0,
      seen: null,
      offer: [],
      finished: [],
      returned: [],
      waitMs: 0,
      knows: [],
    },
    groups: {
      session: 's1',
      sequence: 1,
      processed: 0,
      seen: null,
      offer: [{ shape: { ...shape, groups }, count: 1, timeLeftMs: null, aheadMs: 0, node: 'n0001' }],
      finished: [],
      returned: [],
      waitMs: 0,
      knows: [],
    },
  },
  grants: {
    full: {
      sequence: 4,
      mark,
      grants: [grant],
      templates: [signedTemplate],
      verdicts: [{ ...verdict, verdict: 'accepted' }],
      reason: null,
      askAgainMs: 0,
    },
    small: { sequence: 1, mark, grants: [], templates: [], verdicts: [], reason: 'noWork', askAgainMs: 5000 },
  },
  report: {
    full: { session: 's1', results: [sampleResult, failed] },
    small: { session: 's1', results: [{ ...sampleResult, outputs: [] }] },
  },
  reported: {
    full: {
      mark,
      verdicts: [
        { ...verdict, verdict: 'duplicate' },
        { ...verdict, verdict: 'stale' },
        { ...verdict, verdict: 'refused' },
      ],
    },
    small: { mark, verdicts: [] },
  },
  beat: {
    full: {
      session: 's1',
      processed: 3,
      seen: mark,
      incarnation: 'i1',
      draining: true,
      started: [{ ...lease, tasks: '12' }],
      held: [{ bundle: lease.bundle, campaign: lease.campaign, step: lease.step, fences: lease.fences }],
      counters: { tasksDone: 12 },
      gauges: { coresBusy: 3.5 },
      pilots: [
        { pilot: 'p-1', node: 'n0001', state: 'left', cores: 8, coresBusy: 0, running: 0, upMs: 5000, code: 200 },
      ],
      usage: [{ attempt, wallMs: 10, cpuMs: 9, rssBytes: 1_000_000 }],
    },
    small: {
      session: 's1',
      processed: 0,
      seen: null,
      incarnation: 'i1',
      draining: false,
      started: [],
      held: { count: 0, digest: '47DEQpj8HBSa-_TImW-5' },
      counters: {},
      gauges: {},
      pilots: [],
      usage: [],
    },
  },
  orders: {
    full: {
      mark,
      orders: [
        { kind: 'attempt.cancel', attempt },
        { kind: 'campaign.cancel', campaign: lease.campaign, version: 2 },
        { kind: 'holder.drain' },
        { kind: 'holder.inventory' },
        { kind: 'log.send', attempt, stream: 'stderr' },
      ],
    },
    small: { mark, orders: [] },
  },
  inventory: {
    full: { session: 's1', processed: 3, part: 0, parts: 1, leases: [lease] },
    small: { session: 's1', processed: 0, part: 0, parts: 1, leases: [] },
  },
  bye: {
    full: { session: 's1', code: 200, reason: 'no work for 3 min', returned: [lease] },
    small: { session: 's1', code: 700, reason: '', returned: [] },
  },
  demand: {
    full: { offer: [{ shape, count: 1, timeLeftMs: 43_200_000, aheadMs: 0, node: null }] },
    small: { offer: [{ shape, count: 1, timeLeftMs: null, aheadMs: 0, node: null }] },
  },
  demanded: {
    full: {
      fits: [
        {
          entry: 0,
          group: '/vo.example/prod',
          work: 'c0123456789/simulate',
          tasks: 812,
          perNode: 128,
          estimateMs: 900,
        },
      ],
      idlePilots: 2,
      isWhole: true,
      reason: null,
    },
    small: { fits: [], idlePilots: 0, isWhole: false, reason: 'noWork' },
  },
  farewell: { full: { mark }, small: { mark: { epoch: 'e', sequence: 0 } } },
  refused: {
    full: { code: 'dispatcher.busy', message: 'Ask again.', path: 'pull.offer.0', retryAfterMs: 500 },
    small: { code: 'session.unknown', message: '' },
  },
}
