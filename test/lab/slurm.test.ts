/** Slurm in the lab, before anything of ours runs in it: what the site tests rely on, and what they may ask of it. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { parseSiteFile } from '../../pilot/start/site-file.ts'
import { readQueue, sbatchWords } from '../../pilot/start/slurm.ts'
import { type Centre, startCentre } from './centre.ts'
import { whyNoLab } from './roots.ts'
import { cancel, drain, endedJobs, nodeState, requeue, resume, waitForNode } from './slurm.ts'
import { countSlurmCalls } from './slurm-calls.ts'

describe.skipIf(whyNoLab() !== null)('slurm', () => {
  let centre: Centre

  beforeAll(async () => {
    centre = await startCentre({ nodes: 2 })
  })
  afterAll(async () => {
    await centre?.stop()
  })

  const said = async (file: string) =>
    (await centre.check('edge', ['cat', file], { user: 'alice' })).split('\n').filter(Boolean)

  test('jobs - a job of alice runs on both nodes and knows when it must end', async () => {
    const script = 'env | grep ^SLURM | sort; srun sh -c "hostname; id -un"'
    const id = await centre.sbatch(script, ['--nodes=2', '--ntasks-per-node=1', '-c', '2', '-t', '5', '-o', 'env.out'])
    const job = await centre.waitForJob(id)
    expect(job).toMatchObject({ JobState: 'COMPLETED', NodeList: 'n[1-2]', ExitCode: '0:0' })
    const said = (await centre.check('edge', ['cat', 'env.out'], { user: 'alice' })).split('\n')
    const env = Object.fromEntries(said.filter((line) => line.includes('=')).map((line) => line.split('=')))
    expect(env).toMatchObject({
      SLURM_JOB_ID: id,
      SLURM_JOB_NODELIST: 'n[1-2]',
      SLURM_CPUS_ON_NODE: '2',
      SLURM_CLUSTER_NAME: 'lab',
    })
    expect(Number(env.SLURM_JOB_END_TIME) - Number(env.SLURM_JOB_START_TIME)).toBe(300)
    expect(said.filter((line) => !line.includes('=')).sort()).toEqual(['alice', 'alice', 'n1', 'n2'])
  })

  test('jobs - a job of a higher partition preempts one of a lower, which is requeued and runs again', async () => {
    const whole = ['--nodes=2', '--ntasks-per-node=1', '--cpus-per-task=8']
    const script = 'echo start $SLURM_RESTART_COUNT\n[ -n "$SLURM_RESTART_COUNT" ] || srun --cpus-per-task=8 sleep 600'
    const low = await centre.sbatch(script, [...whole, '-p', 'low', '-o', 'low.out', '--open-mode=append'])
    await centre.waitForJob(low, ['RUNNING'])
    const high = await centre.sbatch('true', [...whole, '-p', 'high', '-o', 'high.out'])
    expect(await centre.waitForJob(high)).toMatchObject({ JobState: 'COMPLETED' })
    // On a busy machine it may start and be preempted once more before the other one has begun.
    expect(await centre.waitForJob(low)).toMatchObject({
      JobState: 'COMPLETED',
      Restarts: expect.stringMatching(/^[1-9]$/),
    })
    const said = (await centre.check('edge', ['cat', 'low.out'], { user: 'alice' })).split('\n')
    expect([said[0], said.at(-1)]).toEqual(['start', expect.stringMatching(/^start [1-9]$/)])
    expect(await centre.squeue()).toEqual([])
  })

  test('requeue - by the administrator, the same job runs again and the ledger has both of its runs', async () => {
    const script = 'echo run $SLURM_RESTART_COUNT\n[ -n "$SLURM_RESTART_COUNT" ] || srun sleep 600'
    const id = await centre.sbatch(script, ['--job-name=twice', '-o', 'twice.out', '--open-mode=append'])
    await centre.waitForJob(id, ['RUNNING'])
    while (!(await said('twice.out').catch((): string[] => [])).includes('run')) await centre.squeue()
    await requeue(centre, id)
    expect(await centre.waitForJob(id, ['COMPLETED'])).toMatchObject({ Restarts: '1' })
    expect(await said('twice.out')).toEqual(expect.arrayContaining(['run', 'run 1']))
    const runs = (await endedJobs(centre)).filter((job) => job.id === id)
    expect(runs.at(-1)).toMatchObject({ name: 'twice', user: 'alice', partition: 'main', state: 'COMPLETED' })
    expect(runs.map(({ state }) => state)).toHaveLength(2)
  })

  test('cancel - with a signal for the steps first, then for good', async () => {
    const script = `srun bash -c 'trap "echo told" USR1; echo ready; while :; do sleep 0.1; done'`
    const id = await centre.sbatch(script, ['-o', 'told.out'])
    await centre.waitForJob(id, ['RUNNING'])
    while (!(await said('told.out').catch((): string[] => [])).includes('ready')) await centre.squeue()
    await cancel(centre, id, ['--signal=USR1'])
    while (!(await said('told.out')).includes('told')) await centre.squeue()
    await cancel(centre, id)
    expect(await centre.waitForJob(id)).toMatchObject({ JobState: 'CANCELLED' })
  })

  test('drain - what runs on the node may end, nothing new starts there, and it can be had back', async () => {
    const first = await centre.sbatch('srun sleep 600', ['-w', 'n1'])
    await centre.waitForJob(first, ['RUNNING'])
    await drain(centre, 'n1', 'test of the lab')
    expect(await nodeState(centre, 'n1')).toBe('draining')
    const second = await centre.sbatch('hostname', ['-o', 'second.out'])
    expect(await centre.waitForJob(second)).toMatchObject({ JobState: 'COMPLETED', NodeList: 'n2' })
    expect(await centre.job(first)).toMatchObject({ JobState: 'RUNNING' })
    await cancel(centre, first)
    await waitForNode(centre, 'n1', ['drained'])
    await resume(centre, 'n1')
    expect(await waitForNode(centre, 'n1', ['idle'])).toBe('idle')
  })

  test('orders of pilots - what begins late has less time, and what can no longer end in time leaves the queue', async () => {
    const site = parseSiteFile(
      `{indraft: 1, folder: /v, credential: /c, starter: slurm, accounts: {}, kinds: {cpu: {time: 30min, leastTime: 2min,
        nodesPerJob: 2, shape: {cores: 8}, sbatch: [--exclusive]}}}`,
      'site.yaml',
    )
    const submitted = async (name: string, endsInMs: number, script: string) => {
      const endsByMs = Date.now() + endsInMs
      const order = {
        kind: 'cpu',
        timeMs: 30 * 60_000,
        leastTimeMs: 120_000,
        because: 'demand',
        canaryOf: null,
      } as const
      const [parsable, ...words] = sbatchWords(site, { ...order, exclude: [], id: name, nodes: 2, endsByMs }, '/tmp')
      expect(parsable).toBe('--parsable')
      return { id: await centre.sbatch(script, [...words, '-o', `${name}.out`]), endsByMs }
    }
    const first = await centre.sbatch('srun sleep 600', ['--nodes=2', '--exclusive'])
    await centre.waitForJob(first, ['RUNNING'])
    const late = await submitted('late', 15 * 60_000, 'echo $SLURM_JOB_END_TIME')
    const lost = await submitted('lost', 150_000, 'true')
    const text = await centre.check('edge', ['squeue', '--me', '-h', '-o', '%i|%j|%T|%D|%N|%r'], { user: 'alice' })
    expect(readQueue(text).sort((a, b) => Number(a.jobId) - Number(b.jobId))).toMatchObject([
      { jobId: late.id, id: 'late', state: 'queued', nodeCount: 2, nodes: [] },
      { id: 'lost' },
    ])
    expect(await centre.waitForJob(lost.id)).toMatchObject({ JobState: 'DEADLINE' })
    expect(await centre.job(late.id)).toMatchObject({ JobState: 'PENDING', TimeLimit: '00:30:00' })
    await cancel(centre, first)
    await centre.waitForJob(late.id, ['COMPLETED'])
    const endMs = 1000 * Number((await said('late.out'))[0])
    expect(endMs).toBeLessThanOrEqual(late.endsByMs)
    expect(endMs).toBeGreaterThan(late.endsByMs - 180_000)
  })

  test('orders of pilots - a node that Slurm does not know is named as the reason, and all names can be had', async () => {
    const { code, stderr } = await centre.run('edge', ['sbatch', '--exclude=n1,gone', '--wrap=true'], { user: 'alice' })
    expect({ code, stderr }).toEqual({ code: 1, stderr: expect.stringMatching(/invalid node name/i) })
    const names = await centre.check('edge', ['sinfo', '--all', '-h', '-o', '%N'], { user: 'alice' })
    expect(names.trim()).toBe('n[1-2]')
  })

  test('calls - those of a command and of its job are counted with their words, those of a test are not', async () => {
    const calls = await countSlurmCalls(centre)
    const script = 'squeue -h -o "%i two  words" >/dev/null; scontrol no-such-thing; echo status $?'
    const id = await centre.sbatch(script, ['-w', 'n2', '-o', 'calls.out'], { env: calls.env })
    await centre.waitForJob(id)
    await centre.squeue()
    const counted = (await calls.read()).map(({ host, user, command, words }) => `${host} ${user} ${command} ${words}`)
    expect(counted).toEqual([
      'edge alice sbatch --parsable -w n2 -o calls.out',
      'n2 alice squeue -h -o %i two  words',
      'n2 alice scontrol no-such-thing',
    ])
    expect((await said('calls.out')).at(-1)).toBe('status 1')
  })

  test('accounting - there is none, and Slurm says so', async () => {
    const { code, stderr } = await centre.run('edge', ['sacct'], { user: 'alice' })
    expect({ code, stderr }).toEqual({ code: 1, stderr: expect.stringContaining('accounting storage is disabled') })
  })
})
