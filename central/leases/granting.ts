/**
 * From an offer to leases: matching over the index of queues, then one grant script per group. A pull that was granted
 * something under its sequence before is given the same again.
 */

import { IndraftError } from '../../shared/errors.ts'
import { failpoint } from '../../shared/failpoint.ts'
import type { Log } from '../../shared/log.ts'
import type { Grant, Message, OfferEntry, ReplyTo } from '../../shared/protocol/messages.ts'
import { countRanges, parseRanges } from '../../shared/ranges.ts'
import { choose, type MatchContext, type Pick, type QueueEntry } from '../matching/choose.ts'
import { Envelopes, type GrantedLease } from './envelope.ts'
import { groupBase } from './keys.ts'
import type { Feeding } from './leases.ts'
import type { Mark } from './mark.ts'
import { anyFits, type MatchIndex } from './match-index.ts'
import type { StoreEvents } from './options.ts'
import type { Plans, StoredStep } from './plans.ts'
import type { Scripts } from './scripts.ts'
import type { Session, Sessions } from './sessions.ts'
import type { Unreadable } from './unreadable.ts'

/** One more than the nodes that a task can avoid (see grantSchema): enough to find one that it does not. */
const MOST_OTHER_NODES = 65
const MOST_GRANTS = 128

export interface GrantRequest {
  site: string
  labels: Record<string, string>
  session: Session
  sequence: number
  offer: OfferEntry[]
  confirmMs: number
  /** What the reply may still grow by. */
  bytes: number
  knows: Message<'pull'>['knows']
}

interface Answer {
  outcome: number
  leases?: GrantedLease[]
  bytes?: number
}

/** See scripts/grant.lua. */
type WeighedPick = Pick & { template: string; templateBytes: number; grantBytes: number; rowBytes: number }

export interface GrantingParts {
  scripts: Scripts
  plans: Plans
  sessions: Sessions
  index: MatchIndex
  mark: Mark
  feeding: Feeding
  unreadable: Unreadable
  log: Log
  events: StoreEvents
}

export class Granting {
  readonly #parts: GrantingParts

  constructor(parts: GrantingParts) {
    this.#parts = parts
  }

  /** The leases granted under this sequence that still hold. */
  async repeat(site: string, session: Session, sequence: number): Promise<GrantedLease[]> {
    const answers = await Promise.all(
      session.groups.map((group) =>
        this.#parts.scripts.run<Answer>('grant', groupBase(group), {
          session: session.id,
          site,
          holder: session.holder,
          sequence,
          confirmMs: 0,
          picks: [],
        }),
      ),
    )
    return answers.flatMap((answer) => (answer.outcome === 2 ? (answer.leases ?? []) : []))
  }

  /** Those of a kept reply's grants whose leases still are this session's. */
  async stillHeld(session: Session, grants: Grant[]): Promise<Grant[]> {
    const held: Grant[] = []
    for (const grant of grants) {
      const known = await this.#parts.plans.place(grant.lease.campaign)
      if (!known) continue
      const fence = await this.#parts.scripts.redis.hget(`${known.base}:leases:${session.id}`, grant.lease.bundle)
      if (fence === String(grant.lease.fences[0])) held.push(grant)
    }
    return held
  }

  async grant(request: GrantRequest): Promise<{ leases: GrantedLease[]; reason: ReplyTo<'pull'>['reason'] }> {
    const { index, mark, feeding } = this.#parts
    const { entries, shares } = await index.queues()
    const context = { ...(await this.#context(request)), shares }
    // What was picked may be gone by now, or avoid this very node: then what comes next is looked at.
    const empty = new Set<QueueEntry>()
    for (;;) {
      const chosen = choose(
        entries.filter((queue) => !empty.has(queue)),
        request.offer,
        context,
      )
      if (chosen.picks.length === 0) {
        const isFull = chosen.reason === 'noWork' && (await mark.isFull())
        return { leases: [], reason: isFull ? 'storeFull' : chosen.reason }
      }
      const leases: GrantedLease[] = []
      let { bytes } = request
      for (const [group, picks] of await this.#weigh(chosen.picks, request.knows)) {
        const room = { bytes, bundles: MOST_GRANTS - leases.length }
        const granted = await this.#grantInGroup(group, picks, room, request)
        leases.push(...granted.leases)
        bytes = granted.bytes
      }
      index.forget()
      for (const { queue } of chosen.picks) {
        empty.add(queue)
        feeding.want('feed', queue.campaign, queue.step)
      }
      if (leases.length > 0) return { leases, reason: null }
    }
  }

  async #context(request: GrantRequest): Promise<Omit<MatchContext, 'shares'>> {
    const live = await this.#parts.index.live()
    const elsewhere = live.filter((session) => session.site !== request.site)
    const here = live.filter((session) => session.site === request.site)
    const [seconds] = await this.#parts.scripts.redis.time()
    return {
      site: request.site,
      labels: request.labels,
      nowMs: Number(seconds) * 1000,
      // Each relay has a buffer of its own, also where a site has two.
      activeSites: new Set(live.map(({ site, role, holder }) => (role === 'relay' ? `${site}/${holder}` : site))).size,
      hasOtherSite: (needs, except) =>
        anyFits(
          elsewhere.filter(({ site }) => !except.has(site)),
          needs,
        ),
      otherNodes: (needs, node) => {
        const names = new Set<string>()
        for (const session of here) {
          for (const facts of session.nodes) {
            if (facts.node === node || names.size >= MOST_OTHER_NODES) continue
            if (anyFits([{ ...session, nodes: [facts] }], needs)) names.add(facts.node)
          }
        }
        return [...names]
      },
    }
  }

  /** By group, with what a lease adds to the reply for all that is known before the script looks at its bundles. */
  async #weigh(picks: Pick[], knows: readonly string[]): Promise<Map<string, WeighedPick[]>> {
    const byGroup = new Map<string, WeighedPick[]>()
    for (const pick of picks) {
      const known = await this.#parts.plans.readableStep(pick.queue.campaign, pick.queue.step)
      if (!known) continue
      const template = known.step.template16
      const templateBytes = knows.includes(template) ? 0 : await this.#templateBytes(pick.queue, known.step)
      if (templateBytes === null || !(await this.#isGrantable(pick.queue, known.step))) continue
      const weighed = { ...pick, template, templateBytes, ...Envelopes.bytesOf(known.step) }
      byGroup.set(pick.queue.group, [...(byGroup.get(pick.queue.group) ?? []), weighed])
    }
    return byGroup
  }

  /** Null where its blob is gone: that campaign waits, and no other for it. */
  #templateBytes(queue: QueueEntry, step: StoredStep): Promise<number | null> {
    const { plans, unreadable } = this.#parts
    return unreadable.look('template', queue, async () => (await plans.template(step)).bytes.length + 200)
  }

  /** Whether the rows that a grant of it could not read, if any, can be read again. */
  async #isGrantable(queue: QueueEntry, step: StoredStep): Promise<boolean> {
    const { plans, unreadable } = this.#parts
    const looked = await unreadable.look('grant', queue, async (tasks) => {
      await plans.rows(step, tasks)
      return true
    })
    return looked ?? false
  }

  async #grantInGroup(
    group: string,
    picks: WeighedPick[],
    room: { bytes: number; bundles: number },
    request: GrantRequest,
  ): Promise<{ leases: GrantedLease[]; bytes: number }> {
    const { scripts, sessions, log, events } = this.#parts
    const { session, site } = request
    if (!session.groups.includes(group)) {
      // Noted before anything is granted there: who ends the session has to know where to look.
      await sessions.touch(site, session.id, { groups: [group] })
      session.groups.push(group)
    }
    const answer = await scripts.run<Answer>('grant', groupBase(group), {
      session: session.id,
      site,
      holder: session.holder,
      sequence: request.sequence,
      confirmMs: request.confirmMs,
      ...room,
      picks: picks.map(({ queue, ...pick }) => ({
        campaign: queue.campaign,
        step: queue.step,
        class: queue.matchClass,
        avoid: queue.avoid,
        ...pick,
      })),
    })
    if (answer.outcome === 3) throw new IndraftError('session.unknown')
    const leases = answer.leases ?? []
    if (answer.outcome === 1) {
      failpoint('grant.persisted')
      const tasks = leases.reduce((sum, lease) => sum + countRanges(parseRanges(lease.tasks)), 0)
      events.onGranted?.(group, leases.length, tasks)
      for (const { campaign, step, bundle, fence, tasks: ranges } of leases) {
        log.info({ campaign, step, bundle, fence, tasks: ranges, site, holder: session.holder }, 'bundle.granted')
      }
    }
    return { leases, bytes: answer.bytes ?? room.bytes }
  }
}
