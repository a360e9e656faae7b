/**
 * CVMFS and EESSI as folders of the same form: what is looked for, and what is put before a payload. The start-up script
 * here does what EESSI's own does for us: it gives a `module` that changes PATH. No mount is involved.
 */
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import type { TemplateBody } from '../shared/protocol/work.ts'
import { architecture } from './processor.ts'
import { findSoftware, touchSoftware } from './software.ts'
import { PATH, TestSite } from './testbench.ts'

let site: TestSite
let root: string
beforeEach(async () => {
  site = await new TestSite().open()
  root = join(site.folder, 'cvmfs')
  put('conditions.vo.example/.cvmfsdirtab', '/*\n')
  put('conditions.vo.example/geometry.db', 'geometry\n')
  put(`software.eessi.io/versions/2025.06/compat/linux/${architecture()}/startprefix`, '')
  put('software.eessi.io/versions/2023.06/compat/linux/riscv64/startprefix', '')
  put(
    'software.eessi.io/versions/2025.06/init/bash',
    `export EESSI_VERSION=2025.06 EESSI_CPU_FAMILY=$(uname -m)
    [[ $EESSI_SILENT == 1 ]] || echo "Environment set up, have fun!"
    function module {
      [[ $1 == load && -d $(dirname "\${BASH_SOURCE[0]}")/../software/$2 ]] || { echo "Lmod: unknown module $2" >&2; return 1; }
      export PATH=$(cd "$(dirname "\${BASH_SOURCE[0]}")" && pwd)/../software/$2/bin:$PATH
    }
    echo "You agree to the terms of use"\n`,
  )
  put(
    'software.eessi.io/versions/2025.06/software/ROOT/6.30/bin/root',
    '#!/bin/sh\necho "root of $EESSI_VERSION: $*"\n',
  )
  chmodSync(join(root, 'software.eessi.io/versions/2025.06/software/ROOT/6.30/bin/root'), 0o755)
})
afterEach(async () => {
  vi.unstubAllEnvs()
  await site.close()
})

function put(path: string, content: string): void {
  mkdirSync(dirname(join(root, path)), { recursive: true })
  writeFileSync(join(root, path), content)
}

describe('what is there', () => {
  test('software - repositories that can be read, and EESSI versions for this processor', async () => {
    mkdirSync(join(root, 'empty.vo.example'))
    expect(await findSoftware(root, ['absent.vo.example'])).toEqual([
      'cvmfs:conditions.vo.example',
      'cvmfs:software.eessi.io',
      'eessi:2025.06',
    ])
  })

  test('software - nothing mounted is nothing', async () => {
    expect(await findSoftware(join(site.folder, 'nowhere'), ['software.eessi.io'])).toEqual([])
  })

  /** Every other program is the real one; this `ls` stands for mounts that answer late or never, and notes its calls. */
  function hang(line: string): () => string[] {
    const [bin, calls] = [join(site.folder, 'bin'), join(site.folder, 'calls')]
    mkdirSync(bin)
    writeFileSync(join(bin, 'ls'), `#!/bin/sh\necho "$1" >>${calls}\n${line}\nexec /bin/ls "$@"\n`)
    chmodSync(join(bin, 'ls'), 0o755)
    vi.stubEnv('PATH', `${bin}:${PATH}`)
    return () => readFileSync(calls, 'utf8').trim().split('\n')
  }

  test('software - a mount that hangs holds nobody up', async () => {
    hang('case $1 in software.eessi.io*) exec sleep 600 ;; esac')
    expect(await findSoftware(root, [], 500)).not.toContain('cvmfs:software.eessi.io')
    vi.unstubAllEnvs()
    expect(await findSoftware(root, [])).toContain('cvmfs:software.eessi.io')
  })

  test('software - a mount that hangs hides no other', async () => {
    const calls = join(site.folder, 'calls')
    hang(`case $1 in soft*) until grep -q conditions ${calls}; do sleep 0.05; done ;; esac`)
    expect(await findSoftware(root, [])).toEqual([
      ...['cvmfs:conditions.vo.example', 'cvmfs:software.eessi.io', 'eessi:2025.06'],
    ])
  })

  test('software - a payload waits for the mounts that it names and touches no other', async () => {
    const calls = hang('')
    expect(await touchSoftware(root, ['conditions.vo.example', 'absent.vo.example'])).toEqual(['absent.vo.example'])
    expect(calls().sort()).toEqual(['absent.vo.example/.', 'conditions.vo.example/.'])
  })
})

describe('what a payload gets', () => {
  const wants = (software: NonNullable<TemplateBody['software']>, command: string[]) =>
    site.attempt({ software, command }).run()
  const eessi = (...modules: string[]) => ({ cvmfs: [], eessi: { version: '2025.06', modules } })

  test('software - a module is loaded before the command is looked for, and nothing is said into its output', async () => {
    const result = await wants(eessi('ROOT/6.30'), ['root', '-b', 'a b', '$$(id)'])
    expect(result).toMatchObject({ end: 'done', exitCode: 0 })
    expect(await site.stored(result, '.log/stdout')).toBe('root of 2025.06: -b a b $(id)\n')
  })

  test('software - an exit status and a missing command stay the payload`s own', async () => {
    expect(await wants(eessi(), ['sh', '-c', 'exit 7'])).toMatchObject({ reason: 'payload.exit', exitCode: 7 })
    expect(await wants(eessi(), ['root'])).toMatchObject({ reason: 'payload.noCommand' })
  })

  test.each([
    ['a module that is not there', eessi('Gaudi/1'), 'module load Gaudi/1'],
    ['a version that is not there', { cvmfs: [], eessi: { version: '2099.01', modules: [] } }, '2099.01 is not there'],
    ['a repository that is not there', { cvmfs: ['absent.vo.example'], eessi: null }, 'absent.vo.example'],
  ])('software - %s is the site`s fault, with its name', async (_what, software, words) => {
    expect(await wants(software, ['true'])).toMatchObject({
      ...{ end: 'failed', reason: 'software.failed', detail: expect.stringContaining(words) },
    })
  })

  test('software - what the payload writes of its own into the status changes nothing', async () => {
    const lie = 'echo "software lie" >>../control/status; exit 3'
    expect(await wants(eessi(), ['sh', '-c', lie])).toMatchObject({ reason: 'payload.exit', exitCode: 3 })
  })
})
