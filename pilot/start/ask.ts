/** The one question to the relay (or the centre): what would such nodes be given now? Asked once, with patience of seconds. */
import { readPilotCredential } from '../../shared/credentials.ts'
import { IndraftError } from '../../shared/errors.ts'
import { connectNats, natsLink } from '../../shared/link-nats.ts'
import { decode, encode } from '../../shared/protocol/codec.ts'
import type { Message, OfferEntry } from '../../shared/protocol/messages.ts'

/** More kinds than one question holds are not asked about. */
const MOST_ENTRIES = 16

/** @throws IndraftError link.timeout where nobody answers in time, its code where the question is refused; Error of the connection */
export async function askDispatcher(
  credentialPath: string,
  offer: readonly OfferEntry[],
  patienceMs: number,
): Promise<Message<'demanded'>> {
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
      throw new IndraftError('link.timeout')
    }
    const link = natsLink(connection, site)
    try {
      const frame = encode('demand', { offer: offer.slice(0, MOST_ENTRIES) })
      const reply = decode(await link.request(frame, Math.max(1, endsAtMs - performance.now())))
      if (reply.type === 'demanded') return reply.body as Message<'demanded'>
      const { code, message } = reply.body as Message<'refused'>
      throw new IndraftError(code, message)
    } finally {
      await link.close()
    }
  } finally {
    clearTimeout(timer)
  }
}
