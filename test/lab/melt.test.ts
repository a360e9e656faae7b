/**
 * The main job where it is meant to run: alice submits a Slurm job, its pilot on a node without a way out draws a melt
 * sweep through the relay, payloads run in Apptainer, the wide-area link is cut for a minute in the middle, and one task
 * merges everything to a table and a picture. All timings are those of production.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { addresses, type Centre, type CreatedFile, inside, startCentre } from './centre.ts'
import { type Product, paths, startProduct } from './product.ts'
import { checkout, whyNoLab } from './roots.ts'
import { endedJobs } from './slurm.ts'
import { countSlurmCalls, type SlurmCall } from './slurm-calls.ts'
import { type Seen, startWitness } from './witness.ts'

const CUT_MS = 60_000
const example = `${inside.checkout}/deploy/examples/melt`
const sbatchFile = readFileSync(join(checkout, 'deploy/slurm/pilot.sbatch'), 'utf8')
/** What the page for sites says to set where pilots come from an image. */
const fromImage = Object.fromEntries(
  [...readFileSync(join(checkout, 'docs/site/edge-node.md'), 'utf8').matchAll(/^export (\w+)="?(.*?)"?$/gm)].map(
    ([, name, value]) => [name!, value!.replace('$USER', 'alice')],
  ),
)
/** As at a site: arguments of sbatch win over the lines of the file. */
const slurmJob = ['--time=30', `--output=${inside.home}/pilot-%j.log`]

/** The last line of a run that LAMMPS printed, from its log: step, temp, pe, etotal, press. */
function lastLine(log: string): string {
  const lines = log.split('\n')
  return lines[lines.findIndex((line) => line.startsWith('Loop time')) - 1]!.trim().split(/\s+/).join(',')
}

/** Every run is a point: what its row says, further right the more energy it has, further up the warmer it is. */
function checkPicture(picture: string, rows: ReadonlyMap<string, string>): void {
  const circle = /<circle cx="([\d.]+)" cy="([\d.]+)".*?<title>T (\S+), seed (\d+): (\S+) at (\S+)<\/title>/g
  const points = [...picture.matchAll(circle)].map(([, x, y, T, seed, temperature, energy]) => {
    const [, , , , , totalEnergy, , meanTemperature] = rows.get(`${T} ${seed}`)!.split(',').map(Number)
    expect([temperature, energy]).toEqual([meanTemperature!.toFixed(4), totalEnergy!.toFixed(4)])
    return { x: Number(x), y: Number(y), temperature: meanTemperature!, energy: totalEnergy! }
  })
  expect(points).toHaveLength(rows.size)
  const by = (key: 'x' | 'y' | 'temperature' | 'energy') => [...points].sort((one, other) => one[key] - other[key])
  expect(by('x').map(({ x }) => x)).toEqual(by('energy').map(({ x }) => x))
  expect(by('y').map(({ y }) => y)).toEqual(
    by('temperature')
      .reverse()
      .map(({ y }) => y),
  )
  expect(picture).toMatch(/>energy of an atom [^<]*<\/text>[\s\S]*>temperature<\/text>/)
}

const rowsOf = (csv: string) =>
  new Map(
    csv
      .trim()
      .split('\n')
      .slice(1)
      .map((row) => [row.split(',').slice(0, 2).join(' '), row] as const),
  )

describe.skipIf(whyNoLab() !== null)('melt', () => {
  let centre: Centre
  let product: Product
  /** The table by "T seed". */
  let rows: Map<string, string>

  beforeAll(async () => {
    centre = await startCentre({ nodes: 1 })
    product = await startProduct(centre)
  })
  afterAll(async () => {
    await centre?.stop()
  })

  const show = async (name: string) =>
    JSON.parse(await product.indraft('campaign', 'show', name, '--json')) as {
      state: string
      steps: { name: string; counts: Record<string, number> }[]
    }
  const outputs = async (name: string): Promise<{ table: string; picture: string }> => {
    await product.indraft('campaign', 'outputs', name, '--step', 'merge', '--get', `/root/${name}`)
    const text = (file: string) => centre.check('outside', ['cat', `/root/${name}/merge/0/${file}`])
    return { table: await text('melt.csv'), picture: await text('melt.svg') }
  }
  const pilotLog = async (job: string) => await centre.check('edge', ['cat', `pilot-${job}.log`], { user: 'alice' })

  test('main job - 24 melts and a merge as one Slurm job, with the link cut for a minute', {
    timeout: 900_000,
  }, async () => {
    const since = new Date()
    const onEdge = await startWitness(centre, 'edge')
    const onNode = await startWitness(centre, 'n1', 'lmp', 'python3')
    await product.indraft('campaign', 'submit', `${example}/melt.yaml`)
    const startedMs = performance.now()
    const calls = await countSlurmCalls(centre)
    const job = await centre.sbatch(sbatchFile, slurmJob, { env: calls.env })
    while (((await show('melt')).steps[0]!.counts.done ?? 0) < 4) await sleep(1500)

    await Promise.all(Object.values(product.links).map((link) => link.set({ mode: 'cut' })))
    const cutMs = performance.now()
    const cutAtMs = Date.now()
    const atCut = await show('melt')
    expect(atCut.state).toBe('running')
    await sleep(CUT_MS)
    // Central knows nothing new; that the node went on meanwhile is seen below.
    expect((await show('melt')).steps[0]!.counts.done).toBe(atCut.steps[0]!.counts.done)
    const openedAtMs = Date.now()
    await Promise.all(Object.values(product.links).map((link) => link.set({ mode: 'open' })))
    const wasCutMs = performance.now() - cutMs

    while ((await show('melt')).state !== 'done') await sleep(1500)
    const tookMs = performance.now() - startedMs
    await centre.check('n1', ['touch', '/tmp/indraft-alice/STOP'], { user: 'alice' })
    const ended = await centre.waitForJob(job)
    expect(ended, await pilotLog(job)).toMatchObject({ JobState: 'COMPLETED', ExitCode: '0:0' })
    const [edge, node] = [await onEdge.tell(), await onNode.tell()]

    const tasks = await product.indraft('campaign', 'tasks', 'melt')
    expect(tasks.match(/^m\S+\s+done\s+1\s+LAB\s+n1/gm), tasks).toHaveLength(25)
    const { table, picture } = await outputs('melt')
    rows = rowsOf(table)
    expect(rows.size).toBe(24)
    checkPicture(picture, rows)

    // Slurm saw one job, alice is its owner, and nothing asked Slurm anything beside her sbatch and the script's srun.
    expect(await endedJobs(centre)).toEqual([expect.objectContaining({ id: job, user: 'alice', state: 'COMPLETED' })])
    const asked = await calls.read()
    expect(asked.map(({ host, user, command }) => `${host} ${user} ${command}`)).toEqual([
      'edge alice sbatch',
      'n1 alice srun',
    ])

    // Every payload was in a user namespace of its own; the node itself has neither program.
    const payloads = node.programs.filter(({ name }) => name === 'lmp')
    expect(payloads).toHaveLength(24)
    // Payloads began and ended while nobody outside could be told.
    const meanwhile = payloads.filter((one) => one.firstSeenMs > cutAtMs && one.lastSeenMs < openedAtMs)
    expect(meanwhile.length).toBeGreaterThan(0)
    expect(new Set(payloads.map(({ userNamespace }) => userNamespace))).not.toContain(node.userNamespace)
    const merges = node.programs.filter(({ name }) => name === 'python3')
    for (const { userNamespace } of merges) expect(userNamespace).not.toBe(node.userNamespace)
    // However short the merge was for the witness: it can only have run in the image.
    const onNodeItself = await centre.run('n1', ['sh', '-c', 'command -v lmp || command -v python3'])
    expect(onNodeItself).toMatchObject({ code: 127, stdout: '' })
    const left = await centre.check('n1', ['sh', '-c', 'cat /proc/[0-9]*/comm'])
    expect(left).not.toMatch(/squashfuse|lmp|indraft|apptainer|starter/i)

    const files = await centre.filesCreated(inside.shared, since)
    console.log(securityTable(edge, node, files, asked))
    const lastedS = payloads.map((one) => (one.lastSeenMs - one.firstSeenMs) / 1000).sort((one, other) => one - other)
    const [shortest, median, longest] = [lastedS[0]!, lastedS[12]!, lastedS[23]!].map((seconds) => seconds.toFixed(1))
    console.log(`payloads: ${shortest} to ${longest} s, median ${median} s; ${meanwhile.length} within the cut`)
    console.log(
      `main job: 25 tasks in ${(tookMs / 1000).toFixed(0)} s, of which the link was cut for ${(wasCutMs / 1000).toFixed(0)} s`,
    )
    checkSite(edge, node, files)
  })

  test('digits - two points by hand in the same image give the same digits', async () => {
    const exec = ['apptainer', '--quiet', 'exec', '--containall', '--bind', inside.checkout, inside.images.lammps]
    const points = [
      ['0.8', '4928459'],
      ['2.2', '87287'],
    ] as const
    await Promise.all(
      points.map(async ([T, seed]) => {
        const command = ['lmp', '-in', `${example}/melt.in`, '-log', 'none', '-var', 'T', T, '-var', 'seed', seed]
        const said = await centre.check('n1', [...exec, ...command], { user: 'alice' })
        expect(rows.get(`${T} ${seed}`)).toContain(`${T},${seed},${lastLine(said)},`)
      }),
    )
  })

  test('network - a node cannot reach central at all', async () => {
    for (const [address, port] of [
      [addresses.outside, '8420'],
      [addresses.outside, '4222'],
      [addresses.edgeWan, '4222'],
    ] as const) {
      const said = await centre.run('n1', ['curl', '-sS', '-m', '5', `telnet://${address}:${port}`])
      expect(said.code).not.toBe(0)
      expect(said.stderr).toMatch(/Could not connect|Network is unreachable|Couldn't connect/)
    }
    expect(await centre.check('n1', ['ip', 'route'])).toMatch(/^10\.77\.0\.0\/24 dev lan [^\n]*$/)
  })

  test('nested - with the pilot in its own image the same points have the same rows', {
    timeout: 900_000,
  }, async () => {
    const name = 'melt-nested'
    const text = readFileSync(join(checkout, 'deploy/examples/melt/melt.yaml'), 'utf8')
      .replace('name: melt', `name: ${name}`)
      .replace(/T: \[.*\]/, 'T: [1.44, 2.2]')
      .replace('"24"', '"4"')
      .replaceAll('file:melt.in', `file://${example}/melt.in`)
      .replaceAll('file:merge.py', `file://${example}/merge.py`)
    await centre.write('outside', `/root/${name}.yaml`, text)
    const onNode = await startWitness(centre, 'n1', 'lmp', 'indraft-pilot')
    await product.indraft('campaign', 'submit', `/root/${name}.yaml`)
    expect(Object.keys(fromImage)).toEqual(['INDRAFT_PILOT', 'INDRAFT_SCRATCH'])
    const pilotCommand = fromImage
      .INDRAFT_PILOT!.replace(/\S+\.sif$/, inside.images.pilot)
      // Where images and inputs lie in the lab.
      .replace(',/shared,', `,/shared,/images,${inside.checkout},`)
    // The same scratch as that of the pilot before.
    await centre.check('n1', ['rm', '-f', '/tmp/indraft-alice/STOP'])
    // The merge has to come before the pilot leaves for want of work.
    const env = { ...fromImage, INDRAFT_PILOT: pilotCommand, INDRAFT_IDLE_AFTER: '15s' }
    const job = await centre.sbatch(sbatchFile, slurmJob, { env })
    const ended = await centre.waitForJob(job)
    expect(ended, await pilotLog(job)).toMatchObject({ JobState: 'COMPLETED', ExitCode: '0:0' })
    // Nor have payloads without image less than on the node itself.
    expect(await pilotLog(job)).toMatch(/"network":"own","msg":"host\.found"/)
    const node = await onNode.tell()
    const pilot = node.programs.filter((one) => one.name !== 'lmp' && one.userNamespace !== node.userNamespace)
    const payloads = node.programs.filter((one) => one.name === 'lmp')
    expect(pilot.length).toBeGreaterThan(0)
    expect(payloads).toHaveLength(4)
    const outer = [node.userNamespace, ...pilot.map(({ userNamespace }) => userNamespace)]
    for (const { userNamespace } of payloads) expect(outer).not.toContain(userNamespace)
    const nested = rowsOf((await outputs(name)).table)
    expect([...nested.keys()]).toEqual(['1.44 87287', '1.44 4928459', '2.2 87287', '2.2 4928459'])
    for (const [point, row] of nested) expect(row).toBe(rows.get(point))
  })

  test('relay image - a relay in its own image goes on where the one on the host stopped', async () => {
    expect(await product.relay.stop()).toBe(0)
    const run = ['run', '--state', paths.relay, '--host', addresses.edgeLan]
    const contained = ['run', '--userns', '--contain', '--bind', paths.relay]
    const argv = ['apptainer', '--quiet', ...contained, inside.images.relay, ...run]
    const relay = centre.spawn('edge', 'relay-image', argv, { user: 'alice' })
    await relay.waitFor(/"msg":"relay.ready"/)
    expect(await relay.waitFor(/"isNewSession":(true|false).*"msg":"upstream.welcomed"/)).toBeTruthy()
    // The same relay, not a second one.
    const relays = (await product.indraft('relay', 'list')).match(/^LAB\s.*$/gm)
    expect(relays).toEqual([expect.stringMatching(/^LAB\s+\S+\s+active/)])
    expect(await relay.stop()).toBe(0)
  })
})

const beyond = (address: string) =>
  !/^(\[?::1\]?|127\.|10\.77\.|\[::ffff:(127|10\.77)\.|\*|0\.0\.0\.0|\[::\])/.test(address)

/**
 * Nothing of the site speaks to the world but the relay, to nobody but central; nothing listens towards the world. Of a
 * connection that ended between two looks of the witness only the two ends are known.
 */
function checkSite(edge: Seen, node: Seen, files: readonly CreatedFile[]): void {
  const central = [`${addresses.outside}:4222`, `${addresses.outside}:8420`]
  const out = edge.connections.filter(({ peer }) => beyond(peer))
  expect(new Set(out.map(({ peer }) => peer))).toEqual(new Set(central))
  expect(new Set(out.map(({ process, user }) => `${process} ${user}`))).toEqual(new Set(['indraft-relay 1000']))
  for (const { peer, local } of edge.ended.filter((one) => beyond(one.peer))) {
    expect(central).toContain(peer)
    expect(local).toContain(addresses.edgeWan)
  }
  expect([...node.connections, ...node.ended].filter(({ peer }) => beyond(peer))).toEqual([])
  // Not for want of looking: the pilot's two connections were seen.
  const ofPilot = node.connections.filter(({ process }) => process.startsWith('indraft-pilot')).map(({ peer }) => peer)
  expect(new Set(ofPilot).size).toBe(2)
  for (const peer of ofPilot) expect(peer).toMatch(/^10\.77\.0\.1:/)
  // slurmctld is the site's own; ours is on the network of the nodes and on loopback.
  for (const { local, process } of edge.listening) {
    if (process !== 'slurmctld') expect(local).toMatch(/^(127\.0\.0\.1|10\.77\.0\.1):/)
  }
  // On the node Slurm listens; the pilot does not, and LAMMPS (its MPI) does so in a network of its own.
  for (const { process } of node.listening) expect(['slurmd', 'srun', 'slurmstepd']).toContain(process)
  // On the shared file system: the job's log. Nothing of the payloads, nothing for others to read but that.
  expect(files.map(({ path, owner }) => `${owner} ${path}`)).toEqual([
    expect.stringMatching(/^alice \/shared\/home\/alice\/pilot-\d+\.log$/),
  ])
  // Nor was anything there in between.
  expect(edge.files).toEqual(files.map(({ path }) => path))
}

function securityTable(edge: Seen, node: Seen, files: readonly CreatedFile[], calls: readonly SlurmCall[]): string {
  const unique = (lines: string[]) => [...new Set(lines)].sort()
  const withoutPort = (address: string) => address.replace(/:\d+$/, '')
  const socketsOf = (name: string, seen: Seen) => [
    ...unique(
      seen.listening.map((one) => `${name}  listens    ${one.local.padEnd(22)} ${one.process} (user ${one.user})`),
    ),
    ...unique(
      seen.connections
        .filter(({ local }) => !seen.listening.some((one) => one.local.split(':').at(-1) === local.split(':').at(-1)))
        .map((one) => `${name}  connects   ${one.peer.padEnd(22)} ${one.process} (user ${one.user})`),
    ),
    ...unique(
      seen.ended
        .filter(({ peer }) => beyond(peer))
        .map((one) => {
          const stood = seen.connections.find(({ local, peer }) => local === one.local && peer === one.peer)
          const whose = stood?.process ?? 'too short to see whose'
          return `${name}  connected  ${one.peer.padEnd(22)} from ${withoutPort(one.local)}, ended (${whose})`
        }),
    ),
  ]
  const lines = files.map((one) => `files ${one.mode}  ${one.owner}  ${String(one.sizeBytes).padStart(9)}  ${one.path}`)
  const asked = calls.map((one) => `${one.host.padEnd(4)}  calls      ${one.command} (user ${one.user})`)
  const sockets = [...socketsOf('edge', edge), ...socketsOf('n1  ', node)]
  return ['what the site would want to know', ...sockets, ...asked, ...lines].join('\n  ')
}
