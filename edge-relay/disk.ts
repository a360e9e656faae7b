/**
 * Whether the relay's disk has room. Watched before it is full, because a full disk stops everything at once: below the
 * reserve cached files are dropped, then no new work and no outputs are taken, so that what pilots already run can
 * still be handed in. When even the journal finds no room nothing is taken in at all (journal.ts), until there is.
 */
import { statfs } from 'node:fs/promises'
import { setTimeout as after } from 'node:timers/promises'
import type { Log } from '../shared/log.ts'

const LOOK_EVERY_MS = 1000
/** Of the reserve, above which a low disk counts as well again: no flapping around the mark. */
const WELL_AGAIN = 1.25

export interface DiskOptions {
  /** A folder on the disk that is meant. */
  folder: string
  /** Less than this is too little. */
  reserveBytes: number
  /** The journal's last commit found no room. */
  isJournalFull: () => boolean
  /** Drops what can be had again, about so many bytes. */
  makeRoom: (bytes: number) => Promise<void>
  log: Log
}

export class Disk {
  readonly #options: DiskOptions
  readonly #stop = new AbortController()
  #isLow = false
  #wasFull = false
  #freeBytes = 0
  #watching: Promise<void> | undefined
  /** There is room again. */
  onRoom: () => void = () => {}

  constructor(options: DiskOptions) {
    this.#options = options
  }

  /** No new work, no outputs. */
  get isFull(): boolean {
    return this.#isLow || this.#options.isJournalFull()
  }

  get freeBytes(): number {
    return this.#freeBytes
  }

  /** Looks once, then again and again until stop(). */
  async start(): Promise<void> {
    await this.look()
    this.#watching = this.#watch()
  }

  async stop(): Promise<void> {
    this.#stop.abort()
    await this.#watching
  }

  async look(): Promise<void> {
    const { folder, reserveBytes, makeRoom, log } = this.#options
    try {
      let free = await freeBytesOf(folder)
      if (free < reserveBytes) {
        await makeRoom(reserveBytes * WELL_AGAIN - free)
        free = await freeBytesOf(folder)
      }
      this.#freeBytes = free
      this.#isLow = free < reserveBytes * (this.#isLow ? WELL_AGAIN : 1)
    } catch (error) {
      log.warn({ err: error, folder }, 'disk.notRead')
    }
    const { isFull } = this
    if (isFull === this.#wasFull) return
    this.#wasFull = isFull
    if (isFull) log.error({ freeBytes: this.#freeBytes, reserveBytes }, 'disk.full')
    else {
      log.info({ freeBytes: this.#freeBytes }, 'disk.hasRoom')
      this.onRoom()
    }
  }

  async #watch(): Promise<void> {
    const { signal } = this.#stop
    while (!signal.aborted) {
      await after(LOOK_EVERY_MS, undefined, { signal, ref: false }).catch(() => {})
      if (!signal.aborted) await this.look()
    }
  }
}

async function freeBytesOf(folder: string): Promise<number> {
  const { bavail, bsize } = await statfs(folder)
  return bavail * bsize
}
