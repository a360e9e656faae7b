/**
 * What this site's nodes would be given now, for whoever decides whether to start pilots: what lies free in the buffer,
 * and what the centre says it has. Without pilots the buffer is empty, so the centre's word counts most; when it does
 * not answer, that is said, and nothing is guessed.
 */
import { tasksPerShape, unmetNeeds } from '../shared/fit.ts'
import type { Message, OfferEntry } from '../shared/protocol/messages.ts'
import { countRanges } from '../shared/ranges.ts'
import type { Lease } from './lease.ts'
import type { Session } from './sessions.ts'

type Demanded = Message<'demanded'>
const MOST_FITS = 64

export interface DemandParts {
  leases: () => Iterable<Lease>
  estimateMs: (lease: Lease) => number | null
  /** Pilots that live. */
  pilots: () => readonly Session[]
  isDraining: () => boolean
  /** Throws where nobody answers. */
  askCentre: (offer: OfferEntry[]) => Promise<Demanded>
}

export async function answerDemand(parts: DemandParts, { offer }: Message<'demand'>): Promise<Demanded> {
  const idlePilots = parts.pilots().filter((pilot) => pilot.isWaiting && pilot.running === 0).length
  if (parts.isDraining()) return { fits: [], idlePilots, isWhole: true, reason: 'draining' }
  const above = await parts.askCentre(offer).catch(() => null)
  const fits = new Map<string, Demanded['fits'][number]>()
  for (const fit of [...(above?.fits ?? []), ...inBuffer(parts, offer)]) {
    const name = `${fit.entry} ${fit.work}`
    const known = fits.get(name)
    if (!known) fits.set(name, { ...fit })
    else {
      known.tasks += fit.tasks
      known.estimateMs ??= fit.estimateMs
    }
  }
  const most = [...fits.values()].sort((a, b) => b.tasks - a.tasks).slice(0, MOST_FITS)
  const reason = most.length > 0 ? null : (above?.reason ?? 'noWork')
  return { fits: most, idlePilots, isWhole: above?.isWhole ?? false, reason }
}

function inBuffer({ leases, estimateMs }: DemandParts, offer: readonly OfferEntry[]): Demanded['fits'] {
  const free = [...leases()].filter((lease) => lease.free.length > 0 && !lease.gone)
  return offer.flatMap(({ shape, timeLeftMs }, entry) =>
    free.flatMap((lease) => {
      const perNode = tasksPerShape(lease.needs, shape)
      if (perNode === 0 || unmetNeeds(lease.needs, shape, timeLeftMs).length > 0) return []
      const work = `${lease.campaign}/${lease.step}`
      const tasks = countRanges(lease.free)
      return [{ entry, group: lease.needs.group, work, tasks, perNode, estimateMs: estimateMs(lease) }]
    }),
  )
}
