/**
 * The nats-server that a relay starts for its pilots: TLS by the relay's own authority, two users, small messages. It
 * is kept running: when it dies it is started again on the same port, so that pilots find it where it was.
 */
import { join } from 'node:path'
import type { Clock } from '../shared/clock.ts'
import { siteSubject } from '../shared/link-nats.ts'
import type { Log } from '../shared/log.ts'
import { type RunningNats, startNats } from '../shared/servers/nats.ts'

export const RELAY_USER = 'relay'
export const PILOT_USER = 'pilot'
export const PILOT_INBOX = '_INBOX_pilot'
const MAX_PAYLOAD = 64 * 1024
const RESTART_PAUSE_MS = { first: 200, longest: 10_000 }
/** A server that lived this long was fine: the next pause is short again. */
const LIVED_LONG_MS = 30_000

export interface KeptNatsOptions {
  dir: string
  site: string
  natsServer: string | null
  host: string
  port: number
  tls: { certPath: string; keyPath: string }
  relayPassword: string
  pilotPassword: string
  clock: Clock
  log: Log
  onRestarted?: () => void
}

export interface KeptNats {
  port: number
  isUp(): boolean
  stop(): Promise<void>
}

export async function keepNats(options: KeptNatsOptions): Promise<KeptNats> {
  const { clock, log } = options
  const stop = new AbortController()
  const start = (port: number): Promise<RunningNats> =>
    startNats({
      dir: join(options.dir, 'nats'),
      configText: natsConfig(options),
      host: options.host,
      port,
      tls: true,
      say: (line) => log.info({ line }, 'nats.said'),
      ...(options.natsServer === null ? {} : { path: options.natsServer }),
    })
  let server: RunningNats | undefined = await start(options.port)
  const { port } = server

  const watch = async () => {
    let pauseMs = RESTART_PAUSE_MS.first
    let startedMs = clock.monotonicMs()
    while (server) {
      const exit = await server.exited
      if (stop.signal.aborted) return
      server = undefined
      log.error({ ...exit, port }, 'nats.died')
      if (clock.monotonicMs() - startedMs > LIVED_LONG_MS) pauseMs = RESTART_PAUSE_MS.first
      while (!server && !stop.signal.aborted) {
        await clock.sleep(pauseMs, stop.signal)
        pauseMs = Math.min(pauseMs * 2, RESTART_PAUSE_MS.longest)
        if (stop.signal.aborted) return
        try {
          server = await start(port)
          startedMs = clock.monotonicMs()
          log.info({ port }, 'nats.restarted')
          options.onRestarted?.()
        } catch (error) {
          log.error({ err: error, port }, 'nats.restartFailed')
        }
      }
    }
  }
  const watching = watch()
  return {
    port,
    isUp: () => server !== undefined,
    async stop() {
      stop.abort()
      await server?.stop()
      await watching
      // It may have come up while it was told to stop.
      await server?.stop()
    },
  }
}

function natsConfig({ site, tls, relayPassword, pilotPassword }: KeptNatsOptions): string {
  const text = JSON.stringify
  return `
server_name: ${text(`relay-${site}`)}
max_payload: ${MAX_PAYLOAD}
tls { cert_file: ${text(tls.certPath)}, key_file: ${text(tls.keyPath)}, timeout: 5 }
authorization {
  users: [
    { user: ${text(RELAY_USER)}, password: ${text(relayPassword)} }
    {
      user: ${text(PILOT_USER)}, password: ${text(pilotPassword)}
      permissions: { publish: [${text(siteSubject(site))}], subscribe: [${text(`${PILOT_INBOX}.>`)}] }
    }
  ]
}
`
}
