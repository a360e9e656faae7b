/** What CI makes of a run's closing lines: .ci/run with a scripted npm, in a folder of its own. */
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { execa } from 'execa'
import { afterEach, beforeEach, expect, test } from 'vitest'

const SCRIPT = resolve(import.meta.dirname, '../.ci/run')
let folder: string

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-ci-'))
  mkdirSync(join(folder, '.ci'))
  cpSync(SCRIPT, join(folder, '.ci/run'))
})
afterEach(() => {
  rmSync(folder, { recursive: true, force: true })
})

/**
 * @param first what `npm test` says at first
 * @param again the exit status of each file that runs by itself
 */
async function run(first: string[], again: Record<string, number> = {}) {
  const npm = `#!/usr/bin/env bash
case "$*" in
  test) cat <<'END'
${first.join('\n')}
END
  ;;
  'test -- '*) case "$3" in ${Object.entries(again).map(([file, rc]) => `${file}) exit ${rc};;`)} *) exit 1;; esac;;
  'run lab'|*fault:ci) echo '2 passed, 0 failed';;
esac
`
  writeFileSync(join(folder, 'npm'), npm, { mode: 0o755 })
  const env = { PATH: `${folder}:${process.env.PATH}` }
  const { stdout, exitCode } = await execa('bash', [join(folder, '.ci/run')], { env, reject: false })
  const lines = stdout.split('\n')
  const repeated = lines.filter((line) => line.startsWith('== again: ')).map((line) => line.slice('== again: '.length))
  // Named after the last stage.
  const named = lines.slice(lines.findLastIndex((line) => line.startsWith('== demo')))
  return { exitCode, again: repeated, named: named.filter((line) => /^[a-z]+: /.test(line)), end: lines.at(-1) }
}

const A = 'failed: test/a.test.ts > a group > is late: expected 1 to be 2'
const B = 'failed: pilot/b.test.ts: Cannot find module'

test('ci - all good: tests, checks and demo are counted', async () => {
  expect(await run(['skipped: test/s.test.ts > no GPU', '3 passed, 0 failed, 1 skipped'])).toEqual({
    exitCode: 0,
    again: [],
    named: ['skipped: test/s.test.ts > no GPU'],
    end: '11 passed, 0 failed, 1 skipped',
  })
})

test('ci - a test that fails and passes by itself is named as unsteady', async () => {
  const { exitCode, again, named, end } = await run([A, '3 passed, 1 failed'], { 'test/a.test.ts': 0 })
  expect({ exitCode, again, end }).toEqual({ exitCode: 0, again: ['test/a.test.ts'], end: '12 passed, 0 failed' })
  expect(named).toEqual([A.replace('failed', 'unsteady')])
})

test('ci - one that fails again is a failure, also beside one that does not', async () => {
  const files = { 'test/a.test.ts': 0, 'pilot/b.test.ts': 1 }
  const { exitCode, named, end } = await run([A, B, '3 passed, 2 failed'], files)
  expect({ exitCode, named, end }).toEqual({ exitCode: 1, named: [A, B], end: '11 passed, 2 failed' })
})

test.each([
  ['an error outside of every test', [A, 'failed: outside of every test: it broke', '3 passed, 2 failed'], 2],
  ['four files', [1, 2, 3, 4].map((i) => `failed: ${i}.test.ts > x`).concat('3 passed, 4 failed'), 4],
  ['a failure without a name', ['3 passed, 1 failed'], 1],
])('ci - no second chance: %s', async (_, said, failed) => {
  const files = Object.fromEntries(['test/a', '1', '2', '3', '4'].map((name) => [`${name}.test.ts`, 0]))
  const { exitCode, again, end } = await run(said, files)
  expect({ exitCode, again, end }).toEqual({ exitCode: 1, again: [], end: `11 passed, ${failed} failed` })
})

test('ci - a run without its closing line is a failure', async () => {
  const { exitCode, end } = await run(['Killed'])
  expect({ exitCode, end }).toEqual({ exitCode: 1, end: '8 passed, 1 failed' })
})
