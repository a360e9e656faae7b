/**
 * Every interval that two programs must agree on, in one profile. A dispatcher sends its own in `welcome`; holders
 * have no timings of their own. `scale` shortens all of them alike, for one machine (`indraft up`) and for tests.
 */
import type { Message } from './protocol/messages.ts'

export type Timings = Message<'welcome'>['timings']

const SECOND = 1000
const MINUTE = 60 * SECOND
const HOUR = 60 * MINUTE

/** For pilots, which are near and may vanish with their node at any time. */
const PILOT: Timings = {
  beatMs: 5 * SECOND,
  lostAfterMs: 60 * SECOND,
  leaseMs: 60 * SECOND,
  confirmMs: 60 * SECOND,
  pullWaitMs: 25 * SECOND,
}

/** For relays: `outage` is how long a link may be cut before their work goes to others. */
const RELAY: Timings = {
  beatMs: 10 * SECOND,
  lostAfterMs: 2 * HOUR,
  leaseMs: 2 * HOUR,
  confirmMs: 60 * SECOND,
  pullWaitMs: 25 * SECOND,
}

/** After the dispatcher's own restart nobody is declared dead for this many lost-after intervals. */
export const GRACE_AFTER_RESTART = 1

/** @param outageMs the site's setting, not scaled @param scale 1 in production */
export function timingsFor(role: 'pilot' | 'relay', scale: number, outageMs?: number): Timings {
  const base =
    role === 'pilot'
      ? PILOT
      : { ...RELAY, ...(outageMs === undefined ? {} : { lostAfterMs: outageMs, leaseMs: outageMs }) }
  return {
    beatMs: Math.round(base.beatMs * scale),
    lostAfterMs: role === 'relay' ? base.lostAfterMs : Math.round(base.lostAfterMs * scale),
    leaseMs: role === 'relay' ? base.leaseMs : Math.round(base.leaseMs * scale),
    confirmMs: Math.round(base.confirmMs * scale),
    // A long wait costs nothing; only very small scales (tests) shorten it.
    pullWaitMs: Math.round(base.pullWaitMs * Math.min(1, scale * 10)),
  }
}
