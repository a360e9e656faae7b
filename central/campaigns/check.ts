/**
 * From the text of a campaign file to a plan, or to everything that is wrong with it. Pure: the command calls it for
 * `campaign validate`, the API for every submission, with the same answers.
 */
import { checkForm, MAX_CONSIDERED } from './form.ts'
import { type CampaignFile, MAX_ROWS_BYTES, MAX_TASKS } from './format.ts'
import { campaignIdOf, digestOfValue } from './identity.ts'
import type { CampaignPlan } from './model.ts'
import { type After, findCircles, readAfter } from './order.ts'
import { type FieldPath, formatPath, type Problem, type Report, readSource, type Source } from './source.ts'
import { planStep, readSpread } from './step.ts'
import { openTables } from './table.ts'

export type Checked = { plan: CampaignPlan } | { problems: Problem[] }

const MAX_PROBLEMS = 50

/**
 * @param tables text of each table by the name that the file gives it
 * @param subject who submits
 * @param requireGroup throws where they may not for this group: asked before any table is read
 */
export function checkCampaign(
  text: string,
  tables: Readonly<Record<string, string>>,
  subject: string,
  requireGroup: (group: string) => void = () => {},
): Checked {
  const read = readSource(text)
  if ('problems' in read) return read
  const form = checkForm(read.source)
  if ('problems' in form) return { problems: inOrder(form.problems, form.more) }
  requireGroup(form.file.group)
  const problems: Problem[] = []
  const seen = new Set<string>()
  let more = 0
  const report: Report = (path: FieldPath, message) => {
    if (problems.length >= MAX_CONSIDERED) {
      more += 1
      return
    }
    const words = typeof message === 'string' ? message : message()
    const key = `${formatPath(path)}\n${words}`
    if (seen.has(key)) return
    seen.add(key)
    problems.push(read.source.problem(path, words))
  }
  const plan = planCampaign(form.file, text, read.source, tables, subject, report)
  return problems.length > 0 ? { problems: inOrder(problems, more) } : { plan: plan() }
}

/** The plan once nothing is wrong: it is digested only then. */
function planCampaign(
  file: CampaignFile,
  text: string,
  source: Source,
  tables: Readonly<Record<string, string>>,
  subject: string,
  report: Report,
): () => CampaignPlan {
  const id = campaignIdOf(file.group, file.name)
  const after = new Map<string, After[]>()
  const spreads = new Map<string, ReturnType<typeof readSpread>>()
  const table = openTables(tables)
  for (const [name, step] of Object.entries(file.steps)) {
    after.set(name, readAfter(name, step, file, report))
    spreads.set(name, readSpread(name, step, { source, table, report }))
  }
  findCircles(after, report)
  const sizes = new Map([...spreads].map(([name, spread]) => [name, spread.size]))
  const total = [...sizes.values()].reduce((sum, size) => sum + size, 0)
  if (total > MAX_TASKS) report(['steps'], `${total} tasks in all; expected at most ${MAX_TASKS}`)
  const rowsBytes = [...spreads.values()].reduce((sum, spread) => sum + spread.rowsBytes, 0)
  if (rowsBytes > MAX_ROWS_BYTES) {
    const words = 'expected at most 64 MiB: a table counts for each step that names it'
    report(['steps'], `the rows of tables take ${rowsBytes} bytes in all; ${words}`)
  }
  const steps = Object.entries(file.steps).map(([name, step]) =>
    planStep(name, step, spreads.get(name)!, {
      file,
      source,
      id,
      subject,
      after: after.get(name)!,
      sizes,
      report,
    }),
  )
  const deadlineMs = file.deadline === undefined ? null : Date.parse(file.deadline)
  const labels = Object.fromEntries(
    Object.entries(file.labels ?? {}).map(([key, value]) => [key, source.spelling(['labels', key]) ?? String(value)]),
  )
  const content = {
    name: file.name,
    group: file.group,
    activity: file.activity ?? ('production' as const),
    priority: file.priority ?? 0,
    deadlineMs,
    maxRunning: file.max_running ?? null,
    labels,
  }
  return () => {
    // Who submitted is left out: the same work from another person of the group is the same campaign.
    const digest = digestOfValue({
      ...content,
      steps: steps.map((step) => ({ ...step, template: { ...step.template, subject: null } })),
    })
    return { id, ...content, subject, digest, source: text, steps }
  }
}

/** By place, the first of them, and how many are not shown. */
function inOrder(problems: Problem[], uncounted: number): Problem[] {
  const sorted = problems.sort((a, b) => (a.line ?? 0) - (b.line ?? 0) || (a.column ?? 0) - (b.column ?? 0))
  const more = sorted.length - MAX_PROBLEMS + uncounted
  if (more <= 0) return sorted
  const rest: Problem = { path: '', message: `and ${more} more problems`, line: null, column: null }
  return [...sorted.slice(0, MAX_PROBLEMS), rest]
}

/** `sim.yaml:12:5  steps.sim.resources.memory: expected ...` */
export function problemLine(file: string, { path, message, line, column }: Problem): string {
  const place = line === null ? file : `${file}:${line}:${column}`
  return `${place}  ${path === '' ? '' : `${path}: `}${message}`
}

/** The table files that a campaign names, for the command to read and send along; what cannot be read names none. */
export function tablesNamed(text: string): string[] {
  const read = readSource(text)
  if ('problems' in read) return []
  const steps = (read.source.value as { steps?: Record<string, { table?: unknown } | null> } | null)?.steps
  if (typeof steps !== 'object' || steps === null) return []
  return [...new Set(Object.values(steps).map((step) => step?.table))].filter((table) => typeof table === 'string')
}
