/**
 * What happens to pilots at a site, one thing after another, with real Slurm: one allocation of two nodes, preemption with
 * requeue, scancel, a node that is drained, the time limit, a black hole. Payloads keep a ledger outside the product;
 * tasks have no payload credit at all, so that one wrong charge would show as a task that is not done.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Centre, inside, startCentre } from './centre.ts'
import { type Product, paths, programs, startProduct } from './product.ts'
import { checkout, whyNoLab } from './roots.ts'
import { cancel, drain, endedJobs, resume, waitForNode } from './slurm.ts'
import { countSlurmCalls } from './slurm-calls.ts'
import { startWitness } from './witness.ts'

/** For whatever has to come some time: a busy machine is no failure. */
const PATIENCE_MS = 400_000
const LONG = { timeout: 900_000 }
/** Of a black hole, before a canary goes there. */
const LATCH_S = 20
const ledgers = `${inside.home}/ledgers`
const sbatchFile = readFileSync(join(checkout, 'deploy/slurm/pilot.sbatch'), 'utf8')
/** The default drain grace, 20 s, is below the lab's KillWait and GraceTime. */
const pilotWords = ['--idle-before', '2min', '--idle-after', '2s', '--payload-grace', '5s']

interface Line {
  what: 'begin' | 'told' | 'graced' | 'end'
  index: number
  attempt: number
  node: string
  atMs: number
}

/** What a payload does: writes down that it began, that it was told to end, that it had time left then, and its end. */
const payload = (ledger: string, work: string) =>
  [
    `say() { echo $1 $(index) $(attempt) $$(hostname) $$(date +%s%3N) >>${ledger}; }`,
    'say begin',
    `trap 'say told; sleep 1; say graced; exit 143' TERM`,
    work,
    'say end',
  ].join('\n')
const sleeps = (seconds: string) => `sleep ${seconds} & wait $!`

interface Plan {
  count: number
  work: string
  memory?: string
  payloadRetries?: number
}

describe.skipIf(whyNoLab() !== null)('site life', () => {
  let centre: Centre
  let product: Product
  beforeAll(async () => {
    centre = await startCentre({ nodes: 2 })
    product = await startProduct(centre)
    await centre.check('edge', ['mkdir', ledgers], { user: 'alice' })
  }, 600_000)
  afterAll(async () => {
    await centre?.stop()
  }, 120_000)

  const submit = async (name: string, { count, work, memory = '100MB', payloadRetries = 0 }: Plan) => {
    const command = JSON.stringify(['sh', '-c', payload(`${ledgers}/${name}`, work)])
    const text = `
indraft: 1
name: ${name}
group: /lab
defaults: {retries: {payload: ${payloadRetries}, infrastructure: 3}}
steps:
  run: {count: ${count}, image: host, command: ${command}, resources: {cores: 1, memory: ${memory}, walltime: 20min}}
`
    await centre.write('outside', `/root/${name}.yaml`, text)
    await product.indraft('campaign', 'submit', `/root/${name}.yaml`)
  }
  const ledger = async (name: string): Promise<Line[]> => {
    const { stdout } = await centre.run('edge', ['cat', `${ledgers}/${name}`])
    return stdout
      .split('\n')
      .filter(Boolean)
      .map((line) => {
        const [what, index, attempt, node, at] = line.split(' ')
        return {
          what: what as Line['what'],
          ...{ index: Number(index), attempt: Number(attempt), node: node!, atMs: Number(at) },
        }
      })
  }
  const until = async (what: string, holds: () => Promise<boolean>, act = async () => {}) => {
    for (const deadline = performance.now() + PATIENCE_MS; !(await holds()); await sleep(500)) {
      if (performance.now() > deadline) throw new Error(`${what} did not come\n${centre.logs()}`)
      await act()
    }
  }
  const ends = async (name: string) => (await ledger(name)).filter(({ what }) => what === 'end').length
  const isDone = async (name: string) => {
    const { state } = JSON.parse(await product.indraft('campaign', 'show', name, '--json')) as { state: string }
    expect(['running', 'done']).toContain(state)
    return state === 'done'
  }
  /** How many payloads of a node ran at the same time, at most. */
  const fullest = (lines: readonly Line[], node: string) => {
    let running = 0
    let most = 0
    for (const { what } of lines.filter((line) => line.node === node).sort((one, other) => one.atMs - other.atMs)) {
      running += what === 'begin' ? 1 : what === 'end' || what === 'graced' ? -1 : 0
      most = Math.max(most, running)
    }
    return most
  }
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

  /**
   * All are done, each has one end in the ledger, none was charged to the payload, and the store's invariants hold. What
   * ended within the second before somebody ended the pilots may have run again: nobody had been told yet.
   */
  const nothingIsLost = async (name: string, count: number, event: string, endedAtMs: number) => {
    const { tasks } = JSON.parse(
      await product.indraft('campaign', 'tasks', name, '--limit', String(count), '--json'),
    ) as { tasks: { state: string; index: number; attempts: number }[] }
    expect(tasks.map(({ state }) => state)).toEqual(Array.from({ length: count }, () => 'done'))
    const lines = await ledger(name)
    const of = (what: Line['what'], index: number) => lines.filter((one) => one.what === what && one.index === index)
    const twice: number[] = []
    for (let index = 0; index < count; index++) {
      const ended = of('end', index)
      expect(ended.length, `task ${index}`).toBeGreaterThan(0)
      if (ended.length > 1) twice.push(ended[0]!.atMs)
    }
    for (const atMs of twice) expect(atMs).toBeGreaterThan(endedAtMs - 1000)
    const reasons: Record<string, number> = {}
    for (const { index, attempts } of tasks.filter((task) => task.attempts > 1)) {
      const said = await product.tryIndraft('campaign', 'tasks', `${name}/run/${index}`, '--json')
      expect(said.code, `${said.stderr}${product.central.output.slice(-3000)}`).toBe(0)
      const record = JSON.parse(said.stdout) as { history: { end: string; reason: string | null }[] }
      expect(record.history.at(-1)).toMatchObject({ end: 'done' })
      for (const { end, reason } of record.history)
        if (end !== 'done') reasons[reason ?? ''] = (reasons[reason ?? ''] ?? 0) + 1
      expect(attempts).toBeGreaterThanOrEqual(of('begin', index).length)
    }
    expect(await product.indraft('admin', 'verify')).toBe('every invariant holds')
    // Slurm tells all processes of a step, and the pilot those of its payloads: who is told twice counts once.
    const attemptsThat = (what: Line['what']) =>
      new Set(lines.filter((one) => one.what === what).map(({ index, attempt }) => `${index} ${attempt}`)).size
    const told = attemptsThat('told')
    const graced = attemptsThat('graced')
    console.log(
      `${event}: ${count} of ${count} tasks done; ${lines.filter(({ what }) => what === 'begin').length} payloads began, ` +
        `${told} were told to end, ${graced} had their grace, ${twice.length} ended twice; payload credit charged: 0; ` +
        `attempts that did not end well: ${JSON.stringify(reasons)}`,
    )
    return { lines, tasks, reasons, told, graced }
  }

  test(
    'two nodes and preemption - one pilot each, both full; requeued by a job of higher priority, nothing is lost',
    LONG,
    async () => {
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

  const vacuum = `${inside.home}/vacuum`
  const siteFile = `${inside.home}/site.yaml`
  const site = `
indraft: 1
folder: ${vacuum}
credential: ${paths.pilotCredential}
command: [${programs.pilot.join(', ')}]
starter: slurm
fizzle: 40s
ask: {every: 3s, patience: 20s}
look: {wanted: 10s, quiet: 20s}
backOff: {first: 3s, longest: 10s}
caps: {running: 2, queued: 2, startsATick: 2}
nodes: {latch: ${LATCH_S}s, leastTasks: 4, canaryTasks: 3}
pilots: {cores: 4, memory: 1GB, scratch: /tmp/vacuum, idleAfter: 5s}
kinds:
  node:
    time: 30min
    shape: {cores: 4, memory: 1GB, scratch: 100MiB}
    # Room for one on each node, beside the job whose time limit is waited for.
    sbatch: [-c5, --mem=1500]
`

  test(
    'black hole - latched by the vacuum, the campaign ends elsewhere; healed, a canary releases it',
    LONG,
    async () => {
      await centre.write('edge', siteFile, site, '600', 'alice')
      const counted = await countSlurmCalls(centre)
      const ticks: { errors: string }[] = []
      const tick = async (...words: string[]) => {
        const argv = [...programs.pilot, 'start', '--site', siteFile, ...words]
        const { code, stdout, stderr } = await centre.run('edge', argv, { user: 'alice', env: counted.env })
        expect(code, `${stdout}\n${stderr}`).toBe(0)
        ticks.push({ errors: stderr })
        return stdout
      }
      const tickOn = async () => void (await tick())
      const says = async (words: RegExp) => words.test(await tick('--dry-run'))
      const witness = await startWitness(centre, 'edge')
      const idleTicks = 10
      for (let at = 0; at < idleTicks; at++) await tick()
      const idleCalls = (await counted.read()).length

      // What n2 cannot do; everywhere else it takes a second.
      await centre.check('n2', ['touch', '/tmp/broken'], { user: 'alice' })
      await submit('hole', { count: 100, payloadRetries: 5, work: `[ ! -e /tmp/broken ] || exit 1\n${sleeps('1')}` })
      await until('the end of the campaign', () => isDone('hole'), tickOn)
      const lines = await ledger('hole')
      const eaten = lines.filter(({ what, node }) => what === 'begin' && node === 'n2').length
      expect(lines.filter(({ what, node }) => what === 'end' && node === 'n2')).toEqual([])
      await until('the latch', () => says(/n2: latched .*tasks failed here/), tickOn)
      await until('the end of the pilots', () => says(/no pilots known/), tickOn)
      expect(await product.indraft('admin', 'verify')).toBe('every invariant holds')

      await centre.check('n2', ['rm', '/tmp/broken'])
      // A dry run writes nothing down: the latch begins with a real tick. When it has run out a canary needs work that waits.
      await tick()
      await sleep(LATCH_S * 1000)
      await submit('healed', { count: 120, work: sleeps('2') })
      const canaries = async () => (await counted.read()).filter(({ words }) => words.includes('--nodelist=n2')).length
      await until('a canary', async () => (await canaries()) > 0, tickOn)
      await until('the release', async () => !(await says(/latched/)), tickOn)
      const onCanary = (await ledger('healed')).filter(({ what, node }) => what === 'begin' && node === 'n2').length
      await until('the end of the campaign', () => isDone('healed'), tickOn)
      await until('the end of the pilots', () => says(/no pilots known/), tickOn)
      // What a dry run has seen it leaves where it is.
      await tick()
      await nothingIsLost('healed', 120, 'black hole healed', Number.POSITIVE_INFINITY)

      const calls = await counted.read()
      const of = (command: string) => calls.filter((call) => call.command === command && call.user === 'alice')
      const pilots = of('sbatch').length
      const { files } = await witness.tell()
      const below = (folder: string) => files.filter((path) => path.startsWith(`${vacuum}/${folder}/`))
      const names = new Set([...below('logs'), ...below('ends')])
      // An end record is one file under three names: while it is written, while its pilot lives, and at the end.
      const ofPilots = [...names].filter((path) => !/\.(tmp|alive)$/.test(path))
      const left = await centre.filesCreated(vacuum, new Date(0))
      expect(ofPilots.length).toBeLessThanOrEqual(2 * pilots)
      expect(left.filter(({ path }) => path.includes('/ends/'))).toEqual([])
      expect(idleCalls).toBe(0)
      console.log(
        [
          '| what | figure |',
          '| --- | --- |',
          `| tasks that the black hole ate before it was latched | ${eaten} of 100, all done elsewhere |`,
          `| tasks begun on it until its release was seen | ${onCanary}, by ${await canaries()} canaries (one that finds no work decides nothing) |`,
          `| calls of Slurm in an hour of ticks without work | ${(idleCalls / idleTicks) * 60} |`,
          `| calls of Slurm otherwise | ${['sbatch', 'squeue', 'scancel', 'srun'].map((name) => `${of(name).length} ${name}`).join(', ')} for ${pilots} pilots |`,
          `| names that ever were on the shared file system, of ${pilots} pilots | ${ofPilots.length} (a log and an end record each) |`,
          `| files there afterwards | ${left.map(({ path }) => path.slice(vacuum.length + 1).replace(/\.\w{8}\.log/, '.*.log')).join(', ')} |`,
        ].join('\n'),
      )
    },
  )

  test('time limit - which the pilot did not know of: what ran there runs again elsewhere', LONG, async () => {
    expect(await centre.waitForJob(limited, undefined, PATIENCE_MS)).toMatchObject({ JobState: 'TIMEOUT' })
    const atMs = Date.now()
    expect(await farewells('limited.log')).toMatchObject([{ code: 700, undelivered: 0 }])
    await job('unlimited', 2, ['-t', '30'], ['--memory', '6GB'])
    await until('the end of the campaign', () => isDone('limited'))
    const { told, graced, reasons } = await nothingIsLost('limited', 2, 'time limit', atMs)
    expect({ told, graced, reasons }).toEqual({ told: 2, graced: 2, reasons: { 'node.ending': 2 } })
  })
})
