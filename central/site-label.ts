/**
 * Site names as labels: those that are registered or have a live session. Anybody may invent a name, so any other is
 * `unknown`. Names are read again when an unknown one comes, but not more often than every few seconds.
 */
import type { Log } from '../shared/log.ts'

const FRESH_MS = 5000

export class SiteLabel {
  readonly #log: Log
  #read: () => Promise<Iterable<string>> = async () => []
  #known: ReadonlySet<string> = new Set()
  #reading: Promise<void> | undefined
  #readAtMs = Number.NEGATIVE_INFINITY

  constructor(log: Log) {
    this.#log = log
  }

  /** From now on names can be read. */
  readFrom(read: () => Promise<Iterable<string>>): void {
    this.#read = read
  }

  async of(site: string): Promise<string> {
    if (!this.#known.has(site) && (this.#reading || performance.now() - this.#readAtMs > FRESH_MS)) {
      this.#reading ??= this.#readAgain()
      await this.#reading
    }
    return this.#known.has(site) ? site : 'unknown'
  }

  async #readAgain(): Promise<void> {
    try {
      this.#known = new Set(await this.#read())
    } catch (error) {
      this.#log.warn({ err: error }, 'metrics.sitesUnread')
    }
    this.#readAtMs = performance.now()
    this.#reading = undefined
  }
}
