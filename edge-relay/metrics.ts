/** What a relay shows of itself and its pilots; most of it central shows too, carried up by beats. */
import { Counter, collectDefaultMetrics, Gauge, Registry } from 'prom-client'
import { figuresOf, PILOT_GAUGES, PILOT_TOTALS, RELAY_GAUGES } from '../shared/carried-metrics.ts'
import { type Metrics, type MetricTable, registerMetrics } from '../shared/metrics.ts'

const OWN = {
  indraft_relay_results_total: {
    type: 'counter',
    unit: 'results',
    labels: ['verdict', 'end'],
    meaning: "Results taken in from pilots, by the relay's verdict.",
  },
  indraft_relay_results_settled_total: {
    type: 'counter',
    unit: 'results',
    labels: ['verdict'],
    meaning: "Results that central has, by central's verdict.",
  },
  indraft_relay_tasks_granted_total: { type: 'counter', unit: 'tasks', labels: [], meaning: 'Tasks leased to pilots.' },
  indraft_relay_pilots_lost_total: {
    type: 'counter',
    unit: 'pilots',
    labels: [],
    meaning: 'Pilots not heard of any more.',
  },
  indraft_relay_messages_refused_total: {
    type: 'counter',
    unit: 'messages',
    labels: ['code'],
    meaning: 'Messages and file requests that the relay refused.',
  },
  indraft_relay_upstream_refused_total: {
    type: 'counter',
    unit: 'messages',
    labels: ['code'],
    meaning: 'Messages of the relay that central refused, or did not answer.',
  },
  indraft_relay_file_bytes_total: {
    type: 'counter',
    unit: 'bytes',
    labels: ['kind', 'verb'],
    meaning: 'Bytes of files served to pilots and taken in from them.',
  },
  indraft_relay_uploaded_bytes_total: {
    type: 'counter',
    unit: 'bytes',
    labels: [],
    meaning: 'Bytes of files handed up to central.',
  },
  indraft_relay_nats_restarts_total: {
    type: 'counter',
    unit: 'restarts',
    labels: [],
    meaning: 'Restarts of the nats-server.',
  },
  indraft_pilots: { type: 'gauge', unit: 'pilots', labels: ['state'], meaning: 'Pilots by state.' },
} as const satisfies MetricTable

const CARRIED = { ...PILOT_TOTALS, ...PILOT_GAUGES, ...RELAY_GAUGES }

export const RELAY_METRICS: MetricTable = { ...OWN, ...CARRIED }

/** Read at every scrape. */
export interface RelayFigures {
  /** Gauges of now, as the beat carries them. */
  gauges: () => Record<string, number>
  /** Totals of all pilots since the journal began, as the beat carries them. */
  pilotCounters: () => Record<string, number>
  pilotsByState: () => Record<string, number>
}

export class RelayMetrics {
  readonly #registry = new Registry()
  readonly #carried: Metrics<MetricTable>
  readonly count: Metrics<typeof OWN>

  constructor() {
    collectDefaultMetrics({ register: this.#registry })
    this.count = registerMetrics(OWN, this.#registry)
    this.#carried = registerMetrics<MetricTable>(CARRIED, this.#registry)
  }

  get contentType(): string {
    return this.#registry.contentType
  }

  /** In Prometheus' text format. */
  async text({ gauges, pilotCounters, pilotsByState }: RelayFigures): Promise<string> {
    for (const [state, count] of Object.entries(pilotsByState())) this.count.indraft_pilots.set({ state }, count)
    for (const { metric, labels, value } of figuresOf(CARRIED, { ...pilotCounters(), ...gauges() })) {
      const made = this.#carried[metric as `indraft_${string}`]
      if (made instanceof Gauge) made.set(labels, value)
      else if (made instanceof Counter) {
        made.remove(labels)
        made.inc(labels, value)
      }
    }
    return await this.#registry.metrics()
  }
}
