/** What is interrupted half-way is taken up again: a centre that dies between the outputs of a task. */
import { afterEach, expect, test } from 'vitest'
import { NOTHING_LOST, type SmallWorld, startSmallWorld } from './lab.ts'

let small: SmallWorld
afterEach(async () => {
  await small?.stop()
})

test('fault - the centre dies half-way through publishing: what is there stays, the rest comes', async () => {
  small = await startSmallWorld()
  small.arm('output.published', 'kill')
  const wave = await small.submit(20)
  await small.passed('output.published')
  await small.over(wave)
  expect(await small.judge()).toMatchObject(NOTHING_LOST)
}, 300_000)
