/**
 * What happens to leases after they were granted: confirmed, started, given back, expired. Each is one script; here
 * they are told which group's keys and which step's retry rules apply. Anything may be repeated.
 */
import type { ErrorCode } from '../../shared/errors.ts'
import { failpoint } from '../../shared/failpoint.ts'
import type { Log } from '../../shared/log.ts'
import type { LeasePart, StartedPart } from '../../shared/protocol/messages.ts'
import type { StoreEvents } from './options.ts'
import type { Plans } from './plans.ts'
import { lostRules, RETRIES_UNKNOWN } from './retries.ts'
import type { Scripts } from './scripts.ts'
import type { Sessions } from './sessions.ts'

interface Expired {
  outcome: number
  campaign: string
  step: string
  tasks: number
  lost: number
  open: number
}

export interface Feeding {
  /** Something of the step can be bundled, released or ended: let the background work look at it. */
  want(job: 'feed' | 'release', campaign: string, step: string): void
}

export class Leases {
  readonly #scripts: Scripts
  readonly #plans: Plans
  readonly #sessions: Sessions
  readonly #feeding: Feeding
  readonly #log: Log
  readonly #scale: number
  readonly #events: StoreEvents

  constructor(parts: {
    scripts: Scripts
    plans: Plans
    sessions: Sessions
    feeding: Feeding
    log: Log
    timeScale: number
    events: StoreEvents
  }) {
    this.#scripts = parts.scripts
    this.#plans = parts.plans
    this.#sessions = parts.sessions
    this.#feeding = parts.feeding
    this.#log = parts.log
    this.#scale = parts.timeScale
    this.#events = parts.events
  }

  /** Confirms what was granted up to `processed` in these groups; `opened` is the sequence of a pull that says so. */
  async confirm(bases: string[], session: string, processed: number, opened: number | null): Promise<void> {
    await Promise.all(bases.map((base) => this.#scripts.run('confirm', base, { session, processed, opened })))
  }

  /** Notes that tasks run, and where. Parts of unknown campaigns are passed over. */
  async start(site: string, parts: StartedPart[]): Promise<void> {
    for (const [base, list] of await this.#byBase(parts)) {
      await this.#scripts.run('started', base, { site, parts: list.map(scriptPart) })
    }
  }

  /** Takes unstarted tasks back, uncharged. */
  async giveBack(site: string, parts: LeasePart[]): Promise<void> {
    for (const [base, list] of await this.#byBase(parts)) {
      const answer = await this.#scripts.run<{ outcome: number; tasks: number }>('giveback', base, {
        site,
        parts: list.map(scriptPart),
      })
      if (answer.tasks === 0) continue
      this.#log.info({ site, tasks: answer.tasks, bundles: list.map((part) => part.bundle) }, 'lease.returned')
      for (const part of list) {
        this.#feeding.want('feed', part.campaign, part.step)
        this.#feeding.want('release', part.campaign, part.step)
      }
    }
  }

  async #byBase<P extends LeasePart>(parts: P[]): Promise<Map<string, P[]>> {
    const byBase = new Map<string, P[]>()
    for (const part of parts) {
      const known = await this.#plans.place(part.campaign)
      if (!known) continue
      byBase.set(known.base, [...(byBase.get(known.base) ?? []), part])
    }
    return byBase
  }

  /** Ends a lease whose holder is gone; `provisional` only one that was never confirmed and is overdue. */
  async expire(
    base: string,
    bundle: string,
    { reason, ...which }: { fence?: string; provisional?: boolean; reason: ErrorCode },
  ): Promise<void> {
    const [campaign, stepName] = await this.#scripts.redis.hmget(`${base}:bundle:${bundle}`, 'campaign', 'step')
    if (!campaign || !stepName) return
    const known = await this.#plans.readableStep(campaign, stepName)
    const answer = await this.#scripts.run<Expired>('expire', base, {
      bundle,
      ...which,
      rules: lostRules(known?.step.retries ?? RETRIES_UNKNOWN, this.#scale, reason),
    })
    if (answer.outcome !== 1) return
    if (known) this.#events.onExpired?.(known.plan.group, answer.tasks)
    this.#log.warn(
      { campaign, step: stepName, bundle, tasks: answer.tasks, lost: answer.lost, reason },
      'lease.expired',
    )
    this.#feeding.want('feed', campaign, stepName)
    if (answer.open === 0) this.#feeding.want('release', campaign, stepName)
  }

  /** Declares an ended session dead in its groups, ends its leases one by one, and forgets it. */
  async bury(site: string, session: string, bases: string[], reason: ErrorCode): Promise<void> {
    failpoint('session.ended')
    for (const base of bases) {
      const answer = await this.#scripts.run<{ outcome: number; leases: { bundle: string; fence: string }[] }>(
        'bury',
        base,
        { session },
      )
      for (const lease of answer.leases) {
        await this.expire(base, lease.bundle, { fence: lease.fence, reason })
        failpoint('lease.expired')
      }
    }
    await this.#sessions.forget(site, session)
  }

  /** Bundle -> fence of what a session holds and has confirmed up to `processed`, over its groups. */
  async held(
    bases: string[],
    session: string,
    processed: number,
  ): Promise<Map<string, { base: string; fence: string }>> {
    const held = new Map<string, { base: string; fence: string }>()
    for (const base of bases) {
      const [leases, unconfirmed] = await Promise.all([
        this.#scripts.redis.hgetall(`${base}:leases:${session}`),
        this.#scripts.redis.zrangebyscore(`${base}:unconfirmed:${session}`, `(${processed}`, '+inf'),
      ])
      for (const [bundle, fence] of Object.entries(leases)) {
        if (!unconfirmed.includes(bundle)) held.set(`${base}#${bundle}`, { base, fence })
      }
    }
    return held
  }
}

function scriptPart({ bundle, fences, tasks, node }: StartedPart) {
  return { bundle, fence: String(fences[0]), tasks, ...(node !== undefined && { node }) }
}
