/**
 * A link with the faults of a bad network, drawn from a seed: requests that never arrive, replies that never come
 * back, requests that arrive twice, and delay (which also changes the order). Everything goes through the clock, so
 * five seconds of round trip need not take five seconds.
 */
import type { Clock } from '../../shared/clock.ts'
import { IndraftError } from '../../shared/errors.ts'
import type { Link } from '../../shared/link.ts'
import type { Seeded } from '../seeded.ts'

export interface Faults {
  /** Shares of all requests, 0 to 1. */
  lostRequests: number
  lostReplies: number
  duplicates: number
  /** Each way, evenly drawn between the two, milliseconds. */
  delayMs: readonly [least: number, most: number]
}
export const NO_FAULTS: Faults = { lostRequests: 0, lostReplies: 0, duplicates: 0, delayMs: [0, 0] }

export interface FaultyLink extends Link {
  faults: Faults
  readonly counts: { requests: number; lostRequests: number; lostReplies: number; duplicates: number }
}

export function faultyLink(inner: Link, clock: Clock, random: Seeded, faults: Faults): FaultyLink {
  const counts = { requests: 0, lostRequests: 0, lostReplies: 0, duplicates: 0 }
  const link: FaultyLink = {
    faults,
    counts,
    get isUp() {
      return inner.isUp
    },
    async request(frame, timeoutMs) {
      const { lostRequests, lostReplies, duplicates, delayMs } = link.faults
      const delay = () => clock.sleep(delayMs[0] + random.next() * (delayMs[1] - delayMs[0]))
      counts.requests++
      const endsAtMs = clock.monotonicMs() + timeoutMs
      const neverAnswered = async (): Promise<never> => {
        await clock.sleep(Math.max(0, endsAtMs - clock.monotonicMs()))
        throw new IndraftError('link.timeout')
      }
      if (random.chance(lostRequests)) {
        counts.lostRequests++
        return neverAnswered()
      }
      if (random.chance(duplicates)) {
        counts.duplicates++
        // The copy arrives some time before or after the first; nobody waits for its reply.
        void delay()
          .then(() => inner.request(frame, timeoutMs))
          .catch(() => undefined)
      }
      const loseReply = random.chance(lostReplies)
      await delay()
      const reply = await inner.request(frame, timeoutMs)
      if (loseReply) {
        counts.lostReplies++
        return neverAnswered()
      }
      await delay()
      if (clock.monotonicMs() > endsAtMs) throw new IndraftError('link.timeout')
      return reply
    },
    close: () => inner.close(),
  }
  return link
}
