/**
 * What central wants ended: campaigns and single attempts. Kept until nothing of them is held here any more, and said
 * to the pilots concerned in every beat's reply until then, so that a lost reply loses nothing.
 */
import type { AttemptRef } from '../shared/ids.ts'
import { attemptPath } from '../shared/ids.ts'
import type { Order } from '../shared/protocol/messages.ts'
import { rangesOf, type Span } from '../shared/ranges.ts'
import type { Buffer } from './buffer.ts'
import type { Journal, JournalContent } from './journal.ts'
import { OWN_HOP, type SubLease } from './lease.ts'

type Cancel = Extract<Order, { kind: 'campaign.cancel' | 'attempt.cancel' }>

export class Cancels {
  readonly #journal: Journal
  readonly #buffer: Buffer
  readonly #wanted = new Map<string, Cancel>()

  constructor(journal: Journal, buffer: Buffer, kept: JournalContent['pending']) {
    this.#journal = journal
    this.#buffer = buffer
    for (const { kind, name, body } of kept) if (kind === 'cancel') this.#wanted.set(name, body as Cancel)
  }

  /** Central repeats an order for as long as it means it. */
  add(order: Cancel): void {
    const name = order.kind === 'campaign.cancel' ? order.campaign : attemptPath(order.attempt)
    if (!this.#wanted.has(name)) {
      this.#wanted.set(name, order)
      this.#journal.putPending('cancel', name, order)
    }
    if (order.kind === 'campaign.cancel') this.#buffer.giveBack((lease) => lease.campaign === order.campaign)
    else this.#buffer.giveBackTask(order.attempt)
  }

  /** @returns whether nothing of the campaign is to be started */
  isCampaignCancelled(campaign: string): boolean {
    return this.#wanted.has(campaign)
  }

  /** Tasks of a part that nobody is to start. */
  unwantedOf(part: SubLease): readonly Span[] {
    if (this.isCampaignCancelled(part.lease.campaign)) return part.tasks
    const attempts = [...this.#wanted.values()].flatMap((order) =>
      order.kind === 'attempt.cancel' ? [order.attempt] : [],
    )
    return rangesOf(attempts.filter((attempt) => concerns(this.#buffer, part, attempt)).map(({ index }) => index))
  }

  /** Orders for a pilot that holds these. */
  ordersFor(held: readonly SubLease[]): Cancel[] {
    const orders: Cancel[] = []
    for (const order of this.#wanted.values()) {
      if (order.kind === 'campaign.cancel') {
        if (held.some((part) => part.lease.campaign === order.campaign)) orders.push(order)
        continue
      }
      for (const part of held) {
        if (!concerns(this.#buffer, part, order.attempt)) continue
        // Central may name an attempt by its own fence alone; the pilot knows it by all.
        orders.push({ ...order, attempt: { ...order.attempt, fences: [...part.lease.fences, part.fence] } })
      }
    }
    return orders
  }

  /** Drops what nobody holds any more. */
  forgetDone(): void {
    for (const [name, order] of this.#wanted) {
      const isHeld = [...this.#buffer.subLeases()].some((part) =>
        order.kind === 'campaign.cancel'
          ? part.lease.campaign === order.campaign
          : concerns(this.#buffer, part, order.attempt),
      )
      if (isHeld) continue
      this.#wanted.delete(name)
      this.#journal.dropPending('cancel', name)
    }
  }
}

function concerns(
  buffer: Buffer,
  part: SubLease,
  attempt: Pick<AttemptRef, 'fences'> & Parameters<Buffer['covers']>[1],
) {
  const own = attempt.fences[OWN_HOP]
  return (
    part.lease.fences[0] === attempt.fences[0] &&
    (own === undefined || own === part.fence) &&
    buffer.covers(part, attempt)
  )
}
