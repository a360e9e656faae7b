/**
 * Against a stand-in for Apptainer that notes how it was called and runs the command on the host, and, where the machine
 * has one, against the real thing.
 */
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { execa } from 'execa'
import { pino } from 'pino'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { silentLog } from '../shared/log.ts'
import { readBatchEnvironment } from './config.ts'
import { explainContainer, ISOLATIONS, OFFLINE, prepareControl, readStatus } from './container.ts'
import { probeContainer } from './container-probe.ts'
import { makeTemplate, PATH, TestSite } from './testbench.ts'

let site: TestSite
/** An unpacked image, as far as anybody looks before the stand-in runs the command on the host. */
let image: string
beforeEach(async () => {
  site = await new TestSite().open()
  image = join(site.folder, 'image')
  mkdirSync(join(image, 'bin'), { recursive: true })
  copyFileSync('/bin/sh', join(image, 'bin/sh'))
})
afterEach(async () => {
  await site.close()
})

/**
 * A simulation of Apptainer.
 * @param refuses an option that it does not know how to do @param exec shell text in the place of running anything
 */
function standIn(version: string, refuses = '--nothing', exec?: string): string {
  const path = join(site.folder, 'apptainer')
  const run = 'while [ "$1" != /bin/sh ]; do shift; done; shift 3; : > /dev/null'
  const script = `#!/bin/sh
[ "$1" = --version ] && { echo "${version}"; exit 0; }
printf '%s\\n' "$@" > ${site.folder}/arguments
env > ${site.folder}/environment
for a; do [ "$a" = ${refuses} ] && { echo "FATAL: no such namespace" >&2; exit 255; }; done
for a; do case $a in *:/indraft) control=\${a%:/indraft} ;; esac; done
[ -n "$control" ] || exit 0
${exec ?? `${run}; exec /bin/sh "$control/run" "$control/status" "$@"`}
`
  writeFileSync(path, script)
  chmodSync(path, 0o755)
  return path
}

async function probe(binary: string, more: Partial<Parameters<typeof probeContainer>[0]> = {}) {
  const folder = join(site.folder, 'container')
  const env = { PATH }
  return await probeContainer({ binaries: [binary], folder, probeImage: null, binds: [], env, log: silentLog, ...more })
}

/** Folders of a launch that no attempt stands behind, and descriptors for its output. */
async function folders() {
  const [work, temporary, control, unpack] = ['work', 'temporary', 'control', 'unpack'].map((name) =>
    join(site.folder, name),
  ) as [string, string, string, string]
  for (const folder of [work, temporary, unpack]) mkdirSync(folder)
  await prepareControl(control)
  const out = openSync('/dev/null', 'w')
  return { work, temporary, control, unpack, stdout: out, stderr: out }
}

/** The trace as it stands when what was written is there. */
async function settled(path: string): Promise<{ event: string; network?: string }[]> {
  await site.trace.close()
  return readFileSync(path, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
}

const called = () => readFileSync(join(site.folder, 'arguments'), 'utf8').split('\n')

describe('probing', () => {
  test('container - takes the most sealed form that works', async () => {
    const runtime = await probe(standIn('apptainer version 1.4.5'))
    expect(runtime?.name).toBe('apptainer version 1.4.5')
    expect(called()).toContain('--containall')
  })

  test('container - goes without a process namespace where there is none', async () => {
    expect(await probe(standIn('apptainer version 1.4.5', '--containall'))).not.toBeNull()
    expect(called()).toEqual(expect.arrayContaining([...ISOLATIONS[2]!]))
  })

  test('container - is not offered where it does not start or is not there', async () => {
    expect(await probe(standIn('apptainer version 1.4.5', 'exec'))).toBeNull()
    expect(await probe(join(site.folder, 'not-there'))).toBeNull()
  })

  test.each([
    ['is asked for its version', '', 'sleep 600 & sleep 600'],
    [
      'starts, and a child of it keeps its output open',
      '[ "$1" = --version ] && exit 0; (setsid sleep 5 &)',
      'sleep 600',
    ],
  ])('container - one that hangs when it %s ends the test in time', async (_, before, after) => {
    const path = join(site.folder, 'hanging')
    writeFileSync(path, `#!/bin/sh\n${before}\n${after}\n`, { mode: 0o755 })
    const limits = { tryMs: 300, testMs: 700 }
    expect(await probe(path, { limits })).toBeNull()
    await expect.poll(async () => (await execa('pgrep', ['-f', path], { reject: false })).stdout).toBe('')
  })

  test('container - a child that keeps the output open does not make a good one bad', async () => {
    const path = standIn('apptainer version 1.4.5')
    const script = readFileSync(path, 'utf8')
    writeFileSync(path, script.replace('env >', 'sleep 30 &\nenv >'))
    expect(await probe(path)).not.toBeNull()
  })

  test("container - a folder of the host's programs that this machine has not is not asked for", async () => {
    const hostFolders = ['/bin', '/usr', '/not-there']
    const binary = standIn('apptainer version 1.4.5', '/not-there:/not-there:ro')
    expect(await probe(binary, { hostFolders })).not.toBeNull()
    expect(called()).toEqual(expect.arrayContaining(['/bin:/bin:ro', '/usr:/usr:ro']))
  })

  test('container - one that would evaluate values of the environment is not used', async () => {
    expect(await probe(standIn('singularity version 3.8.7', '--no-eval'))).toBeNull()
  })

  test('container - scratch with signs that its options give a meaning to is said, not tried', async () => {
    expect(await probe(standIn('apptainer version 1.4.5'), { folder: join(site.folder, 'a,b') })).toBeNull()
    expect(existsSync(join(site.folder, 'arguments'))).toBe(false)
  })

  test('container - none starts with a bind that shows the pilot’s own files or lets payloads write what it keeps', async () => {
    const guarded = { own: [join(site.folder, 'own')], kept: [join(site.folder, 'project/images')] }
    mkdirSync(join(site.folder, 'project'))
    const binary = standIn('apptainer version 1.4.5')
    const said: string[] = []
    const log = pino({ level: 'error' }, { write: (line: string) => said.push(line) })
    for (const bind of [`${site.folder}:/data:ro`, `${join(site.folder, 'project')}:/data`]) {
      expect(await probe(binary, { ...guarded, log, binds: ['/usr:/usr:ro', bind] })).toBeNull()
      expect(JSON.parse(said.at(-1)!)).toMatchObject({ msg: 'container.bindRefused', bind })
    }
    expect(await probe(binary, { ...guarded, binds: [`${join(site.folder, 'project')}:/data:ro`] })).not.toBeNull()
  })

  test("container - nothing of the account's own settings reaches the runtime, and it has a home of its own", async () => {
    const theirs = {
      HOME: '/home/someone',
      APPTAINER_BIND: '/etc',
      APPTAINER_NV: '1',
      APPTAINERENV_X: 'y',
      APPTAINER_CONFIGDIR: '/home/someone/.apptainer',
      APPTAINER_TMPDIR: '/home/someone/tmp',
      SINGULARITY_BINDPATH: '/etc',
      SINGULARITYENV_X: 'y',
      APPTAINER_CACHEDIR: '/project/cache',
    }
    const { container } = readBatchEnvironment({ PATH, ...theirs })
    expect(container).toEqual({ APPTAINER_CACHEDIR: '/project/cache' })
    const runtime = (await probe(standIn('apptainer version 1.4.5'), { env: { PATH, ...container } }))!
    await site.attempt({ image }, {}, { runtimes: [runtime] }).run()
    const environment = readFileSync(join(site.folder, 'environment'), 'utf8')
    expect(environment).not.toMatch(/someone|BIND|_NV|_X=/)
    const home = join(site.folder, 'container/home')
    expect(environment).toContain(`\nHOME=${home}\n`)
    expect(environment).toContain(`APPTAINER_CONFIGDIR=${home}/config`)
    expect(environment).toContain('APPTAINER_CACHEDIR=/project/cache')
    expect(environment).toMatch(new RegExp(`APPTAINER_TMPDIR=${site.folder}/tasks/.*/unpack`))
  })
})

describe('payloads', () => {
  test('container - is called sealed, with its environment by variables and nothing evaluated', async () => {
    const runtime = (await probe(standIn('apptainer version 1.4.5')))!
    const result = await site
      .attempt(
        { image, command: ['echo', '$$(id)'], env: { PATH: '/bin:/usr/bin', A: '`id`' } },
        {},
        { runtimes: [runtime] },
      )
      .run()
    expect(result).toMatchObject({ end: 'done', exitCode: 0 })
    expect(await site.stored(result, '.log/stdout')).toBe('$(id)\n')
    expect(called()).toEqual(
      expect.arrayContaining(['--containall', '--no-eval', '--no-mount', '--home', '--cwd', '/work', image]),
    )
    const environment = readFileSync(join(site.folder, 'environment'), 'utf8')
    expect(environment).toContain('APPTAINERENV_A=`id`')
    expect(environment).toContain('APPTAINERENV_TMPDIR=/tmp')
    expect(environment).toContain(`INDRAFT_PILOT_RUN=${site.run}`)
    expect(environment).not.toContain('APPTAINERENV_HOME')
  })

  test('container - Singularity gets its own names and options', async () => {
    const runtime = (await probe(standIn('singularity-ce version 4.1.0')))!
    await site.attempt({ image, env: { A: 'b' } }, {}, { runtimes: [runtime] }).run()
    expect(called()).toContain('--pwd')
    expect(called()).toContain('--no-eval')
    expect(readFileSync(join(site.folder, 'environment'), 'utf8')).toContain('SINGULARITYENV_A=b')
  })

  test.each([
    ['exit 255', { reason: 'payload.exit', exitCode: 255 }],
    ['exit 0', { reason: null, exitCode: 0 }],
  ])("container - a payload's own %s is the payload's", async (script, expected) => {
    const runtime = (await probe(standIn('apptainer version 1.4.5')))!
    const attempt = site.attempt({ image, command: ['/bin/sh', '-c', script] }, {}, { runtimes: [runtime] })
    expect(await attempt.run()).toMatchObject(expected)
  })

  test.each([
    ['FATAL:   container creation failed: mount error', 'container.failed'],
    ['FATAL:   could not open image /x.sif: no such file or directory', 'image.missing'],
    [
      "FATAL:   While checking: the image's architecture (arm64) could not run on the host's (amd64)",
      'image.architecture',
    ],
    ['FATAL:   could not open image /x.sif: image format not recognized', 'image.damaged'],
    ['FATAL:   while mounting: lseek: input/output error', 'image.damaged'],
    ['FATAL:   while extracting: no space left on device', 'node.scratchFull'],
  ])('container - "%s" is %s, never the payload', async (said, reason) => {
    const runtime = (await probe(standIn('apptainer version 1.4.5', '--nothing', `echo "${said}" >&2; exit 255`)))!
    const result = await site.attempt({ image }, {}, { runtimes: [runtime] }).run()
    expect(result).toMatchObject({ end: 'failed', reason })
    expect(explainContainer(said).reason).toBe(reason)
  })

  test('container - a step without network gets one of its own where the node can, and the attempt says which', async () => {
    const taken = async (binary: string, network: 'none' | 'outgoing') => {
      const runtime = (await probe(binary))!
      const needs = { ...makeTemplate().needs, network }
      await site.attempt({ image, needs }, {}, { runtimes: [runtime] }).run()
      const trace = (await settled(site.tracePath)).filter(({ event }) => event === 'started').at(-1)
      return { asked: called().includes(OFFLINE[0]), network: trace?.network }
    }
    const good = standIn('apptainer version 1.4.5')
    expect(await taken(good, 'none')).toEqual({ asked: true, network: 'own' })
    expect(await taken(good, 'outgoing')).toEqual({ asked: false, network: 'shared' })
    expect(await taken(standIn('apptainer version 1.4.5', OFFLINE[0]), 'none')).toEqual({
      asked: false,
      network: 'shared',
    })
  })

  test.each([
    ['nvidia', ['3', 'GPU-7'], '--nv', 'CUDA_VISIBLE_DEVICES=3,GPU-7', 'ROCR_VISIBLE_DEVICES='],
    ['amd', ['0'], '--rocm', 'ROCR_VISIBLE_DEVICES=0', 'CUDA_VISIBLE_DEVICES='],
  ] as const)(
    "container - %s GPUs: a payload's own are named to it, no other",
    async (vendor, ids, option, own, other) => {
      const runtime = (await probe(standIn('apptainer version 1.4.5')))!
      const launch = { image, argv: ['true'], env: { CUDA_VISIBLE_DEVICES: '0,1,2' }, marker: {}, ...(await folders()) }
      await runtime.start({ ...launch, gpus: { vendor, ids } }).ended
      expect(called()).toContain(option)
      const environment = readFileSync(join(site.folder, 'environment'), 'utf8').split('\n')
      expect(environment).toEqual(expect.arrayContaining([`APPTAINERENV_${own}`, `APPTAINERENV_${other}`]))
      await runtime.start({ ...launch, gpus: null }).ended
      expect(called()).not.toContain(option)
      expect(readFileSync(join(site.folder, 'environment'), 'utf8')).toContain('APPTAINERENV_CUDA_VISIBLE_DEVICES=\n')
    },
  )

  test("container - the device files of others' GPUs are covered where the node can, and the attempt says which", async () => {
    const gpus = { vendor: 'nvidia', file: '/dev/nvidia1' } as const
    const share = {
      vendor: 'nvidia',
      ids: ['GPU-a'],
      covered: ['/dev/nvidia1', '/dev/nvidia2'],
      isAlone: true,
    } as const
    const launch = { image, argv: ['true'], env: {}, marker: {}, ...(await folders()) }
    const cover = join(site.folder, 'container/covered')
    const able = (await probe(standIn('apptainer version 1.4.5'), { gpus }))!
    await able.start({ ...launch, gpus: share }).ended
    expect(called()).toEqual(expect.arrayContaining([`${cover}:/dev/nvidia1:ro`, `${cover}:/dev/nvidia2:ro`]))
    expect(statSync(cover)).toMatchObject({ size: 0 })
    expect(able.sealing({ gpus: share }).gpus).toBe('own')
    expect(able.sealing({ gpus: { ...share, isAlone: false } }).gpus).toBe('shared')
    expect(able.sealing({ gpus: null })).not.toHaveProperty('gpus')
    const unable = (await probe(standIn('apptainer version 1.4.5', `${cover}:/dev/nvidia1:ro`), { gpus }))!
    await unable.start({ ...launch, gpus: share }).ended
    expect(called()).toContain('--nv')
    expect(called().join(' ')).not.toContain('/dev/nvidia')
    expect(unable.sealing({ gpus: share }).gpus).toBe('shared')
  })

  test('container - that never starts ends as the container’s fault, whatever the walltime', async () => {
    const runtime = (await probe(standIn('apptainer version 1.4.5', '--nothing', 'exec sleep 60')))!
    const needs = { ...makeTemplate().needs, walltimeMs: 100 }
    const around = { runtimes: [runtime], stageTimeoutMs: 600 }
    expect(await site.attempt({ image, needs }, {}, around).run()).toMatchObject({
      reason: 'container.failed',
      detail: expect.stringContaining('600'),
    })
  })

  test('container - an image by registry is refused where the node reaches none, and left to the runtime where it does', async () => {
    const digest = `docker://registry.example/x@sha256:${'0'.repeat(64)}`
    const binary = standIn('apptainer version 1.4.5')
    expect(await (await probe(binary))!.refusal(digest)).toMatchObject({ reason: 'image.missing' })
    expect(await (await probe(binary, { registries: true }))!.refusal(digest)).toBeNull()
  })

  test('container - an image that holds or is the pilot’s own files is refused', async () => {
    const runtime = (await probe(standIn('apptainer version 1.4.5')))!
    const own = join(image, 'etc/own')
    mkdirSync(join(own, 'bin'), { recursive: true })
    copyFileSync('/bin/sh', join(own, 'bin/sh'))
    symlinkSync(own, join(site.folder, 'link'))
    for (const bad of [image, join(site.folder, 'link'), '/proc/self/root', '/dev/shm']) {
      const result = await site.attempt({ image: bad }, {}, { runtimes: [runtime], own: [own] }).run()
      expect(result, bad).toMatchObject({ reason: 'policy.refused' })
    }
  })

  test('container - an image that is not there is said before anything starts', async () => {
    const runtime = (await probe(standIn('apptainer version 1.4.5')))!
    const result = await site.attempt({ image: '/not/there.sif' }, {}, { runtimes: [runtime] }).run()
    expect(result).toMatchObject({ reason: 'image.missing', wallMs: 0 })
  })

  test('container - a node without a runtime says so', async () => {
    expect((await site.attempt({ image }).run()).reason).toBe('container.failed')
  })
})

describe('the status file', () => {
  test.each([
    ['a FIFO', async (path: string) => void (await execa('mkfifo', [path]))],
    ['a link', async (path: string) => symlinkSync('/etc/passwd', path)],
    ['a folder', async (path: string) => void mkdirSync(path)],
  ])('status - %s that a payload put in its place is no status and keeps nobody waiting', async (_, put) => {
    await put(join(site.folder, 'status'))
    expect(await readStatus(site.folder)).toBe('')
  })

  test('status - is read to 16 kB however long it is', async () => {
    writeFileSync(join(site.folder, 'status'), 'x'.repeat(10 ** 6))
    expect(await readStatus(site.folder)).toHaveLength(16 * 1024)
  })
})

describe('the real Apptainer', () => {
  test('container - runs a payload in an unpacked image', async (context) => {
    const folder = join(site.folder, 'container')
    const options = { folder, probeImage: null, env: { PATH }, log: silentLog }
    const binds = ['/usr', '/bin', '/lib', '/lib64'].filter(existsSync).map((path) => `${path}:${path}:ro`)
    const binaries = ['/usr/bin/apptainer', '/usr/local/bin/apptainer', '/usr/bin/singularity']
    const runtime = await probeContainer({ ...options, binaries, binds })
    if (!runtime) return context.skip('this machine has no Apptainer or Singularity that works')
    const skeleton = join(folder, 'probe-image')
    // What is bound over it; the pilot looks for it before.
    writeFileSync(join(skeleton, 'bin', 'sh'), '', { mode: 0o755 })
    const script = 'pwd; echo $HOME; echo made > out; ls /'
    const outputs = [{ path: 'out', url: null, optional: false }]
    const attempt = site.attempt(
      { image: skeleton, command: ['/bin/sh', '-c', script], outputs },
      {},
      { runtimes: [runtime] },
    )
    const result = await attempt.run()
    expect(result).toMatchObject({ end: 'done', reason: null })
    expect((await site.stored(result, '.log/stdout'))!.split('\n').slice(0, 2)).toEqual(['/work', '/work'])
    expect(await site.stored(result, 'out')).toBe('made\n')
  })
})
