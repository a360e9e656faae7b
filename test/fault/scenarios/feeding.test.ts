/** The centre dies half-way through making work ready: what is done stays done, the rest comes, and the counts are exact. */
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { Failpoint } from '../../../shared/failpoint.ts'
import { HALFWAY } from '../schedule.ts'
import { NOTHING_LOST, type SmallWorld, startSmallWorld } from './lab.ts'

const TASKS = 24
/** For a busy machine. */
const PATIENCE_MS = 300_000

let small: SmallWorld
beforeAll(async () => {
  small = await startSmallWorld()
}, PATIENCE_MS)
afterAll(() => small?.stop())

async function diesAt(moment: Failpoint): Promise<void> {
  const { world } = small
  const { lives } = world.part('central-1')
  small.arm(moment, 'kill')
  const wave = await small.submit(TASKS)
  await small.passed(moment)
  const { counts } = await small.over(wave)
  expect(world.part('central-1').lives).toBe(lives + 1)
  // One task of the wave fails on purpose, for good.
  expect(counts).toEqual({ ...NOBODY, done: TASKS - 1, failed: 1 })
  expect(await small.judge()).toMatchObject(NOTHING_LOST)
}

const NOBODY = { blocked: 0, queued: 0, assigned: 0, running: 0, held: 0, skipped: 0, cancelled: 0 }

test.each(HALFWAY.feeding)(
  'fault - the centre dies half-way through feeding (%s)',
  (moment) => diesAt(moment),
  PATIENCE_MS,
)

test.each(HALFWAY.releasing)(
  'fault - the centre dies half-way through releasing a step (%s)',
  (moment) => diesAt(moment),
  PATIENCE_MS,
)
