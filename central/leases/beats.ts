/**
 * What a beat brings back: orders. Also the comparison of what a holder says it holds with what the store has leased
 * to it: what it misses twice in a row (or in an inventory) is ended here, so that others can have it.
 */

import { heldDigest } from '../../shared/held.ts'
import type { Log } from '../../shared/log.ts'
import { pack, unpack } from '../../shared/protocol/codec.ts'
import type { Message, Order } from '../../shared/protocol/messages.ts'
import { groupBase, siteBase } from './keys.ts'
import type { Leases } from './leases.ts'
import type { Scripts } from './scripts.ts'
import type { Session } from './sessions.ts'

const MOST_ORDERS = 256
const INVENTORY_KEPT_SECONDS = 3600

type Held = Map<string, { base: string; fence: string }>

export class Beats {
  readonly #scripts: Scripts
  readonly #leases: Leases
  readonly #log: Log
  /** Session -> what differed at its last beat. A message in flight may explain it; twice the same may not. */
  readonly #differed = new Map<string, Set<string>>()

  constructor(scripts: Scripts, leases: Leases, log: Log) {
    this.#scripts = scripts
    this.#leases = leases
    this.#log = log
  }

  async orders(
    site: string,
    session: Session,
    beat: Message<'beat'>,
    is: { halted: boolean; isDraining: boolean },
  ): Promise<Order[]> {
    const orders: Order[] = [...session.orders, ...(await this.#cancelled(session))]
    if (is.isDraining) orders.push({ kind: 'holder.drain' })
    if (is.halted || (await this.#differs(site, session, beat))) orders.push({ kind: 'holder.inventory' })
    return orders.slice(0, MOST_ORDERS)
  }

  /** Cancelled campaigns among what the session holds. */
  async #cancelled(session: Session): Promise<Order[]> {
    const orders: Order[] = []
    for (const group of session.groups) {
      const base = groupBase(group)
      const cancelling = await this.#scripts.redis.smembers(`${base}:cancelling`)
      if (cancelling.length === 0) continue
      const bundles = await this.#scripts.redis.hkeys(`${base}:leases:${session.id}`)
      const held = await Promise.all(
        bundles.map((bundle) => this.#scripts.redis.hget(`${base}:bundle:${bundle}`, 'campaign')),
      )
      for (const campaign of cancelling) {
        if (!held.includes(campaign)) continue
        const version = await this.#scripts.redis.hget(`${base}:campaign:${campaign}`, 'version')
        orders.push({ kind: 'campaign.cancel', campaign, version: Number(version ?? 0) })
      }
    }
    return orders
  }

  /** Whether an inventory is needed. A list is judged at once: leases it misses twice are ended. */
  async #differs(site: string, session: Session, beat: Message<'beat'>): Promise<boolean> {
    const known = await this.#leases.held(session.groups.map(groupBase), session.id, beat.processed)
    if (!Array.isArray(beat.held)) {
      const digest = digestOf(known)
      if (digest === beat.held.digest) {
        this.#differed.delete(session.id)
        return false
      }
      const pair = new Set([`${digest}/${beat.held.digest}`])
      const again = [...pair].every((text) => this.#differed.get(session.id)?.has(text))
      this.#differed.set(session.id, pair)
      return again
    }
    const listed = new Set(beat.held.map((part) => `${part.bundle}#${part.fences[0]}`))
    const missing = new Set<string>()
    for (const [name, { base, fence }] of known) {
      const bundle = name.slice(base.length + 1)
      if (listed.has(`${bundle}#${fence}`)) continue
      missing.add(name)
      if (!this.#differed.get(session.id)?.has(name)) continue
      this.#log.warn({ site, holder: session.holder, bundle, fence }, 'lease.notHeld')
      await this.#leases.expire(base, bundle, { fence, reason: 'node.lost' })
    }
    if (missing.size > 0) this.#differed.set(session.id, missing)
    else this.#differed.delete(session.id)
    return false
  }

  /** All parts, once they are there; kept in the store, because each may come to another process. */
  async #collect(name: string, inventory: Message<'inventory'>): Promise<Message<'inventory'>[] | null> {
    const { redis } = this.#scripts
    if (inventory.part === 0) await redis.del(name)
    await redis.hset(name, String(inventory.part), Buffer.from(pack(inventory)))
    await redis.expire(name, INVENTORY_KEPT_SECONDS)
    if ((await redis.hlen(name)) < inventory.parts) return null
    const packed = await redis.hvalsBuffer(name)
    await redis.del(name)
    return packed.map((bytes) => unpack(bytes) as Message<'inventory'>)
  }

  /** Complete with its last part: leases that it does not name, of those the holder had processed, are ended. */
  async onInventory(site: string, session: Session, inventory: Message<'inventory'>): Promise<void> {
    // A part of an earlier inventory that comes late, or again, completes none of the later.
    const which = `${inventory.processed}/${inventory.parts}`
    const all = await this.#collect(`${siteBase(site)}:inventory:${session.id}:${which}`, inventory)
    if (!all) return
    const listed = new Set(all.flatMap((part) => part.leases.map((lease) => `${lease.bundle}#${lease.fences[0]}`)))
    const processed = Math.min(...all.map((part) => part.processed))
    const known = await this.#leases.held(session.groups.map(groupBase), session.id, processed)
    const here = new Set([...known].map(([name, { base, fence }]) => `${name.slice(base.length + 1)}#${fence}`))
    // Granted in a time that the store has lost, or ended here meanwhile: their results will be refused, or be late.
    const unknown = [...listed].filter((lease) => !here.has(lease))
    const facts = { session: session.id, holder: session.holder, listed: listed.size, known: known.size }
    this.#log.info({ ...facts, unknown: unknown.length, first: unknown.slice(0, 20) }, 'holder.inventoryTaken')
    for (const [name, { base, fence }] of known) {
      const bundle = name.slice(base.length + 1)
      if (!listed.has(`${bundle}#${fence}`)) await this.#leases.expire(base, bundle, { fence, reason: 'node.lost' })
    }
    this.#differed.delete(session.id)
  }
}

function digestOf(held: Held): string {
  return heldDigest(
    [...held].map(([name, { base, fence }]) => ({ bundle: name.slice(base.length + 1), fence: Number(fence) })),
  )
}
