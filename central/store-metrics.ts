/** What the store says, put into metrics at every scrape: tasks, campaigns, holders, and the figures of their beats. */
import { Counter, Gauge, type Registry } from 'prom-client'
import { type Figure, figuresOf, PILOT_GAUGES, PILOT_TOTALS, RELAY_GAUGES } from '../shared/carried-metrics.ts'
import { sumCounts, TASK_STATES } from '../shared/lifecycle.ts'
import { type Metrics, type MetricTable, registerMetrics } from '../shared/metrics.ts'
import type { CampaignStore, HolderView, Starved } from './campaigns/model.ts'
import { CARRIED, STATE } from './metric-table.ts'
import { ALL_GROUPS } from './people.ts'

export interface StoreCondition {
  sequence: number
  halted: boolean
}

type Shown = Pick<CampaignStore, 'list' | 'holders' | 'pilots' | 'starved'>

export class StoreMetrics {
  readonly #state: Metrics<typeof STATE>
  readonly #carried: Metrics<MetricTable>
  readonly #totals = new HolderTotals()

  constructor(registry: Registry) {
    this.#state = registerMetrics(STATE, registry)
    this.#carried = registerMetrics(CARRIED, registry)
  }

  async read(store: Shown, condition: () => Promise<StoreCondition>): Promise<void> {
    const [campaigns, holders, pilots, now, starved] = await Promise.all([
      store.list([ALL_GROUPS]),
      store.holders(),
      store.pilots(),
      condition(),
      store.starved(),
    ])
    for (const one of [...Object.values(this.#state), ...Object.values(this.#carried)]) {
      if (one instanceof Gauge) one.reset()
    }
    for (const [group, members] of Map.groupBy(campaigns, (campaign) => campaign.group)) {
      const counts = sumCounts(members.map((member) => member.counts))
      for (const state of TASK_STATES) this.#state.indraft_tasks.set({ group, state }, counts[state])
      for (const { state } of members) this.#state.indraft_campaigns.inc({ group, state })
    }
    for (const { site, state } of pilots) this.#state.indraft_pilots.inc({ site, state })
    for (const holder of holders) this.#showHolder(holder)
    for (const { site, figure } of this.#totals.news(holders)) {
      const made = this.#carried[figure.metric as `indraft_${string}`]
      if (made instanceof Counter) made.inc({ ...figure.labels, site }, figure.value)
    }
    this.#showStarved(starved)
    this.#state.indraft_store_sequence.set(now.sequence)
    this.#state.indraft_store_halted.set(now.halted ? 1 : 0)
  }

  #showHolder({ site, holder, role, state, lastSeenMs, gauges }: HolderView): void {
    this.#state.indraft_sessions.inc({ site, role, state })
    if (!isLive(state)) return
    // Of the pilots of a site, behind relays or not; of each relay by itself.
    this.#addUp(figuresOf(PILOT_GAUGES, gauges), { site })
    if (role !== 'relay') return
    this.#state.indraft_relay_last_heard_timestamp_seconds.set({ site, relay: holder }, lastSeenMs / 1000)
    this.#addUp(figuresOf(RELAY_GAUGES, gauges), { site, relay: holder })
  }

  #addUp(figures: readonly Figure[], more: Record<string, string>): void {
    for (const { metric, labels, value } of figures) {
      const made = this.#carried[metric as `indraft_${string}`]
      if (made instanceof Gauge) made.inc({ ...labels, ...more }, value)
    }
  }

  /** A bundle that fits several who wait is one bundle. */
  #showStarved(starved: readonly Starved[]): void {
    for (const steps of Map.groupBy(starved, ({ campaign, step, site }) => `${campaign}/${step}/${site}`).values()) {
      const { group, site } = steps[0]!
      this.#state.indraft_bundles_starved.inc({ group, site }, Math.max(...steps.map(({ bundles }) => bundles)))
    }
  }
}

/**
 * Totals of holders that come and go, as counters that never go back: what each has counted since the last scrape. What
 * a holder had counted before the first scrape of this process is not counted again.
 */
export class HolderTotals {
  #known: Map<string, Record<string, number>> | undefined

  news(holders: readonly HolderView[]): { site: string; figure: Figure }[] {
    const latest = new Map<string, HolderView>()
    for (const one of holders) {
      const name = `${one.site}/${one.holder}`
      if (one.lastSeenMs >= (latest.get(name)?.lastSeenMs ?? 0)) latest.set(name, one)
    }
    const now = new Map([...latest].map(([name, { counters }]) => [name, counters]))
    const before = this.#known ?? now
    this.#known = now
    return [...latest].flatMap(([name, { site, counters }]) => {
      const since = Object.entries(counters).map(([counter, value]) => {
        const last = before.get(name)?.[counter] ?? 0
        // Less than before: it began anew.
        return [counter, value < last ? value : value - last] as const
      })
      return figuresOf(PILOT_TOTALS, Object.fromEntries(since)).map((figure) => ({ site, figure }))
    })
  }
}

function isLive(state: HolderView['state']): boolean {
  return state === 'active' || state === 'draining'
}
