/** `indraft-pilot start` and `stop` as an administrator types them: what goes wrong is said in one line, with its place. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { execa } from 'execa'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'

const LAUNCHER = fileURLToPath(new URL('../../pilot/indraft-pilot.mjs', import.meta.url))
const SOON = { timeout: 120_000, interval: 50 }

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-start-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const path = (name: string) => join(folder, name)
/** @param change of the lines of a site file that works */
function site(change: Record<string, string | null> = {}): string {
  const lines = {
    ...{ indraft: '1', folder: path('vacuum'), credential: path('pilot.json'), starter: 'slurm' },
    ...{ kinds: '{cpu: {time: 1h, shape: {cores: 2}}}', caps: '{submissionsAnHour: 100000}', ...change },
  }
  const text = Object.entries(lines).flatMap(([key, value]) => (value === null ? [] : `${key}: ${value}`))
  writeFileSync(path('site.yaml'), `${text.join('\n')}\n`)
  return path('site.yaml')
}
/** Without Slurm on its PATH, as in a crontab. */
const spawnPilot = (words: string[]) =>
  execa(process.execPath, [LAUNCHER, ...words], {
    ...{ cwd: folder, reject: false, extendEnv: false, env: { PATH: '/nowhere', HOME: folder }, timeout: 120_000 },
  })
async function pilot(...words: string[]) {
  const { exitCode, stdout, stderr } = await spawnPilot(words)
  return { code: exitCode, said: `${stdout}\n${stderr}`.trim() }
}

test('start - what was typed wrong ends with 2 and says what was expected', async () => {
  expect(await pilot('start')).toMatchObject({
    code: 2,
    said: expect.stringContaining("'--site <file>' not specified"),
  })
  expect(await pilot('start', '--site', site(), '--log-level', 'loud')).toEqual({
    code: 2,
    said: 'indraft-pilot: --log-level: expected one of debug, info, warn, error, silent, found "loud"',
  })
  expect(await pilot('start', '--site', site({ starter: 'pbs', kinds: null }))).toEqual({
    code: 2,
    said: [
      `indraft-pilot: ${path('site.yaml')}:1 kinds: is missing; expected settings below it`,
      `${path('site.yaml')}:4 starter: Invalid option: expected one of "slurm"|"local"`,
    ].join('\n'),
  })
}, 300_000)

test('start - a folder that cannot be used is named, in one line, by each command', async () => {
  writeFileSync(path('file'), '')
  const bad = site({ folder: path('file/vacuum') })
  for (const words of [['start'], ['start', '--dry-run'], ['stop']]) {
    const { code, said } = await pilot(...words, '--site', bad)
    expect([words, code, said.split('\n').length]).toEqual([words, 1, 1])
    expect(said).toContain(`indraft-pilot: folder ${path('file/vacuum')}: ENOTDIR`)
  }
}, 300_000)

test('start - a dry run says why the relay did not answer, and that there is no Slurm', async () => {
  const { code, said } = await pilot('start', '--site', site(), '--dry-run')
  expect(code).toBe(1)
  expect(said).toContain(
    `the relay did not answer what would fit: credential ${path('pilot.json')}: there is no such file; a running relay writes it`,
  )
  expect(said).toContain("there is no squeue on the PATH of this tick (cron's is short: set it in the crontab)")
}, 300_000)

test('start - with --loop a change of the site file counts at the next look; a mistake in it leaves what was there', async () => {
  site({ starter: 'local', command: '[/nowhere/a]' })
  const loop = spawnPilot(['start', '--site', path('site.yaml'), '--loop', '--every', '200ms', '--log-level', 'debug'])
  let said = ''
  loop.stderr.on('data', (text) => {
    said += text
  })
  try {
    await vi.waitFor(() => expect(said).toContain('there is no program /nowhere/a'), SOON)
    // Another kind: what could not be started is not tried again at once.
    site({ starter: 'local', command: '[/nowhere/b]', kinds: '{other: {time: 1h, shape: {cores: 2}}}' })
    await vi.waitFor(() => expect(said).toContain('there is no program /nowhere/b'), SOON)
    site({ starter: 'nothing' })
    await vi.waitFor(() => expect(said).toContain('vacuum.siteFileRefused'), SOON)
    const length = said.length
    await vi.waitFor(() => expect(said.slice(length)).toContain('"why":"other: '), SOON)
  } finally {
    loop.kill('SIGTERM')
  }
  expect((await loop).exitCode).toBe(0)
  expect(readFileSync(path('vacuum/state.json'), 'utf8')).toContain('"version":1')
}, 300_000)
