/** What tables cost to check, counted in how often they are parsed: once each, however many steps name them. */
import * as csv from 'csv-parse/sync'
import { beforeEach, expect, test, vi } from 'vitest'
import { checkCampaign } from './check.ts'
import { canonicalJson } from './identity.ts'

// The library does its work as ever, and is counted.
vi.mock('csv-parse/sync', async (original) => {
  const real = await original<typeof csv>()
  return { ...real, parse: vi.fn(real.parse) }
})
const parse = vi.mocked(csv.parse)
beforeEach(() => void parse.mockClear())

const campaign = (steps: number, table: (i: number) => string = () => 't.csv') =>
  `indraft: 1\nname: many\ngroup: /vo.example/prod\ndefaults: {image: host}\nsteps:\n${Array.from(
    { length: steps },
    (_, i) => `  s${i}: {command: [x, $(a)], table: ${table(i)}}\n`,
  ).join('')}`

function check(text: string, tables: Record<string, string>) {
  const checked = checkCampaign(text, tables, 'ada')
  return 'plan' in checked ? checked : { problems: checked.problems.map(({ path, message }) => `${path} ${message}`) }
}

test('tables - one that many steps name is read once, and they share its rows', () => {
  const checked = check(campaign(100), { 't.csv': `a\n${'1\n'.repeat(50)}` })
  expect(checked).toMatchObject({ plan: { steps: expect.any(Array) } })
  if (!('plan' in checked)) return
  expect(checked.plan.steps.map(({ size }) => size)).toEqual(Array(100).fill(50))
  expect(new Set(checked.plan.steps.map(({ rows }) => rows)).size).toBe(1)
  expect(parse).toHaveBeenCalledTimes(1)
})

test('tables - their rows take so many bytes over all steps at most, of one table or of many', () => {
  const table = `{"a":"${'x'.repeat(4000)}"}\n`.repeat(4000)
  const tables = Object.fromEntries([0, 1, 2, 3, 4].map((i) => [`t${i}.jsonl`, table]))
  const refused = {
    problems: [
      'steps the rows of tables take 80160000 bytes in all; expected at most 64 MiB: a table counts for each step that names it',
    ],
  }
  expect(
    check(
      campaign(5, () => 't0.jsonl'),
      tables,
    ),
  ).toEqual(refused)
  expect(
    check(
      campaign(5, (i) => `t${i}.jsonl`),
      tables,
    ),
  ).toEqual(refused)
  expect(
    check(
      campaign(4, () => 't0.jsonl'),
      tables,
    ),
  ).toHaveProperty('plan')
})

test('tables - the lines of all that is wrong in one are found by reading it once more', () => {
  const table = `a\n${`"${'x'.repeat(5000)}"\n`.repeat(30)}`
  const checked = check(campaign(3), { 't.csv': table })
  expect(checked).toEqual({ problems: expect.arrayContaining([expect.stringContaining('t.csv line 21: a row of')]) })
  expect(parse).toHaveBeenCalledTimes(2)
})

test('tables - none is read for a group that the sender is not in', () => {
  const requireGroup = (group: string) => {
    throw new Error(`not in ${group}`)
  }
  const tables = { 't.csv': 'a\n1\n' }
  expect(() => checkCampaign(campaign(1), tables, 'ada', requireGroup)).toThrow('not in /vo.example/prod')
  expect(parse).not.toHaveBeenCalled()
})

test('tables - the rows that steps share are written once for the digest', () => {
  let reads = 0
  const row = Object.defineProperty({}, 'a', { enumerable: true, get: () => String(++reads) })
  const rows = [row]
  expect(canonicalJson([{ rows }, { rows }])).toBe('[{"rows":[{"a":"1"}]},{"rows":[{"a":"1"}]}]')
})
