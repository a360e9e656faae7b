/**
 * Figures that beats carry upwards, and the metrics they are shown as: by the relay itself, and by central with the
 * site (and the relay) as labels, because monitoring usually reaches only central. What a beat carries under a name that
 * is not here is shown nowhere.
 */
import type { MetricRow } from './metrics.ts'

export interface CarriedRow extends MetricRow {
  /** Names in the beat, each with the labels it stands for. */
  from: Readonly<Record<string, Readonly<Record<string, string>>>>
  /** What a figure of the beat is multiplied by. */
  factor?: number
}
export type CarriedTable = Readonly<Record<`indraft_${string}`, CarriedRow>>

const MS = 0.001
const counted = (unit: string, meaning: string, ...names: string[]) => ({
  ...{ type: 'counter' as const, unit, labels: [], meaning },
  from: Object.fromEntries(names.map((name) => [name, {}])),
})
const shown = (unit: string | null, meaning: string, name: string) => ({
  ...{ type: 'gauge' as const, unit, labels: [], meaning },
  from: { [name]: {} },
})

/** What pilots count; a relay adds its pilots up. */
export const PILOT_TOTALS = {
  indraft_pilot_tasks_started_total: counted('tasks', 'Tasks that pilots started.', 'tasks_started'),
  indraft_pilot_tasks_ended_total: {
    ...{ type: 'counter', unit: 'tasks', labels: ['end'], meaning: 'Tasks that ended at pilots, by how.' },
    from: { tasks_done: { end: 'done' }, tasks_failed: { end: 'failed' } },
  },
  indraft_pilot_payload_wall_seconds_total: {
    ...counted('seconds', 'Time that payloads ran, added up.', 'wall_ms'),
    factor: MS,
  },
  indraft_pilot_payload_cpu_seconds_total: {
    ...counted('seconds', 'Processor time that payloads used.', 'cpu_ms'),
    factor: MS,
  },
  indraft_pilot_payload_core_seconds_total: {
    ...counted('seconds', 'Time that payloads ran times the cores they had.', 'core_ms'),
    factor: MS,
  },
  indraft_pilot_suspensions_total: counted(
    'standstills',
    'Times that a pilot noticed that it had stood still.',
    'suspended',
  ),
  indraft_pilot_suspended_seconds_total: {
    ...counted('seconds', 'How long pilots had stood still.', 'suspended_ms'),
    factor: MS,
  },
  indraft_orders_ignored_total: counted('orders', 'Orders that an older pilot or relay did not know.', 'ordersIgnored'),
} as const satisfies CarriedTable

/** What pilots have, added up: those of a relay, or those of a site. */
export const PILOT_GAUGES = {
  indraft_pilot_cores: shown('cores', 'Cores of all live pilots.', 'cores'),
  indraft_pilot_cores_busy: shown('cores', 'Of those, with a payload.', 'coresBusy'),
  indraft_pilot_payloads_running: shown('payloads', 'Payloads that run at live pilots.', 'running'),
} as const satisfies CarriedTable

/** What a relay says of itself. */
export const RELAY_GAUGES = {
  indraft_relay_buffer_tasks: shown('tasks', 'Tasks in the buffer, at no pilot yet.', 'bufferTasks'),
  indraft_relay_leases: shown('leases', 'Leases held from central.', 'bufferLeases'),
  indraft_relay_tasks_assigned: shown('tasks', 'Tasks at pilots, started or not.', 'tasksHeld'),
  indraft_relay_tasks_running: shown('tasks', 'Tasks that pilots said they started.', 'tasksRunning'),
  indraft_relay_results_waiting: shown('results', 'Results that central does not have yet.', 'resultsWaiting'),
  indraft_relay_uploads_waiting: shown('files', 'Files waiting to go up.', 'uploadsWaiting'),
  indraft_relay_publications_waiting: shown('files', 'Files waiting for their final name.', 'publicationsWaiting'),
  indraft_relay_cache_bytes: shown('bytes', 'Cached files.', 'cacheBytes'),
  indraft_relay_link_up: shown(null, '1 while central answers.', 'linkUp'),
  indraft_relay_disk_full: shown(null, '1 while there is no room for new work.', 'diskFull'),
  indraft_relay_disk_free_bytes: shown('bytes', "Free on the relay's disk.", 'diskFreeBytes'),
} as const satisfies CarriedTable

export interface Figure {
  metric: string
  labels: Readonly<Record<string, string>>
  value: number
}

/** Of a beat's figures those that a table knows: a peer may send any. */
export function carriedIn(table: CarriedTable, carried: Readonly<Record<string, number>>): Record<string, number> {
  const names = Object.values<CarriedRow>(table).flatMap(({ from }) => Object.keys(from))
  const known = names.filter((name) => Object.hasOwn(carried, name) && carried[name]! >= 0)
  return Object.fromEntries(known.map((name) => [name, carried[name]!]))
}

/** What a beat's figures are, as metrics of this table. */
export function figuresOf(table: CarriedTable, carried: Readonly<Record<string, number>>): Figure[] {
  return Object.entries<CarriedRow>(table).flatMap(([metric, { from, factor = 1 }]) =>
    Object.entries(from).flatMap(([name, labels]) => {
      const value = carried[name]
      return value === undefined ? [] : [{ metric, labels, value: value * factor }]
    }),
  )
}
