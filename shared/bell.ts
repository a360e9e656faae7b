/**
 * Tells one loop that there may be something to do. A ring that comes while the loop is busy is not lost: it looks once
 * more. Whoever stops the loop rings too.
 */
import type { Clock } from './clock.ts'

const AT_MOST_MS = 30_000

export class Bell {
  readonly #clock: Clock
  #hasRung = false
  #waiting: AbortController | undefined

  constructor(clock: Clock) {
    this.#clock = clock
  }

  ring(): void {
    this.#hasRung = true
    this.#waiting?.abort()
  }

  /** Resolves with the next ring, at once where one came since the last call; without any after `atMostMs`. */
  async next(atMostMs = AT_MOST_MS): Promise<void> {
    if (!this.#hasRung) {
      this.#waiting = new AbortController()
      await this.#clock.sleep(atMostMs, this.#waiting.signal)
      this.#waiting = undefined
    }
    this.#hasRung = false
  }
}
