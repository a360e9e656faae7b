/**
 * Final names that a destroyed or damaged journal forgot: the relay asks central which results of its site were accepted
 * whose outputs a relay names, and names what still lies under an attempt's name. Repeating is harmless, and so is a second
 * relay that does the same.
 *
 * A report of before the loss may still wait at a centre that was stopped or cut off, and be accepted later; so it is
 * asked at once and once more a while after. The journal remembers that it was, and a restart in between begins anew.
 */
import type { Clock } from '../shared/clock.ts'
import { IndraftError } from '../shared/errors.ts'
import { type FileClient, fileAddress } from '../shared/files/client.ts'
import type { Log } from '../shared/log.ts'
import type { Journal } from './journal.ts'
import type { Publications } from './publications.ts'

/** Before the second time, and between tries where central or the file system refuses; times the time scale. */
const AGAIN_AFTER_MS = 10 * 60_000

export interface NamesOptions {
  journal: Journal
  publications: Publications
  client: FileClient
  /** `https://host:port` of central. */
  centralUrl: string
  clock: Clock
  timeScale: number
  log: Log
}

export class Names {
  readonly #options: NamesOptions
  readonly #stop = new AbortController()
  #running: Promise<void> | undefined
  /** Times that are still to be asked. */
  #left = 0

  constructor(options: NamesOptions) {
    this.#options = options
  }

  /** Asks, where this journal has lost something since it asked last. */
  start(): void {
    if (this.#options.journal.hasAskedNames || this.#stop.signal.aborted) return
    this.#ask()
  }

  /** The journal has lost something just now. */
  onLoss(): void {
    if (!this.#stop.signal.aborted) this.#ask()
  }

  async stop(): Promise<void> {
    this.#stop.abort()
    await this.#running
  }

  #ask(): void {
    this.#left = 2
    this.#running ??= this.#askAll()
      .catch((error) => {
        if (!this.#stop.signal.aborted) this.#options.log.error({ err: error }, 'names.failed')
      })
      .finally(() => {
        this.#running = undefined
      })
  }

  async #askAll(): Promise<void> {
    const { journal, clock, timeScale, log } = this.#options
    const signal = this.#stop.signal
    let failures = 0
    while (this.#left > 0 && !signal.aborted) {
      try {
        log.info(await this.#askOnce(), 'names.asked')
        this.#left--
        if (this.#left === 0) return journal.noteNamesAsked()
      } catch (error) {
        if (signal.aborted) return
        // An older central has no such address: asked again when the relay starts anew.
        const isUnknown = error instanceof IndraftError && error.code === 'request.notFound'
        if (failures++ === 0) log.warn({ err: error, isUnknown }, 'names.notAsked')
        if (isUnknown) return
      }
      await clock.sleep(AGAIN_AFTER_MS * timeScale, signal).catch(() => {})
    }
  }

  async #askOnce(): Promise<{ accepted: number; toName: number }> {
    const { publications, client, centralUrl } = this.#options
    const seen = { accepted: 0, toName: 0 }
    for (let from: string | null = null; ; ) {
      const page = await client.listAccepted(centralUrl + fileAddress.accepted(from), { signal: this.#stop.signal })
      for (const result of page.results) {
        seen.accepted++
        seen.toName += await publications.onFound(result)
      }
      if (page.next === null) return seen
      from = page.next
    }
  }
}
