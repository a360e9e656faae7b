/**
 * A site left alone: ticks as cron would start them, real Slurm, two nodes. When a campaign comes one job with a pilot on
 * each node fills both, and is gone when it is over; every call of a Slurm command and every file on the shared file
 * system is counted. A node that is no good is avoided, by the name that Slurm has for it.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Centre, inside, startCentre } from './centre.ts'
import { type Product, paths, programs, startProduct } from './product.ts'
import { whyNoLab } from './roots.ts'
import { countSlurmCalls, type SlurmCalls } from './slurm-calls.ts'

const folder = `${inside.home}/vacuum`
const siteFile = `${inside.home}/site.yaml`
/** Cron looks once a minute; the test has no time for it. All that hangs on minutes is as much shorter. */
const TICK_MS = 2000

const site = `
indraft: 1
folder: ${folder}
credential: ${paths.pilotCredential}
command: [${programs.pilot.join(', ')}]
starter: slurm
fizzle: 30s
ask: {every: 4s}
look: {wanted: 10s, quiet: 30s}
backOff: {first: 10s, longest: 1min}
caps: {running: 2, queued: 2, startsATick: 2}
# Slurm counts eight cores on a machine that may have two.
pilots: {cores: 8, scratch: /tmp/indraft-alice, idleBefore: 20s, idleAfter: 5s, hostRuntime: true}
kinds:
  node:
    time: 30min
    nodesPerJob: 2
    shape: {cores: 8, memory: 4GiB, scratch: 100MiB}
    sbatch: [--exclusive, --mem=0]
`

const campaign = (name: string, tasks: number, seconds: number) => `
indraft: 1
name: ${name}
group: /demo
steps:
  run:
    count: ${tasks}
    image: host
    command: [sleep, "${seconds}"]
    resources: {cores: 1, memory: 100MB, walltime: 2min}
`

/** Of payloads with their times in ISO. */
function mostAtOnce(payloads: readonly { startedAt: string; endedAt: string }[]): number {
  const steps = payloads.flatMap(({ startedAt, endedAt }) => [
    { at: startedAt, by: 1 },
    { at: endedAt, by: -1 },
  ])
  // Of the same millisecond ends come first.
  steps.sort((a, b) => (a.at === b.at ? a.by - b.by : a.at < b.at ? -1 : 1))
  let now = 0
  return Math.max(0, ...steps.map(({ by }) => (now += by)))
}

describe.skipIf(whyNoLab() !== null)('vacuum', () => {
  let centre: Centre
  let product: Product
  let calls: SlurmCalls
  beforeAll(async () => {
    centre = await startCentre({ nodes: 2 })
    product = await startProduct(centre)
    await centre.write('edge', siteFile, site, '644', 'alice')
    calls = await countSlurmCalls(centre)
    // Slurm goes on to call it n2.
    await centre.check('n2', ['hostname', 'n2.cluster.example'])
  })
  afterAll(async () => {
    await centre?.stop()
  })

  const tick = async (...words: string[]) => {
    const argv = [...programs.pilot, 'start', '--site', siteFile, ...words]
    return await centre.run('edge', argv, { user: 'alice', env: calls.env })
  }
  const said: string[] = []
  /** Ticks until it holds, as cron does: whatever happens, the next one comes. */
  const tickUntil = async (what: string, holds: () => Promise<boolean>, timeoutMs = 400_000) => {
    const deadline = performance.now() + timeoutMs
    while (!(await holds())) {
      if (performance.now() > deadline) {
        throw new Error(
          `${what} did not come\n${(await tick('--dry-run')).stdout}\n${said.slice(-30).join('')}\n${centre.logs()}`,
        )
      }
      const { code, stderr, stdout } = await tick()
      said.push(stdout, stderr)
      expect(code, `${stdout}\n${stderr}`).toBe(0)
      await sleep(TICK_MS)
    }
  }
  const called = async () => {
    const count: Record<string, number> = {}
    for (const { command } of (await calls.read()).filter(({ host }) => host === 'edge')) {
      count[command] = (count[command] ?? 0) + 1
    }
    return count
  }
  const pilots = async () => (await centre.squeue()).filter(({ name }) => name.startsWith('indraft:'))
  const submit = async (name: string, tasks: number, seconds: number) => {
    await centre.write('outside', `/root/${name}.yaml`, campaign(name, tasks, seconds))
    await product.indraft('campaign', 'submit', `/root/${name}.yaml`)
  }
  const show = async (name: string) =>
    JSON.parse(await product.indraft('campaign', 'show', name, '--json')) as {
      state: string
      steps: { counts: Record<string, number> }[]
    }
  /** What ran on a node, as an administrator finds it. */
  const traced = async (node: string) => {
    const argv = [...programs.pilot, 'trace', '--site', siteFile, '--node', node, '--json']
    const lines = (await centre.check('edge', argv, { user: 'alice' })).trim().split('\n')
    return lines.map((line) => JSON.parse(line) as { startedAt: string; endedAt: string })
  }
  const files = async (below: string, since: Date) => await centre.filesCreated(`${folder}/${below}`, since)

  test('site left alone - from empty to full use and back to no pilot as a campaign comes and goes', {
    timeout: 900_000,
  }, async () => {
    const since = new Date()
    for (let i = 0; i < 5; i++) expect((await tick()).code).toBe(0)
    // The relay says that there is nothing: Slurm is not asked at all.
    expect(await called()).toEqual({})
    expect((await tick('--dry-run')).stdout).toContain('the relay says: noWork')

    await submit('comes', 200, 3)
    const startedMs = performance.now()
    await tickUntil('full use', async () => (await pilots()).some(({ state }) => state === 'RUNNING'))
    const fullMs = performance.now() - startedMs
    expect((await pilots()).map(({ nodes }) => nodes)).toEqual(['n[1-2]'])
    await tickUntil('the end of the campaign', async () => (await show('comes')).state === 'done')
    const doneMs = performance.now() - startedMs
    expect((await show('comes')).steps[0]!.counts).toMatchObject({ done: 200 })
    await tickUntil('the end of the pilots', async () => (await pilots()).length === 0)
    // Their ends are learned from their own files.
    await tickUntil('their end records', async () => (await tick('--dry-run')).stdout.includes('no pilots known'))
    const after = await called()
    for (let i = 0; i < 5; i++) expect((await tick()).code).toBe(0)
    expect(await called()).toEqual(after)

    // Both nodes of the allocation were full: as many payloads at once as each has cores.
    for (const node of ['n1', 'n2']) expect([node, mostAtOnce(await traced(node))]).toEqual([node, 8])
    expect(await files('ends', since)).toEqual([])
    const plain = ({ path }: { path: string }) => path.replace(/\w{12}\.log$/, '*').replace(/\d{8}\.jsonl$/, '*')
    expect([...new Set((await files('', since)).map(plain))].sort()).toEqual([
      ...[`${folder}/logs/indraft:node.*`, `${folder}/state.json`, `${folder}/trace/n1-*`, `${folder}/trace/n2-*`],
    ])
    expect(await files('logs', since)).toHaveLength(1)
    const sum = Object.values(after).reduce((total, count) => total + count, 0)
    expect(after.sbatch).toBe(1)
    expect(sum).toBeLessThanOrEqual(2 + Math.ceil((performance.now() - startedMs) / 10_000))
    console.log(
      [
        '| what | figure |',
        '| --- | --- |',
        `| both nodes full after | ${(fullMs / 1000).toFixed(0)} s |`,
        `| 200 tasks of 3 s done after | ${(doneMs / 1000).toFixed(0)} s |`,
        `| calls of Slurm | ${Object.entries(after)
          .map(([name, count]) => `${count} ${name}`)
          .join(', ')} |`,
        '| calls of Slurm while there is no work and no pilot | 0 |',
        '| files left on the shared file system | 1 log of 2 pilots, 1 state file, 1 trace a node and day |',
      ].join('\n'),
    )
  })

  test('bad node - a node whose pilots end with 500 is excluded, and the campaign ends on the other', {
    timeout: 900_000,
  }, async () => {
    const before = await called()
    await centre.check('n2', ['sh', '-c', 'rm -rf /tmp/indraft-alice && touch /tmp/indraft-alice'])
    await submit('bad', 120, 2)
    await tickUntil('the end of the campaign', async () => (await show('bad')).state === 'done')
    expect((await tick('--dry-run')).stdout).toMatch(/node:n2: strike 1, 500 .*\n(.*\n)*not on n2\n/)
    const tasks = await product.indraft('campaign', 'tasks', 'bad')
    expect(tasks).toMatch(/\bn1\b/)
    expect(tasks).not.toMatch(/\bn2\b/)
    await tickUntil('the end of the pilots', async () => (await pilots()).length === 0)
    const after = await called()
    console.log(`bad node: ${(after.sbatch ?? 0) - (before.sbatch ?? 0)} sbatch`)
    expect((after.sbatch ?? 0) - (before.sbatch ?? 0)).toBeLessThanOrEqual(4)
  })

  test('stop - nothing starts while the STOP file is there, whatever waits', { timeout: 900_000 }, async () => {
    const stop = [...programs.pilot, 'stop', '--site', siteFile]
    await centre.check('edge', stop, { user: 'alice' })
    const before = await called()
    await submit('later', 8, 1)
    for (let i = 0; i < 4; i++) expect((await tick()).code).toBe(0)
    expect((await tick('--dry-run')).stdout).toContain('a STOP file asks for it: nothing starts')
    expect((await called()).sbatch).toBe(before.sbatch)
    await centre.check('edge', [...stop, '--resume'], { user: 'alice' })
    await tickUntil('the end of the campaign', async () => (await show('later')).state === 'done')
    // Slurm took the name of the bad node for one of its own.
    expect((await calls.read()).filter(({ command }) => command === 'sbatch').at(-1)!.words).toContain('--exclude=n2')
  })
})
