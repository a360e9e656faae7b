/** Carries the conformance suite over a real nats-server, one for all the scenarios of a file. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Clock } from '../../shared/clock.ts'
import type { FrameHandler } from '../../shared/link.ts'
import { connectNats, natsLink, serveNats, siteInboxPrefix } from '../../shared/link-nats.ts'
import { silentLog } from '../../shared/log.ts'
import { type RunningNats, startNats } from '../../shared/servers/nats.ts'
import type { Carrier } from './suite.ts'

/** Start before the scenarios, stop after them. */
export function overNats(): Carrier & { start(): Promise<void>; stop(): Promise<void> } {
  const dir = mkdtempSync(join(tmpdir(), 'indraft-conformance-'))
  let server: RunningNats | undefined
  return {
    name: 'over NATS',
    async start() {
      server = await startNats({ dir, configText: 'max_payload: 64KB' })
    },
    async stop() {
      await server?.stop()
      rmSync(dir, { recursive: true, force: true })
    },
    async serve(handler: FrameHandler, site: string, _clock: Clock) {
      const url = server!.url
      const connection = await connectNats({ url, name: 'dispatcher' })
      const serving = serveNats(connection, handler, silentLog, site)
      // Subscribed only when the server has said so; a request before that would find nobody.
      await connection.flush()
      return {
        open: async () =>
          natsLink(await connectNats({ url, name: 'holder', inboxPrefix: siteInboxPrefix(site) }), site),
        async close() {
          await serving.close()
          await connection.close()
        },
      }
    },
  }
}
