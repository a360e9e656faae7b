/** The one question to the relay (or the centre): what would such nodes be given now? Asked once, with patience of seconds. */
import { readPilotCredential } from '../../shared/credentials.ts'
import { connectNats, natsLink } from '../../shared/link-nats.ts'
import { decode, encode } from '../../shared/protocol/codec.ts'
import type { Message, OfferEntry } from '../../shared/protocol/messages.ts'

/** More kinds than one question holds are not asked about. */
const MOST_ENTRIES = 16

/** @returns null where nobody answers in time, or does not know this question */
export async function askDemand(
  credentialPath: string,
  offer: readonly OfferEntry[],
  patienceMs: number,
): Promise<Message<'demanded'> | null> {
  const { nats, site } = readPilotCredential(credentialPath)
  const endsAtMs = performance.now() + patienceMs
  const connecting = connectNats(
    {
      url: nats.url,
      name: 'indraft-pilot start',
      creds: nats.creds ?? undefined,
      user: nats.user ?? undefined,
      password: nats.password ?? undefined,
      ca: nats.ca ?? undefined,
      inboxPrefix: nats.inboxPrefix,
    },
    false,
  )
  const tooLate = Promise.withResolvers<null>()
  const timer = setTimeout(() => tooLate.resolve(null), patienceMs)
  try {
    const connection = await Promise.race([connecting, tooLate.promise])
    if (!connection) {
      connecting.then((late) => late.close()).catch(() => {})
      return null
    }
    const link = natsLink(connection, site)
    try {
      const frame = encode('demand', { offer: offer.slice(0, MOST_ENTRIES) })
      const reply = decode(await link.request(frame, Math.max(1, endsAtMs - performance.now())))
      return reply.type === 'demanded' ? (reply.body as Message<'demanded'>) : null
    } finally {
      await link.close()
    }
  } catch {
    return null
  } finally {
    clearTimeout(timer)
  }
}
