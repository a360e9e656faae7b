/** Replies that are lost, results that come late: one process of each kind, the fault at an exact moment. */
import { afterEach, expect, test } from 'vitest'
import { until } from '../world.ts'
import { NOTHING_LOST, type SmallWorld, startSmallWorld } from './lab.ts'

/** For a busy machine; none of them waits for time. */
const PATIENCE_MS = 300_000

let small: SmallWorld
afterEach(async () => {
  await small?.stop()
})

test(
  'fault - the reply to a grant is lost with the central that made it: its work is granted again, once',
  async () => {
    small = await startSmallWorld({ centrals: 2 })
    small.arm('grant.persisted', 'kill')
    const wave = await small.submit(40)
    await small.passed('grant.persisted')
    await small.over(wave)
    expect(await small.judge()).toMatchObject({ ...NOTHING_LOST, wasted: { repeated: 0, broken: 0 } })
  },
  PATIENCE_MS,
)

test(
  'fault - a relay that dies around its commits has what it acknowledged',
  async () => {
    small = await startSmallWorld()
    const wave = await small.submit(60, { longestS: 0.5 })
    await small.settled(2)
    for (const moment of ['changes.gathered', 'results.acknowledged', ...Array(6).fill('changes.gathered')] as const) {
      small.arm(moment, 'kill')
      await small.passed(moment)
      const before = small.acks.all.length
      await until('a result is acknowledged again', () => small.acks.all.length > before)
    }
    await small.over(wave)
    expect(await small.judge()).toMatchObject(NOTHING_LOST)
  },
  PATIENCE_MS,
)

test(
  'fault - a link cut for longer than the outage: others run the work, and what comes late counts for nothing',
  async () => {
    small = await startSmallWorld({ sites: { alpha: ['alpha-1'], beta: ['beta-1'] }, outageMs: 2000, slots: 2 })
    const wave = await small.submit(40, { longestS: 1 })
    await small.settled(6)
    const { nats, api } = small.world.relays.get('alpha')!
    await Promise.all([nats.set({ mode: 'cut' }), api.set({ mode: 'cut' })])
    // Whatever alpha had is done by beta alone.
    await small.over(wave)
    await Promise.all([nats.set({ mode: 'open' }), api.set({ mode: 'open' })])
    expect(await small.judge()).toMatchObject(NOTHING_LOST)
  },
  PATIENCE_MS,
)
