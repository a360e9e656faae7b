/** Where the site tests cannot run they say why and are skipped, and are a failure where they must run. */
import { spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, utimesSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import process from 'node:process'
import { describe, expect, test } from 'vitest'
import { cacheFolder, checkout, type Machine, removeUnused, whyNoLab } from './lab/roots.ts'

const good: Machine = {
  platform: 'linux',
  arch: 'x64',
  user: 0,
  system: 'NAME="Debian GNU/Linux"\nID=debian\n',
  filesystems: 'nodev\tproc\nnodev\toverlay\n\text4\n',
  modules: '',
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
    [{ system: 'NAME="Arch Linux"\nID=arch\n' }, 'needs Debian'],
    [{ system: 'NAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\n' }, 'needs Debian'],
    [{ system: '' }, 'needs Debian'],
    [{ arch: 'riscv64' }, 'no images for riscv64'],
    [{ filesystems: 'nodev\tproc\n' }, 'overlay'],
    [{ filesystems: 'nodev\tproc\n', modules: 'kernel/fs/overlayfs/overlay.ko.xz:\n' }, null],
  ] as const)('machine - with %j it says %s', (facts, why) => {
    const said = whyNoLab({ ...good, ...facts })
    if (why === null) expect(said).toBeNull()
    else expect(said).toContain(why)
  })

  test('cache - roots and images are kept outside of the checkout', () => {
    expect(relative(checkout, cacheFolder())).toMatch(/^\.\.\//)
  })

  test('cache - what nothing has used for its time is removed; what the lab did not make stays', () => {
    const cache = mkdtempSync(join(tmpdir(), 'indraft-cache-'))
    try {
      const nowMs = Date.now()
      const [one, other] = ['0123456789ab', 'ba9876543210']
      const make = (days: number, ...names: string[]) => {
        for (const name of names) {
          mkdirSync(join(cache, name, 'usr'), { recursive: true })
          utimesSync(join(cache, name), new Date(), new Date(nowMs - days * 86_400_000))
        }
        return names
      }
      make(
        31,
        `site-${one}`,
        `pilot-${one}`,
        `pilot-by-definition-${one}`,
        `busybox-${one}.sif`,
        `lammps-${one}.building`,
      )
      make(2, `relay-${one}-${other}`, `relay-${one}-${other}.making-12`, `base-${one}.removing`, 'sif-a1B2c3')
      const stay = [
        ...make(29, `site-${other}`, `relay-${other}`),
        ...make(0.9, `pilot-${other}-${one}`),
        ...make(400, 'packages', 'packages-by-definition', 'site-mine', 'notes'),
      ]
      removeUnused(cache, nowMs)
      expect(readdirSync(cache).sort()).toEqual(stay.sort())
    } finally {
      rmSync(cache, { recursive: true })
    }
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
