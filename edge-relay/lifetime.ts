/**
 * When a relay ends by itself: drained, when nothing is held and nothing waits to go up any more; with `once`, when no
 * pilot was there and nothing was left to do for a while; with `for`, when that time is over. Only a drained one gives
 * its leases back; the others keep everything for the next start.
 */
import type { Clock } from '../shared/clock.ts'
import type { Core } from './core.ts'

const LOOK_EVERY_MS = 200

export interface LifetimeOptions {
  core: Pick<Core, 'buffer' | 'sessions' | 'outgoing' | 'uploads' | 'publications' | 'upstream'>
  clock: Clock
  once: boolean
  forMs: number | null
  /** Without pilots and work for this long is idle. */
  idleMs: number
  end: (isDrained: boolean) => Promise<void>
}

export function watchLifetime(options: LifetimeOptions): { hurry(): void; stop(): void } {
  const { core, clock, once, forMs, idleMs, end } = options
  const { buffer, sessions, outgoing, uploads, publications, upstream } = core
  const endsAtMs = forMs === null ? Number.POSITIVE_INFINITY : clock.monotonicMs() + forMs
  let busyAtMs = clock.monotonicMs()
  let isHurried = false
  const isSettled = () => outgoing.waiting + uploads.waiting + publications.waiting === 0
  const look = () => {
    const nowMs = clock.monotonicMs()
    const { held, leases } = buffer.counts()
    if (sessions.live().length > 0 || held > 0 || !isSettled()) busyAtMs = nowMs
    if (upstream.isDrainedHere && (isHurried || (leases === 0 && isSettled()))) finish(true)
    else if (nowMs > endsAtMs || (once && nowMs - busyAtMs > idleMs)) finish(false)
  }
  const timer = setInterval(look, LOOK_EVERY_MS)
  const finish = (isDrained: boolean) => {
    clearInterval(timer)
    void end(isDrained)
  }
  return {
    hurry() {
      isHurried = true
    },
    stop: () => clearInterval(timer),
  }
}
