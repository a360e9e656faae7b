import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it, vi } from 'vitest'
import { reportPage, reportPicture } from './report.ts'
import {
  type Bounds,
  ENDS_AFTER,
  MOST,
  mostInAnHour,
  NODE_HOURS,
  NODES,
  type Outcome,
  SCENARIOS,
  simulate,
} from './scenarios.ts'

const outcomes = new Map<string, Promise<Outcome>>()
const outcomeOf = (name: string, seed: number) => {
  const key = `${name} ${seed}`
  const known = outcomes.get(key) ?? simulate(SCENARIOS.find((one) => one.name === name)!, seed)
  outcomes.set(key, known)
  return known
}

describe.each(SCENARIOS.flatMap((one) => [1, 2, 3].map((seed) => [one.name, seed] as const)))(
  'simulation - %s, seed %i',
  (name, seed) => {
    it('keeps its bounds', async () => {
      const outcome = await outcomeOf(name, seed)
      const { bounds } = outcome.scenario
      for (const key of [
        ...['pilotsAnHour', 'idleNodeHours', 'callsAnHour', 'idleCallsAnHour', 'refusedAnHour', 'spoilt'],
      ] as (keyof Bounds)[]) {
        expect(outcome[key], key).toBeLessThanOrEqual(bounds[key]!)
      }
      if (bounds.minutesToFullUse !== null) {
        expect(outcome.minutesToFullUse, 'minutesToFullUse').not.toBeNull()
        expect(outcome.minutesToFullUse!, 'minutesToFullUse').toBeLessThanOrEqual(bounds.minutesToFullUse)
      }
    })

    it('does all the work, never beyond the caps, nothing twice, and is empty at the end', async () => {
      const { scenario, world, leftTasks, mostRunning } = await outcomeOf(name, seed)
      expect(leftTasks > 0).toBe(scenario.leavesWork ?? false)
      expect(mostRunning).toBeLessThanOrEqual(12)
      expect(mostInAnHour(world.startTimes)).toBeLessThanOrEqual(30)
      expect(world.figures.doubled).toBe(0)
      // Where nobody says what there is, one probe an hour may be there.
      expect(world.runningPilots).toBeLessThanOrEqual(name === 'nobody answers' ? 1 : 0)
    })
  },
)

// A day of a site takes a second or two; of a machine with much else to do, far longer.
vi.setConfig({ testTimeout: 120_000 })

describe('simulation - what is shown', () => {
  it('page and picture are what the code gives (`node docs/simulate.ts`)', async () => {
    const shown = await Promise.all(SCENARIOS.map(({ name }) => outcomeOf(name, 1)))
    const read = (file: string) => readFileSync(join(import.meta.dirname, '../../../docs/site', file), 'utf8')
    expect(read('simulation.md')).toBe(reportPage(shown, NODES, MOST))
    expect(read('simulation.svg')).toBe(reportPicture(shown, MOST))
  })
})

describe('simulation - nodes', () => {
  it('a node that ends pilots with 500 is not tried again and again', async () => {
    const { world } = await outcomeOf('bad node', 1)
    expect(world.nodeStarts.get('n3')).toBeLessThanOrEqual(6)
  })

  it('a mended black hole works again after its canary', async () => {
    const { world } = await outcomeOf('black hole that fails', 1)
    expect(world.state.latches).toEqual({})
    expect(world.nodeStarts.get('n3')).toBeGreaterThanOrEqual(3)
  })
})

const HOUR = 3_600_000
describe('simulation - accounts and groups', () => {
  it.each([1, 2, 3])('what the batch system charges stays within the account, and near it (seed %i)', async (seed) => {
    const { world } = await outcomeOf('account runs out', seed)
    const hours = (world.charged.get('p') ?? 0) / HOUR
    expect(hours).toBeLessThanOrEqual(NODE_HOURS)
    expect(hours).toBeGreaterThan(0.9 * NODE_HOURS)
  })

  it.each([1, 2, 3])('nothing runs when the account has ended, whatever waited (seed %i)', async (seed) => {
    const { world } = await outcomeOf('account ends', seed)
    const used = world.samples.filter(({ running }) => running > 0)
    expect(used.at(-1)!.atMs).toBeLessThanOrEqual(ENDS_AFTER * HOUR)
    // It is used up to its last hour.
    expect(used.at(-1)!.atMs).toBeGreaterThan((ENDS_AFTER - 1) * HOUR)
  })

  it.each([1, 2, 3])(
    'two groups have their shares while both have work, and then the one has all (seed %i)',
    async (seed) => {
      const { world } = await outcomeOf('two groups, 2 to 1', seed)
      const at = (hour: number) => world.samples.find(({ atMs }) => atMs === hour * HOUR)!.kinds
      expect(at(3)).toEqual({ a: 8, b: 4 })
      expect(world.samples.some(({ kinds }) => kinds.b === MOST)).toBe(true)
    },
  )
})

describe('simulation - what Slurm refuses', () => {
  it.each([1, 2, 3])(
    'the other kind is not held up, and the refused one is tried now and then (seed %i)',
    async (seed) => {
      const { world } = await outcomeOf('one kind refused', seed)
      const full = world.samples.find(({ kinds }) => kinds.b === MOST - 1)!
      expect(full.atMs - HOUR).toBeLessThanOrEqual(10 * 60_000)
      const hours = world.samples.findLast(({ queuedTasks }) => queuedTasks > 0)!.atMs / HOUR
      expect(world.refusedTimes.length).toBeGreaterThan(hours / 2)
      expect(world.refusedTimes.length).toBeLessThan(2 * hours)
    },
  )

  it.each([1, 2, 3])('a node that is gone from it is forgotten at the first word (seed %i)', async (seed) => {
    const { world } = await outcomeOf('latched and drained', seed)
    expect(Object.keys(world.state.latches).sort()).toEqual(['n2', 'n3', 'n4'])
    expect([world.refusedTimes.length, world.figures.sinfo]).toEqual([1, 1])
  })
})
