import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { expect, test } from 'vitest'
import { allMutants } from './mutants/run.ts'

const checkout = resolve(import.meta.dirname, '../..')

test.each(allMutants().map((mutant) => [mutant.name, mutant] as const))(
  'mutants - %s applies to this tree, and the test that must notice it is there',
  (_name, { path, test: words }) => {
    execFileSync('git', ['apply', '--check', path], { cwd: checkout, stdio: 'pipe' })
    if (!words) return
    const file = join(checkout, words[0]!)
    expect(existsSync(file), file).toBe(true)
  },
)

test('mutants - each says what it takes away in words of its own', () => {
  const said = allMutants().map(({ path }) => /^Protection: (.*)$/m.exec(readFileSync(path, 'utf8'))![1])
  expect(new Set(said).size).toBe(said.length)
})
