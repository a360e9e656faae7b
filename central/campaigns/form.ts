/**
 * Turns what the schema finds wrong into problems a person can act on: each with its path, place, what was expected and
 * what was found, all at once. Unknown keys name the nearest known one; keys of later versions say so.
 */
import type { z } from 'zod'
import {
  afterEntrySchema,
  type CampaignFile,
  campaignFileSchema,
  defaultsSchema,
  inputSchema,
  NOT_YET,
  outputSchema,
  resourcesSchema,
  retriesSchema,
  SEVERAL_NODES,
  softwareSchema,
  stepSchema,
} from './format.ts'
import type { FieldPath, Problem, Source } from './source.ts'

type Issue = z.core.$ZodIssue

/** The kinds of places in a file and the keys known there. */
const KNOWN: Record<string, readonly string[]> = {
  campaign: Object.keys(campaignFileSchema.shape),
  defaults: Object.keys(defaultsSchema.shape),
  step: Object.keys(stepSchema.shape),
  resources: Object.keys(resourcesSchema.shape),
  retries: Object.keys(retriesSchema.shape),
  software: Object.keys(softwareSchema.shape),
  input: Object.keys(inputSchema.shape),
  output: Object.keys(outputSchema.shape),
  after: Object.keys(afterEntrySchema.shape),
  sites: ['allow', 'deny'],
}

/** So many are put into words and order; the rest is only counted. */
export const MAX_CONSIDERED = 1000

export function checkForm(source: Source): { file: CampaignFile } | { problems: Problem[]; more: number } {
  const parsed = campaignFileSchema.safeParse(source.value)
  if (parsed.success) return { file: parsed.data }
  const problems: Problem[] = []
  let more = 0
  for (const issue of parsed.error.issues) {
    if (problems.length < MAX_CONSIDERED) problems.push(...problemsOf(issue, [], source))
    else more += issue.code === 'unrecognized_keys' ? issue.keys.length : 1
  }
  return { problems, more }
}

function problemsOf(issue: Issue, above: FieldPath, source: Source): Problem[] {
  const path = [...above, ...(issue.path as (string | number)[])]
  switch (issue.code) {
    case 'unrecognized_keys':
      return issue.keys.map((key) => source.problem([...path, key], unknownKey(key, kindOf(path)), true))
    case 'invalid_union': {
      // The branch that got furthest is the one that was meant.
      const branch = issue.errors.find((issues) => issues.some((inner) => !isAboutTheWhole(inner)))
      if (branch) return branch.flatMap((inner) => problemsOf(inner as Issue, path, source))
      break
    }
    case 'invalid_key':
      return [source.problem(path, `expected ${issue.issues[0]?.message ?? 'another name'}`, true)]
  }
  const found = valueAt(source.value, path)
  if (found === undefined) return [source.problem(path, `is missing: expected ${expectedOf(issue)}`)]
  return [source.problem(path, `expected ${expectedOf(issue)}, found ${shown(found)}`)]
}

function isAboutTheWhole(issue: Issue): boolean {
  return issue.code !== 'unrecognized_keys' && issue.path.length === 0
}

const KIND_WORDS: Record<string, string> = { object: 'a map of keys', record: 'a map of names', string: 'text' }

function expectedOf(issue: Issue): string {
  if (!issue.message.startsWith('Invalid input')) return issue.message
  const expected = issue.code === 'invalid_type' ? issue.expected : ''
  return KIND_WORDS[expected] ?? (expected || 'something else')
}

function unknownKey(key: string, kind: string): string {
  if (SEVERAL_NODES.includes(key)) return 'steps of several nodes (MPI) are not supported: a task runs on one node'
  if (NOT_YET[kind]?.includes(key)) return 'is not supported yet'
  const known = KNOWN[kind] ?? []
  const nearest = nearestWord(key, known)
  return `is not a known key${nearest ? `: did you mean ${nearest}?` : `: expected one of ${known.join(', ')}`}`
}

function kindOf(path: FieldPath): string {
  if (path.length === 0) return 'campaign'
  const [first] = path
  const last = path.at(-1)!
  if (path.length === 1) return String(first)
  if (first === 'steps' && path.length === 2) return 'step'
  if (typeof last === 'number') return String(path.at(-2)).replace(/s$/, '')
  return String(last)
}

function valueAt(value: unknown, path: FieldPath): unknown {
  let at: unknown = value
  for (const part of path) at = (at as Record<string | number, unknown> | null | undefined)?.[part]
  return at
}

function shown(value: unknown): string {
  if (value === null) return 'nothing'
  if (Array.isArray(value)) return value.length === 0 ? 'an empty list' : 'a list'
  if (typeof value === 'object') return 'a map'
  return typeof value === 'string' ? `"${value.slice(0, 60)}"` : String(value)
}

/** The word nearest in spelling, if it is near. */
export function nearestWord(word: string, known: readonly string[]): string | undefined {
  if (word.length > 100) return undefined
  const scored = known.map((candidate) => ({ candidate, distance: editDistance(word.toLowerCase(), candidate) }))
  scored.sort((a, b) => a.distance - b.distance)
  const best = scored[0]
  return best && best.distance <= Math.max(1, Math.floor(word.length / 3)) ? best.candidate : undefined
}

/** Levenshtein's distance, with two letters exchanged counted as one change. */
function editDistance(a: string, b: string): number {
  const rows = [Array.from({ length: b.length + 1 }, (_, j) => j)]
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      const change = rows[i - 1]![j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)
      const isExchanged = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]
      const exchange = isExchanged ? rows[i - 2]![j - 2]! + 1 : change
      row.push(Math.min(change, exchange, rows[i - 1]![j]! + 1, row[j - 1]! + 1))
    }
    rows.push(row)
  }
  return rows[a.length]![b.length]!
}
