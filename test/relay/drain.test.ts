/** A relay that is told here to get empty: what it gives back, what it waits for, and that a restart changes nothing. */
import { expect, it } from 'vitest'
import { watchLifetime } from '../../edge-relay/lifetime.ts'
import { frameHandler } from '../../shared/dispatcher.ts'
import { memoryLink } from '../../shared/link.ts'
import { silentLog } from '../../shared/log.ts'
import { resultsOf, SimulatedHolder } from '../conformance/simulated-holder.ts'
import { fastClock } from '../fast-clock.ts'
import { relayInParts, until } from './relay-in-parts.ts'
import { ScriptedCentre } from './scripted-centre.ts'

it('relay - drained, it gives back what no pilot has, and ends when its pilots have reported; over a restart too', async () => {
  const clock = fastClock(20)
  const centre = new ScriptedCentre()
  const link = () => memoryLink({ site: 'ALPHA' }, frameHandler(centre, silentLog), clock)
  let relay = await relayInParts({ clock, link: link() })
  try {
    const toRelay = memoryLink({ site: 'ALPHA' }, (peer, frame) => relay.handler(peer, frame), clock)
    const pilot = new SimulatedHolder(toRelay, 'pilot', 'a')
    await pilot.hello()
    centre.give({ tasks: '0-3' })
    await until('four tasks', () => relay.buffer.counts().free === 4)
    const { grants } = await pilot.pull({}, 1)
    pilot.confirm()
    relay.upstream.drain()
    expect((await pilot.beat()).orders).toEqual([{ kind: 'holder.drain' }])
    await until('the rest is back', () => centre.returned.some(({ tasks }) => tasks === '1-3'))
    await relay.crash()
    relay = await relayInParts({ clock, link: link(), folder: relay.folder })
    expect((await pilot.pull({}, 1)).reason).toBe('draining')
    const ended = Promise.withResolvers<boolean>()
    const options = { clock, once: false, forMs: null, idleMs: Number.POSITIVE_INFINITY }
    watchLifetime({ core: relay, ...options, end: async (isDrained) => ended.resolve(isDrained) })
    await pilot.report(grants.flatMap(({ lease }) => resultsOf(lease)))
    expect(await ended.promise).toBe(true)
    expect(relay.buffer.counts()).toMatchObject({ leases: 0, held: 0 })
  } finally {
    await relay.close()
  }
})

it('relay - drained, what an open pull brings goes back', async () => {
  const { centre, relay, pilot } = await oneOfEach()
  try {
    const answer = centre.onPull.bind(centre)
    centre.onPull = async (peer, pull) => {
      const reply = await answer(peer, pull)
      if (reply.grants.length > 0) relay.upstream.drain()
      return reply
    }
    await pilot.hello()
    centre.give({ tasks: '0-3' })
    await until('it is back', () => centre.returned.some(({ tasks }) => tasks === '0-3'))
    await until('nothing is held', () => relay.buffer.counts().leases === 0)
  } finally {
    await relay.close()
  }
})

it('relay - drained, what pilots give back goes back', async () => {
  const { centre, relay, pilot } = await oneOfEach()
  try {
    await pilot.hello()
    centre.give({ tasks: '0-3' })
    await until('four tasks', () => relay.buffer.counts().free === 4)
    const { grants } = await pilot.pull({}, 4)
    pilot.confirm()
    relay.upstream.drain()
    await pilot.pull({ returned: grants.map(({ lease }) => lease) }, 0)
    await until('nothing is held', () => relay.buffer.counts().leases === 0)
    expect(centre.returned.length).toBeGreaterThan(0)
  } finally {
    await relay.close()
  }
})

async function oneOfEach() {
  const clock = fastClock(20)
  const centre = new ScriptedCentre()
  const relay = await relayInParts({
    clock,
    link: memoryLink({ site: 'ALPHA' }, frameHandler(centre, silentLog), clock),
  })
  const toRelay = memoryLink({ site: 'ALPHA' }, (peer, frame) => relay.handler(peer, frame), clock)
  return { centre, relay, pilot: new SimulatedHolder(toRelay, 'pilot', 'a') }
}
