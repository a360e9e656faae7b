/**
 * A pilot of a site with several relays: it works for one at a time, in the order in which their credentials are named.
 * One that does not answer for `goneAfter`, with nothing running any more, is left for the next, between tasks only.
 * What the outbox holds goes along: any relay of the site may forward any result.
 *
 * What always holds: nobody is asked twice in a row without an answer in between; after one fruitless round the pilot
 * leaves as one with a single relay does.
 */
import { systemClock } from '../shared/clock.ts'
import type { Log } from '../shared/log.ts'
import { credentialPaths, type PilotConfig } from './config.ts'
import { type Pilot, type PilotWorld, startPilot } from './main.ts'

/** @throws as startPilot, of the first */
export async function startAtRelays(config: PilotConfig, log: Log, world: PilotWorld = {}): Promise<Pilot> {
  const paths = credentialPaths(config.credential)
  const clock = world.clock ?? systemClock
  const bornAtMs = clock.monotonicMs()
  let isStopped = false
  /** The credential to use comes first; the others stay known, so that no payload is given one. */
  const startAt = (at: number) => {
    const lived = clock.monotonicMs() - bornAtMs
    const credential = [...paths.slice(at), ...paths.slice(0, at)].join(',')
    const left = (ms: number | null) => (ms === null ? null : Math.max(1, ms - lived))
    const times = { runtimeLimit: left(config.runtimeLimit), timeAsked: left(config.timeAsked) }
    return startPilot({ ...config, credential, ...times }, log, world)
  }
  let pilot = await startAt(0)
  const { name } = pilot

  const live = async (): Promise<number> => {
    let silent = 0
    for (let at = 0; ; ) {
      const code = await pilot.finished
      if (!pilot.isAbandoned() || isStopped || paths.length === 1) return code
      silent = pilot.wasWelcomed() ? 1 : silent + 1
      if (silent >= paths.length) return code
      at = (at + 1) % paths.length
      log.warn({ pilot: name, credential: paths[at] }, 'relay.changed')
      pilot = await startAt(at)
      // Told to end while the next one was being started.
      if (isStopped) return pilot.stop()
    }
  }
  const finished = live()
  return {
    name,
    finished,
    isAbandoned: () => pilot.isAbandoned(),
    wasWelcomed: () => pilot.wasWelcomed(),
    stop(signal) {
      if (signal !== 'SIGUSR1') isStopped = true
      void pilot.stop(signal)
      return finished
    },
  }
}
