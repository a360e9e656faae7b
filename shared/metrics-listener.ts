/**
 * The listener for those who watch a service: /metrics for Prometheus, /healthz (whether anything is wrong) and /readyz
 * (whether it can do its work). Plain HTTP without tokens, on a port of its own.
 */
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { answerBrokenHttp } from './broken-http.ts'
import type { ErrorCode } from './errors.ts'
import { closeServer, listen } from './listening.ts'

/** Nobody has anything long to say here. */
const SHORT = { requestTimeout: 5000, headersTimeout: 5000, keepAliveTimeout: 1000, connectionsCheckingInterval: 1000 }
const MAX_CONNECTIONS = 64
const PLAIN = 'text/plain; charset=utf-8'

export interface Watched {
  /** In Prometheus' text format. */
  metrics: () => Promise<string>
  contentType: string
  /** What is wrong, in words; empty where nothing is. */
  troubles: () => readonly string[]
  /** Why it cannot do its work now; null where it can. */
  notReady: () => Promise<string | null>
  /** A request that was none. */
  onRefused: (code: ErrorCode) => void
}

export interface MetricsListener {
  port: number
  url: string
  close(): Promise<void>
}

type Page = [status: number, text: string, type?: string]

/** @throws Error naming the address where it is taken */
export async function listenForMetrics(
  { metrics, contentType, troubles, notReady, onRefused }: Watched,
  { host, port }: { host: string; port: number },
): Promise<MetricsListener> {
  const pages: Readonly<Record<string, () => Promise<Page>>> = {
    '/metrics': async () => [200, await metrics(), contentType],
    '/healthz': async () => {
      const wrong = troubles()
      return wrong.length > 0 ? [503, `${wrong.join('\n')}\n`] : [200, 'ok\n']
    },
    '/readyz': async () => {
      const why = await notReady()
      return why === null ? [200, 'ready\n'] : [503, `not ready: ${why}\n`]
    },
  }
  const answer = async (method: string | undefined, url = ''): Promise<Page> => {
    if (method !== 'GET' && method !== 'HEAD') return [405, 'GET only\n']
    const page = pages[url.split('?', 1)[0]!]
    return page ? await page() : [404, `nothing here: ${Object.keys(pages).join(', ')}\n`]
  }
  const server = createServer(SHORT, (request, response) => {
    answer(request.method, request.url)
      .catch((error: Error): Page => [500, `${error.message}\n`])
      .then(([status, text, type = PLAIN]) => {
        response.writeHead(status, { 'content-type': type, connection: 'close' }).end(text)
      })
  })
  server.maxConnections = MAX_CONNECTIONS
  server.on('clientError', answerBrokenHttp(onRefused))
  await listen(server, port, host)
  const { port: taken } = server.address() as AddressInfo
  return {
    port: taken,
    url: `http://${host.includes(':') ? `[${host}]` : host}:${taken}`,
    close: () => closeServer(server),
  }
}
