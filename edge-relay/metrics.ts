/**
 * The relay's own listener for those who watch it: /metrics (with the totals of its pilots), /healthz, /readyz. Always
 * on loopback; central shows the same figures, carried up by beats.
 */
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Counter, collectDefaultMetrics, Gauge, Registry } from 'prom-client'
import { answerBrokenHttp } from '../shared/broken-http.ts'
import { listen } from './files.ts'

export interface RelayFigures {
  /** Gauges of now, by name without prefix, as the beat carries them. */
  gauges: () => Record<string, number>
  /** Totals of all pilots since the journal began. */
  pilotCounters: () => Record<string, number>
  pilotsByState: () => Record<string, number>
  /** What is wrong, in words; empty where nothing is. */
  troubles: () => string[]
  isReady: () => boolean
}

export class RelayMetrics {
  readonly registry = new Registry()
  readonly #counter = (name: string, help: string, labelNames: string[] = []) =>
    new Counter({ name, help, labelNames, registers: [this.registry] })
  readonly results = this.#counter('indraft_results_total', 'Results taken in from pilots', ['verdict', 'end'])
  readonly settled = this.#counter('indraft_results_settled_total', 'Results that central has', ['verdict'])
  readonly granted = this.#counter('indraft_tasks_granted_total', 'Tasks leased to pilots')
  readonly pilotsLost = this.#counter('indraft_pilots_lost_total', 'Pilots not heard of any more')
  readonly refused = this.#counter('indraft_messages_refused_total', 'Messages and file requests refused', ['code'])
  readonly refusedByCentral = this.#counter('indraft_upstream_refused_total', 'Refusals from central', ['code'])
  readonly fileBytes = this.#counter('indraft_files_bytes_total', 'Bytes served and taken in', ['kind', 'verb'])
  readonly uploaded = this.#counter('indraft_uploads_bytes_total', 'Bytes handed up to central')
  readonly natsRestarts = this.#counter('indraft_nats_restarts_total', 'Restarts of the nats-server')

  constructor() {
    collectDefaultMetrics({ register: this.registry })
  }

  /** Call once, when there is something to show. */
  show(figures: RelayFigures): void {
    const { registry } = this
    const gauges: [string, string, string][] = [
      ['indraft_buffer_tasks', 'bufferTasks', 'Tasks in the buffer'],
      ['indraft_buffer_bundles', 'bufferLeases', 'Leases held from central'],
      ['indraft_tasks_assigned', 'tasksHeld', 'Tasks at pilots'],
      ['indraft_tasks_running', 'tasksRunning', 'Tasks that pilots said they started'],
      ['indraft_results_waiting', 'resultsWaiting', 'Results that central does not have yet'],
      ['indraft_uploads_waiting', 'uploadsWaiting', 'Files waiting to go up'],
      ['indraft_publications_waiting', 'publicationsWaiting', 'Files waiting for their final name'],
      ['indraft_link_up', 'linkUp', '1 while central answers'],
      ['indraft_slots_busy', 'running', 'Payloads running at all pilots'],
      ['indraft_cores', 'cores', 'Cores of all live pilots'],
      ['indraft_cores_busy', 'coresBusy', 'Cores with a payload'],
      ['indraft_cache_bytes', 'cacheBytes', 'Cached files'],
      ['indraft_disk_full', 'diskFull', '1 while there is no room for new work'],
      ['indraft_disk_free_bytes', 'diskFreeBytes', "Free on the relay's disk"],
    ]
    for (const [name, key, help] of gauges) {
      new Gauge({
        name,
        help,
        registers: [registry],
        collect() {
          this.set(figures.gauges()[key] ?? 0)
        },
      })
    }
    new Gauge({
      name: 'indraft_pilots',
      help: 'Pilots by state',
      labelNames: ['state'],
      registers: [registry],
      collect() {
        for (const [state, count] of Object.entries(figures.pilotsByState())) this.set({ state }, count)
      },
    })
    new Gauge({
      name: 'indraft_pilot_totals',
      help: 'Totals that pilots count, added up over all of them',
      labelNames: ['counter'],
      registers: [registry],
      collect() {
        for (const [counter, value] of Object.entries(figures.pilotCounters())) this.set({ counter }, value)
      },
    })
  }
}

/** Nobody has anything long to say here. */
const SHORT = { requestTimeout: 5000, headersTimeout: 5000, keepAliveTimeout: 1000, connectionsCheckingInterval: 1000 }
const MAX_CONNECTIONS = 64

export async function serveMetrics(
  metrics: RelayMetrics,
  figures: RelayFigures,
  port: number,
): Promise<{ port: number; close(): Promise<void> }> {
  const server = createServer(SHORT, (request, response) => {
    const send = (status: number, text: string, type = 'text/plain') => {
      response.writeHead(status, { 'content-type': type, connection: 'close' }).end(text)
    }
    if (request.method !== 'GET') send(405, 'GET only\n')
    else if (request.url === '/healthz') {
      const troubles = figures.troubles()
      send(troubles.length > 0 ? 503 : 200, `${troubles.join('\n') || 'ok'}\n`)
    } else if (request.url === '/readyz')
      send(figures.isReady() ? 200 : 503, figures.isReady() ? 'ready\n' : 'starting\n')
    else if (request.url === '/metrics') {
      metrics.registry.metrics().then(
        (text) => send(200, text, metrics.registry.contentType),
        (error: Error) => send(500, `${error.message}\n`),
      )
    } else send(404, 'nothing here: /metrics, /healthz, /readyz\n')
  })
  server.maxConnections = MAX_CONNECTIONS
  server.on(
    'clientError',
    answerBrokenHttp((code) => metrics.refused.inc({ code })),
  )
  await listen(server, port, '127.0.0.1')
  return {
    port: (server.address() as AddressInfo).port,
    async close() {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()))
      server.closeAllConnections()
      await closed
    },
  }
}
