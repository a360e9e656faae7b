/** Real folders; file systems of other kinds are mounted in a user namespace, where the machine has these. */
import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { execa } from 'execa'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { type RefusedBind, refusedBind } from './binds.ts'
import { unwritable } from './policy.ts'

let folder: string
const at = (...names: string[]) => join(folder, ...names)
beforeEach(() => {
  folder = realpathSync(mkdtempSync(join(tmpdir(), 'indraft-binds-')))
  mkdirSync(at('project/images'), { recursive: true })
  mkdirSync(at('project/data'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

test('binds - none shows the pilot’s own files, read-only neither', async () => {
  const guarded = { own: [at('project/data/pilot')], kept: [] }
  symlinkSync(at('project'), at('link'))
  for (const bind of [at('project'), `${at('project')}:/data:ro`, `${at('link')}:/data`, '/:/host:ro']) {
    expect(await refusedBind(['/usr:/usr:ro', bind], guarded), bind).toMatchObject({ bind, why: /see/ })
  }
  expect(await refusedBind(['/usr:/usr:ro', at('project/images')], guarded)).toBeNull()
})

test('binds - a writable one neither holds nor lies in what the site and its pilots keep; with :ro it may', async () => {
  const kept = [at('project/images'), at('project/STOP'), at('keep')]
  mkdirSync(at('keep/traces'), { recursive: true })
  for (const source of [at('project'), at('project/images'), at('keep/traces'), at('keep')]) {
    expect(await refusedBind([`${source}:/data`], { own: [], kept }), source).toMatchObject({ why: /add :ro/ })
    expect(await refusedBind([`${source}:/data:ro`], { own: [], kept }), source).toBeNull()
  }
  expect(await refusedBind([`${at('project/data')}:/data`], { own: [], kept })).toBeNull()
})

test('binds - a file that is not there yet is known by the real path of its folder', async () => {
  symlinkSync(at('project'), at('link'))
  const kept = [at('link/STOP')]
  expect(await refusedBind([at('project')], { own: [], kept })).toMatchObject({ holds: at('project/STOP') })
})

test('binds - no payload writes where the site takes images from', async () => {
  const policy = { allowImages: [at('project/images'), 'docker://registry.example/', `sha256:${'a'.repeat(64)}`] }
  const kept = await unwritable(policy)
  expect(await refusedBind([at('project')], { own: [], kept })).toMatchObject({ holds: at('project/images') })
  expect(await refusedBind([`${at('project')}::ro`, at('project/data')], { own: [], kept })).toBeNull()
})

const mayMount =
  (await execa('unshare', ['--user', '--map-root-user', '--mount', 'true'], { reject: false })).exitCode === 0

test.runIf(mayMount)(
  'binds - :ro does not reach file systems below, and those that are read-only need none',
  async () => {
    for (const name of ['project/mounted', 'project/images/of mine', 'same/below', 'still', 'cvmfs/of all'])
      mkdirSync(at(name), { recursive: true })
    const asked: [bind: string, kept: string, why: string | null][] = [
      [`${at('project')}:/data:ro`, at('project/mounted/trace'), 'does not reach'],
      [`${at('project')}:/data:ro`, at('project/images'), 'does not reach'],
      [`${at('project/images')}:/data:ro`, at('project'), 'does not reach'],
      [`${at('same')}:/data:ro`, at('same/below/STOP'), 'does not reach'],
      [`${at('project')}:/data:ro`, at('project/data'), null],
      [`${at('project/mounted')}:/data:ro`, at('project/mounted/trace'), null],
      [at('still'), at('still/images'), null],
      [`${at('cvmfs')}:/cvmfs:ro`, at('cvmfs'), null],
    ]
    const program = at('ask.ts')
    writeFileSync(
      program,
      `import { refusedBind } from ${JSON.stringify(join(import.meta.dirname, 'binds.ts'))}
    const asked = ${JSON.stringify(asked)}
    const answers = asked.map(([bind, kept]) => refusedBind([bind], { own: [], kept: [kept] }))
    console.log(JSON.stringify(await Promise.all(answers)))`,
    )
    const script = `
    mount -t tmpfs none project/mounted
    mount -t tmpfs none 'project/images/of mine'
    mount --bind project/data same/below
    mount -t tmpfs -o ro none still
    mount -t tmpfs -o ro none 'cvmfs/of all'
    exec "$@"`
    const words = ['--user', '--map-root-user', '--mount', 'sh', '-ec', script, 'sh', process.execPath, program]
    const { stdout } = await execa('unshare', words, { cwd: folder })
    const answers: (RefusedBind | null)[] = JSON.parse(stdout)
    for (const [i, [bind, kept, why]] of asked.entries()) {
      const expected = why === null ? null : { bind, holds: kept, why: expect.stringContaining(why) }
      expect(answers[i], `${bind} and ${kept}`).toEqual(expected)
    }
  },
)
