import { execFileSync } from 'node:child_process'
import { describe, expect, it } from 'vitest'
import { countedSlurm } from '../../test/counted-slurm.ts'
import type { Start } from './decide.ts'
import { expandNodeList } from './node-list.ts'
import { parseSiteFile } from './site-file.ts'
import { batchScript, readQueue, sbatchWords } from './slurm.ts'
import { NotStarted, NotStartedForNodes } from './tick.ts'

const site = parseSiteFile(
  `{indraft: 1, folder: /v, credential: "/c/it's mine.json", command: [node, /opt/pilot.mjs], starter: slurm, accounts: {p1: {}},
    kinds: {cpu: {time: 12h, account: p1, shape: {cores: 8}, sbatch: [--partition=main], settings: {allowGroups: [/a b, /c]}}}}`,
  'site.yaml',
)
const order: Start = {
  ...{ id: 'cpu.0a1b2c3d', kind: 'cpu', nodes: 2, timeMs: 90 * 60_000 + 59_000, because: 'demand', canaryOf: null },
  exclude: ['n3', 'n7'],
}
const folders = { ends: '/v/ends', stopFile: '/v/STOP' }

describe('slurm', () => {
  it.each([
    ['', []],
    ['n1', ['n1']],
    ['n[1-3]', ['n1', 'n2', 'n3']],
    ['n[001-003,010],gpu7', ['n001', 'n002', 'n003', 'n010', 'gpu7']],
    ['r[1-2]n[08-09]-ib', ['r1n08-ib', 'r1n09-ib', 'r2n08-ib', 'r2n09-ib']],
    ['(null)', []],
  ])('node list %s', (text, names) => {
    expect(expandNodeList(text)).toEqual(names)
  })

  it('the queue: only what is ours, with where it runs', () => {
    const text = `12|indraft:cpu.0a1b2c3d|RUNNING|2|n[1-2]|None
13|indraft:cpu.ffff0000|PENDING|4||Resources
14|indraft:cpu.ffff0001|COMPLETING|1|n3|None
16|indraft:cpu.ffff0002|PENDING|2K||Priority
15|other|RUNNING|1|n4|None

`
    expect(readQueue(text)).toEqual([
      { jobId: '12', id: 'cpu.0a1b2c3d', state: 'running', nodeCount: 2, nodes: ['n1', 'n2'], reason: 'None' },
      { jobId: '13', id: 'cpu.ffff0000', state: 'queued', nodeCount: 4, nodes: [], reason: 'Resources' },
      { jobId: '14', id: 'cpu.ffff0001', state: 'running', nodeCount: 1, nodes: ['n3'], reason: 'None' },
      { jobId: '16', id: 'cpu.ffff0002', state: 'queued', nodeCount: 2048, nodes: [], reason: 'Priority' },
    ])
  })

  it('sbatch: name, nodes, whole minutes, account, the words of the kind, nodes to avoid', () => {
    expect(sbatchWords(site, order, '/v/logs')).toEqual([
      ...[
        '--parsable',
        '--job-name=indraft:cpu.0a1b2c3d',
        '--nodes=2',
        '--time=90',
        '--no-requeue',
        '--signal=USR1@300',
      ],
      ...['--open-mode=append', '--output=/v/logs/%x.log', '--account=p1', '--partition=main', '--exclude=n3,n7'],
    ])
    const canary = sbatchWords(site, { ...order, canaryOf: 'n3', exclude: [], nodes: 1 }, '/v/logs')
    expect(canary).toContain('--nodelist=n3')
    expect(canary.join()).not.toContain('--exclude')
  })

  it('sbatch: of an account that ends, what waits too long has less time, and then goes out of the queue', () => {
    const words = sbatchWords(site, { ...order, endsByMs: 1_900_000_000_999 }, '/v/logs')
    expect(words).toContain('--deadline=uts1900000000')
    expect(words).toContain('--time-min=10')
    expect(sbatchWords(site, order, '/v/logs').join()).not.toMatch(/deadline|time-min/)
  })

  it('the names of all nodes, of several lines as of one', async () => {
    const slurm = countedSlurm('/none')
    try {
      slurm.nodes('n[1-3],gpu7\nm1')
      expect(await slurm.ports().starter.nodeNames!()).toEqual(['n1', 'n2', 'n3', 'gpu7', 'm1'])
    } finally {
      slurm.close()
    }
  })

  it.each<[string, boolean, boolean?]>([
    ['sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified', true],
    ['sbatch: error: invalid partition specified: nowhere', true],
    ['sbatch: error: Batch job submission failed: Invalid node name specified', true, true],
    ["sbatch: unrecognized option '--nope'", true],
    ['sbatch: error: Batch job submission failed: Socket timed out on send/recv operation', false],
    ['sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)', false],
    ['sbatch: error: slurm_persist_conn_open_without_init: failed to open persistent connection', false],
  ])('sbatch that says %j: nothing was started, for certain: %s', async (said, isCertain, isOfNodes = false) => {
    const slurm = countedSlurm('/none')
    try {
      slurm.refuse(said)
      const starting = slurm.ports().starter.start(order)
      const error = await starting.catch((thrown: unknown) => thrown)
      expect([(error as Error).message, error instanceof NotStarted]).toEqual([said, isCertain])
      expect(error instanceof NotStartedForNodes).toBe(isOfNodes)
      expect(slurm.jobs()).toEqual([])
    } finally {
      slurm.close()
    }
  })

  it('script: a shell takes it apart into the words that were meant', () => {
    const script = batchScript(site, order, folders)
    const words = execFileSync(
      'bash',
      ['-c', `srun() { printf '%s\\n' "$@"; }; ${script.replace('exec srun', 'srun')}`],
      {
        env: { PATH: '/usr/bin:/bin', SLURM_CPUS_ON_NODE: '8' },
      },
    )
      .toString()
      .split('\n')
    expect(words.slice(0, 4)).toEqual(['--ntasks-per-node=1', '--cpus-per-task=8', '--mem=0', '--kill-on-bad-exit=0'])
    expect(words.slice(4, -1)).toEqual([
      ...['node', '/opt/pilot.mjs', 'run', '--credential', "/c/it's mine.json", '--end-folder', '/v/ends'],
      ...['--start-id', 'cpu.0a1b2c3d', '--stop-file', '/v/STOP', '--idle-before', '480s', '--allow-groups', '/a b,/c'],
    ])
    expect(batchScript(site, { ...order, canaryOf: 'n1' }, folders)).toContain('--task-limit 5')
  })
})
