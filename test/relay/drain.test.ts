/** A relay that is told here to get empty: what it gives back, what it waits for, and that a restart changes nothing. */
import { afterEach, beforeEach, expect, it } from 'vitest'
import { watchLifetime } from '../../edge-relay/lifetime.ts'
import { resultsOf } from '../conformance/simulated-holder.ts'
import { RelayBench } from './bench.ts'
import { until } from './relay-in-parts.ts'

let at: RelayBench
beforeEach(async () => {
  at = await RelayBench.open()
})
afterEach(() => at?.close())

it('relay - drained, it gives back what no pilot has, and ends when its pilots have reported; over a restart too', async () => {
  const pilot = await at.pilot('a')
  at.centre.give({ tasks: '0-3' })
  await until('four tasks', () => at.relay.buffer.counts().free === 4)
  const { grants } = await pilot.pull({}, 1)
  pilot.confirm()
  at.relay.upstream.drain()
  expect((await pilot.beat()).orders).toEqual([{ kind: 'holder.drain' }])
  await until('the rest is back', () => at.centre.returned.some(({ tasks }) => tasks === '1-3'))
  await at.restart()
  expect((await pilot.pull({}, 1)).reason).toBe('draining')
  const ended = Promise.withResolvers<boolean>()
  const options = { clock: at.clock, once: false, forMs: null, idleMs: Number.POSITIVE_INFINITY }
  watchLifetime({ core: at.relay, ...options, end: async (isDrained) => ended.resolve(isDrained) })
  await pilot.report(grants.flatMap(({ lease }) => resultsOf(lease)))
  expect(await ended.promise).toBe(true)
  expect(at.relay.buffer.counts()).toMatchObject({ leases: 0, held: 0 })
})

it('relay - drained, what an open pull brings goes back', async () => {
  const pilot = at.holder('a')
  const answer = at.centre.onPull.bind(at.centre)
  at.centre.onPull = async (peer, pull) => {
    const reply = await answer(peer, pull)
    if (reply.grants.length > 0) at.relay.upstream.drain()
    return reply
  }
  await pilot.hello()
  at.centre.give({ tasks: '0-3' })
  await until('it is back', () => at.centre.returned.some(({ tasks }) => tasks === '0-3'))
  await until('nothing is held', () => at.relay.buffer.counts().leases === 0)
})

it('relay - drained, what pilots give back goes back', async () => {
  const pilot = at.holder('a')
  await pilot.hello()
  at.centre.give({ tasks: '0-3' })
  await until('four tasks', () => at.relay.buffer.counts().free === 4)
  const { grants } = await pilot.pull({}, 4)
  pilot.confirm()
  at.relay.upstream.drain()
  await pilot.pull({ returned: grants.map(({ lease }) => lease) }, 0)
  await until('nothing is held', () => at.relay.buffer.counts().leases === 0)
  expect(at.centre.returned.length).toBeGreaterThan(0)
})
