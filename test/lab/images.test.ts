/**
 * The definitions under deploy/apptainer against the images that the lab builds without a registry: the same contents by
 * either way. Only the base that a definition names in a registry is not tried; a Debian of ours stands in for it.
 */
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Centre, inside, startCentre } from './centre.ts'
import { checkout, definitionSection, whyNoLab } from './roots.ts'

const { busybox, pilot, relay, pilotByDefinition, relayByDefinition } = inside.images
const definitions = [
  [
    'pilot',
    pilot,
    pilotByDefinition,
    'indraft-pilot.mjs',
    ['apptainer', 'squashfuse', 'squashfs-tools', 'uidmap', 'iproute2'],
  ],
  ['relay', relay, relayByDefinition, 'indraft.mjs', ['nats-server', 'ca-certificates']],
] as const

describe.skipIf(whyNoLab() !== null)('definitions', () => {
  let centre: Centre
  beforeAll(async () => {
    centre = await startCentre({ nodes: 1, slurm: false })
  })
  afterAll(async () => {
    await centre?.stop()
  })

  const asAlice = (...argv: string[]) => centre.check('n1', argv, { user: 'alice', cwd: '/tmp', env: { HOME: '/tmp' } })
  const within = (image: string, ...argv: string[]) =>
    asAlice('apptainer', '--quiet', 'exec', '--userns', '--contain', image, ...argv)

  test.each(definitions)(
    '%s - Apptainer builds it: the program, what starts, the architectures',
    async (name, image, _made, program) => {
      // Without %post, which needs a mirror; it has been run when the lab's roots were built.
      const script = `set -e
      sed '/^%post/,/^%environment/{/^%environment/!d}' ${inside.checkout}/deploy/apptainer/${name}.def >/tmp/${name}.def
      cd ${inside.checkout}
      apptainer --quiet build --notest --sandbox --build-arg bootstrap=localimage --build-arg from=${busybox} /tmp/${name} /tmp/${name}.def
      cmp /tmp/${name}/opt/indraft/${program} dist/${program}`
      await asAlice('bash', '-c', script)
      const words = async (path: string) => (await asAlice('apptainer', 'inspect', '--runscript', path)).split(/\s+/)
      expect(await words(`/tmp/${name}`)).toEqual(await words(image))
      expect(await asAlice('apptainer', 'inspect', '--labels', `/tmp/${name}`)).toContain('Architectures: x86_64 arm64')
    },
  )

  test.each(definitions)(
    '%s - has the packages of the image that is built without a registry, and passes its own test',
    async (name, image, made, _program, packages) => {
      const list = async (path: string) =>
        (await within(path, 'dpkg-query', '-W', '-f', `\${Package}\n`)).split('\n').sort()
      expect(await list(made)).toEqual(await list(image))
      expect(await list(made)).toEqual(expect.arrayContaining([...packages]))
      for (const path of [made, image]) {
        const said = await within(path, 'sh', '-euc', definitionSection(name, 'test'))
        expect(said).toMatch(/^v2\d\.\d+\.\d+\n(apptainer version|nats-server: v)/)
      }
    },
  )

  test('pilot - the Apptainer in it starts a payload from a SIF', async () => {
    const outer = ['apptainer', '--quiet', 'exec', '--userns', '--contain', '--bind', '/dev/fuse,/images']
    const inner = ['apptainer', '--quiet', 'exec', '--userns', '--containall', busybox, 'echo', 'nested']
    expect(await asAlice(...outer, pilotByDefinition, ...inner)).toBe('nested')
  })

  test.each([
    ['pilot', pilot, ['indraft-pilot'], 'run'],
    ['relay', relay, ['indraft', 'relay'], 'join'],
  ] as const)('%s - what is built without a registry starts the program of now', async (_, image, command, word) => {
    const said = await asAlice('apptainer', '--quiet', 'run', '--userns', '--contain', image, '--help')
    expect(said).toContain(word)
    expect(said).toBe(await asAlice('node', `${inside.checkout}/dist/${command[0]}.mjs`, ...command.slice(1), '--help'))
    const program = `/opt/indraft/${command[0]}.mjs`
    await asAlice('cmp', `${image}${program}`, `${inside.checkout}/dist/${command[0]}.mjs`)
  })

  test('pilot - its definition says to start it as the page for sites does', () => {
    const words = (file: string) =>
      /apptainer (?:--quiet )?run (.*) \S*pilot\.sif/.exec(readFileSync(join(checkout, file), 'utf8'))?.[1]
    expect(words('deploy/apptainer/pilot.def')).toMatch(/^--userns .*:\/scratch$/)
    expect(words('deploy/apptainer/pilot.def')).toBe(words('docs/site/edge-node.md'))
  })

  test('without a registry - a folder that is there gets the program of now, and becomes one SIF file', async () => {
    const script = `set -e
    apptainer --quiet build --sandbox /tmp/small ${busybox}
    mkdir -p /tmp/small/opt/indraft
    echo of yesterday >/tmp/small/opt/indraft/indraft.mjs
    echo of today >/tmp/today.mjs
    ${inside.checkout}/deploy/apptainer/build-without-registry.sh relay /tmp/small --program /tmp/today.mjs --sif /tmp/small.sif
    apptainer --quiet exec --userns --contain /tmp/small.sif cat /opt/indraft/indraft.mjs`
    const said = await asAlice('bash', '-c', script)
    expect(said).toMatch(/is there already, and stays as it is\n.*\nof today$/s)
  })

  test.each([
    [['--program', '/not/there.mjs'], 'there is no /not/there.mjs: npm run build makes it, --program names another'],
    [['--node', '/not/there'], 'there is no program /not/there: --node names a Node 22.18 or newer'],
    [[], 'no node on PATH: name one by --node'],
  ])('without a registry - with %j it refuses what could not start', (words, why) => {
    const folder = mkdtempSync(join(tmpdir(), 'indraft-refused-'))
    try {
      // A machine without Node.
      const bin = join(folder, 'bin')
      mkdirSync(bin)
      for (const name of ['dirname', 'realpath', 'uname']) symlinkSync(`/usr/bin/${name}`, join(bin, name))
      const script = join(checkout, 'deploy/apptainer/build-without-registry.sh')
      const { status, stderr } = spawnSync(script, ['pilot', join(folder, 'image'), ...words], {
        env: { PATH: bin },
        encoding: 'utf8',
      })
      expect({ status, stderr }).toEqual({ status: 66, stderr: `build-without-registry.sh: ${why}\n` })
      expect(readdirSync(folder)).toEqual(['bin'])
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  test('architecture - building without a registry for another than x86_64 and arm64 is refused by name', () => {
    const folder = mkdtempSync(join(tmpdir(), 'indraft-uname-'))
    try {
      writeFileSync(join(folder, 'uname'), '#!/bin/sh\necho riscv64\n')
      chmodSync(join(folder, 'uname'), 0o755)
      const { status, stderr } = spawnSync(
        join(checkout, 'deploy/apptainer/build-without-registry.sh'),
        ['pilot', join(folder, 'image')],
        { env: { PATH: `${folder}:${process.env.PATH}` }, encoding: 'utf8' },
      )
      expect({ status, stderr }).toEqual({
        status: 64,
        stderr: 'build-without-registry.sh: no image for riscv64, only for x86_64 and arm64\n',
      })
    } finally {
      rmSync(folder, { recursive: true })
    }
  })
})
