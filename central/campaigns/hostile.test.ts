/** Files that nobody writes on purpose, or only to do harm: each is refused by path and in words, and soon. */
import { describe, expect, test } from 'vitest'
import { checkCampaign } from './check.ts'

import { type Problem, readSource } from './source.ts'

const HEAD = 'indraft: 1\nname: ising\ngroup: /vo.example/prod\ndefaults: {image: host}\n'
const SIM = `${HEAD}steps: {sim: {command: [x]}}\n`
const nines = '9'.repeat(400)

const step = (lines: string) => `${HEAD}steps:\n  sim:\n    command: [sim]\n${lines.replace(/^/gm, '    ')}`
const repeat = (count: number, line: (i: number) => string) => Array.from({ length: count }, (_, i) => line(i)).join('')

function problems(text: string, tables: Record<string, string> = {}): Problem[] {
  const checked = checkCampaign(text, tables, 'ada')
  return 'problems' in checked ? checked.problems : []
}

describe('campaign file - beyond any bound', () => {
  test.each<[string, string, string, RegExp]>([
    ['a log limit', step('log_limit: 99999999999999TiB'), 'steps.sim.log_limit', /at most 1GiB/],
    ['a log limit that is only large', step('log_limit: 2GiB'), 'steps.sim.log_limit', /at most 1GiB/],
    ['a time without progress', step(`stalled_after: ${nines}d`), 'steps.sim.stalled_after', /at most 366d/],
    ['memory', step('resources: {memory: 65TiB}'), 'steps.sim.resources.memory', /at most 64TiB/],
    ['scratch', step('resources: {scratch: 1025TiB}'), 'steps.sim.resources.scratch', /at most 1024TiB/],
    ['a wall time', step('resources: {walltime: 367d}'), 'steps.sim.resources.walltime', /at most 366d/],
    ['cores', step('resources: {cores: 100001}'), 'steps.sim.resources.cores', /from 1 to 100000/],
    [
      'a range',
      step(`sweep: {T: ${'9'.repeat(90)}..${'9'.repeat(95)}}`),
      'steps.sim.sweep.T',
      /range of numbers up to/,
    ],
    ['a range of 400 digits', step(`sweep: {T: ${nines}..${nines}}`), 'steps.sim.sweep.T', /at most 200 characters/],
    ['a product', step('sweep: {a: 1..9007199254740991, b: 1..9}'), 'steps.sim.sweep', /too many tasks/],
    ['labels', `${SIM}labels:\n${repeat(20_000, (i) => ` k${i}: v\n`)}`, 'labels', /20000 keys; expected at most 1000/],
    ['unknown keys', `${SIM}${repeat(20_000, (i) => `k${i}: v\n`)}`, '', /20005 keys; expected at most 1000/],
    ['variables', step(`env:\n${repeat(20_000, (i) => ` K${i}: v\n`)}`), 'steps.sim.env', /expected at most 1000/],
    ['brackets', '['.repeat(500_000), '', /^nested more than 30 levels$/],
    ['dashes', '- '.repeat(500_000), '', /^nested more than 30 levels$/],
    ['31 levels', `a: ${'['.repeat(31)}${']'.repeat(31)}`, '', /^nested more than 30 levels$/],
    ['line ends', '\n'.repeat(1_000_000), '', /too many words/],
    ['values', `a: [${'1,'.repeat(80_000)}]`, '', /at most 50000 values/],
    ['values by alias', `a: &a [${'1,'.repeat(900)}]\nb: [${'*a,'.repeat(90)}]`, '', /aliases counted/],
    ['an alias in itself', '- &a [*a]', '[0][0]', /stands inside what it stands for/],
    ['a key', `${'k'.repeat(1001)}: 1`, '', /1001 characters/],
    ['a sweep over __proto__', step('sweep: {__proto__: [1, 2]}'), 'steps.sim.sweep.__proto__', /cannot be a name/],
    ['a step constructor', `${HEAD}steps: {constructor: {command: [x]}}`, 'steps.constructor', /cannot be a name/],
    ['a label prototype', `${SIM}labels: {prototype: 1}`, 'labels.prototype', /cannot be a name/],
    ['NUL in a command', step('env: {A: "a\\0b"}'), 'steps.sim.env.A', /without NUL/],
    ['an empty part', step('outputs: [{path: a//b}]'), 'steps.sim.outputs[0].path', /without empty parts/],
    ['a line break', step('outputs: [{path: "a\\nb"}]'), 'steps.sim.outputs[0].path', /line breaks/],
    ['the same key twice', `${SIM}name: other`, 'name', /there twice/],
  ])('%s', (_what, text, path, expected) => {
    const found = problems(text)
    expect(found).toHaveLength(1)
    expect(found[0]!.path).toBe(path)
    expect(found[0]!.message).toMatch(expected)
  })

  test('fifty problems are shown, the rest is counted', () => {
    const found = problems(`${SIM}${repeat(900, (i) => `k${i}: v\n`)}`)
    expect(found).toHaveLength(51)
    expect(found[0]!.path).toBe('k0')
    expect(found[50]!.message).toBe('and 850 more problems')
  })

  test.each<[string, string, RegExp]>([
    ['rows of one cell', 'a\n'.repeat(8_000_000), /more than 100000 rows: expected at most 100000 in this release/],
    ['one line of commas', ','.repeat(100_000), /at most 65536 characters/],
    ['columns', `${repeat(300, (i) => `c${i},`)}z\n`, /at most 200 columns/],
    ['cells', `${','.repeat(100)}\n`.repeat(30_000), /more than 2000000 cells/],
    ['a column __proto__', '__proto__\n1\n', /none of __proto__/],
    ['NUL', 'a\n\0\n', /without NUL/],
  ])('a table - %s', (_what, table, expected) => {
    expect(problems(step('table: t.csv'), { 't.csv': table })).toMatchObject([
      { path: 'steps.sim.table', message: expect.stringMatching(expected) },
    ])
  })

  test('a table - NUL written as an escape', () => {
    const found = problems(step('table: t.jsonl'), { 't.jsonl': '{"a": "\\u0000"}\n' })
    expect(found[0]!.message).toMatch(/line 1: expected text without NUL/)
  })

  test('the looks at a document grow with the questions, not with their product', () => {
    const keys = 40
    const read = readSource(repeat(keys, (i) => `m${i}:\n${repeat(400, (j) => `  k${j}: 1\n`)}`))
    if ('problems' in read) throw new Error(read.problems[0]!.message)
    const { source } = read
    expect(source.looked()).toBeLessThanOrEqual(2 * keys * 401)
    const before = source.looked()
    for (let i = 0; i < keys; i++) for (let j = 0; j < 400; j++) source.problem([`m${i}`, `k${j}`], 'x')
    expect(source.looked() - before).toBe(2 * keys * 400)
  })
})
