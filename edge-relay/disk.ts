/**
 * Whether the relay's disk has room. Watched before it is full, because a full disk stops everything at once: below the
 * reserve cached files are dropped, then no new work and no outputs are taken, so that what pilots already run can
 * still be handed in. A file that is to be written claims its room first: one alone may be larger than what is left. When even the journal finds no room nothing is taken in at all (journal.ts), until there is.
 */
import { statfs } from 'node:fs/promises'
import { setTimeout as after } from 'node:timers/promises'
import { IndraftError } from '../shared/errors.ts'
import type { Claim, Room } from '../shared/files/room.ts'
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
  /** How much could be dropped. */
  spareBytes: () => number
  /** Default: what the file system of `folder` says. */
  freeBytes?: () => Promise<number>
  log: Log
}

export class Disk implements Room {
  readonly #options: DiskOptions
  readonly #stop = new AbortController()
  #isLow = false
  #wasFull = false
  #freeBytes = 0
  /** Claimed and not yet written. */
  #claimedBytes = 0
  /** Written since #freeBytes was read. */
  #writtenBytes = 0
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
      let free = await this.#read()
      if (free < reserveBytes) {
        await makeRoom(reserveBytes * WELL_AGAIN - free)
        free = await this.#read()
      }
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

  async claim(bytes: number | null): Promise<Claim> {
    const { reserveBytes, makeRoom, spareBytes } = this.#options
    if (this.isFull) throw new IndraftError('store.full', "the relay's disk is full")
    let left = bytes ?? 0
    const lacking = (free: number) => reserveBytes + this.#claimedBytes + left - free
    const free = await this.#read()
    const lack = left > 0 ? lacking(free) : 0
    // Nothing is dropped for what would not fit even so.
    if (lack > 0 && lack <= spareBytes()) await makeRoom(lack)
    if (lack > 0 && lacking(await this.#read()) > 0) {
      throw new IndraftError('store.full', `the relay's disk has no room for ${left} bytes and its reserve`)
    }
    this.#claimedBytes += left
    const giveBack = (most: number) => {
      const given = Math.min(most, left)
      left -= given
      this.#claimedBytes -= given
    }
    return {
      take: (some) => {
        giveBack(some)
        this.#writtenBytes += some
        if (!this.isFull && this.#freeBytes - this.#writtenBytes >= reserveBytes) return
        throw new IndraftError('store.full', "the relay's disk is full")
      },
      end: () => giveBack(left),
    }
  }

  async #read(): Promise<number> {
    const { folder, freeBytes = () => freeBytesOf(folder) } = this.#options
    const free = await freeBytes()
    this.#freeBytes = free
    this.#writtenBytes = 0
    return free
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
