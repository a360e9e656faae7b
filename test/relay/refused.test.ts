/** A centre that answers every message with a refusal: pilots go on, the relay keeps asking at a bearable pace, nothing is lost. */
import { expect, it } from 'vitest'
import { frameHandler } from '../../shared/dispatcher.ts'
import { type ErrorCode, IndraftError } from '../../shared/errors.ts'
import { memoryLink } from '../../shared/link.ts'
import { silentLog } from '../../shared/log.ts'
import { decode, encode } from '../../shared/protocol/codec.ts'
import { resultsOf, SimulatedHolder } from '../conformance/simulated-holder.ts'
import { fastClock } from '../fast-clock.ts'
import { relayInParts, until } from './relay-in-parts.ts'
import { ScriptedCentre } from './scripted-centre.ts'

/** Between two reports of the same results, by the relay's clock; the first back-offs of a passing trouble are shorter. */
const CASES: [string, ErrorCode, { retryAfterMs?: number; leastPauseMs: number }][] = [
  ['its site was disabled', 'site.disabled', { leastPauseMs: 9000 }],
  ['its site is not registered any more', 'site.unknown', { leastPauseMs: 9000 }],
  ['no protocol version is common any more', 'protocol.version', { leastPauseMs: 9000 }],
  ['a code of a newer release', 'code.unknown', { leastPauseMs: 9000 }],
  ['the store is halted', 'dispatcher.halted', { retryAfterMs: 10_000, leastPauseMs: 9000 }],
  ['the centre is busy', 'dispatcher.busy', { leastPauseMs: 100 }],
]

it.each(CASES)(
  'relay - refused because %s: pilots are served, results wait, all goes on afterwards',
  async (_why, code, how) => {
    const clock = fastClock(50)
    const centre = new ScriptedCentre()
    const answer = frameHandler(centre, silentLog)
    let isRefusing = false
    const reportedAtMs: number[] = []
    const link = memoryLink(
      { site: 'ALPHA' },
      async (peer, frame) => {
        if (!isRefusing) return answer(peer, frame)
        if (decode(frame).type === 'report') reportedAtMs.push(clock.monotonicMs())
        const { retryAfterMs } = how
        return encode('refused', {
          ...new IndraftError(code).refusal,
          ...(retryAfterMs && { retryAfterMs }),
          path: undefined,
        })
      },
      clock,
    )
    const relay = await relayInParts({ clock, link })
    try {
      const pilot = new SimulatedHolder(
        memoryLink({ site: 'ALPHA' }, (peer, frame) => relay.handler(peer, frame), clock),
        'pilot',
        'a',
      )
      await pilot.hello()
      centre.give({ tasks: '0-3' })
      await until('four tasks', () => relay.buffer.counts().free === 4)
      await until('the link counts as up', () => relay.upstream.isUp)
      isRefusing = true
      const { grants } = await pilot.pull({}, 2)
      pilot.confirm()
      const results = grants.flatMap(({ lease }) => resultsOf(lease))
      expect(await pilot.report(results)).toEqual(results.map(() => 'accepted'))
      await until('it tried three times', () => reportedAtMs.length >= 3)
      await until('the link counts as down', () => !relay.upstream.isUp)
      const pauses = reportedAtMs.slice(1).map((atMs, i) => atMs - reportedAtMs[i]!)
      expect(Math.min(...pauses)).toBeGreaterThan(how.leastPauseMs)
      // What it has is still given out.
      const more = await pilot.pull({}, 2)
      expect(more.grants.length).toBeGreaterThan(0)
      expect(relay.outgoing.waiting).toBe(results.length)
      isRefusing = false
      await until('the results are up', () => relay.outgoing.waiting === 0)
      expect(centre.results.map(({ index }) => index).sort()).toEqual(results.map(({ index }) => index).sort())
      await until('the link counts as up', () => relay.upstream.isUp)
    } finally {
      await relay.close()
    }
  },
  60_000,
)
