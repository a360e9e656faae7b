/**
 * What a site's nodes would be given now, for whoever decides there whether to start pilots. Looks, and changes nothing:
 * the answer may be old by the time a pilot comes, which then finds less, or more.
 */
import { tasksPerShape } from '../../shared/fit.ts'
import type { Message } from '../../shared/protocol/messages.ts'
import { type MatchContext, mayTake } from '../matching/choose.ts'
import type { MatchIndex } from './match-index.ts'

const MOST_FITS = 64

/** @param site null for a site that is to get no work now */
export async function findDemand(
  index: MatchIndex,
  site: { name: string; labels: Record<string, string> } | null,
  { offer }: Message<'demand'>,
  nowMs: number,
): Promise<Message<'demanded'>> {
  if (!site) return { fits: [], idlePilots: 0, isWhole: true, reason: 'draining' }
  const { entries, shares } = await index.queues()
  const live = (await index.live()).filter((session) => session.site === site.name)
  const context: MatchContext = {
    site: site.name,
    labels: site.labels,
    nowMs,
    activeSites: 1,
    shares,
    hasOtherSite: () => false,
    otherNodes: () => [],
  }
  const fits: Message<'demanded'>['fits'] = []
  for (const [at, entry] of offer.entries()) {
    // A step has several queues, and each knows only how much the whole step has left.
    const seen = new Set<string>()
    for (const queue of entries) {
      const work = `${queue.campaign}/${queue.step}`
      if (seen.has(work) || queue.room <= 0 || !mayTake(queue, entry, context)) continue
      const perNode = tasksPerShape(queue.needs, entry.shape)
      const tasks = Math.min(queue.remaining, queue.room)
      if (perNode === 0 || tasks === 0) continue
      seen.add(work)
      fits.push({ entry: at, group: queue.group, work, tasks, perNode, estimateMs: queue.meanWallMs })
    }
  }
  fits.sort((a, b) => b.tasks - a.tasks)
  const idlePilots = live.filter(({ role, gauges }) => role === 'pilot' && (gauges.running ?? 0) === 0).length
  const reason = fits.length > 0 ? null : entries.length === 0 ? 'noWork' : 'nothingFits'
  return { fits: fits.slice(0, MOST_FITS), idlePilots, isWhole: true, reason }
}
