/**
 * One long-running part of `indraft up`, kept alive: what dies is started again, at once the first time and then ever
 * later, until it has lived for a while. Knows nothing of what the part is; that is its `start`.
 */
import { type Clock, systemClock } from '../../../shared/clock.ts'

const BACK_OFF_MS = { first: 250, longest: 15_000 }
/** A part that lived this long starts with a clean slate. */
const SETTLED_MS = 20_000

export interface RunningPart {
  pid: number
  /** Shown to people: `127.0.0.1:4711`, or what the part does. */
  address: string
  logPath: string
  /** In order, and waits until the process is gone. */
  stop(): Promise<unknown>
  kill(): void
  exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>
}

export type ServiceState = 'starting' | 'running' | 'waiting' | 'stopped'

export interface ServiceEvents {
  onRunning?(service: Service): void
  onDied?(service: Service, how: string, againInMs: number): void
}

export class Service {
  readonly name: string
  readonly #start: (stopping: AbortSignal) => Promise<RunningPart>
  readonly #events: ServiceEvents
  readonly #clock: Clock
  #part: RunningPart | undefined
  #state: ServiceState = 'stopped'
  #starts = 0
  #failuresInARow = 0
  #keeping: Promise<void> = Promise.resolve()
  readonly #stopping = new AbortController()

  constructor(
    name: string,
    start: (stopping: AbortSignal) => Promise<RunningPart>,
    events: ServiceEvents = {},
    clock: Clock = systemClock,
  ) {
    this.name = name
    this.#start = start
    this.#events = events
    this.#clock = clock
  }

  get part(): RunningPart | undefined {
    return this.#part
  }

  get state(): ServiceState {
    return this.#state
  }

  /** How often it was started, the first time included. */
  get starts(): number {
    return this.#starts
  }

  /** Starts it for the first time; when that fails nothing is kept alive. */
  async start(): Promise<RunningPart> {
    const part = await this.#launch()
    this.#keeping = this.#keepAlive(part)
    return part
  }

  async #launch(): Promise<RunningPart> {
    this.#state = 'starting'
    this.#starts++
    this.#part = await this.#start(this.#stopping.signal)
    this.#state = 'running'
    this.#events.onRunning?.(this)
    return this.#part
  }

  async #keepAlive(first: RunningPart): Promise<void> {
    let part: RunningPart | undefined = first
    let reason = ''
    while (!this.#stopping.signal.aborted) {
      const startedMs = this.#clock.monotonicMs()
      let how: string
      if (part) {
        const { code, signal } = await part.exited
        if (this.#stopping.signal.aborted) return
        if (this.#clock.monotonicMs() - startedMs > SETTLED_MS) this.#failuresInARow = 0
        how = signal ? `was ended by ${signal}` : `ended with status ${code}`
      } else {
        how = `could not be started${reason}`
      }
      const waitMs = Math.min(BACK_OFF_MS.longest, this.#failuresInARow * BACK_OFF_MS.first * 2 ** this.#failuresInARow)
      this.#failuresInARow++
      this.#state = 'waiting'
      this.#events.onDied?.(this, how, waitMs)
      await this.#clock.sleep(waitMs, this.#stopping.signal)
      if (this.#stopping.signal.aborted) return
      part = await this.#launch().catch((error: unknown) => {
        reason = `: ${String(error instanceof Error ? error.message : error).split('\n', 1)[0]}`
        return undefined
      })
    }
  }

  /** Ends it in order and keeps it ended. */
  async stop(): Promise<void> {
    this.#stopping.abort()
    await this.#part?.stop()
    await this.#keeping
    // A start that was under way has come to its end by now: what it brought must end too.
    await this.#part?.stop()
    this.#state = 'stopped'
  }
}
