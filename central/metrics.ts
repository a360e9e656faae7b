/**
 * What central shows to Prometheus, on a listener of its own. Labels are groups, sites, states and codes; never
 * campaigns or tasks, whose number has no bound. State is read from the store when Prometheus asks; events are counted
 * as they happen. Counters that relays and pilots report are totals since their start and are passed on as they are.
 */
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client'
import { answerBrokenHttp } from '../shared/broken-http.ts'
import type { DispatcherEvents } from '../shared/dispatcher.ts'
import type { ErrorCode } from '../shared/errors.ts'
import { type Counts, emptyCounts, sumCounts, TASK_STATES } from '../shared/lifecycle.ts'
import type { Log } from '../shared/log.ts'
import type { CampaignStore, HolderView } from './campaigns/model.ts'
import type { StoreEvents } from './leases/open.ts'
import { ALL_GROUPS } from './people.ts'

export interface StoreCondition {
  sequence: number
  halted: boolean
}

export interface Metrics {
  registry: Registry
  dispatcherEvents: Required<DispatcherEvents>
  storeEvents: Required<StoreEvents>
  onApiRefused: (code: ErrorCode) => void
  /** From now on the store's state is read at every scrape, and sites have their names in labels. */
  watch(store: CampaignStore, condition: () => Promise<StoreCondition>, siteNames: () => Promise<string[]>): void
  /** In Prometheus' text format. */
  text(): Promise<string>
}

const SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
/** An unknown name is looked for again after this. */
const SITES_FRESH_MS = 5000

export function makeMetrics(log: Log): Metrics {
  const registry = new Registry()
  collectDefaultMetrics({ register: registry })
  const registers = [registry]
  const counter = <L extends string>(name: string, help: string, labelNames: readonly L[]) =>
    new Counter({ name, help, labelNames: [...labelNames], registers })
  const gauge = <L extends string>(name: string, help: string, labelNames: readonly L[]) =>
    new Gauge({ name, help, labelNames: [...labelNames], registers })

  const answered = new Histogram({
    name: 'indraft_message_answer_seconds',
    help: 'Time to answer a message well, by its type. A pull that waits for work counts its wait.',
    labelNames: ['type'],
    buckets: SECONDS,
    registers,
  })
  const refused = counter('indraft_messages_refused_total', 'Messages refused, by code and site.', ['code', 'site'])
  const apiRefused = counter('indraft_api_refused_total', 'API requests refused, by code.', ['code'])
  const verdicts = counter('indraft_results_total', 'Results judged.', ['verdict', 'end', 'group'])
  const bundles = counter('indraft_bundles_granted_total', 'Bundles granted.', ['group'])
  const granted = counter('indraft_tasks_granted_total', 'Tasks granted.', ['group'])
  const expired = counter('indraft_tasks_expired_total', 'Tasks whose lease expired.', ['group'])
  const matched = new Histogram({
    name: 'indraft_match_seconds',
    help: 'Time to choose work for one offer.',
    buckets: SECONDS,
    registers,
  })

  const tasks = gauge('indraft_tasks', 'Tasks by state, of all campaigns of a group.', ['group', 'state'])
  const campaigns = gauge('indraft_campaigns', 'Campaigns by state.', ['group', 'state'])
  const holders = gauge('indraft_sessions', 'Relays and direct pilots by state.', ['site', 'role', 'state'])
  const pilots = gauge('indraft_pilots', 'Pilots by state, those behind relays included.', ['site', 'state'])
  const sequence = gauge('indraft_store_sequence', 'Durable changes of the store since it began.', [])
  const halted = gauge('indraft_store_halted', '1 while granting is stopped because the store lost writes.', [])
  const starved = gauge(
    'indraft_tasks_starved',
    'Queued bundles that fit a holder which waits, both for minutes: 0 unless matching is at fault.',
    ['group', 'site'],
  )
  const silence = gauge('indraft_holder_silence_seconds', 'Since the holder was last heard.', [
    'site',
    'holder',
    'role',
  ])
  const reported = gauge('indraft_holder_value', 'What a relay or direct pilot shows of itself now.', [
    'site',
    'holder',
    'name',
  ])
  const totals = gauge('indraft_holder_total', 'What a relay or direct pilot has counted since its start.', [
    'site',
    'holder',
    'name',
  ])

  const readStore = async (store: CampaignStore, condition: () => Promise<StoreCondition>): Promise<void> => {
    const [allCampaigns, allHolders, allPilots, now, allStarved] = await Promise.all([
      store.list([ALL_GROUPS]),
      store.holders(),
      store.pilots(),
      condition(),
      store.starved(),
    ])
    for (const one of [tasks, campaigns, holders, pilots, silence, reported, totals, starved]) one.reset()
    const byGroup = Map.groupBy(allCampaigns, (campaign) => campaign.group)
    for (const [group, members] of byGroup) {
      const counts: Counts = members.length === 0 ? emptyCounts() : sumCounts(members.map((member) => member.counts))
      for (const state of TASK_STATES) tasks.set({ group, state }, counts[state])
      for (const { state } of members) campaigns.inc({ group, state })
    }
    for (const holder of allHolders) showHolder(holder)
    for (const { site, state } of allPilots) pilots.inc({ site, state })
    for (const { group, site, bundles: found } of allStarved) starved.inc({ group, site }, found)
    sequence.set(now.sequence)
    halted.set(now.halted ? 1 : 0)
  }
  const showHolder = ({ site, holder, role, state, lastSeenMs, gauges, counters }: HolderView): void => {
    holders.inc({ site, role, state })
    if (state !== 'active' && state !== 'draining') return
    silence.set({ site, holder, role }, Math.max(0, Date.now() - lastSeenMs) / 1000)
    for (const [name, value] of Object.entries(gauges)) reported.set({ site, holder, name }, value)
    for (const [name, value] of Object.entries(counters)) totals.set({ site, holder, name }, value)
  }

  /** Registered, or with a live session. Anybody may invent a name, so no other becomes a label. */
  let knownSites: ReadonlySet<string> = new Set()
  let readSites = async (): Promise<ReadonlySet<string>> => knownSites
  let reading: Promise<void> | undefined
  let readAtMs = Number.NEGATIVE_INFINITY
  const siteLabel = async (site: string): Promise<string> => {
    if (!knownSites.has(site) && (reading || performance.now() - readAtMs > SITES_FRESH_MS)) {
      reading ??= readSites().then(
        (names) => {
          knownSites = names
          readAtMs = performance.now()
          reading = undefined
        },
        (error) => {
          readAtMs = performance.now()
          reading = undefined
          log.warn({ err: error }, 'metrics.sitesUnread')
        },
      )
      await reading
    }
    return knownSites.has(site) ? site : 'unknown'
  }

  let readState = async (): Promise<void> => {}
  return {
    registry,
    dispatcherEvents: {
      onRefused: (code, { site }) => void siteLabel(site).then((label) => refused.inc({ code, site: label })),
      onAnswered: (type, durationMs) => answered.observe({ type }, durationMs / 1000),
    },
    storeEvents: {
      onVerdict: (verdict, end, group) => verdicts.inc({ verdict, end, group }),
      onGranted: (group, bundleCount, taskCount) => {
        bundles.inc({ group }, bundleCount)
        granted.inc({ group }, taskCount)
      },
      onExpired: (group, taskCount) => expired.inc({ group }, taskCount),
      onMatched: (durationMs) => matched.observe(durationMs / 1000),
    },
    onApiRefused: (code) => apiRefused.inc({ code }),
    watch(store, condition, siteNames) {
      readState = () => readStore(store, condition)
      readSites = async () => {
        const [names, sessions] = await Promise.all([siteNames(), store.holders()])
        const live = sessions.filter(({ state }) => state === 'active' || state === 'draining')
        return new Set([...names, ...live.map(({ site }) => site)])
      }
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

/** Nobody has anything long to say here. */
const SHORT = { requestTimeout: 5000, headersTimeout: 5000, keepAliveTimeout: 1000, connectionsCheckingInterval: 1000 }
const MAX_CONNECTIONS = 64

export interface MetricsListener {
  url: string
  close(): Promise<void>
}

/** /metrics, /healthz (the process runs) and /readyz (it can do its work), plain HTTP without tokens. */
export async function listenForMetrics(
  metrics: Metrics,
  at: { host: string; port: number },
  ready: () => Promise<void>,
): Promise<MetricsListener> {
  const pages: Record<string, () => Promise<[status: number, text: string, type: string]>> = {
    '/metrics': async () => [200, await metrics.text(), metrics.registry.contentType],
    '/healthz': async () => [200, 'ok\n', 'text/plain'],
    '/readyz': () =>
      ready().then(
        () => [200, 'ready\n', 'text/plain'],
        (error: Error) => [503, `not ready: ${error.message}\n`, 'text/plain'],
      ),
  }
  const server = createServer(SHORT, (request, response) => {
    const page = pages[(request.url ?? '').split('?', 1)[0]!]
    const answer = page ? page() : Promise.resolve<[number, string, string]>([404, 'not found\n', 'text/plain'])
    answer.then(
      ([status, text, type]) => response.writeHead(status, { 'content-type': type, connection: 'close' }).end(text),
      () => response.writeHead(500).end(),
    )
  })
  server.maxConnections = MAX_CONNECTIONS
  server.on('clientError', answerBrokenHttp(metrics.onApiRefused))
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(at.port, at.host, resolve)
  })
  const { port } = server.address() as AddressInfo
  return {
    url: `http://${at.host.includes(':') ? `[${at.host}]` : at.host}:${port}`,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve())
        server.closeAllConnections()
      }),
  }
}
