import { execFileSync } from 'node:child_process'
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { countedSlurm } from '../../test/counted-slurm.ts'
import type { Start } from './decide.ts'
import { expandNodeList } from './node-list.ts'
import { parseSiteFile } from './site-file.ts'
import { batchScript, readQueue, sbatchWords, slurmStarter } from './slurm.ts'
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
const byHand = readFileSync(join(import.meta.dirname, '../../deploy/slurm/pilot.sbatch'), 'utf8')
const folders = { ends: '/v/ends', stopFile: '/v/STOP' }

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-slurm-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

/** One of Slurm's in the first folder of the path. */
function program(name: string, script: string): void {
  writeFileSync(join(folder, name), `#!/bin/sh\nhere=${folder}\n${script}\n`)
  chmodSync(join(folder, name), 0o755)
}

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
      { jobId: '14', id: 'cpu.ffff0001', state: 'completing', nodeCount: 1, nodes: ['n3'], reason: 'None' },
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

  it.each<[string, string[], string[], string[]]>([
    ['as one word', ['--exclude=n1,n[4-5]', '--mem=0'], ['n3'], ['--mem=0', '--exclude=n1,n[4-5],n3']],
    ['as two', ['--exclude', 'n1', '-p', 'main'], ['n3'], ['-p', 'main', '--exclude=n1,n3']],
    ['short', ['-x', 'n1', '-xn2', '--exclusive'], [], ['--exclusive', '--exclude=n1,n2']],
    ['the same', ['--exclude=n3'], ['n3'], ['--exclude=n3']],
  ])(
    'sbatch: nodes that a kind excludes itself stay excluded, beside those to avoid: %s',
    (_title, own, avoid, words) => {
      const given = { ...site, kinds: { cpu: { ...site.kinds.cpu!, sbatch: own } } }
      const said = sbatchWords(given, { ...order, exclude: avoid }, '/v/logs')
      expect(said.slice(said.indexOf('--account=p1') + 1)).toEqual(words)
    },
  )

  it('sbatch: of an account that ends, what waits too long goes out of the queue; only near that it has less time', () => {
    const far = { ...order, endsByMs: 1_900_000_000_999 }
    expect(sbatchWords(site, far, '/v/logs')).toContain('--deadline=uts1900000000')
    expect(sbatchWords(site, far, '/v/logs').join()).not.toContain('time-min')
    const near = sbatchWords(site, { ...far, leastTimeMs: 600_000 }, '/v/logs')
    expect(near).toEqual(expect.arrayContaining(['--deadline=uts1900000000', '--time-min=10']))
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
    ['sbatch: error: Batch job submission failed: Message receive failure', false],
    ['sbatch: error: Batch job submission failed: Unexpected message received', false],
    ['sbatch: error: Batch job submission failed: Header lengths are longer than data received', false],
    ['sbatch: error: Batch job submission failed: Resource temporarily unavailable', false],
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

  /** What the script's srun gets, one word a line, and the end that its environment says. */
  function runScript(env: Record<string, string>, given = batchScript(site, order, folders)): string[] {
    const script = given.replace('exec srun', 'srun')
    const text = `srun() { printf '%s\\n' "$@" "end $SLURM_JOB_END_TIME"; }; ${script}`
    const usual = { PATH: `${folder}:/usr/bin:/bin`, SLURM_CPUS_ON_NODE: '8', SLURM_JOB_ID: '42' }
    const said = execFileSync('bash', ['-c', text], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...usual, SLURM_JOB_END_TIME: '1800000000', ...env },
    })
    return said.toString().trimEnd().split('\n')
  }

  it('script: a shell takes it apart into the words that were meant', () => {
    const words = runScript({})
    expect(words.slice(0, 4)).toEqual(['--ntasks-per-node=1', '--cpus-per-task=8', '--mem=0', '--kill-on-bad-exit=0'])
    expect(words.slice(4)).toEqual([
      ...['node', '/opt/pilot.mjs', 'run', '--credential', "/c/it's mine.json", '--end-folder', '/v/ends'],
      ...['--start-id', 'cpu.0a1b2c3d', '--stop-file', '/v/STOP', '--idle-before', '480s', '--trace-log', '/v/trace'],
      ...['--allow-groups', '/a b,/c', '--time-asked', '90min', 'end 1800000000'],
    ])
    expect(batchScript(site, { ...order, canaryOf: 'n1' }, folders)).toContain('--task-limit 5')
  })

  it.each([
    ['64', '64'],
    ['64(x3)', '64'],
    ['128(x2),64(x3),96', '64'],
    ['8,128', '8'],
  ])('script: of nodes with %s cores each pilot gets %s, which all of them can give', (all, least) => {
    expect(runScript({ SLURM_JOB_CPUS_PER_NODE: all })[1]).toBe(`--cpus-per-task=${least}`)
    expect(runScript({ SLURM_JOB_CPUS_PER_NODE: all, HOME: '/h', USER: 'u' }, byHand)[1]).toBe(
      `--cpus-per-task=${least}`,
    )
  })

  it('script: a Slurm that does not say when the job ends is asked once, and need not answer', () => {
    program('squeue', 'echo "$SLURM_TIME_FORMAT $*" >>"$here/asked"; echo 1800000600')
    expect(runScript({}).at(-1)).toBe('end 1800000000')
    expect(existsSync(join(folder, 'asked'))).toBe(false)
    expect(runScript({ SLURM_JOB_END_TIME: '' }).at(-1)).toBe('end 1800000600')
    expect(readFileSync(join(folder, 'asked'), 'utf8')).toBe('%s -h -j 42 -o %e\n')
    program('squeue', 'exit 1')
    expect(runScript({ SLURM_JOB_END_TIME: '' }).slice(-3)).toEqual(['--time-asked', '90min', 'end'])
  })

  it('a tick that is a job itself hands sbatch nothing of that job, and all that it needs to reach Slurm', async () => {
    program('sbatch', 'env >"$here/given"; echo 7')
    const own = { SLURM_NTASKS: '1', SLURM_MEM_PER_NODE: '500', SLURM_JOB_ID: '6', SLURMD_NODENAME: 'n9' }
    const kept = { SLURM_CONF: '/etc/slurm/here.conf', SLURM_JWT: 'token', SBATCH_RESERVATION: 'ours', HOME: '/h' }
    const starter = slurmStarter(site, { ...folders, logs: '/v/logs' }, { PATH: `${folder}:/bin`, ...own, ...kept })
    expect(await starter.start(order)).toBe('7')
    const given = readFileSync(join(folder, 'given'), 'utf8')
    for (const [name, value] of Object.entries(kept)) expect(given).toContain(`${name}=${value}\n`)
    for (const name of Object.keys(own)) expect(given).not.toMatch(new RegExp(`^${name}=`, 'm'))
  })
})
