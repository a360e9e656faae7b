/** The relay as a dispatcher, above it the model of the rules as its centre: both ends of the relay at once. */
import { frameHandler } from '../../shared/dispatcher.ts'
import { memoryLink } from '../../shared/link.ts'
import { silentLog } from '../../shared/log.ts'
import { decode } from '../../shared/protocol/codec.ts'
import type { Message } from '../../shared/protocol/messages.ts'
import { ModelDispatcher } from '../conformance/model-dispatcher.ts'
import { conformance, type DispatcherUnderTest } from '../conformance/suite.ts'
import { fastClock } from '../fast-clock.ts'
import { relayInParts } from './relay-in-parts.ts'

/** Scenarios pull without waiting, so the buffer gets this long (real time) to fetch what the centre has. */
const FETCH_TURNS = 200

async function makeRelay(): Promise<DispatcherUnderTest> {
  const clock = fastClock(50)
  const model = new ModelDispatcher(clock, 'relay')
  const relay = await relayInParts({
    clock,
    link: memoryLink({ site: 'ALPHA' }, frameHandler(model, silentLog), clock),
  })
  const count = (state: string) => [...model.outcome().values()].filter((is) => is === state).length
  const isFetched = () => {
    const { free, held } = relay.buffer.counts()
    return count('queued') === 0 && free + held + relay.outgoing.waiting >= count('assigned')
  }
  const breathe = (ms = 1) => new Promise((resolve) => setTimeout(resolve, ms))
  return {
    handler: async (peer, frame) => {
      if (pullsOnce(frame)) {
        // At least once, so that holders that pull at the same time take turns.
        let turn = 0
        do await breathe()
        while (turn++ < FETCH_TURNS && !isFetched())
      }
      return await relay.handler(peer, frame)
    },
    site: 'ALPHA',
    role: 'pilot',
    clock,
    timeScale: 1,
    seed: async (tasks) => model.seed(tasks),
    outcome: async () => model.outcome(),
    invariants: async () => model.invariants(),
    advance: async (ms) => {
      clock.jump(ms)
      await breathe()
      model.reap()
      relay.dispatcher.sweep()
      await breathe()
    },
    close: () => relay.close(),
  }
}

/** A pull as scenarios make it: it neither waits nor hands anything in. */
function pullsOnce(frame: Uint8Array): boolean {
  try {
    const { type, body } = decode(frame)
    const { waitMs, finished } = body as Message<'pull'>
    return type === 'pull' && waitMs === 0 && finished.length === 0
  } catch {
    return false
  }
}

conformance('the relay', makeRelay, { churnTasks: 120 })
