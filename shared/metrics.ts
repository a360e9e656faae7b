/**
 * Metrics as tables: a row is all there is to know of one, the program's metrics are made from its rows, and so is the
 * page docs/reference/metrics.md.
 *
 * What always holds, and metrics.test.ts checks: base units (seconds, bytes); counters end in `_total`; reasons and
 * states are labels; a name means the same wherever it is shown; no label whose values have no bound.
 */
import { Counter, Gauge, Histogram, type Registry } from 'prom-client'

export interface MetricRow {
  type: 'counter' | 'gauge' | 'histogram'
  /** What is counted, or the unit of what is measured; null for 0 or 1. */
  unit: string | null
  labels: readonly string[]
  meaning: string
  /** Of a histogram. */
  buckets?: readonly number[]
}

export type MetricTable = Readonly<Record<`indraft_${string}`, MetricRow>>

type Made<R extends MetricRow, L extends string = R['labels'][number]> = {
  counter: Counter<L>
  gauge: Gauge<L>
  histogram: Histogram<L>
}[R['type']]

export type Metrics<T extends MetricTable> = { readonly [N in Extract<keyof T, `indraft_${string}`>]: Made<T[N]> }

/** Makes and registers every metric of a table. */
export function registerMetrics<T extends MetricTable>(table: T, registry: Registry): Metrics<T> {
  const made = Object.entries<MetricRow>(table).map(([name, { type, labels, meaning, buckets }]) => {
    const options = { name, help: meaning, labelNames: [...labels], registers: [registry] }
    if (type === 'counter') return [name, new Counter(options)]
    if (type === 'gauge') return [name, new Gauge(options)]
    return [name, new Histogram({ ...options, ...(buckets ? { buckets: [...buckets] } : {}) })]
  })
  return Object.fromEntries(made)
}

/** The same metrics with more labels, as another program shows them. */
export function withLabels(table: MetricTable, ...more: string[]): MetricTable {
  const rows = Object.entries<MetricRow>(table)
  return Object.fromEntries(rows.map(([name, row]) => [name, { ...row, labels: [...more, ...row.labels] }]))
}
