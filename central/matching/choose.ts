/**
 * Which queued work an offer is given: what fits, at an allowed site, then by the group's share of what runs, then
 * priority inside the group, then age. Pure, over what the caller knows; knows no Redis.
 */
import { siteRefusal, unmetNeeds } from '../../shared/fit.ts'
import type { OfferEntry } from '../../shared/protocol/messages.ts'
import type { Needs } from '../../shared/protocol/work.ts'
import { tasksWanted } from './bundle-size.ts'

/** One non-empty queue: bundles of one step and match class that avoid the same sites. */
export interface QueueEntry {
  group: string
  campaign: string
  step: string
  matchClass: string
  /** Sites that its tasks should not run at, after commas, those that refused them as `!site`; or ''. */
  avoid: string
  /** When the avoidance of the first of them ends, ms since 1970. */
  avoidUntilMs: number
  /** Sites whose policy refused tasks of the step, and until when they are given none, ms since 1970. */
  refused: ReadonlyMap<string, number>
  needs: Needs
  priority: number
  /** Creation of the campaign, ms since 1970. */
  createdMs: number
  /** Upper bound of the tasks queued here. */
  tasks: number
  /** Queued or ready tasks of the step. */
  remaining: number
  meanWallMs: number | null
  /** How many more the campaign's and the group's limits allow. */
  room: number
}

export interface Share {
  leasedCores: number
  /** Weight; shares are equal unless set. */
  weight: number
}

export interface MatchContext {
  site: string
  labels: Readonly<Record<string, string>>
  nowMs: number
  activeSites: number
  shares: ReadonlyMap<string, Share>
  /** Whether a live site other than this one, and than these, could run it. */
  hasOtherSite(needs: Needs, except: ReadonlySet<string>): boolean
  /** Live nodes of this site other than this one that could run it; more than any task avoids are not needed. */
  otherNodes(needs: Needs, node: string): readonly string[]
}

export interface Pick {
  queue: QueueEntry
  tasks: number
  /** The offering node, where bundles that avoid it are to be passed over; else ''. */
  node: string
  /** Who else could take them: a bundle that avoids all of these too is not passed over. */
  others: readonly string[]
}

export type NothingPicked = 'noWork' | 'nothingFits' | 'limits'

/** Picks in the order in which they are to be granted, or why there are none. */
export function choose(
  queues: readonly QueueEntry[],
  offer: readonly OfferEntry[],
  context: MatchContext,
): { picks: Pick[]; reason: NothingPicked | null } {
  const picks = new Map<string, Pick>()
  const leasedCores = new Map([...context.shares].map(([group, share]) => [group, share.leasedCores]))
  const left = new Map(queues.map((queue) => [queue, Math.min(queue.tasks, queue.room)]))
  const room = new Map<string, number>()
  for (const queue of queues) room.set(queue.campaign, queue.room)
  let limited = false

  for (const entry of offer) {
    const wants = new Map<QueueEntry, number>()
    for (const queue of queues) {
      if (!mayTake(queue, entry, context)) continue
      if (queue.room <= 0) limited = true
      const wanted = tasksWanted(queue.needs, entry, queue.meanWallMs, queue.remaining, context.activeSites)
      if (wanted > 0) wants.set(queue, wanted)
    }
    // The entry's room as a fraction, shared out in small helpings so that groups come near their shares within it.
    let fraction = 1
    while (fraction > 1e-9) {
      const candidates = [...wants.keys()].filter(
        (queue) =>
          Math.min(left.get(queue)!, room.get(queue.campaign)!) > 0 && fraction * wants.get(queue)! >= 1 - 1e-9,
      )
      const best = candidates.sort((a, b) => compare(a, b, leasedCores, context.shares))[0]
      if (!best) break
      const groups = new Set(candidates.map((queue) => queue.group)).size
      const wanted = wants.get(best)!
      const helping = groups > 1 ? Math.max(1, Math.ceil(wanted / 8)) : wanted
      const tasks = Math.min(
        helping,
        left.get(best)!,
        room.get(best.campaign)!,
        Math.max(1, Math.floor(fraction * wanted + 1e-9)),
      )
      fraction -= tasks / wanted
      left.set(best, left.get(best)! - tasks)
      room.set(best.campaign, room.get(best.campaign)! - tasks)
      leasedCores.set(best.group, (leasedCores.get(best.group) ?? 0) + tasks * best.needs.cores)
      const others = entry.node === null ? [] : context.otherNodes(best.needs, entry.node)
      const node = others.length > 0 ? (entry.node ?? '') : ''
      const name = [best.campaign, best.step, best.matchClass, best.avoid, node].join('|')
      const pick = picks.get(name) ?? { queue: best, tasks: 0, node, others }
      pick.tasks += tasks
      picks.set(name, pick)
    }
  }
  if (picks.size > 0) return { picks: [...picks.values()], reason: null }
  return { picks: [], reason: queues.length === 0 ? 'noWork' : limited ? 'limits' : 'nothingFits' }
}

/** Fit, the campaign's site rules, sites that refused it, and avoidance while there is an alternative. */
export function mayTake(queue: QueueEntry, entry: OfferEntry, context: MatchContext): boolean {
  if (siteRefusal(queue.needs, context.site, context.labels)) return false
  const refusing = sitesRefusing(queue, context.nowMs)
  if (refusing.has(context.site)) return false
  const isAvoided = queue.avoidUntilMs > context.nowMs && queue.avoid.split(',').includes(context.site)
  if (isAvoided && context.hasOtherSite(queue.needs, refusing)) return false
  return unmetNeeds(queue.needs, entry.shape, entry.timeLeftMs).length === 0
}

/** Sites that are not asked now because they refused the step, or these tasks of it. */
export function sitesRefusing(queue: QueueEntry, nowMs: number): Set<string> {
  const refusing = new Set([...queue.refused].filter(([, untilMs]) => untilMs > nowMs).map(([site]) => site))
  if (queue.avoidUntilMs > nowMs) {
    for (const word of queue.avoid.split(',')) if (word.startsWith('!')) refusing.add(word.slice(1))
  }
  return refusing
}

function compare(
  a: QueueEntry,
  b: QueueEntry,
  leasedCores: ReadonlyMap<string, number>,
  shares: ReadonlyMap<string, Share>,
): number {
  const load = (queue: QueueEntry) => (leasedCores.get(queue.group) ?? 0) / (shares.get(queue.group)?.weight ?? 1)
  if (a.group !== b.group) return load(a) - load(b) || (a.group < b.group ? -1 : 1)
  return b.priority - a.priority || a.createdMs - b.createdMs || (a.avoid === b.avoid ? 0 : a.avoid ? -1 : 1)
}
