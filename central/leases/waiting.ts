/**
 * Pulls that wait for work, within this process: woken when something became grantable anywhere (a message on the wake
 * channel), or by a tick should that message be lost. A newer pull of the same session ends the older one's wait.
 */
import type { Clock } from '../../shared/clock.ts'
import { IndraftError } from '../../shared/errors.ts'

const TICK_MS = 1000

export interface Turn {
  /** No other pull of the session was under way when this one came. */
  isFirst: boolean
  /**
   * Resolves when woken, at the tick, or after `ms`.
   * @throws IndraftError dispatcher.busy when a newer pull came, or at the end of this process
   */
  next(ms: number): Promise<void>
}

export class Waiting {
  readonly #clock: Clock
  readonly #bySession = new Map<string, { own: AbortController; ended: Promise<void> }>()
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

  /**
   * Runs a session's pulls one after the other; one that waits for work gives up for the next. So a repeat that comes
   * while the first is still at work finds that one's reply, not its results half judged.
   */
  async only<T>(session: string, run: (turn: Turn) => Promise<T>): Promise<T> {
    const before = this.#bySession.get(session)
    const own = new AbortController()
    const ended = Promise.withResolvers<void>()
    const entry = { own, ended: ended.promise }
    this.#bySession.set(session, entry)
    before?.own.abort()
    await before?.ended
    try {
      return await run({
        isFirst: before === undefined,
        next: async (ms) => {
          if (!own.signal.aborted && !this.#closed) {
            await this.#clock.sleep(Math.min(ms, TICK_MS), AbortSignal.any([own.signal, this.#bell.signal]))
          }
          if (own.signal.aborted || this.#closed) throw new IndraftError('dispatcher.busy', 'its turn is over')
        },
      })
    } finally {
      ended.resolve()
      if (this.#bySession.get(session) === entry) this.#bySession.delete(session)
    }
  }

  /** Ends every wait with dispatcher.busy. */
  close(): void {
    this.#closed = true
    this.wake()
  }
}
