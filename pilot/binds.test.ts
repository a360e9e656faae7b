/** Real folders; file systems of other kinds are mounted in a user namespace, where the machine has these. */
import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { execa } from 'execa'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { refusedBind } from './binds.ts'
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
  'binds - :ro does not reach a file system below, and one that is read-only needs none',
  async () => {
    for (const name of ['project/mounted', 'project/mounted/trace', 'still']) mkdirSync(at(name))
    const program = at('ask.ts')
    const ask = (bind: string, kept: string) =>
      `console.log(JSON.stringify(await refusedBind([${JSON.stringify(bind)}], { own: [], kept: [${JSON.stringify(kept)}] })))\n`
    writeFileSync(
      program,
      `import { refusedBind } from ${JSON.stringify(join(import.meta.dirname, 'binds.ts'))}\n` +
        ask(`${at('project')}:/data:ro`, at('project/mounted/trace')) +
        ask(at('still'), at('still/images')),
    )
    const script = 'mount -t tmpfs none "$1" && mount -t tmpfs -o ro none "$2" && exec "$3" "$4"'
    const mounted = [at('project/mounted'), at('still'), process.execPath, program]
    const { stdout } = await execa('unshare', [
      '--user',
      '--map-root-user',
      '--mount',
      'sh',
      '-ec',
      script,
      'sh',
      ...mounted,
    ])
    const [below, still] = stdout.split('\n').map((line) => JSON.parse(line))
    expect(below).toMatchObject({ holds: at('project/mounted/trace'), why: expect.stringContaining('does not reach') })
    expect(still).toBeNull()
  },
)
