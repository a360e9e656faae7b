/**
 * The work in hand: grants that were checked, what of each has not been started, what runs, what is not acknowledged
 * yet. Nothing unverified gets in: signature by a key of this site's credential, made for this site, not expired, no
 * task that the signed bundle lacks, allowed by the site's policy. What is refused ends as failed, each task singly,
 * so that the centre hears why.
 */
import type { KeyObject } from 'node:crypto'
import type { Clock } from '../shared/clock.ts'
import { type ErrorCode, IndraftError } from '../shared/errors.ts'
import type { AttemptRef } from '../shared/ids.ts'
import type { Log } from '../shared/log.ts'
import type { Grant, LeasePart } from '../shared/protocol/messages.ts'
import type { BundleBody, Needs, Signed, TemplateBody } from '../shared/protocol/work.ts'
import {
  countRanges,
  formatRanges,
  indices,
  parseRanges,
  rangesOf,
  type Span,
  subtractRanges,
  takeFirst,
} from '../shared/ranges.ts'
import { digestOf, verifyBundle, verifyTemplate } from '../shared/signing.ts'
import { enforcePolicy, type SitePolicy } from './policy.ts'
import type { WaitingWork } from './slots.ts'

export interface Trust {
  site: string
  /** From the credential, and from nowhere else. */
  keys: ReadonlyMap<string, KeyObject>
  policy: SitePolicy
  /** Wall-clock milliseconds for the expiry of signed work; see expiryClock. */
  expiryNowMs: () => number
}

/** A wall clock that was stepped ahead while this pilot lives lets nothing expire: the earlier of what it says and would say. */
export function expiryClock(clock: Clock): () => number {
  const offsetMs = clock.wallMs() - clock.monotonicMs()
  return () => Math.min(clock.wallMs(), offsetMs + clock.monotonicMs())
}

const MOST_TEMPLATES = 128

/** A grant that passed every check. */
export class Lease implements WaitingWork {
  readonly grant: Grant
  readonly bundle: BundleBody
  readonly template: TemplateBody
  readonly needs: Needs
  readonly session: string
  readonly leaseMs: number
  endsAtMs: number
  running = 0
  estimateMs: number | null
  #unstarted: Span[]
  /** Granted and neither given back nor acknowledged: the lease is held as long as there are any. */
  readonly open: Set<number>
  /** Own run times, where the dispatcher had no estimate: mean of what was seen. */
  #seen = { count: 0, sumMs: 0 }

  constructor(grant: Grant, bundle: BundleBody, template: TemplateBody, session: string, sentAtMs: number) {
    this.grant = grant
    this.bundle = bundle
    this.template = template
    this.needs = template.needs
    this.session = session
    this.leaseMs = grant.leaseMs
    this.endsAtMs = sentAtMs + grant.leaseMs
    this.estimateMs = grant.estimateMs
    this.#unstarted = parseRanges(grant.lease.tasks)
    this.open = new Set(indices(this.#unstarted))
  }

  get waiting(): number {
    return countRanges(this.#unstarted)
  }

  ref(index: number): AttemptRef {
    const { campaign, step, bundle, fences } = this.grant.lease
    return { campaign, step, bundle, fences, index } as AttemptRef
  }

  part(tasks: Iterable<number>): LeasePart {
    return { ...this.grant.lease, tasks: formatRanges(rangesOf(tasks)) }
  }

  /** The next task to start. */
  takeNext(): number {
    const { taken, rest } = takeFirst(this.#unstarted, 1)
    this.#unstarted = rest
    return taken[0]![0]
  }

  /** Takes back tasks that were not started: all, or one. @returns what there was to take */
  withdraw(index?: number): LeasePart | null {
    const wanted: Span[] = index === undefined ? this.#unstarted : [[index, index]]
    const kept = subtractRanges(this.#unstarted, wanted)
    const gone = subtractRanges(this.#unstarted, kept)
    if (gone.length === 0) return null
    this.#unstarted = kept
    for (const task of indices(gone)) this.open.delete(task)
    return { ...this.grant.lease, tasks: formatRanges(gone) }
  }

  sawRunTime(ms: number): void {
    this.#seen.count++
    this.#seen.sumMs += ms
    this.estimateMs = this.grant.estimateMs ?? this.#seen.sumMs / this.#seen.count
  }
}

/** Tasks that were granted but may not run here, with the reason. */
export interface RefusedGrant {
  lease: LeasePart
  reason: ErrorCode
  detail: string
}

export class Leases {
  readonly #trust: Trust
  readonly #log: Log
  readonly #held = new Set<Lease>()
  /** Verified templates by the first 16 digits of their digest. */
  readonly #templates = new Map<string, TemplateBody>()

  constructor(trust: Trust, log: Log) {
    this.#trust = trust
    this.#log = log
  }

  get held(): ReadonlySet<Lease> {
    return this.#held
  }

  get unstarted(): number {
    let count = 0
    for (const lease of this.#held) count += lease.waiting
    return count
  }

  /** Templates that need not be sent again. */
  knownTemplates(): string[] {
    while (this.#templates.size > MOST_TEMPLATES) this.#templates.delete(this.#templates.keys().next().value!)
    return [...this.#templates.keys()]
  }

  /**
   * @param sentAtMs monotonic time at which the pull was sent: the lease counts from there
   */
  accept(grants: readonly Grant[], templates: readonly Signed[], session: string, sentAtMs: number): RefusedGrant[] {
    const refusedTemplates = new Map<string, IndraftError>()
    for (const signed of templates) {
      const name = digestOf(signed.bytes).slice('sha256:'.length, 'sha256:'.length + 16)
      try {
        this.#templates.set(name, verifyTemplate(signed, this.#trust.keys))
      } catch (error) {
        refusedTemplates.set(name, asRefusal(error))
      }
    }
    const refused: RefusedGrant[] = []
    for (const grant of grants) {
      try {
        this.#held.add(this.#check(grant, refusedTemplates, session, sentAtMs))
      } catch (error) {
        const { code, message } = asRefusal(error)
        this.#log.error({ ...grant.lease, code, detail: message }, 'grant.refused')
        refused.push({ lease: grant.lease, reason: code, detail: message })
      }
    }
    return refused
  }

  #check(grant: Grant, refusedTemplates: ReadonlyMap<string, IndraftError>, session: string, sentAtMs: number): Lease {
    const { site, keys, policy, expiryNowMs } = this.#trust
    const bundle = verifyBundle(grant.bundle, keys, expiryNowMs())
    if (bundle.site !== site) {
      throw new IndraftError('signature.invalid', `the work was signed for site ${bundle.site}, not for ${site}`)
    }
    const { lease } = grant
    const isNarrower =
      lease.bundle === bundle.bundle &&
      lease.campaign === bundle.campaign &&
      lease.step === bundle.step &&
      subtractRanges(tasksOf(lease.tasks), tasksOf(bundle.tasks)).length === 0
    if (!isNarrower) throw new IndraftError('envelope.widened')
    const name = bundle.template.slice('sha256:'.length, 'sha256:'.length + 16)
    const template = this.#templates.get(name)
    if (!template) {
      throw refusedTemplates.get(name) ?? new IndraftError('signature.invalid', `template ${name} did not come`)
    }
    if (template.campaign !== bundle.campaign || template.step !== bundle.step) {
      throw new IndraftError('signature.invalid', 'the template is of another step')
    }
    enforcePolicy(policy, template)
    return new Lease(grant, bundle, template, session, sentAtMs)
  }

  /** Renewed by every acknowledged message of the session they were granted in. */
  renew(session: string, renewedAtMs: number): void {
    for (const lease of this.#held) {
      if (lease.session === session) lease.endsAtMs = Math.max(lease.endsAtMs, renewedAtMs + lease.leaseMs)
    }
  }

  /** The dispatcher has the result of this task. */
  settle(attempt: Pick<AttemptRef, 'campaign' | 'step' | 'index' | 'fences'>): void {
    for (const lease of this.#held) {
      const { campaign, step, fences } = lease.grant.lease
      if (campaign !== attempt.campaign || step !== attempt.step || fences.join() !== attempt.fences.join()) continue
      lease.open.delete(attempt.index)
      this.#forgetEmpty(lease)
      return
    }
  }

  /** Takes back what was not started of the leases chosen. */
  withdraw(choose: (lease: Lease) => boolean, index?: number): LeasePart[] {
    const parts: LeasePart[] = []
    for (const lease of this.#held) {
      const part = choose(lease) ? lease.withdraw(index) : null
      if (part) parts.push(part)
      this.#forgetEmpty(lease)
    }
    return parts
  }

  /** Leases of sessions that are no more: their unstarted work has gone to others. */
  dropOthers(session: string): LeasePart[] {
    return this.withdraw((lease) => lease.session !== session)
  }

  #forgetEmpty(lease: Lease): void {
    if (lease.open.size === 0) this.#held.delete(lease)
  }
}

/** @throws IndraftError message.invalid */
function tasksOf(text: string): Span[] {
  try {
    return parseRanges(text)
  } catch (cause) {
    throw new IndraftError('message.invalid', 'malformed task ranges', { cause })
  }
}

function asRefusal(error: unknown): IndraftError {
  return error instanceof IndraftError ? error : new IndraftError('signature.invalid', undefined, { cause: error })
}
