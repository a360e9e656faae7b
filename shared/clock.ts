/**
 * Time as the programs see it. Tests hand in a clock of their own; nothing else reads Date.now or sets timers for
 * decisions that a test must be able to drive.
 */
export interface Clock {
  /** Wall-clock milliseconds since 1970. May step; used only for what people read and for signatures' expiry. */
  wallMs(): number
  /** Milliseconds that never go back. Used for every deadline and duration. */
  monotonicMs(): number
  /** Resolves after `ms` (at once where that is past), or when `signal` aborts; never rejects. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>
}

export const systemClock: Clock = {
  wallMs: () => Date.now(),
  monotonicMs: () => performance.now(),
  sleep: (ms, signal) =>
    new Promise((resolve) => {
      if (signal?.aborted) return resolve()
      const finish = () => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', finish)
        resolve()
      }
      const timer = setTimeout(finish, Math.max(0, ms))
      signal?.addEventListener('abort', finish, { once: true })
    }),
}
