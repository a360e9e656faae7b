/**
 * The one outgoing connection to central's NATS. Made in the background and made again for ever: the relay starts and
 * works without it. Until it stands, requests fail at once and are repeated by who made them.
 */
import type { NatsConnection } from '@nats-io/transport-node'
import type { Clock } from '../shared/clock.ts'
import type { RelayCredential } from '../shared/credentials.ts'
import { IndraftError } from '../shared/errors.ts'
import type { Link } from '../shared/link.ts'
import { connectNats, natsLink, siteInboxPrefix } from '../shared/link-nats.ts'
import type { Log } from '../shared/log.ts'

const AGAIN_AFTER_MS = 5_000

/** @param credential asked at each connection: it may be renewed, but stays of the same site */
export function centralLink(credential: () => RelayCredential, name: string, clock: Clock, log: Log): Link {
  const { site } = credential()
  const stop = new AbortController()
  let connection: NatsConnection | undefined
  let link: Link | undefined

  const keepConnected = async () => {
    while (!stop.signal.aborted) {
      const { nats } = credential()
      try {
        const made = await connectNats({
          url: nats.url,
          name: `${name}@${site}`,
          creds: () => credential().nats.creds,
          ...(nats.ca === null ? {} : { ca: nats.ca }),
          inboxPrefix: siteInboxPrefix(site),
        })
        if (stop.signal.aborted) return await made.close()
        connection = made
        link = natsLink(made, site)
        log.info({ url: nats.url }, 'link.up')
        // Ends only when the server refuses this credential for good, or we close it.
        const error = await made.closed()
        if (!stop.signal.aborted) log.error({ err: error ?? undefined, url: nats.url }, 'link.lost')
      } catch (error) {
        log.error({ err: error, url: nats.url }, 'link.failed')
      }
      link = undefined
      connection = undefined
      await clock.sleep(AGAIN_AFTER_MS, stop.signal)
    }
  }
  void keepConnected()

  return {
    get isUp() {
      return link?.isUp ?? false
    },
    async request(frame, timeoutMs) {
      if (stop.signal.aborted) throw new IndraftError('link.closed')
      if (!link) throw new IndraftError('link.noResponder')
      try {
        return await link.request(frame, timeoutMs)
      } catch (error) {
        // A connection that ended under the request is made again; only our own stop is final.
        const isOver = error instanceof IndraftError && error.code === 'link.closed' && !stop.signal.aborted
        throw isOver ? new IndraftError('link.noResponder', undefined, { cause: error }) : error
      }
    },
    async close() {
      stop.abort()
      await (link ?? connection)?.close()
    },
  }
}
