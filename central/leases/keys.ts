/**
 * Names of keys in Redis. All keys of a group, and all keys of a site's sessions, share a hash tag, so that each is
 * one slot of a cluster; what is listed in scripts/prelude.lua lies under a group's base.
 */

/** Characters that would end the tag or a name are written as %XX. */
const safe = (text: string) => text.replace(/[{}%\s|]/g, (character) => encodeURIComponent(character))

export const groupBase = (group: string) => `indraft:{${safe(group)}}`
export const siteBase = (site: string) => `indraft:{site:${safe(site)}}`

/** Names that belong to no group. */
export const GLOBAL = {
  /** Set of groups that have campaigns. */
  groups: 'indraft:groups',
  /** Hash: campaign id -> group. */
  campaigns: 'indraft:campaigns',
  /** Set of sites that ever said hello. */
  seenSites: 'indraft:seen-sites',
  /** Hash: epoch, sequence, ended:<epoch>, halted, sweptMs, graceMs. */
  mark: 'indraft:mark',
  /** Whoever set it sweeps; gone after half of the time between two sweeps. */
  turn: 'indraft:turn',
  /** Channel: something became grantable. */
  wake: 'indraft:wake',
} as const

export interface QueueName {
  campaign: string
  step: string
  matchClass: string
  /** The sites it avoids; see QueueEntry. */
  avoid: string
}

export function parseQueueName(text: string): QueueName {
  const parts = text.split('|')
  return {
    campaign: parts[0] ?? '',
    step: parts.slice(1, -2).join('|'),
    matchClass: parts.at(-2) ?? '',
    avoid: parts.at(-1) ?? '',
  }
}

/** `campaign|step`, as scripts name a step. */
export function parseStepName(text: string): { campaign: string; step: string } {
  const at = text.indexOf('|')
  return { campaign: text.slice(0, at), step: text.slice(at + 1) }
}
