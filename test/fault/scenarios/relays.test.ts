/** Two relays at one site, one of which goes: its pilots change over, and the other one carries on alone. */
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, expect, test } from 'vitest'
import { until } from '../world.ts'
import { NOTHING_LOST, type SmallWorld, startSmallWorld } from './lab.ts'

let small: SmallWorld
const back = new AbortController()
afterEach(async () => {
  back.abort()
  await small?.stop()
})

test('fault - one of two relays never returns: its pilots go to the other, what only it held runs again', async () => {
  small = await startSmallWorld({
    sites: { alpha: ['alpha-1', 'alpha-2'] },
    relays: { alpha: ['alpha', 'alpha-second'] },
    outageMs: 3000,
    slots: 2,
  })
  const { world, acks } = small
  const wave = await small.submit(60, { longestS: 0.5 })
  const took = (relay: string) => acks.all.filter((ack) => ack.hop === 'relay' && ack.relay === relay).length
  await until('both relays have taken results', () => took('alpha') > 3 && took('alpha-second') > 3)
  const nats = world.pidOf({ part: 'relay-nats', site: 'alpha', relay: 'alpha-second' })!
  const gone = world.part('relay-alpha-second').whileDown(async () => {
    process.kill(nats, 'SIGKILL')
    await sleep(10 * 60_000, undefined, { signal: back.signal }).catch(() => {})
  })
  await until('its pilot has changed over', () => small.said('pilot-alpha-2', 'relay.changed'))
  // The first wave may be over by now.
  const before = took('alpha')
  const more = await small.submit(40, { longestS: 0.5 })
  await small.over(wave)
  await small.over(more)
  const byTheOneThatCame = acks.all.filter(({ node, relay }) => node === 'alpha-2' && relay === 'alpha').length
  expect(took('alpha')).toBeGreaterThanOrEqual(before + 40)
  expect(byTheOneThatCame).toBeGreaterThan(0)
  expect(await small.judge(new Map([['alpha-second', world.logBytes('relay-alpha-second')]]))).toMatchObject(
    NOTHING_LOST,
  )
  back.abort()
  await gone
}, 300_000)
