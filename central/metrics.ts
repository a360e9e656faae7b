/**
 * What central shows to Prometheus: events are counted as they happen, state is read from the store when Prometheus asks.
 * The rows are in metric-table.ts.
 */
import { collectDefaultMetrics, Registry } from 'prom-client'
import type { DispatcherEvents } from '../shared/dispatcher.ts'
import type { ErrorCode } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import { registerMetrics } from '../shared/metrics.ts'
import type { CampaignStore } from './campaigns/model.ts'
import type { StoreEvents } from './leases/options.ts'
import { EVENTS } from './metric-table.ts'
import { SiteLabel } from './site-label.ts'
import { type StoreCondition, StoreMetrics } from './store-metrics.ts'

export interface CentralMetrics {
  registry: Registry
  dispatcherEvents: Required<DispatcherEvents>
  storeEvents: Required<StoreEvents>
  onApiRefused: (code: ErrorCode) => void
  /** From now on the store's state is read at every scrape, and sites have their names in labels. */
  watch(store: CampaignStore, condition: () => Promise<StoreCondition>, siteNames: () => Promise<string[]>): void
  /** In Prometheus' text format. */
  text(): Promise<string>
}

export function makeMetrics(log: Log): CentralMetrics {
  const registry = new Registry()
  collectDefaultMetrics({ register: registry })
  const count = registerMetrics(EVENTS, registry)
  const state = new StoreMetrics(registry)
  const label = new SiteLabel(log)
  let readState = async (): Promise<void> => {}
  return {
    registry,
    dispatcherEvents: {
      onRefused: (code, { site }) =>
        void label.of(site).then((known) => count.indraft_messages_refused_total.inc({ code, site: known })),
      onAnswered: (message, durationMs) => count.indraft_message_answer_seconds.observe({ message }, durationMs / 1000),
    },
    storeEvents: {
      onVerdict: (verdict, end, group) => count.indraft_results_total.inc({ verdict, end, group }),
      onGranted: (group, bundles, tasks) => {
        count.indraft_bundles_granted_total.inc({ group }, bundles)
        count.indraft_tasks_granted_total.inc({ group }, tasks)
      },
      onExpired: (group, tasks) => count.indraft_tasks_expired_total.inc({ group }, tasks),
      onMatched: (durationMs) => count.indraft_match_seconds.observe(durationMs / 1000),
    },
    onApiRefused: (code) => count.indraft_api_refused_total.inc({ code }),
    watch(store, condition, siteNames) {
      readState = () => state.read(store, condition)
      label.readFrom(async () => {
        const [names, sessions] = await Promise.all([siteNames(), store.holders()])
        const live = sessions.filter((one) => one.state === 'active' || one.state === 'draining')
        return [...names, ...live.map(({ site }) => site)]
      })
    },
    async text() {
      try {
        await readState()
      } catch (error) {
        // The event counters are still worth having while the store is away.
        log.warn({ err: error }, 'metrics.storeUnread')
      }
      return await registry.metrics()
    },
  }
}
