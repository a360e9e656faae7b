/**
 * Which upload goes next, and what becomes of one that fails (upload-failures.ts). A few go side by side: campaigns in
 * turn, and outputs before logs, because results wait for outputs and nothing waits for logs.
 *
 * What always holds: an upload that is put off holds no place. Where its failure may pass, its campaign rests and then
 * sends one to ask, with growing pauses until one gets through, or runs long enough to be only large: what one campaign
 * lacks holds up no other, and a centre that is away is asked once a campaign. Where the failure may be about the file
 * alone, that one waits alone.
 */
import type { Clock } from '../shared/clock.ts'
import { type Outlook, outlookOf } from './upload-failures.ts'

const SIDE_BY_SIDE = 6
/** A doubtful failure is final when it came so often. */
const MOST_DOUBTS = 6
const PAUSE_MS = { first: 1000, longest: 15_000 }
/** One that asks and did not fail for so long gets through: tens of gigabytes take hours. */
const ANSWERED_MS = 15_000

export interface Upload {
  campaign: string
  kind: 'outputs' | 'log'
  /** For the log. */
  name: string
  /** @param isAgain an earlier try may have got some of it there */
  work: (isAgain: boolean) => Promise<void>
  /** Called once. @param error why it never will be up; undefined: it is */
  settle: (error?: unknown) => void | Promise<void>
}

export interface UploadQueueEvents {
  onPutOff: (upload: Upload, error: unknown, pauseMs: number) => void
  /** settle() threw. */
  onError: (upload: Upload, error: unknown) => void
}

interface Kept extends Upload {
  tries: number
  doubts: number
}

/** Of one campaign. */
interface Line {
  outputs: Kept[]
  log: Kept[]
  running: number
  /** Of its last rest; 0 since one was not put off. */
  pauseMs: number
  /** A new one with each change: who waited for the end of another finds it gone. */
  turn: Turn
}

/** Whose turn it is: all's; after one was put off nobody's; then that of one, who asks; while it asks nobody's again. */
interface Turn {
  readonly of: 'all' | 'rest' | 'one' | 'asking'
}

export class UploadQueue {
  readonly #clock: Clock
  readonly #stop: AbortSignal
  readonly #events: UploadQueueEvents
  /** The one that is first had no turn for longest. */
  readonly #lines = new Map<string, Line>()
  #waiting = 0
  #running = 0
  #idle: PromiseWithResolvers<void> | undefined

  /** @param stop what runs then is to end by itself; nothing more is begun */
  constructor(clock: Clock, stop: AbortSignal, events: UploadQueueEvents) {
    this.#clock = clock
    this.#stop = stop
    this.#events = events
  }

  /** Those that run or are put off included. */
  get waiting(): number {
    return this.#waiting
  }

  add(upload: Upload): void {
    if (this.#stop.aborted) return
    this.#waiting++
    this.#enter({ ...upload, tries: 0, doubts: 0 })
    this.#run()
  }

  /** After `stop`: resolves when nothing runs. */
  async ended(): Promise<void> {
    if (this.#running === 0) return
    this.#idle ??= Promise.withResolvers()
    await this.#idle.promise
  }

  #enter(upload: Kept): Line {
    let line = this.#lines.get(upload.campaign)
    if (!line) {
      line = { outputs: [], log: [], running: 0, pauseMs: 0, turn: { of: 'all' } }
      this.#lines.set(upload.campaign, line)
    }
    line[upload.kind].push(upload)
    return line
  }

  #run(): void {
    while (this.#running < SIDE_BY_SIDE && !this.#stop.aborted) {
      const next = this.#next()
      if (!next) break
      void this.#do(...next)
    }
    if (this.#running === 0) this.#idle?.resolve()
  }

  #next(): [Kept, Line] | undefined {
    for (const kind of ['outputs', 'log'] as const) {
      for (const [campaign, line] of this.#lines) {
        const mayGo = line.turn.of === 'all' || line.turn.of === 'one'
        const upload = mayGo ? line[kind].shift() : undefined
        if (!upload) continue
        if (line.turn.of === 'one') this.#turn(line, 'asking', ANSWERED_MS, () => open(line))
        this.#lines.delete(campaign)
        this.#lines.set(campaign, line)
        return [upload, line]
      }
    }
    return undefined
  }

  async #do(upload: Kept, line: Line): Promise<void> {
    this.#running++
    line.running++
    try {
      await upload.work(upload.tries++ > 0)
      await this.#settle(upload, line)
    } catch (error) {
      if (!this.#stop.aborted) await this.#onFailed(upload, line, error, outlookOf(error))
    }
    this.#running--
    line.running--
    if (line.running + line.outputs.length + line.log.length === 0) this.#lines.delete(upload.campaign)
    this.#run()
  }

  async #onFailed(upload: Kept, line: Line, error: unknown, outlook: Outlook): Promise<void> {
    if (outlook === 'passing') {
      this.#enter(upload)
      this.#events.onPutOff(upload, error, this.#rest(line))
      return
    }
    if (outlook === 'doubtful') upload.doubts++
    if (outlook === 'final' || upload.doubts === MOST_DOUBTS) {
      await this.#settle(upload, line, error)
      return
    }
    open(line)
    const pauseMs = PAUSE_MS.first * 2 ** (upload.doubts - 1)
    this.#events.onPutOff(upload, error, pauseMs)
    void this.#clock.sleep(pauseMs, this.#stop).then(() => {
      this.#enter(upload)
      this.#run()
    })
  }

  async #settle(upload: Kept, line: Line, error?: unknown): Promise<void> {
    open(line)
    this.#waiting--
    try {
      await upload.settle(error)
    } catch (thrown) {
      this.#events.onError(upload, thrown)
    }
  }

  /** @returns how long */
  #rest(line: Line): number {
    if (line.turn.of === 'rest') return line.pauseMs
    line.pauseMs = Math.min(2 * line.pauseMs || PAUSE_MS.first, PAUSE_MS.longest)
    this.#turn(line, 'rest', line.pauseMs, () => {
      line.turn = { of: 'one' }
    })
    return line.pauseMs
  }

  /** @param next what follows when nothing changes it before */
  #turn(line: Line, of: Turn['of'], forMs: number, next: () => void): void {
    const turn = { of }
    line.turn = turn
    void this.#clock.sleep(forMs, this.#stop).then(() => {
      if (line.turn !== turn) return
      next()
      this.#run()
    })
  }
}

/** One was not put off: the others may go at once. */
function open(line: Line): void {
  line.pauseMs = 0
  line.turn = { of: 'all' }
}
