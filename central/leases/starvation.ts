/**
 * The witness of starvation: queued work that fits a holder which waits, and is granted to nobody. It looks at what is
 * there, not at what matching thought of it, so that a fault of matching does not hide itself. Reads only; called by
 * verify and the metrics.
 */
import { siteRefusal, unmetNeeds } from '../../shared/fit.ts'
import type { OfferEntry } from '../../shared/protocol/messages.ts'
import type { Starved } from '../campaigns/model.ts'
import { type QueueEntry, sitesRefusing } from '../matching/choose.ts'
import { groupBase } from './keys.ts'
import type { MatchIndex } from './match-index.ts'
import type { SiteInfo } from './options.ts'
import type { Scripts } from './scripts.ts'
import type { SessionRecord, Sessions } from './sessions.ts'

/** Both have to wait so long, not scaled: a few turns of every pull. */
const STARVED_AFTER_MS = 5 * 60_000
/** Bundles looked at per queue: each may avoid the node for a reason of its own. */
const LOOKED_AT = 50

export interface StarvationParts {
  scripts: Scripts
  sessions: Sessions
  index: MatchIndex
  siteOf(site: string): Promise<SiteInfo | null>
  timeScale: number
}

export async function findStarved(parts: StarvationParts): Promise<Starved[]> {
  const [seconds] = await parts.scripts.redis.time()
  const nowMs = Number(seconds) * 1000
  const longMs = STARVED_AFTER_MS * parts.timeScale
  const waiting = (await parts.sessions.listed()).filter(
    (one) => one.state === 'active' && one.unfedSinceMs !== null && nowMs - one.unfedSinceMs > longMs,
  )
  if (waiting.length === 0) return []
  const found: Starved[] = []
  const { entries } = await parts.index.queues()
  for (const queue of entries.filter((entry) => entry.room > 0)) {
    const bundles = await readBundles(parts.scripts, queue, nowMs - longMs)
    if (bundles.length === 0) continue
    const refusing = sitesRefusing(queue, nowMs - longMs)
    for (const session of waiting) {
      if (refusing.has(session.site)) continue
      const info = await parts.siteOf(session.site)
      if (info?.state !== 'enabled' || siteRefusal(queue.needs, session.site, info.labels)) continue
      const fitting = bundles.filter((bundle) => session.unfedOffer.some((entry) => fits(queue, entry, bundle.nodes)))
      if (fitting.length === 0) continue
      found.push({
        group: queue.group,
        campaign: queue.campaign,
        step: queue.step,
        bundles: fitting.length,
        queuedForMs: nowMs - Math.min(...fitting.map((bundle) => bundle.sinceMs)),
        site: session.site,
        holder: session.holder,
        waitingForMs: nowMs - (session as SessionRecord & { unfedSinceMs: number }).unfedSinceMs,
      })
    }
  }
  return found
}

function fits(queue: QueueEntry, entry: OfferEntry, avoided: readonly string[]): boolean {
  if (entry.node !== null && avoided.includes(entry.node)) return false
  return unmetNeeds(queue.needs, entry.shape, entry.timeLeftMs).length === 0
}

/** Bundles that wait since before `beforeMs`; the score is when one was queued or when its avoidance of a site ended. */
async function readBundles(scripts: Scripts, queue: QueueEntry, beforeMs: number) {
  const base = groupBase(queue.group)
  const name = [queue.campaign, queue.step, queue.matchClass, queue.avoid].join('|')
  const ids = await scripts.redis.zrangebyscore(`${base}:queue:${name}`, '-inf', beforeMs, 'LIMIT', 0, LOOKED_AT)
  const pipeline = scripts.redis.pipeline()
  for (const id of ids) {
    pipeline.hget(`${base}:bundle:${id}`, 'nodes')
    pipeline.zscore(`${base}:queue:${name}`, id)
  }
  const answers = (await pipeline.exec()) ?? []
  return ids.flatMap((_, i) => {
    const [nodes, score] = [answers[2 * i]![1], answers[2 * i + 1]![1]] as [string | null, string | null]
    if (score === null) return []
    return [{ nodes: (nodes ?? '').split(',').filter(Boolean), sinceMs: Number(score) }]
  })
}
