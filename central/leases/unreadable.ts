/**
 * Parts of steps that could not be read from the blob store: until they can, their step is granted nothing, and nobody
 * else waits for it. One process's memory; one look and one line in the log per part and RETRY_MS, whoever asks.
 */
import type { Clock } from '../../shared/clock.ts'
import type { Log } from '../../shared/log.ts'

const RETRY_MS = 5000
/** The oldest are forgotten, which costs one look more. */
const MOST_KEPT = 1000

/** `template`, or `grant` for what only a grant reads: rows, manifests. */
type Part = 'template' | 'grant'

interface StepOf {
  campaign: string
  step: string
}

interface Failure {
  /** Passed over before this, by the clock's monotonicMs. */
  untilMs: number
  /** Tasks whose part it was, as ranges; '' where it is the whole step's. */
  tasks: string
}

export class Unreadable {
  readonly #clock: Clock
  readonly #log: Log
  readonly #retryMs: number
  readonly #failures = new Map<string, Failure>()

  constructor(clock: Clock, log: Log, timeScale: number) {
    this.#clock = clock
    this.#log = log
    this.#retryMs = RETRY_MS * timeScale
  }

  /**
   * What `read` gives, or null where it fails, or did so a moment ago. It is told for which tasks it failed before, so
   * that the same is tried again before anything is granted. `read` asks the blob store and nothing else.
   */
  async look<T>(part: Part, of: StepOf, read: (tasks: string) => Promise<T>): Promise<T | null> {
    const name = nameOf(part, of)
    const failure = this.#failures.get(name)
    const nowMs = this.#clock.monotonicMs()
    if (failure && nowMs < failure.untilMs) return null
    // Nobody else looks meanwhile.
    if (failure) failure.untilMs = nowMs + this.#retryMs
    try {
      const value = await read(failure?.tasks ?? '')
      this.#failures.delete(name)
      return value
    } catch (error) {
      if (failure) this.#failures.delete(name)
      this.note(part, { ...of, tasks: failure?.tasks ?? '' }, error)
      return null
    }
  }

  /** Said once for all who find it at the same time. */
  note(part: Part, { campaign, step, tasks }: StepOf & { tasks: string }, error: unknown): void {
    const name = nameOf(part, { campaign, step })
    const nowMs = this.#clock.monotonicMs()
    if (nowMs < (this.#failures.get(name)?.untilMs ?? Number.NEGATIVE_INFINITY)) return
    this.#failures.set(name, { untilMs: nowMs + this.#retryMs, tasks })
    if (this.#failures.size > MOST_KEPT) this.#failures.delete(this.#failures.keys().next().value!)
    this.#log.error({ err: error, campaign, step, ...(tasks !== '' && { tasks }) }, `${part}.unreadable`)
  }
}

function nameOf(part: Part, { campaign, step }: StepOf): string {
  return `${part}|${campaign}|${step}`
}
