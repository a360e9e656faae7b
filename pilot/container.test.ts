/**
 * Against a stand-in for Apptainer that notes how it was called and runs the command on the host, and, where the machine
 * has one, against the real thing.
 */
import { chmodSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { silentLog } from '../shared/log.ts'
import { explainContainer, ISOLATIONS } from './container.ts'
import { probeContainer } from './container-probe.ts'
import { PATH, TestSite } from './testbench.ts'

let site: TestSite
beforeEach(async () => {
  site = await new TestSite().open()
})
afterEach(async () => {
  await site.close()
})

/** @param refuses an option that it does not know how to do @param exec shell text in the place of running anything */
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

async function probe(binary: string) {
  const folder = join(site.folder, 'container')
  return await probeContainer({
    binaries: [binary],
    folder,
    probeImage: null,
    binds: [],
    env: { PATH },
    log: silentLog,
  })
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
})

describe('payloads', () => {
  test('container - is called sealed, with its environment by variables and nothing evaluated', async () => {
    const runtime = (await probe(standIn('apptainer version 1.4.5')))!
    const result = await site
      .attempt(
        { image: '/', command: ['echo', '$$(id)'], env: { PATH: '/bin:/usr/bin', A: '`id`' } },
        {},
        { runtimes: [runtime] },
      )
      .run()
    expect(result).toMatchObject({ end: 'done', exitCode: 0 })
    expect(await site.stored(result, '.log/stdout')).toBe('$(id)\n')
    expect(called()).toEqual(
      expect.arrayContaining(['--containall', '--no-eval', '--no-mount', '--home', '--cwd', '/work', '/']),
    )
    const environment = readFileSync(join(site.folder, 'environment'), 'utf8')
    expect(environment).toContain('APPTAINERENV_A=`id`')
    expect(environment).toContain('APPTAINERENV_TMPDIR=/tmp')
    expect(environment).toContain(`INDRAFT_PILOT_RUN=${site.run}`)
    expect(environment).not.toContain('APPTAINERENV_HOME')
  })

  test('container - Singularity gets its own names and options', async () => {
    const runtime = (await probe(standIn('singularity-ce version 4.1.0')))!
    await site.attempt({ image: '/', env: { A: 'b' } }, {}, { runtimes: [runtime] }).run()
    expect(called()).toContain('--pwd')
    expect(called()).not.toContain('--no-eval')
    expect(readFileSync(join(site.folder, 'environment'), 'utf8')).toContain('SINGULARITYENV_A=b')
  })

  test.each([
    ['exit 255', { reason: 'payload.exit', exitCode: 255 }],
    ['exit 0', { reason: null, exitCode: 0 }],
  ])("container - a payload's own %s is the payload's", async (script, expected) => {
    const runtime = (await probe(standIn('apptainer version 1.4.5')))!
    const attempt = site.attempt({ image: '/', command: ['/bin/sh', '-c', script] }, {}, { runtimes: [runtime] })
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
    const result = await site.attempt({ image: '/' }, {}, { runtimes: [runtime] }).run()
    expect(result).toMatchObject({ end: 'failed', reason })
    expect(explainContainer(said).reason).toBe(reason)
  })

  test('container - an image that is not there is said before anything starts', async () => {
    const runtime = (await probe(standIn('apptainer version 1.4.5')))!
    const result = await site.attempt({ image: '/not/there.sif' }, {}, { runtimes: [runtime] }).run()
    expect(result).toMatchObject({ reason: 'image.missing', wallMs: 0 })
  })

  test('container - a node without a runtime says so', async () => {
    expect((await site.attempt({ image: '/' }).run()).reason).toBe('container.failed')
  })
})

describe('the real Apptainer', () => {
  test('container - runs a payload in an unpacked image', async (context) => {
    const folder = join(site.folder, 'container')
    const options = { folder, probeImage: null, env: { PATH }, log: silentLog }
    const binds = ['/usr:/usr:ro', '/bin:/bin:ro', '/lib:/lib:ro', '/lib64:/lib64:ro']
    const binaries = ['/usr/bin/apptainer', '/usr/local/bin/apptainer', '/usr/bin/singularity']
    const runtime = await probeContainer({ ...options, binaries, binds })
    if (!runtime) return context.skip('this machine has no Apptainer or Singularity that works')
    const image = join(folder, 'probe-image')
    // What is bound over it; the pilot looks for it before.
    writeFileSync(join(image, 'bin', 'sh'), '')
    const script = 'pwd; echo $HOME; echo made > out; ls /'
    const outputs = [{ path: 'out', url: null, optional: false }]
    const attempt = site.attempt({ image, command: ['/bin/sh', '-c', script], outputs }, {}, { runtimes: [runtime] })
    const result = await attempt.run()
    expect(result).toMatchObject({ end: 'done', reason: null })
    expect((await site.stored(result, '.log/stdout'))!.split('\n').slice(0, 2)).toEqual(['/work', '/work'])
    expect(await site.stored(result, 'out')).toBe('made\n')
  })
})
