/**
 * Work of the buffer for one pull: chosen (choice.ts), leased provisionally under fences of this relay's own, and in the
 * form that travels. Whoever answers the pull waits for the commit.
 */
import type { Clock } from '../shared/clock.ts'
import { makeCapability } from '../shared/files/capability.ts'
import type { Log } from '../shared/log.ts'
import type { Grant, Message } from '../shared/protocol/messages.ts'
import type { Signed } from '../shared/protocol/work.ts'
import { countRanges, formatRanges, indices } from '../shared/ranges.ts'
import type { Timings } from '../shared/timings.ts'
import type { Buffer } from './buffer.ts'
import { chooseWork, type Picked } from './choice.ts'
import { type SubLease, subLeasePart } from './lease.ts'
import type { Session, Sessions } from './sessions.ts'

const DAY_MS = 86_400_000

export interface GrantingOptions {
  buffer: Buffer
  sessions: Sessions
  log: Log
  clock: Clock
  timings: Timings
  capabilityKey: Uint8Array
  /** Milliseconds left of a lease, by the time central was last heard of. */
  leaseLeftMs: (leaseMs: number) => number
  /** Nobody is given anything: the relay is to become empty, or is stopping. */
  isClosed: () => boolean
  /** There is too little room on the disk for new work. */
  isDiskFull: () => boolean
  onGranted: (tasks: number) => void
}

/** What a reply to a pull says about work. */
export type Granted = Pick<Message<'grants'>, 'grants' | 'templates' | 'reason' | 'askAgainMs'>

export class Granting {
  readonly #options: GrantingOptions

  constructor(options: GrantingOptions) {
    this.#options = options
  }

  /** Leases to a session what fits the pull's offer; nothing, with the reason, where nothing does. */
  grant(session: Session, pull: Message<'pull'>): Granted {
    const { timings, isClosed, isDiskFull } = this.#options
    const nothing = (reason: Granted['reason']) => {
      return { grants: [], templates: [], reason, askAgainMs: Math.round(timings.beatMs / 5) }
    }
    if (isClosed() || session.state === 'draining') return nothing('draining')
    if (pull.offer.length === 0) return nothing('noWork')
    if (isDiskFull()) return nothing('storeFull')
    const knows = new Set(pull.knows)
    const { picked, offerLeft, reason } = this.#choose(session, pull, knows)
    if (picked.length === 0) return nothing(reason)
    session.offer = offerLeft[0] ?? null
    const templates = new Map<string, Signed>()
    for (const { lease } of picked) {
      const { name, template } = this.#options.buffer.template(lease)
      if (!knows.has(name)) templates.set(name, template)
    }
    const grants = picked.map((one) => this.#lease(one, session, pull.sequence))
    return { grants, templates: [...templates.values()], reason: null, askAgainMs: 0 }
  }

  #choose(session: Session, { offer }: Message<'pull'>, knows: ReadonlySet<string>) {
    const { buffer, sessions, clock, leaseLeftMs } = this.#options
    return chooseWork({
      leases: buffer.leases(),
      offer,
      node: session.facts.node,
      others: sessions
        .live()
        .filter((other) => other !== session && other.state === 'active')
        .map((other) => other.facts),
      estimateMs: (lease) => buffer.steps.estimateMs(lease),
      leaseLeftMs: (lease) => leaseLeftMs(lease.grant.leaseMs),
      wallMs: clock.wallMs(),
      templateBytes: (lease) => {
        const { name, template } = buffer.template(lease)
        return knows.has(name) ? 0 : template.bytes.length
      },
    })
  }

  #lease({ lease, tasks }: Picked, session: Session, sequence: number): Grant {
    const { buffer, timings, log, onGranted } = this.#options
    const part = buffer.grant(lease, tasks, session.session, sequence)
    const { campaign, step, bundle } = lease
    const ranges = formatRanges(tasks)
    log.info({ campaign, step, bundle, fence: part.fence, tasks: ranges, pilot: session.holder }, 'lease.granted')
    onGranted(countRanges(tasks))
    const tries = [...indices(tasks)].flatMap((index) => {
      const count = lease.grant.tries[index]
      return count ? [[String(index), count] as const] : []
    })
    return {
      ...lease.grant,
      lease: subLeasePart(part),
      leaseMs: timings.leaseMs,
      tries: Object.fromEntries(tries),
      estimateMs: buffer.steps.estimateMs(lease),
      capability: this.#capabilityFor(part),
    }
  }

  /** Work cannot start after the bundle's signed end, so the files stay open for its walltime and a day to report. */
  #capabilityFor(part: SubLease): string {
    const { lease } = part
    return makeCapability(this.#options.capabilityKey, {
      campaign: lease.campaign,
      step: lease.step,
      fences: [...lease.fences, part.fence],
      tasks: formatRanges(part.tasks),
      expiresAtMs: lease.expiresAtMs + lease.needs.walltimeMs + DAY_MS,
    })
  }
}
