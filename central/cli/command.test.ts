import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { columns, printable } from './command.ts'

const LAUNCHER = fileURLToPath(new URL('./indraft.mjs', import.meta.url))

test('command - control characters of others do not reach a terminal, newlines and tabs do', () => {
  expect(printable('a\x1b[31mb\r\x07\x9bc\td\né')).toBe('a\ufffd[31mb\ufffd\ufffd\ufffdc\td\né')
  expect(columns(['output'], [['x\x1b]0;title\x07']])[1]).toBe('x\ufffd]0;title\ufffd')
})

test.each([
  [['campaign', 'logs', 'many'], 'expected CAMPAIGN/STEP/INDEX'],
  [['campaign', 'logs', 'a/b/0', '--attempt', 'x'], 'expected the number of an attempt'],
  [['campaign', 'logs', 'a/b/0', '--attempt', '0'], 'expected the number of an attempt'],
  [['up', '--pilots', 'x'], 'pilots'],
])(
  'command - wrong usage ends with 2: %j',
  (args, said) => {
    const { status, stderr } = spawnSync(process.execPath, [LAUNCHER, ...args], { encoding: 'utf8' })
    expect(stderr).toContain(said)
    expect(stderr).not.toContain('NaN')
    expect(status).toBe(2)
  },
  30_000,
)
