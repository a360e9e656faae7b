/**
 * A tap on each hop's NATS: hears what holders ask, and says it again later, out of order and several times over, as a
 * network or an attacker with the site's own credential might. Replies go to an inbox of its own under the same prefix,
 * which a dispatcher accepts.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { NatsConnection } from '@nats-io/transport-node'
import { readPilotCredential } from '../../shared/credentials.ts'
import { connectNats, siteInboxPrefix, siteSubject } from '../../shared/link-nats.ts'
import { seeded } from '../seeded.ts'
import type { Relay, World } from './world.ts'

const MOST_FRAMES = 2000

export interface Taps {
  /** Listens for half of the time, then sends what it heard again. @returns how many messages were sent */
  replay(relay: string, hop: 'relay' | 'central', copies: number, forMs: number, seed: number): Promise<number>
  close(): Promise<void>
}

export function openTaps(world: World): Taps {
  const open = new Set<NatsConnection>()
  const tap = async (
    { site, state }: Relay,
    hop: 'relay' | 'central',
  ): Promise<{ connection: NatsConnection; inbox: string }> => {
    if (hop === 'central') {
      // May hear every site, as central itself.
      const file = join(world.centralState, 'nats-account', 'nats-account.json')
      const { centralCreds } = JSON.parse(readFileSync(file, 'utf8')) as { centralCreds: string }
      const connection = await connectNats({
        url: world.natsUrl,
        name: 'tap',
        creds: centralCreds,
        ca: world.ca,
        inboxPrefix: '_INBOX_central',
      })
      return { connection, inbox: siteInboxPrefix(site) }
    }
    const { nats } = readPilotCredential(join(state, 'pilot.json'))
    const identity = JSON.parse(readFileSync(join(state, 'identity.json'), 'utf8')) as { relayPassword: string }
    const connection = await connectNats({
      url: nats.url,
      name: 'tap',
      user: 'relay',
      password: identity.relayPassword,
      ca: nats.ca!,
    })
    return { connection, inbox: nats.inboxPrefix }
  }
  return {
    async replay(name, hop, copies, forMs, seed) {
      const late = sleep(forMs).then(() => undefined)
      const relay = world.relays.get(name)!
      const { site } = relay
      const connecting = tap(relay, hop)
      const at = await Promise.race([connecting, late])
      if (!at) {
        // It may come to stand later, and nobody wants it then.
        void connecting.then(({ connection }) => connection.close()).catch(() => {})
        return 0
      }
      const { connection, inbox } = at
      open.add(connection)
      try {
        const frames: Uint8Array[] = []
        const heard = connection.subscribe(siteSubject(site), {
          callback: (error, message) => {
            // Not what we say ourselves.
            if (!error && frames.length < MOST_FRAMES && !message.reply?.includes('.tap.')) frames.push(message.data)
          },
        })
        await sleep(forMs / 2)
        const random = seeded(seed)
        const again = frames.flatMap((frame) => Array.from({ length: 1 + random.below(copies) }, () => frame))
        for (let i = again.length - 1; i > 0; i--) {
          const j = random.below(i + 1)
          ;[again[i], again[j]] = [again[j]!, again[i]!]
        }
        for (const [i, frame] of again.entries()) {
          connection.publish(siteSubject(site), frame, { reply: `${inbox}.tap.${seed}.${i}` })
          if (i % 20 === 19) await sleep(forMs / 2 / Math.ceil(again.length / 20))
        }
        heard.unsubscribe()
        return again.length
      } finally {
        open.delete(connection)
        await connection.close().catch(() => {})
      }
    },
    async close() {
      for (const connection of open) await connection.close().catch(() => {})
    },
  }
}
