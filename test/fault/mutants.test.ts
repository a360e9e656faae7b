/** Every protection has a mutant that still applies, and every fault test a mutant that it has been seen to notice. */
import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { expect, test } from 'vitest'
import { allMutants, type Named } from './mutants/mutant.ts'

const checkout = resolve(import.meta.dirname, '../..')
const mutants = allMutants()

/** Titles of a file's tests, with the places of a table's values as they are written. */
function titlesOf(file: string): string[] {
  const lines = readFileSync(join(checkout, file), 'utf8').split('\n')
  return lines.flatMap((line) => {
    const found = /^\s*(?:.*\()?(['"`])((?:(?!\1).)* - .*?)\1, ?(?:async\b|\(|$)/.exec(line)
    return found && !line.includes('describe') ? [found[2]!] : []
  })
}

/** Whether the part is of this title, whatever stands for the values of a table. */
function isPartOf(part: string, title: string): boolean {
  const [first = '', ...values] = title.split(/%[sio]/)
  return title.includes(part) || (values.length > 0 && (first === '' || part.startsWith(first)))
}

const isNamed = (title: string, file: string) =>
  mutants.some(({ tests }) => tests.some((named) => named.file === file && isPartOf(named.title, title)))

test.each(mutants.map((mutant) => [mutant.name, mutant] as const))(
  'mutants - %s applies to this tree, and the tests that must notice it are there',
  (_name, { path, tests }) => {
    execFileSync('git', ['apply', '--check', path], { cwd: checkout, stdio: 'pipe' })
    const isThere = ({ file, title }: Named) =>
      readFileSync(join(checkout, file), 'utf8').includes(title) || titlesOf(file).some((one) => isPartOf(title, one))
    expect(tests.filter((named) => !isThere(named))).toEqual([])
  },
)

test('mutants - each says what it takes away in words of its own', () => {
  const said = mutants.map(({ protection }) => protection)
  expect(new Set(said).size).toBe(said.length)
})

/** Where the fault tests are, and those of them that no mutant can be written for. */
const FAULT_TESTS = [
  ...readdirSync(join(import.meta.dirname, 'scenarios'))
    .filter((name) => name.endsWith('.test.ts'))
    .map((name) => `test/fault/scenarios/${name}`),
  ...[
    'half-way',
    'nats-away',
    'odd-orders',
    'refused',
    'retry',
    'rollback',
    'store-away',
    'store-faults',
    'two-centrals',
    'versions',
  ].map((name) => `test/central/${name}.test.ts`),
  ...['disk', 'ends', 'faults', 'journal-crash', 'journal-damage', 'killed', 'two-relays'].map(
    (name) => `test/relay/${name}.test.ts`,
  ),
  ...['access', 'clocks', 'dispatcher-gone', 'full-disk', 'hung-disk', 'memory', 'signals'].map(
    (name) => `test/pilot/${name}.test.ts`,
  ),
]
const WITHOUT: Record<string, string> = {
  'fault - 100,000 tasks that all fail: each ends once, retries are counted, memory is bounded, others go on':
    'a measurement: minutes long, and of rules that shorter tests hold',
}

test.each(FAULT_TESTS)('mutants - every test of %s notices one', (file) => {
  const titles = titlesOf(file)
  expect(titles.length).toBeGreaterThan(0)
  expect(titles.filter((title) => !isNamed(title, file) && !(title in WITHOUT))).toEqual([])
})
