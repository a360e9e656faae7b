/**
 * What happens to pilots at a site, one thing after another, with real Slurm: one allocation of two nodes, preemption with
 * requeue, scancel, a node that is drained, the time limit. Payloads keep a ledger outside the product;
 * tasks have no payload credit at all, so that one wrong charge would show as a task that is not done.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Centre, inside, startCentre } from './centre.ts'
import { fullest, keepLedgers, type Ledgers, PATIENCE_MS, sleeps } from './ledger.ts'
import { type Product, paths, programs, startProduct } from './product.ts'
import { checkout, whyNoLab } from './roots.ts'
import { cancel, drain, endedJobs, resume, waitForNode } from './slurm.ts'

const LONG = { timeout: 900_000 }
const sbatchFile = readFileSync(join(checkout, 'deploy/slurm/pilot.sbatch'), 'utf8')
/** The default drain grace, 20 s, is below the lab's KillWait and GraceTime. */
const pilotWords = ['--idle-before', '2min', '--idle-after', '5s', '--payload-grace', '10s']

describe.skipIf(whyNoLab() !== null)('site life', () => {
  let centre: Centre
  let product: Product
  let ledgers: Ledgers
  beforeAll(async () => {
    centre = await startCentre({ nodes: 2 })
    product = await startProduct(centre)
    ledgers = await keepLedgers(centre, product)
  }, 600_000)
  afterAll(async () => {
    await centre?.stop()
  }, 120_000)

  const job = async (
    name: string,
    cores: number,
    args: readonly string[],
    words: readonly string[] = [],
    before: readonly string[] = [],
  ) => {
    const run = ['run', '--credential', paths.pilotCredential, '--scratch', `/tmp/${name}`, '--cores', String(cores)]
    const argv = [...before, ...programs.pilot, ...run, ...pilotWords, ...words].join(' ')
    const script = `#!/bin/bash\nexec srun --mem=0 -c ${cores} ${argv}\n`
    return await centre.sbatch(script, ['-c', String(cores), '--mem=1500', '-o', `${name}.log`, ...args])
  }
  const farewells = async (log: string) => {
    const text = await centre.check('edge', ['cat', log], { user: 'alice' })
    return (text.match(/\{.*"msg":"pilot.left"\}/g) ?? []).map(
      (line) => JSON.parse(line) as { code: number; reason: string; undelivered: number },
    )
  }

  test(
    'two nodes and preemption - one pilot each, both full; requeued by a job of higher priority, nothing is lost',
    LONG,
    async () => {
      const { submit, ledger, until, ends, isDone, nothingIsLost } = ledgers
      const [name, count, cores] = ['preempted', 96, 8]
      await submit(name, { count, work: sleeps('3') })
      const whole = ['--nodes=2', '--partition=low', '--requeue', '--time=30', `--output=${inside.home}/preempted.log`]
      const env = {
        INDRAFT_PILOT: `${programs.pilot.join(' ')}`,
        INDRAFT_SCRATCH: '/tmp/preempted',
      }
      const words = ['--cores', String(cores), '--memory', '3GB', ...pilotWords]
      const script = sbatchFile.replace('"$@"', words.join(' '))
      const low = await centre.sbatch(script, whole, { env })
      await until('both nodes full', async () => {
        const lines = await ledger(name)
        return fullest(lines, 'n1') === cores && fullest(lines, 'n2') === cores && (await ends(name)) >= 12
      })
      const atMs = Date.now()
      const preempting = ['--nodes=2', '--exclusive', '--mem=0', '--partition=high', '-o', 'high.out']
      const high = await centre.sbatch('srun --ntasks-per-node=1 hostname', preempting)
      expect(await centre.waitForJob(high, undefined, PATIENCE_MS)).toMatchObject({ JobState: 'COMPLETED' })
      const left = await farewells('preempted.log')
      expect(left).toMatchObject([
        { code: 700, undelivered: 0 },
        { code: 700, undelivered: 0 },
      ])
      await until('the end of the campaign', () => isDone(name))
      expect(await centre.waitForJob(low, undefined, PATIENCE_MS)).toMatchObject({
        JobState: 'COMPLETED',
        Restarts: '1',
      })
      const { lines, told, graced, reasons } = await nothingIsLost(name, count, 'preemption', atMs)
      expect({ graced, isTold: told > 0 }).toEqual({ graced: told, isTold: true })
      expect(Object.keys(reasons)).toEqual(['node.ending'])
      for (const node of ['n1', 'n2']) expect(fullest(lines, node)).toBe(cores)
      const runs = (await endedJobs(centre)).filter(({ id }) => id === low)
      expect(runs.map(({ nodes }) => nodes)).toEqual(['n[1-2]', 'n[1-2]'])
      // One pilot on each node, in each of its two runs.
      expect(await farewells('preempted.log')).toHaveLength(4)
      console.log(`two nodes: one sbatch, ${cores} payloads at once on n1 and ${cores} on n2`)
    },
  )

  let limited = ''

  test(
    'scancel and drain - the one gives back what it had, the other goes on; nothing new starts on a drained node',
    LONG,
    async () => {
      const { submit, ledger, until, ends, isDone, nothingIsLost } = ledgers
      // Meanwhile a minute's job begins, which knows nothing of its end: payloads that nobody else takes fill it.
      const big = ['--ahead', '0s', '--memory', '6GB']
      await submit('limited', { count: 2, memory: '2GB', work: `[ $(attempt) -gt 1 ] || { ${sleeps('900')}; }` })
      limited = await job('limited', 2, ['-w', 'n1', '-t', '1'], big, [
        'env',
        '-u',
        'SLURM_JOB_END_TIME',
        '-u',
        'SLURM_JOB_ID',
        '-u',
        'SLURM_JOBID',
      ])

      const [name, count] = ['cancelled', 60]
      await submit(name, { count, work: sleeps('2') })
      const small = ['--memory', '1GB']
      const first = await job('first', 4, ['-w', 'n1', '-t', '30'], small)
      const second = await job('second', 4, ['-w', 'n2', '-t', '30'], small)
      await until('both full', async () => {
        const lines = await ledger(name)
        return fullest(lines, 'n1') === 4 && fullest(lines, 'n2') === 4 && (await ends(name)) >= 10
      })
      const atMs = Date.now()
      await drain(centre, 'n2', 'a test of the lab')
      await cancel(centre, first)
      expect(await centre.waitForJob(first, undefined, PATIENCE_MS)).toMatchObject({ JobState: 'CANCELLED' })
      expect(await farewells('first.log')).toMatchObject([{ code: 700, undelivered: 0 }])
      const third = await job('third', 4, ['-t', '30'], small)
      await until('the end of the campaign', () => isDone(name))
      expect(await centre.waitForJob(third, undefined, PATIENCE_MS)).toMatchObject({
        JobState: 'COMPLETED',
        NodeList: 'n1',
      })
      expect(await centre.waitForJob(second, undefined, PATIENCE_MS)).toMatchObject({
        JobState: 'COMPLETED',
        NodeList: 'n2',
      })
      expect(await farewells('second.log')).toMatchObject([{ code: 300, undelivered: 0 }])
      const { lines, told, graced, reasons } = await nothingIsLost(name, count, 'scancel and drain', atMs)
      expect({ graced, isTold: told > 0 }).toEqual({ graced: told, isTold: true })
      expect(Object.keys(reasons)).toEqual(['node.ending'])
      const onDrained = lines.filter(({ node }) => node === 'n2')
      expect(onDrained.filter(({ what }) => what === 'told')).toEqual([])
      expect(onDrained.some(({ what, atMs: endedMs }) => what === 'end' && endedMs > atMs)).toBe(true)
      await waitForNode(centre, 'n2', ['drained'])
      await resume(centre, 'n2')
      await waitForNode(centre, 'n2', ['idle'])
    },
  )

  test('time limit - which the pilot did not know of: what ran there runs again elsewhere', LONG, async () => {
    const { until, isDone, nothingIsLost } = ledgers
    expect(await centre.waitForJob(limited, undefined, PATIENCE_MS)).toMatchObject({ JobState: 'TIMEOUT' })
    const atMs = Date.now()
    expect(await farewells('limited.log')).toMatchObject([{ code: 700, undelivered: 0 }])
    await job('unlimited', 2, ['-t', '30'], ['--memory', '6GB'])
    await until('the end of the campaign', () => isDone('limited'))
    const { told, graced, reasons } = await nothingIsLost('limited', 2, 'time limit', atMs)
    expect({ told, graced, reasons }).toEqual({ told: 2, graced: 2, reasons: { 'node.ending': 2 } })
  })
})
