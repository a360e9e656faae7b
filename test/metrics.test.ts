/** Metrics keep to the rules of CONTRIBUTING.md, and what the programs show is what docs/reference/metrics.md lists. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { CENTRAL_METRICS } from '../central/metric-table.ts'
import { makeMetrics } from '../central/metrics.ts'
import { RELAY_METRICS, RelayMetrics } from '../edge-relay/metrics.ts'
import { silentLog } from '../shared/log.ts'
import type { MetricRow } from '../shared/metrics.ts'

const tables = { central: CENTRAL_METRICS, relay: RELAY_METRICS }
const rows = Object.entries(tables).flatMap(([program, table]) =>
  Object.entries<MetricRow>(table).map(([name, row]) => [name, program, row] as const),
)
/** Prometheus puts these on by itself, or everybody's do. */
const TAKEN = ['job', 'instance', 'cluster', 'region', 'zone', 'service', 'environment', 'namespace', 'pod', 'type']
const UNBOUNDED = ['task', 'campaign', 'attempt', 'pilot', 'holder', 'node', 'session', 'user', 'subject', 'path']

describe('metrics - rules', () => {
  it.each(rows)('%s at %s', (name, _program, { type, unit, labels, meaning }) => {
    expect(name).toMatch(/^indraft(_[a-z]+)+$/)
    expect(name.endsWith('_total')).toBe(type === 'counter')
    const suffix = /^(seconds|bytes)/.exec(unit ?? '')?.[1]
    if (suffix) expect(name).toMatch(new RegExp(`_${suffix}(_total)?$`))
    else expect(name).not.toMatch(/_(seconds|bytes|ms|percent)(_|$)/)
    for (const label of labels) {
      expect([...TAKEN, ...UNBOUNDED, 'name', 'counter']).not.toContain(label)
      expect(name).not.toContain(`_by_${label}`)
    }
    expect(meaning).toMatch(/^[A-Z1].*\.$/)
  })

  it('a name that both programs show is the same metric at both, with site and relay as further labels at central', () => {
    const both = Object.keys(CENTRAL_METRICS).filter((name) => name in RELAY_METRICS) as `indraft_${string}`[]
    expect(both.length).toBeGreaterThan(10)
    for (const name of both) {
      const [central, relay] = [CENTRAL_METRICS[name]!, RELAY_METRICS[name]!]
      expect([central.type, central.unit]).toEqual([relay.type, relay.unit])
      expect(central.labels.filter((label) => label !== 'site' && label !== 'relay')).toEqual(relay.labels)
    }
  })
})

describe('metrics - page', () => {
  const page = readFileSync(join(import.meta.dirname, '../docs/reference/metrics.md'), 'utf8')
  const listed = [...page.matchAll(/^\| `(indraft_\w+)` \|/gm)].map(([, name]) => name!)
  const shown = (text: string) => [...text.matchAll(/^# HELP (indraft_\w+) /gm)].map(([, name]) => name!)

  it('the page lists every metric that a program shows, and no other', async () => {
    const relay = await new RelayMetrics().text({
      gauges: () => ({}),
      pilotCounters: () => ({}),
      pilotsByState: () => ({}),
    })
    const central = await makeMetrics(silentLog).text()
    expect([...new Set([...shown(central), ...shown(relay)])].sort()).toEqual([...new Set(listed)].sort())
  })
})
