/** Which runtimes a node is found to have: stand-ins for container programs on a PATH of the test's own. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { silentLog } from '../shared/log.ts'
import { loadPilotConfig, readBatchEnvironment } from './config.ts'
import { containerBinaries, findRuntimes } from './runtimes.ts'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-runtimes-'))
})
afterEach(() => {
  rmSync(folder, { recursive: true, force: true })
})

/** Starts everything, unless it is asked for an option that it does not know. */
function put(path: string, version: string, refuses = '--nothing', mode = 0o755): void {
  const script = `#!/bin/sh\n[ "$1" = --version ] && { echo "${version}"; exit 0; }
for a; do [ "$a" = ${refuses} ] && exit 255; done; exit 0\n`
  mkdirSync(join(folder, path, '..'), { recursive: true })
  writeFileSync(join(folder, path), script, { mode })
}

const settings = (text: Record<string, string>) => loadPilotConfig(text, undefined, {})
const batchOf = (...path: string[]) => readBatchEnvironment({ PATH: path.join(':') })

describe('container programs', () => {
  test.each([
    ['only Singularity', ['b/singularity'], ['b/singularity']],
    ['only Apptainer', ['b/apptainer'], ['b/apptainer']],
    [
      'Apptainer before Singularity, wherever they lie',
      ['a/singularity', 'b/apptainer'],
      ['b/apptainer', 'a/singularity'],
    ],
    ['the first of two with one name', ['a/apptainer', 'b/apptainer'], ['a/apptainer']],
    ['none', [], []],
  ])('binaries - with %s on PATH', async (_, files, expected) => {
    for (const file of files) put(file, 'stand-in')
    const found = await containerBinaries(settings({}), batchOf(join(folder, 'a'), join(folder, 'b')))
    expect(found).toEqual(expected.map((file) => join(folder, file)))
  })

  test('binaries - one that may not be executed is passed over for the next', async () => {
    put('a/singularity', 'stand-in', '', 0o644)
    put('b/singularity', 'stand-in')
    const found = await containerBinaries(settings({}), batchOf(join(folder, 'a'), join(folder, 'b')))
    expect(found).toEqual([join(folder, 'b/singularity')])
  })

  test('binaries - a relative folder of PATH is not looked into: payloads could fill it', async () => {
    put('a/singularity', 'stand-in')
    expect(await containerBinaries(settings({}), batchOf(relative('', join(folder, 'a'))))).toEqual([])
  })

  test.each([
    ['/opt/other/apptainer', ['/opt/other/apptainer']],
    ['none', []],
  ])('binaries - the setting %s wins over PATH', async (containerRuntime, expected) => {
    put('a/apptainer', 'stand-in')
    expect(await containerBinaries(settings({ containerRuntime }), batchOf(join(folder, 'a')))).toEqual(expected)
  })
})

describe('runtimes', () => {
  async function find(text: Record<string, string>) {
    const config = settings(text)
    // What the stand-ins themselves need.
    const batch = batchOf(join(folder, 'a'), '/usr/bin', '/bin')
    const candidates = await containerBinaries(config, batchOf(join(folder, 'a')))
    const own = join(folder, 'container')
    const found = await findRuntimes({
      config,
      batch,
      log: silentLog,
      candidates,
      folder: own,
      own: [],
      kept: [],
      gpus: null,
    })
    found.offline?.close()
    return { names: found.runtimes.map(({ name }) => name), bad: found.checks.map(({ detail }) => detail) }
  }

  test('found - a node with Singularity alone runs containers by it', async () => {
    put('a/singularity', 'singularity-ce version 4.1.0')
    expect(await find({ hostRuntime: 'false' })).toEqual({ names: ['singularity-ce version 4.1.0'], bad: [] })
  })

  test('found - a node with neither host nor container is bad', async () => {
    expect(await find({ hostRuntime: 'false' })).toEqual({ names: [], bad: ['neither host nor container'] })
  })

  test('found - one that gives payloads no network of their own is not used where the site wants that always', async () => {
    put('a/apptainer', 'apptainer version 1.4.5', '--net')
    expect(await find({ hostRuntime: 'false', ownNetwork: 'possible' })).toMatchObject({ bad: [] })
    expect(await find({ hostRuntime: 'false', ownNetwork: 'always' })).toEqual({
      names: [],
      bad: ['none gives payloads a network of their own'],
    })
  })
})
