import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { reportPage, reportPicture } from './report.ts'
import { MOST, mostInAnHour, NODES, type Outcome, SCENARIOS, simulate } from './scenarios.ts'

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
      for (const key of ['pilotsAnHour', 'idleNodeHours', 'callsAnHour', 'idleCallsAnHour', 'spoilt'] as const) {
        expect(outcome[key], key).toBeLessThanOrEqual(bounds[key])
      }
      if (bounds.minutesToFullUse !== null) {
        expect(outcome.minutesToFullUse, 'minutesToFullUse').not.toBeNull()
        expect(outcome.minutesToFullUse!, 'minutesToFullUse').toBeLessThanOrEqual(bounds.minutesToFullUse)
      }
    })

    it('does all the work, never beyond the caps, nothing twice, and is empty at the end', async () => {
      const { world, leftTasks, mostRunning } = await outcomeOf(name, seed)
      expect(leftTasks).toBe(0)
      expect(mostRunning).toBeLessThanOrEqual(12)
      expect(mostInAnHour(world.startTimes)).toBeLessThanOrEqual(30)
      expect(world.figures.doubled).toBe(0)
      // Where nobody says what there is, one probe an hour may be there.
      expect(world.runningPilots).toBeLessThanOrEqual(name === 'nobody answers' ? 1 : 0)
    })
  },
)

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
