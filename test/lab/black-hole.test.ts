/**
 * A node that fails every task at once, with real Slurm and the site's own ticks: the vacuum latches it, and a canary
 * releases it when it is healed.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Centre, inside, startCentre } from './centre.ts'
import { keepLedgers, type Ledgers, sleeps } from './ledger.ts'
import { type Product, paths, programs, startProduct } from './product.ts'
import { whyNoLab } from './roots.ts'
import { countSlurmCalls } from './slurm-calls.ts'
import { startWitness } from './witness.ts'

/** Of a black hole, before a canary goes there. */
const LATCH_S = 20
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

describe.skipIf(whyNoLab() !== null)('black hole', () => {
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

  test('black hole - latched by the vacuum, the campaign ends elsewhere; healed, a canary releases it', {
    timeout: 900_000,
  }, async () => {
    const { submit, ledger, until, isDone, nothingIsLost } = ledgers
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
        `| files there afterwards | ${left.map(({ path }) => path.slice(vacuum.length + 1).replace(/\.\w{12}\.log/, '.*.log')).join(', ')} |`,
      ].join('\n'),
    )
  })
})
