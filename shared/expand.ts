/**
 * `$(name)` in a template's strings, and the values it stands for in one task. The centre uses it to refuse unknown
 * names at submit, the pilot to expand work whose signature it has checked; both see the same text. Pure.
 *
 * `$$(` stands for a literal `$(`. Values are put in once and never expanded again, so a table's cell cannot name
 * anything.
 */
import { IndraftError } from './errors.ts'
import type { Axis, BundleBody, TemplateBody } from './protocol/work.ts'
import { parseRanges, type Span } from './ranges.ts'

/** Names that every task has; a table's column or a sweep's axis may not take them. */
export const BUILT_IN_NAMES = [
  'index',
  'campaign',
  'campaign_id',
  'step',
  'cores',
  /** Bytes. */
  'memory',
  /** 1 for the first attempt. */
  'attempt',
] as const

export type Values = Readonly<Record<string, string>>

const TOKEN = /\$\$\(|\$\(([^()]*)(\)?)/g

/**
 * The text with every `$(name)` replaced.
 * @throws IndraftError campaign.invalid naming the first name that has no value, or a `$(` that is not closed
 */
export function expand(text: string, values: Values): string {
  return text.replace(TOKEN, (token, name: string | undefined, close: string | undefined) => {
    if (name === undefined) return '$('
    if (close !== ')') {
      throw new IndraftError('campaign.invalid', `"${token.slice(0, 80)}" is not closed; write $$( for a plain $(`)
    }
    const value = Object.hasOwn(values, name) ? values[name] : undefined
    if (value === undefined) {
      const known = Object.keys(values).slice(0, 20).join(', ')
      throw new IndraftError('campaign.invalid', `$(${name.slice(0, 80)}) is not known here; there are: ${known}`)
    }
    return value
  })
}

/** The names that a text mentions, each once. Malformed text yields what can be read of it. */
export function namesIn(text: string): string[] {
  const names = new Set<string>()
  for (const [, name] of text.matchAll(TOKEN)) if (name !== undefined) names.add(name)
  return [...names]
}

/** How many values an axis has; 0 where its step leads away from `to`. */
export function axisSize(axis: Axis): number {
  if (Array.isArray(axis.values)) return axis.values.length
  const { from, to, step } = axis.values
  if (step === 0) return from === to ? 1 : 0
  // A tolerance, so that 1.0..2.0 by 0.1 has eleven values and not ten.
  return Math.max(0, Math.floor((to - from) / step + 1e-9) + 1)
}

/** Number of tasks of a sweep: the product of its axes. */
export function sweepSize(axes: readonly Axis[]): number {
  return axes.reduce((size, axis) => size * axisSize(axis), 1)
}

function axisValue(axis: Axis, position: number): string {
  if (Array.isArray(axis.values)) return axis.values[position]!
  const { from, step } = axis.values
  // Twelve significant figures hide what binary fractions add (0.1 + 2 * 0.1).
  return String(Number((from + position * step).toPrecision(12)))
}

/** A task's position along each axis, the last one varying fastest. */
function sweepValues(axes: readonly Axis[], index: number): Record<string, string> {
  const values: Record<string, string> = {}
  let rest = index
  for (const axis of [...axes].reverse()) {
    const size = axisSize(axis)
    if (size === 0) throw new IndraftError('campaign.invalid', `axis ${axis.name} has no values`)
    values[axis.name] = axisValue(axis, rest % size)
    rest = Math.floor(rest / size)
  }
  if (rest > 0) throw new IndraftError('campaign.invalid', `task ${index} is beyond the sweep`)
  return values
}

/** Where `index` stands among the indices of a set; -1 where it is not in it. */
function positionIn(spans: readonly Span[], index: number): number {
  let before = 0
  for (const [first, last] of spans) {
    if (index >= first && index <= last) return before + index - first
    before += last - first + 1
  }
  return -1
}

export type ValueSource = Pick<TemplateBody, 'campaign' | 'campaignName' | 'step' | 'axes'> & {
  needs: Pick<TemplateBody['needs'], 'cores' | 'memoryBytes'>
}

/**
 * Everything that `$(name)` may name in one task.
 * @param earlierAttempts as the grant's envelope says
 * @throws IndraftError campaign.invalid where the bundle has no such task
 */
export function valuesOf(
  template: ValueSource,
  bundle: Pick<BundleBody, 'tasks' | 'rows'>,
  index: number,
  earlierAttempts = 0,
): Values {
  const values: Record<string, string> = template.axes ? sweepValues(template.axes, index) : {}
  if (bundle.rows) {
    const row = bundle.rows[positionIn(parseRanges(bundle.tasks), index)]
    if (!row) throw new IndraftError('campaign.invalid', `the bundle has no row for task ${index}`)
    Object.assign(values, row)
  }
  return Object.assign(values, {
    index: String(index),
    campaign: template.campaignName,
    campaign_id: template.campaign,
    step: template.step,
    cores: String(template.needs.cores),
    memory: String(template.needs.memoryBytes),
    attempt: String(1 + earlierAttempts),
  } satisfies Record<(typeof BUILT_IN_NAMES)[number], string>)
}
