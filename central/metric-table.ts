/**
 * Every metric of central, one row each. Labels are groups, sites, relays, states and codes; never campaigns, tasks or
 * pilots, whose number has no bound.
 */
import { PILOT_GAUGES, PILOT_TOTALS, RELAY_GAUGES } from '../shared/carried-metrics.ts'
import { type MetricTable, withLabels } from '../shared/metrics.ts'

const SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]

/** Counted as it happens. */
export const EVENTS = {
  indraft_message_answer_seconds: {
    type: 'histogram',
    unit: 'seconds',
    labels: ['message'],
    meaning: 'Time to answer a message well, by its type. A pull that waits for work counts its wait.',
    buckets: SECONDS,
  },
  indraft_messages_refused_total: {
    type: 'counter',
    unit: 'messages',
    labels: ['code', 'site'],
    meaning: 'Messages that central refused.',
  },
  indraft_api_refused_total: {
    type: 'counter',
    unit: 'requests',
    labels: ['code'],
    meaning: 'API requests that were refused.',
  },
  indraft_results_total: {
    type: 'counter',
    unit: 'results',
    labels: ['verdict', 'end', 'group'],
    meaning: 'Results judged, by verdict and by how the attempt ended.',
  },
  indraft_bundles_granted_total: { type: 'counter', unit: 'bundles', labels: ['group'], meaning: 'Bundles granted.' },
  indraft_tasks_granted_total: { type: 'counter', unit: 'tasks', labels: ['group'], meaning: 'Tasks granted.' },
  indraft_tasks_expired_total: {
    type: 'counter',
    unit: 'tasks',
    labels: ['group'],
    meaning: 'Tasks whose lease expired.',
  },
  indraft_match_seconds: {
    type: 'histogram',
    unit: 'seconds',
    labels: [],
    meaning: 'Time to choose work for one offer.',
    buckets: SECONDS,
  },
} as const satisfies MetricTable

/** Read from the store at every scrape. */
export const STATE = {
  indraft_tasks: {
    type: 'gauge',
    unit: 'tasks',
    labels: ['group', 'state'],
    meaning: 'Tasks of all campaigns of a group, by state.',
  },
  indraft_campaigns: {
    type: 'gauge',
    unit: 'campaigns',
    labels: ['group', 'state'],
    meaning: 'Campaigns by state.',
  },
  indraft_sessions: {
    type: 'gauge',
    unit: 'sessions',
    labels: ['site', 'role', 'state'],
    meaning: 'Relays, and pilots without a relay, by state.',
  },
  indraft_pilots: {
    type: 'gauge',
    unit: 'pilots',
    labels: ['site', 'state'],
    meaning: 'Pilots by state, those behind relays included.',
  },
  indraft_store_sequence: {
    type: 'gauge',
    unit: 'changes',
    labels: [],
    meaning: 'Durable changes of the store since it began.',
  },
  indraft_store_halted: {
    type: 'gauge',
    unit: null,
    labels: [],
    meaning: '1 while granting is stopped because the store lost writes.',
  },
  indraft_bundles_starved: {
    type: 'gauge',
    unit: 'bundles',
    labels: ['group', 'site'],
    meaning:
      'Queued bundles that fit a relay or pilot which waits, both for minutes: none unless matching is at fault.',
  },
  indraft_relay_last_heard_timestamp_seconds: {
    type: 'gauge',
    unit: 'seconds since 1970',
    labels: ['site', 'relay'],
    meaning: 'When the relay was last heard of, for as long as it counts as live.',
  },
} as const satisfies MetricTable

/** What beats carry, of relays each by itself, of pilots by site. */
export const CARRIED: MetricTable = {
  ...withLabels(PILOT_TOTALS, 'site'),
  ...withLabels(PILOT_GAUGES, 'site'),
  ...withLabels(RELAY_GAUGES, 'site', 'relay'),
}

export const CENTRAL_METRICS: MetricTable = { ...EVENTS, ...STATE, ...CARRIED }
