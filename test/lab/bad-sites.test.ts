/**
 * Images in every way they come, and everything that can be wrong with an image, a node or a job, through the whole
 * product: each ends in its own class of reason, at the task or at the pilot, and never as a hang.
 */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { addresses, type Centre, type Host, inside, startCentre } from './centre.ts'
import type { Daemon } from './daemon.ts'
import { denyFuse, makeBadImages, mountSmall, removePrograms, withoutUserNamespaces } from './faults.ts'
import { type Product, paths, programs, startProduct } from './product.ts'
import { whyNoLab } from './roots.ts'

const { busybox, lammps } = inside.images

interface Step {
  image: string
  /** One shell script. */
  run?: string
  count?: number
  resources?: string
}

interface TaskRow {
  step: string
  state: string
  node: string | null
  reason: string | null
}

/** Serves one file under any path that ends in `.sif`, and prints a line for each request. */
const webServer = `require('node:http').createServer((request, response) => {
  console.log('asked ' + request.url)
  if (request.url.endsWith('.sif')) require('node:fs').createReadStream(process.argv[1]).pipe(response)
  else response.writeHead(404).end()
}).listen(8080, process.argv[2], () => console.log('listening'))`

describe.skipIf(whyNoLab() !== null)('sites', () => {
  let centre: Centre
  let product: Product
  const submitted: string[] = []

  beforeAll(async () => {
    centre = await startCentre({ nodes: 2 })
    product = await startProduct(centre, 0.1)
  })
  afterAll(async () => {
    await centre?.stop()
  })

  const submit = async (name: string, steps: Readonly<Record<string, Step>>) => {
    const text = Object.entries(steps).map(
      ([step, { image, run = 'echo ran', count = 1, resources = 'cores: 1, walltime: 2min' }]) =>
        `  ${step}: {image: "${image}", count: ${count}, command: [sh, -c, '${run}'], resources: {memory: 100MB, ${resources}}}`,
    )
    const head = `indraft: 1\nname: ${name}\ngroup: /lab\ndefaults: {retries: {payload: 0, infrastructure: 0}}\nsteps:\n`
    await centre.write('outside', `/root/${name}.yaml`, `${head}${text.join('\n')}\n`)
    await product.indraft('campaign', 'submit', `/root/${name}.yaml`)
    submitted.push(name)
  }
  const tasksOf = async (name: string) =>
    (JSON.parse(await product.indraft('campaign', 'tasks', name, '--json')) as { tasks: TaskRow[] }).tasks
  const over = async (name: string, daemon?: { output: string }) => {
    for (const deadline = performance.now() + 300_000; ; await sleep(1000)) {
      const tasks = await tasksOf(name)
      if (tasks.every(({ state }) => ['done', 'failed', 'skipped'].includes(state))) return tasks
      if (performance.now() > deadline) throw new Error(`${JSON.stringify(tasks)}\n${daemon?.output.slice(-4000)}`)
    }
  }
  /** `done`, or the reason, by step. */
  const outcome = async (name: string, daemon?: { output: string }) =>
    Object.fromEntries((await over(name, daemon)).map(({ step, state, reason }) => [step, reason ?? state]))

  const pilotWords = (...more: string[]) => {
    // Longer than a busy machine needs from one grant to the next: who leaves too soon leaves work that nobody does.
    const idle = ['--idle-after', '4s', '--idle-before', '60s', '--payload-grace', '1s']
    return [
      ...programs.pilot,
      'run',
      '--credential',
      paths.pilotCredential,
      ...idle,
      '--host-runtime',
      'false',
      ...more,
    ]
  }
  const startPilot = (host: Host, argv: readonly string[]): Daemon =>
    centre.spawn(host, `pilot-${submitted.length}-${Math.random().toString(36).slice(2, 6)}`, argv, { user: 'alice' })
  /** Its bye, once it has ended and tidied up. */
  const left = async (pilot: Daemon) => {
    const bye = await pilot.waitFor(/\{.*"msg":"pilot.left"\}/)
    await pilot.exited
    return JSON.parse(bye[0]) as { code: number; reason: string }
  }
  const said = (pilot: Daemon, msg: string) =>
    JSON.parse(pilot.output.split('\n').find((line) => line.includes(`"msg":"${msg}"`)) ?? 'null')
  /** Nothing of payloads or containers is on the node, neither processes nor mounts. */
  const nothingIsLeft = async (host: Host) => {
    const look = 'cat /proc/[0-9]*/comm; cat /proc/[0-9]*/mounts 2>/dev/null | grep -c fuse; true'
    expect(await centre.check(host, ['sh', '-c', look])).not.toMatch(
      /squashfuse|starter|appinit|apptainer|\n[1-9]\d*$/i,
    )
  }

  /** A Slurm job with a pilot and a task that only it takes: with as many cores as no other pilot here has. */
  const job = async (
    name: string,
    cores: number,
    args: readonly string[],
    words: string,
    before: readonly string[] = [],
  ) => {
    await submit(name, { long: { image: busybox, run: 'sleep 600', resources: `cores: ${cores}, walltime: 5min` } })
    const argv = [
      ...before,
      ...pilotWords('--scratch', '/tmp/j', '--cores', String(cores), '--drain-grace', '4s'),
    ].join(' ')
    const script = `#!/bin/bash\nexec srun --mem=0 -c 4 ${argv} ${words}\n`
    return await centre.sbatch(script, ['-c', '4', '--mem=2000', '-o', `${name}.log`, ...args])
  }
  const running = async (name: string) => {
    while ((await tasksOf(name))[0]?.state !== 'running') await sleep(1000)
  }
  const pilotSaid = async (name: string) =>
    /\{.*"msg":"pilot.left"\}/.exec(await centre.check('edge', ['cat', `${name}.log`], { user: 'alice' }))?.[0] ?? ''
  /** The job of the last test, which takes more than a minute by itself. */
  let limited = ''

  test('images - by path, as a folder and by URL: fetched once for two pilots, shared under its checksum', async () => {
    const web = centre.spawn('outside', 'web', ['node', '-e', webServer, busybox, addresses.outside])
    await web.waitFor(/listening/)
    const sha256 = createHash('sha256').update(readFileSync(centre.roots.busybox)).digest('hex')
    const url = (path: string, digest = sha256) => `http://${addresses.outside}:8080/${path}#sha256:${digest}`
    const shared = ['--image-folder', `${inside.home}/images`]
    const pilots = (['n1', 'n2'] as const).map((host) => startPilot(host, pilotWords('--scratch', '/tmp/a', ...shared)))
    for (const pilot of pilots) await pilot.waitFor(/"msg":"node.tested"/)
    await submit('images', {
      byUrl: { image: url('good.sif'), run: 'sleep 1', count: 8 },
      byPath: { image: busybox },
      folder: { image: lammps },
      otherContent: { image: url('other.sif', '0'.repeat(64)) },
      notThere: { image: url('none', '1'.repeat(64)) },
    })
    expect(await outcome('images', pilots[0])).toEqual({
      byUrl: 'done',
      byPath: 'done',
      folder: 'done',
      otherContent: 'image.damaged',
      notThere: 'image.missing',
    })
    const nodes = (await tasksOf('images')).filter(({ step }) => step === 'byUrl').map(({ node }) => node)
    expect(new Set(nodes)).toEqual(new Set(['n1', 'n2']))
    for (const pilot of pilots) expect(await left(pilot)).toMatchObject({ code: 300 })
    // One request of the whole site, although eight tasks on two nodes wanted it.
    expect(web.output.match(/asked \/good.sif/g)).toHaveLength(1)
    const kept = await centre.check('edge', ['sh', '-c', `cd ${inside.home}/images; sha256sum *.sif`])
    expect(kept).toBe(`${sha256}  ${sha256}.sif`)
    expect(said(pilots[0]!, 'container.found')).toMatchObject({ sif: 'mounted', isolation: ['--containall'] })
    for (const host of ['n1', 'n2'] as const) await nothingIsLeft(host)
    await web.stop()
    // Without its number it cannot ask Slurm for the end either.
    const unknown = ['env', '-u', 'SLURM_JOB_END_TIME', '-u', 'SLURM_JOB_ID', '-u', 'SLURM_JOBID']
    limited = await job('limit', 4, ['-w', 'n2', '-t', '1'], '--ahead 0s', unknown)
    await running('limit')
  })

  test('images - each bad one ends its task for its own reason', async () => {
    const bad = makeBadImages(centre)
    const words = ['--allow-images', `${inside.shared}/bad-images,${busybox}`]
    const pilot = startPilot('n1', pilotWords('--scratch', '/tmp/a', ...words))
    const steps = { ...bad, refused: lammps, good: busybox }
    await submit('bad', Object.fromEntries(Object.entries(steps).map(([step, image]) => [step, { image }])))
    expect(await outcome('bad', pilot)).toEqual({
      truncated: 'image.damaged',
      damaged: 'image.damaged',
      notAnImage: 'image.damaged',
      empty: 'image.damaged',
      unreadable: 'image.missing',
      missing: 'image.missing',
      otherArchitecture: 'image.architecture',
      otherArchitectureFolder: 'image.architecture',
      refused: 'policy.refused',
      good: 'done',
    })
    await left(pilot)
    await nothingIsLeft('n1')
  })

  test('walltime - a payload from a SIF that ignores SIGTERM is ended and leaves no process and no mount', async () => {
    const pilot = startPilot('n1', pilotWords('--scratch', '/tmp/a'))
    const run = `trap "" TERM; sleep 600 & sleep 600; sleep 600`
    await submit('walltime', { stubborn: { image: busybox, run, resources: 'cores: 1, walltime: 2s' } })
    expect(await outcome('walltime', pilot)).toEqual({ stubborn: 'payload.walltime' })
    await left(pilot)
    await nothingIsLeft('n1')
  })

  test('nodes - without containers or scratch a pilot leaves with 500 and says what is bad', async () => {
    const words = pilotWords('--scratch', '/tmp/b')
    const blind = startPilot('n2', withoutUserNamespaces(words))
    await mountSmall(centre, 'n2', '/tmp/full', 256 * 1024)
    const full = startPilot('n2', pilotWords('--scratch', '/tmp/full'))
    const without = startPilot('n2', [...words, '--container-runtime', '/usr/bin/no-apptainer'])
    expect(await left(blind)).toMatchObject({ code: 500, reason: expect.stringContaining('a runtime works') })
    expect(blind.output).toContain('Failed to create user namespace')
    expect(await left(full)).toMatchObject({ code: 500, reason: expect.stringContaining('scratch can be written') })
    expect(await left(without)).toMatchObject({ code: 500, reason: expect.stringContaining('a runtime works') })
    for (const pilot of [blind, full, without]) expect(await pilot.exited).toBe(1)
  })

  test.each([
    ['bytes', 6 * 2 ** 20, 0, 'dd if=/dev/zero of=big bs=64k count=1000'],
    ['files', 64 * 2 ** 20, 500, 'seq 1000 | xargs touch'],
  ])('nodes - a scratch without %s left under a payload is the node’s fault', async (what, bytes, files, run) => {
    await mountSmall(centre, 'n1', `/tmp/few-${what}`, bytes, files)
    const pilot = startPilot('n1', pilotWords('--scratch', `/tmp/few-${what}`))
    await submit(`filling-${what}`, { fills: { image: busybox, run } })
    expect(await outcome(`filling-${what}`, pilot)).toEqual({ fills: 'node.scratchFull' })
    await left(pilot)
  })

  test('nodes - without FUSE a SIF is unpacked once in scratch, without tools only folders run; each says why', async () => {
    const { damaged } = makeBadImages(centre, 'not-unpacked')
    const run = async (name: string, scratch = '/tmp/c') => {
      const pilot = startPilot('n2', pilotWords('--scratch', scratch))
      await submit(name, {
        // No payload can change what the others run in.
        file: { image: busybox, run: 'if touch /bin/other; then exit 1; fi; sleep 1', count: 3 },
        folder: { image: lammps },
        damaged: { image: damaged },
      })
      const outcomes = await outcome(name, pilot)
      await left(pilot)
      expect(await centre.check('n2', ['sh', '-c', `find ${scratch} /tmp -name "rootfs-*" -o -name busybox`])).toBe('')
      const unpacked = pilot.output.match(/"msg":"image.unpacked"/g)?.length ?? 0
      return { outcomes, unpacked, ...said(pilot, 'container.found') } as Record<string, unknown>
    }
    await denyFuse(centre, 'n2')
    expect(await run('no-fuse')).toMatchObject({
      outcomes: { file: 'done', folder: 'done', damaged: 'image.damaged' },
      unpacked: 1,
      sif: 'unsquash',
      why: expect.stringContaining('/dev/fuse'),
    })
    await centre.check('n2', ['chmod', '666', '/dev/fuse'])
    await removePrograms(centre, 'n2', 'squashfuse', 'squashfuse_ll')
    expect(await run('no-squashfuse')).toMatchObject({
      outcomes: { file: 'done', folder: 'done', damaged: 'image.damaged' },
      unpacked: 1,
      sif: 'unpacked',
      why: expect.stringContaining('squashfuse not found'),
    })
    await removePrograms(centre, 'n2', 'unsquashfs')
    expect(await run('no-tools')).toMatchObject({
      outcomes: { file: 'container.failed', folder: 'done', damaged: 'container.failed' },
      unpacked: 0,
      sif: 'none',
      why: expect.stringContaining('unsquashfs'),
    })
    await removePrograms(centre, 'n2', 'apptainer', 'singularity')
    const pilot = startPilot('n2', pilotWords('--scratch', '/tmp/c'))
    expect(await left(pilot)).toMatchObject({ code: 500, reason: expect.stringContaining('a runtime works') })
  })

  describe('job end', () => {
    test('scancel - the payload ends as node.ending, the pilot with 700, and nothing is left', async () => {
      const id = await job('scancelled', 3, ['-w', 'n1', '-t', '10'], '')
      await running('scancelled')
      await centre.check('edge', ['scancel', id], { user: 'alice' })
      expect(await outcome('scancelled')).toEqual({ long: 'node.ending' })
      expect(await centre.waitForJob(id)).toMatchObject({ JobState: 'CANCELLED' })
      expect(JSON.parse(await pilotSaid('scancelled'))).toMatchObject({
        code: 700,
        reason: 'SIGTERM was received; payloads were ended',
      })
      await nothingIsLeft('n1')
    })

    test('known end - nothing starts that the job has no time for, and the job is a success', async () => {
      const id = await job('known', 3, ['-w', 'n1', '-t', '4'], '--end-margin 2min --least-time-left 110s')
      expect(await centre.waitForJob(id)).toMatchObject({ JobState: 'COMPLETED' })
      expect(JSON.parse(await pilotSaid('known'))).toMatchObject({ code: 300, reason: 'too little time is left' })
      expect(await tasksOf('known')).toMatchObject([{ state: expect.stringMatching(/^(queued|assigned)$/) }])
      await product.indraft('campaign', 'cancel', 'known')
    })

    test('time limit - that the pilot did not know of: Slurm ends it, and the task is not lost', async () => {
      expect(await outcome('limit')).toEqual({ long: 'node.ending' })
      expect(await centre.waitForJob(limited)).toMatchObject({ JobState: 'TIMEOUT' })
      expect(JSON.parse(await pilotSaid('limit'))).toMatchObject({ code: 700 })
      await nothingIsLeft('n2')
    })
  })
})
