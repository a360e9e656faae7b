/**
 * That a site's credential which is over opens nothing: its file token is taken away, and nats-server is told the
 * account's claims anew, naming its user, whereupon it ends that user's connections and lets it in no more.
 *
 * What always holds: every running centre tells the server so within LOOK_MS, again after the server was away (its own
 * configuration knows nothing of it), and again where it did not answer. Until then the old credential still opens the
 * site's own subject, and nothing else.
 */
import type { NatsConnection } from '@nats-io/transport-node'
import type { Clock } from '../../shared/clock.ts'
import { connectNats } from '../../shared/link-nats.ts'
import type { Log } from '../../shared/log.ts'
import { type Revocation, revokeUsers, SYSTEM_INBOX } from './nats-account.ts'
import type { SiteRegistry } from './registry.ts'

const LOOK_MS = 2000
const ANSWER_MS = 5000

export interface EndedCredentials {
  /** Looks now; resolves when the server was told. @throws Error where it could not be */
  enforce(): Promise<void>
  stop(): Promise<void>
}

export interface EndedCredentialsOptions {
  sites: SiteRegistry
  clock: Clock
  log: Log
  /** Folder given to prepareNatsAccount. */
  natsAccount: string
  natsUrl: string
  natsCa: string | undefined
  /** The centre's own connection: where it was away, the server may have started anew and know nothing. */
  nats: NatsConnection
}

export function watchCredentials(options: EndedCredentialsOptions): EndedCredentials {
  const { sites, clock, log } = options
  const stopped = new AbortController()
  /** Users that the server was told of, as one text. */
  let told = ''
  let looking: Promise<void> = Promise.resolve()

  const look = async () => {
    const ended = (await sites.credentials()).filter(({ endsAtMs }) => endsAtMs !== null && endsAtMs <= clock.wallMs())
    const text = ended
      .map(({ user }) => user)
      .sort()
      .join(' ')
    if (text === told) return
    for (const credential of ended) await sites.takeFileToken(credential)
    const revocation = await revokeUsers(options.natsAccount, new Map(ended.map((one) => [one.user, one.endsAtMs!])))
    await tell(revocation)
    told = text
    log.info({ sites: [...new Set(ended.map(({ site }) => site))], users: ended.length }, 'credentials.ended')
  }
  const tell = async ({ subject, claims, creds }: Revocation) => {
    const { natsUrl: url, natsCa: ca } = options
    const nats = await connectNats({ url, name: 'central, claims', creds, ca, inboxPrefix: SYSTEM_INBOX }, false)
    try {
      const answer = (await nats.request(subject, claims, { timeout: ANSWER_MS })).json<{
        error?: { description: string }
      }>()
      if (answer.error) throw new Error(`nats-server: ${answer.error.description}`)
    } finally {
      await nats.close()
    }
  }
  const enforce = () => {
    looking = looking.catch(() => {}).then(look)
    return looking
  }
  const listening = (async () => {
    for await (const { type } of options.nats.status()) if (type === 'reconnect') told = ''
  })()
  listening.catch(() => {})
  const watching = (async () => {
    while (!stopped.signal.aborted) {
      await enforce().catch((error: unknown) => log.error({ err: error }, 'credentials.notEnded'))
      await clock.sleep(LOOK_MS, stopped.signal)
    }
  })()
  return {
    enforce,
    async stop() {
      stopped.abort()
      await watching
    },
  }
}
