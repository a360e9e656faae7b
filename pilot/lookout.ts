/**
 * What a pilot sees by itself, with no dispatcher asked: that it stood still, that its disk refuses results, a STOP
 * file, people whom the site has banned, how much time the batch system leaves. Looked at with every tick of session.ts,
 * the dearer things now and then only.
 *
 * What always holds: nothing here waits for a file system. Where the site's shared one hangs, the last answer counts, no
 * second question is asked meanwhile, and the pilot still ends in time.
 */
import { access } from 'node:fs/promises'
import type { Clock } from '../shared/clock.ts'
import type { Banned } from './banned.ts'
import { Questions } from './hanging.ts'
import type { Outbox } from './outbox.ts'
import type { TimeLeft } from './time-left.ts'

/** The STOP file of a site lies on the file system that all its nodes share. */
const STOP_EVERY_MS = 5000
const REFRESH_TIME_LEFT_MS = 60_000
/** How often a disk that refused is tried again. */
const MEND_EVERY_MS = 2000
/** A gap of so many beats, and of no less than this, between two ticks means that the pilot stood still. */
const SUSPENDED_BEATS = 3
const SUSPENDED_MS = 5000

export interface LookoutOptions {
  clock: Clock
  outbox: Outbox
  timeLeft: TimeLeft
  banned: Banned
  stopFile: string
  /** Milliseconds. */
  banEvery: number
  beatMs: () => number
  onBanned: () => void
  /** The disk refuses results, or takes them again. */
  onDisk: (refuses: boolean) => void
}

export class Lookout {
  readonly #options: LookoutOptions
  readonly suspended = { times: 0, ms: 0 }
  /** When it last began to run: silence is not counted while it stood still. */
  #awakeSinceMs: number
  #lastMs: number
  #refreshAtMs: number
  #banAtMs: number
  #stopAtMs = 0
  #isStopped = false
  readonly #questions = new Questions()
  #disk: { sinceMs: number; triedAtMs: number } | null = null

  constructor(options: LookoutOptions) {
    this.#options = options
    const nowMs = options.clock.monotonicMs()
    this.#awakeSinceMs = nowMs
    this.#lastMs = nowMs
    this.#refreshAtMs = nowMs + REFRESH_TIME_LEFT_MS
    this.#banAtMs = nowMs + options.banEvery
  }

  get awakeSinceMs(): number {
    return this.#awakeSinceMs
  }

  /** Call with every tick. @returns for how long the pilot stood still since the last one; 0 where it did not */
  look(nowMs: number): number {
    const { timeLeft, banEvery, banned, onBanned, stopFile } = this.#options
    const stoodMs = this.#noticeSuspension(nowMs)
    this.#lastMs = nowMs
    if (nowMs > this.#refreshAtMs) {
      this.#refreshAtMs = nowMs + REFRESH_TIME_LEFT_MS
      this.#questions.ask('time left', () => timeLeft.refresh())
    }
    if (nowMs > this.#banAtMs) {
      this.#banAtMs = nowMs + banEvery
      this.#questions.ask('bans', async () => {
        if (await banned.refresh()) onBanned()
      })
    }
    if (nowMs > this.#stopAtMs) {
      this.#stopAtMs = nowMs + STOP_EVERY_MS
      this.#questions.ask('stop', async () => {
        this.#isStopped = await access(stopFile).then(
          () => true,
          () => false,
        )
      })
    }
    this.#lookAtDisk(nowMs)
    return stoodMs
  }

  /** How long the disk has refused results, and in what words; null while it takes them. */
  diskTrouble(nowMs: number): { forMs: number; message: string } | null {
    const { trouble } = this.#options.outbox
    return this.#disk && trouble !== null ? { forMs: nowMs - this.#disk.sinceMs, message: trouble } : null
  }

  /** As of the last look that was answered. */
  get hasStopFile(): boolean {
    return this.#isStopped
  }

  /** Leases are not shifted: the dispatcher did not stand still. Payloads' limits are, in watch.ts. */
  #noticeSuspension(nowMs: number): number {
    const { beatMs } = this.#options
    const gapMs = nowMs - this.#lastMs
    if (gapMs < Math.max(SUSPENDED_BEATS * beatMs(), SUSPENDED_MS)) return 0
    this.suspended.times++
    this.suspended.ms += gapMs
    this.#awakeSinceMs = nowMs
    if (this.#disk) this.#disk.sinceMs += gapMs
    return gapMs
  }

  /** While the disk refuses results nothing is begun, and it is tried again and again. */
  #lookAtDisk(nowMs: number): void {
    const { outbox, onDisk } = this.#options
    if (outbox.trouble === null) {
      if (this.#disk) onDisk(false)
      this.#disk = null
      return
    }
    if (!this.#disk) onDisk(true)
    this.#disk ??= { sinceMs: nowMs, triedAtMs: nowMs }
    if (nowMs - this.#disk.triedAtMs < MEND_EVERY_MS) return
    this.#disk.triedAtMs = nowMs
    void outbox.mend()
  }
}
