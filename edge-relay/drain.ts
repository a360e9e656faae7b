/**
 * Whether the relay takes nothing more, and by whose word; kept over a restart. Central repeats its order with every
 * beat for as long as it means it, so answers without it end what it began. What was said here holds until it is lifted
 * here.
 */
import type { Log } from '../shared/log.ts'
import type { Order } from '../shared/protocol/messages.ts'
import type { Journal } from './journal.ts'

/** So many answers without the order end it. */
const BEATS_TO_RESUME = 3

interface Kept {
  by: 'centre' | 'here'
}

export interface DrainOptions {
  journal: Journal
  log: Log
  /** What was not given to pilots is to go back, or is wanted again. */
  onChanged: () => void
}

export class Drain {
  readonly #options: DrainOptions
  #kept: Kept | null
  #beatsWithout = 0

  constructor(options: DrainOptions) {
    this.#options = options
    this.#kept = options.journal.meta<Kept | null>('drain') ?? null
  }

  get isOn(): boolean {
    return this.#kept !== null
  }

  get isFromHere(): boolean {
    return this.#kept?.by === 'here'
  }

  begin(by: Kept['by']): void {
    if (this.isFromHere || (this.isOn && by === 'centre')) return
    this.#set({ by })
  }

  end(): void {
    this.#set(null)
  }

  /** Central has answered a beat. */
  onOrders(orders: readonly Order[]): void {
    if (orders.some(({ kind }) => kind === 'holder.drain')) {
      this.#beatsWithout = 0
      this.begin('centre')
    } else if (this.#kept?.by === 'centre' && ++this.#beatsWithout >= BEATS_TO_RESUME) this.end()
  }

  #set(kept: Kept | null): void {
    const { journal, log, onChanged } = this.#options
    this.#kept = kept
    this.#beatsWithout = 0
    journal.setMeta('drain', kept)
    log.info({ by: kept?.by ?? null }, kept ? 'relay.draining' : 'relay.resumed')
    onChanged()
  }
}
