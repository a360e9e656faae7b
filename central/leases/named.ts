/**
 * Accepted results whose outputs a relay names, by the site that brought them: what a relay asks for whose journal was
 * destroyed before it had named them. Written by scripts/finish.lua together with the verdict; bounded there, for each
 * group and site.
 */
import { IndraftError } from '../../shared/errors.ts'
import type { AcceptedPage } from '../../shared/files/accepted.ts'
import type { Result } from '../../shared/protocol/messages.ts'
import { GLOBAL, groupBase } from './keys.ts'
import type { Results } from './results.ts'
import type { Scripts } from './scripts.ts'

/** How long one is remembered, and how many of a group and site; the oldest go first. */
export const NAMED_KEPT = { ms: 24 * 3600_000, most: 100_000 }
const PAGE = 500

/** `<first fence>-<second fence>` of a success with outputs that its relay names; '' for any other result. */
export function namedFences({ end, fences, outputs }: Pick<Result, 'end' | 'fences' | 'outputs'>): string {
  const joined = fences.join('-')
  return end === 'done' && fences.length === 2 && outputs.some(({ url }) => isNamed(url, joined)) ? joined : ''
}

const isNamed = (url: string, fences: string) => url.startsWith('file://') && url.endsWith(`.attempt-${fences}`)

/** One page, of a site alone. Only what is still the winner of its task. @throws IndraftError request.invalid */
export async function listNamed(
  { scripts, results }: { scripts: Scripts; results: Results },
  site: string,
  from: string | null,
): Promise<AcceptedPage> {
  const groups = (await scripts.redis.smembers(GLOBAL.groups)).sort()
  const place = /^(\d{1,9}):(.+)$/s.exec(from ?? '')
  if (from !== null && !place) throw new IndraftError('request.invalid', 'from: expected the next of an earlier page')
  const [, offsetText = '0', after = ''] = place ?? []
  // A group may be gone since; then it goes on with the one after it.
  const group = groups.find((one) => one >= after)
  if (group === undefined) return { results: [], next: null }
  const offset = group === after ? Number(offsetText) : 0
  const names = await scripts.redis.zrevrange(`${groupBase(group)}:named:${site}`, offset, offset + PAGE - 1)
  const following = groups[groups.indexOf(group) + 1]
  const next = names.length === PAGE ? `${offset + PAGE}:${group}` : following === undefined ? null : `0:${following}`
  return { results: await winnersOf(results, names), next }
}

async function winnersOf(results: Results, names: readonly string[]): Promise<AcceptedPage['results']> {
  const bySteps = new Map<string, { campaign: string; step: string; fences: Map<number, string> }>()
  for (const name of names) {
    const [campaign = '', step = '', index = '', fences = ''] = name.split('|')
    const one = bySteps.get(`${campaign}|${step}`) ?? { campaign, step, fences: new Map<number, string>() }
    one.fences.set(Number(index), fences)
    bySteps.set(`${campaign}|${step}`, one)
  }
  const found: AcceptedPage['results'] = []
  for (const { campaign, step, fences } of bySteps.values()) {
    for (const [index, winner] of await results.winners(campaign, step, [...fences.keys()])) {
      const joined = fences.get(index)!
      if (winner.fences.join('-') !== joined) continue
      const outputs = winner.outputs.filter(({ url }) => isNamed(url, joined)).map(({ path, url }) => ({ path, url }))
      found.push({ campaign, step, index, fences: winner.fences, outputs })
    }
  }
  return found
}
