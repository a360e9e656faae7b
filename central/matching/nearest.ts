/**
 * Which site comes nearest to a step that fits nowhere, and what it lacks; and which sites may run a step at all. Pure; for
 * warnings, explanations, and what becomes of a task that a site refused.
 */
import { type Shape, siteRefusal, type Unmet, unmetNeeds } from '../../shared/fit.ts'
import type { Needs } from '../../shared/protocol/work.ts'

export interface SiteShapes {
  site: string
  labels: Record<string, string>
  shapes: Shape[]
}

export interface Nearest {
  site: string
  /** Empty: it fits there. */
  unmet: Unmet[]
}

/** The site with the fewest unmet needs; null where no site with a known shape is there to compare with. */
export function nearestSite(needs: Needs, sites: readonly SiteShapes[]): Nearest | null {
  let best: Nearest | null = null
  for (const { site, labels, shapes } of sites) {
    const refusal = siteRefusal(needs, site, labels)
    for (const shape of shapes) {
      const unmet = [...(refusal ? [refusal] : []), ...unmetNeeds(needs, shape, null)]
      if (best === null || unmet.length < best.unmet.length) best = { site, unmet }
    }
  }
  return best
}

/**
 * Sites that may run it, by the step's own rules. What nodes there have, and whom they serve, does not count: other nodes
 * may come, and pilots for other groups.
 */
export function possibleSites(needs: Needs, sites: readonly SiteShapes[]): string[] {
  return sites.filter(({ site, labels }) => siteRefusal(needs, site, labels) === undefined).map(({ site }) => site)
}
