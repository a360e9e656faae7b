/**
 * The one question to the relay, and what its answer means here: nodes' worth of queued work, and which kinds of pilot may
 * do it. Pure.
 */
import type { OfferEntry } from '../../shared/protocol/messages.ts'
import { loadPilotConfig } from '../config.ts'
import { isWithin } from '../policy.ts'
import { timeFor } from './room.ts'
import type { SiteFile } from './site-file.ts'
import type { State } from './state.ts'

/** One node of each kind, in the order of the site file, with the time that a pilot of it would have if it began now. */
export function offerOf(state: State, site: SiteFile, nowMs: number): OfferEntry[] {
  return Object.entries(site.kinds).map(([kind, { shape }]) => ({
    shape: {
      cores: shape.cores,
      memoryBytes: shape.memory,
      scratchBytes: shape.scratch,
      gpus: shape.gpus,
      gpuMemoryBytes: shape.gpuMemory,
      arch: shape.arch,
      runtimes: shape.runtimes,
      network: shape.network,
    },
    count: 1,
    timeLeftMs: Math.max(0, timeFor(state, site, kind, 1, [], nowMs).timeMs),
    aheadMs: 0,
    node: null,
  }))
}

/** The answer is kept for a while, also that there was none. */
export function shouldAsk(state: State, site: SiteFile, nowMs: number): boolean {
  return site.ask.enabled && (state.demand === null || nowMs - state.demand.askedAtMs >= site.ask.every)
}

/** What a step still needs, and who can give it. */
export interface Wanted {
  nodes: number
  kinds: Set<string>
}

/** By step; null where nobody knows. */
export function wantedNow(state: State, site: SiteFile): Map<string, Wanted> | null {
  const answer = state.demand?.answer
  if (!site.ask.enabled || !answer || (!answer.isWhole && answer.fits.length === 0)) return null
  const kinds = Object.keys(site.kinds)
  const allowed = new Map(kinds.map((kind) => [kind, allowedGroups(site, kind)]))
  const wanted = new Map<string, Wanted>()
  for (const { entry, group, work, tasks, perNode, estimateMs } of answer.fits) {
    const kind = kinds[entry]
    if (kind === undefined || perNode === 0) continue
    const groups = allowed.get(kind)!
    if (groups.length > 0 && !groups.some((one) => isWithin(group, one))) continue
    // A node is worth starting for so much work; of tasks whose length nobody knows, each is taken to be long.
    const rounds = estimateMs === null ? 1 : Math.max(1, site.worthStarting / Math.max(1, estimateMs))
    const nodes = Math.ceil(tasks / (perNode * rounds))
    const known = wanted.get(work) ?? { nodes, kinds: new Set<string>() }
    known.nodes = Math.max(known.nodes, nodes)
    known.kinds.add(kind)
    wanted.set(work, known)
  }
  return wanted
}

/** Groups whose tasks pilots of this kind take, and no others; empty: all. */
export function allowedGroups(site: SiteFile, kind: string): readonly string[] {
  const { allowGroups } = { ...site.pilots, ...site.kinds[kind]!.settings }
  return allowGroups === undefined ? [] : loadPilotConfig({ allowGroups }, undefined, {}).allowGroups
}
