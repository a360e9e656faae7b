/** Node shapes of every site that may get work, seen or declared: what could run somewhere, and where. Reads only. */
import type { SiteShapes } from '../matching/nearest.ts'
import type { StoreOptions } from './options.ts'
import type { Sessions } from './sessions.ts'

export async function readSiteShapes(
  options: Pick<StoreOptions, 'siteNames' | 'siteOf'>,
  sessions: Sessions,
): Promise<SiteShapes[]> {
  const seen = await sessions.shapes()
  const shapes: SiteShapes[] = []
  for (const site of await options.siteNames()) {
    const info = await options.siteOf(site)
    if (!info || info.state === 'disabled') continue
    shapes.push({ site, labels: info.labels, shapes: [...(info.shapes ?? []), ...(seen.get(site) ?? [])] })
  }
  return shapes
}
