/** Disks that lose what they promised to keep. */
import { readdirSync, rmSync, statSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, expect, test } from 'vitest'
import { until } from '../world.ts'
import { NOTHING_LOST, type SmallWorld, startSmallWorld } from './lab.ts'

let small: SmallWorld
afterEach(async () => {
  await small?.stop()
})

/** The file that Redis appends to, cut back. */
function truncateAof(redisDir: string, share: number): void {
  const folder = join(redisDir, 'appendonlydir')
  const file = readdirSync(folder).find((name) => name.endsWith('.incr.aof'))!
  const path = join(folder, file)
  truncateSync(path, Math.floor(statSync(path).size * share))
}

test('fault - Redis lost acknowledged writes: granting stops and says so, and goes on when a person lifts it', async () => {
  small = await startSmallWorld()
  const { world } = small
  // The campaign itself is in the part that stays.
  const wave = await small.submit(120, { longestS: 0.5 })
  await small.settled(40)
  await world.part('redis').whileDown(() => truncateAof(world.redisDir, 0.8))
  await until('the loss is noticed', () => small.said('central-1', 'store.writesLost'))
  await world.ask((client) => client.call('liftHalt', {}))
  await small.over(wave)
  // What Redis forgot ran again or came again from the relay: every task ended, and the store is whole.
  const verdict = await small.judge()
  expect(
    verdict.words.filter((word) => !word.startsWith('acknowledgedLost') && !word.includes('was accepted')),
  ).toEqual([])
}, 300_000)

test("fault - an edge's disk is lost: its living pilots follow the new relay, what only it held runs again", async () => {
  small = await startSmallWorld({ outageMs: 2000 })
  const { world } = small
  const relay = world.relays.get('alpha')!
  const wave = await small.submit(60, { longestS: 0.5 })
  await small.settled(15)
  let forgotten = 0
  await world.part('relay-alpha').whileDown(async () => {
    forgotten = world.logBytes('relay-alpha')
    for (const name of readdirSync(relay.state)) rmSync(join(relay.state, name), { recursive: true, force: true })
    await relay.join()
  })
  await until('the pilot follows', () => small.said('pilot-alpha-1', 'credential.renewed'))
  await small.over(wave)
  expect(world.part('pilot-alpha-1').lives).toBe(1)
  expect(await small.judge(new Map([['alpha', forgotten]]))).toMatchObject(NOTHING_LOST)
}, 300_000)
