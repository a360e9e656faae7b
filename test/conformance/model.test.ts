/** The suite against the model of the rules: when this fails, the suite or the model is wrong, not a program. */
import { afterAll, beforeAll } from 'vitest'
import { frameHandler } from '../../shared/dispatcher.ts'
import { silentLog } from '../../shared/log.ts'
import { fastClock } from '../fast-clock.ts'
import { ModelDispatcher } from './model-dispatcher.ts'
import { overNats } from './over-nats.ts'
import { conformance, type DispatcherUnderTest, inMemory } from './suite.ts'

const nats = overNats()
beforeAll(() => nats.start())
afterAll(() => nats.stop())

async function makeModel(): Promise<DispatcherUnderTest> {
  const clock = fastClock(100)
  const model = new ModelDispatcher(clock, 'pilot')
  return {
    handler: frameHandler(model, silentLog),
    site: 'ALPHA',
    role: 'pilot',
    clock,
    timeScale: 1,
    seed: async (count) => model.seed(count),
    outcome: async () => model.outcome(),
    invariants: async () => model.invariants(),
    advance: async (ms) => {
      clock.jump(ms)
      await new Promise(setImmediate)
      model.reap()
    },
    close: async () => {},
  }
}

conformance('the model', makeModel, { carriers: [inMemory, nats] })
