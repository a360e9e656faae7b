/**
 * Pulls that wait for work, within this process: woken when something became grantable anywhere (a message on the wake
 * channel), or by a tick should that message be lost. A newer pull of the same session ends the older one's wait.
 */
import type { Clock } from '../../shared/clock.ts'
import { IndraftError } from '../../shared/errors.ts'

const TICK_MS = 1000

export interface Turn {
  /** @throws IndraftError dispatcher.busy when a newer pull came, or at the end of this process */
  mustBeCurrent(): void
  /** Resolves when woken, at the tick, or after `ms`. */
  next(ms: number): Promise<void>
}

export class Waiting {
  readonly #clock: Clock
  readonly #bySession = new Map<string, AbortController>()
  #bell = new AbortController()
  #closed = false

  constructor(clock: Clock) {
    this.#clock = clock
  }

  get waiting(): number {
    return this.#bySession.size
  }

  /** Wakes every waiting pull. */
  wake(): void {
    const rung = this.#bell
    this.#bell = new AbortController()
    rung.abort()
  }

  /** Runs a session's pull; an older one that still waits gives up. */
  async only<T>(session: string, run: (turn: Turn) => Promise<T>): Promise<T> {
    this.#bySession.get(session)?.abort()
    const own = new AbortController()
    this.#bySession.set(session, own)
    try {
      return await run({
        mustBeCurrent: () => {
          if (own.signal.aborted || this.#closed) throw new IndraftError('dispatcher.busy', 'its turn is over')
        },
        next: (ms) => this.#clock.sleep(Math.min(ms, TICK_MS), AbortSignal.any([own.signal, this.#bell.signal])),
      })
    } finally {
      if (this.#bySession.get(session) === own) this.#bySession.delete(session)
    }
  }

  /** Ends every wait with dispatcher.busy. */
  close(): void {
    this.#closed = true
    this.wake()
  }
}
