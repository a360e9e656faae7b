/** Where the site tests cannot run they say why and are skipped, and are a failure where they must run. */
import { spawn } from 'node:child_process'
import { join, relative } from 'node:path'
import process from 'node:process'
import { describe, expect, test } from 'vitest'
import { cacheFolder, checkout, type Machine, whyNoLab } from './lab/roots.ts'

const good: Machine = {
  platform: 'linux',
  arch: 'x64',
  user: 0,
  isDebian: true,
  filesystems: 'nodev\tproc\nnodev\toverlay\n\text4\n',
}

/** `npm run lab` as somebody who is not root; a user namespace makes one of root without the files changing hands. */
function labAsUser(env: Record<string, string>): Promise<{ code: number | null; said: string }> {
  const argv = [process.execPath, join(checkout, 'test/run.mjs'), 'test/lab/first-payload.test.ts']
  if (process.getuid?.() === 0) argv.unshift('unshare', '--user', '--map-user=1000', '--map-group=1000')
  const { CI: _ci, INDRAFT_LAB: _lab, VITEST: _vitest, NODE_OPTIONS: _options, ...clean } = process.env
  return new Promise((done, fail) => {
    const child = spawn(argv[0]!, argv.slice(1), {
      cwd: checkout,
      env: { ...clean, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let said = ''
    const take = (text: string) => {
      said += text
    }
    child.stdout.setEncoding('utf8').on('data', take)
    child.stderr.setEncoding('utf8').on('data', take)
    child.on('error', fail)
    child.on('close', (code) => done({ code, said }))
  })
}

describe('lab', () => {
  test.each([
    [{}, null],
    [{ arch: 'arm64' }, null],
    [{ platform: 'darwin' }, 'needs Linux'],
    [{ user: 1000 }, 'needs root'],
    [{ user: undefined }, 'needs root'],
    [{ isDebian: false }, 'needs Debian'],
    [{ arch: 'riscv64' }, 'no images for riscv64'],
    [{ filesystems: 'nodev\tproc\n' }, 'overlay'],
  ] as const)('machine - with %j it says %s', (facts, why) => {
    const said = whyNoLab({ ...good, ...facts })
    if (why === null) expect(said).toBeNull()
    else expect(said).toContain(why)
  })

  test('cache - roots and images are kept outside of the checkout', () => {
    expect(relative(checkout, cacheFolder())).toMatch(/^\.\.\//)
  })

  test('skipped - without root it says why, and that is no failure', async () => {
    const { code, said } = await labAsUser({})
    expect(said).toContain('skipping the site tests: the lab needs root')
    expect(said).toMatch(/\n\d+ passed, 0 failed, [1-9]\d* skipped\n$/)
    expect(code).toBe(0)
  })

  test.each([{ INDRAFT_LAB: 'required' }, { CI: 'true' }])('required - with %j the same is a failure', async (env) => {
    const { code, said } = await labAsUser(env as unknown as Record<string, string>)
    expect(said).toContain('the site tests must run here: the lab needs root')
    expect(said).toMatch(/\n0 passed, [1-9]\d* failed\n$/)
    expect(code).toBe(1)
  })
})
