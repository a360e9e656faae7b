/**
 * What a pilot says it holds, against what this relay leased to it. Whatever a message names up to the grants it has
 * processed is confirmed; what it lacks of them is not held any more: missing from an inventory it ends at once, missing
 * from beats only the second time. What was granted later is not judged.
 */
import type { Log } from '../shared/log.ts'
import type { LeasePart, Message } from '../shared/protocol/messages.ts'
import type { Buffer } from './buffer.ts'
import { OWN_HOP, type SubLease } from './lease.ts'
import type { Session, Sessions } from './sessions.ts'

export interface HoldingOptions {
  buffer: Buffer
  sessions: Sessions
  log: Log
  release: (part: SubLease, why: string) => void
}

export class Holding {
  readonly #options: HoldingOptions

  constructor(options: HoldingOptions) {
    this.#options = options
  }

  /** The pilot lives, and has processed grants up to here. */
  heardUpTo(session: Session, processed: number): void {
    const { buffer, sessions } = this.#options
    sessions.heard(session)
    session.processed = Math.max(session.processed, processed)
    for (const part of buffer.ofSession(session.session)) if (part.sequence <= processed) buffer.confirm(part)
  }

  /** The list of a beat, where it brings one. */
  compare(session: Session, { held, processed }: Message<'beat'>): void {
    if (!Array.isArray(held)) return
    const missing = this.#missingFrom(session, held, processed)
    for (const part of missing) if (session.missing.has(part.fence)) this.#release(part, session)
    session.missing = new Set(missing.map((part) => part.fence))
  }

  /** Complete when every part of one `processed` is here; what it lacks then comes back at once. */
  takeInventory(session: Session, { processed, part, parts, leases }: Message<'inventory'>): void {
    if (session.inventory?.processed !== processed || session.inventory.parts !== parts) {
      session.inventory = { processed, parts, byPart: new Map() }
    }
    const { byPart } = session.inventory
    byPart.set(part, leases)
    if (byPart.size < parts) return
    for (const missing of this.#missingFrom(session, [...byPart.values()].flat(), processed)) {
      this.#release(missing, session)
    }
    session.inventory = null
  }

  #missingFrom(session: Session, named: Iterable<Pick<LeasePart, 'fences'>>, processed: number): SubLease[] {
    const fences = new Set([...named].map((part) => part.fences[OWN_HOP]))
    return this.#options.buffer
      .ofSession(session.session)
      .filter((part) => part.sequence <= processed && !fences.has(part.fence))
  }

  #release(part: SubLease, session: Session): void {
    const { log, release } = this.#options
    log.warn({ pilot: session.holder, bundle: part.lease.bundle, fence: part.fence }, 'lease.notHeld')
    release(part, 'the pilot does not hold it any more')
  }
}
