/**
 * Whether a task fits what is offered, and if not why: the one place that decides it, for central's matching, the
 * relay's, the pilot's slots and the explanations shown to people. Pure.
 */
import type { NodeFacts, OfferEntry } from './protocol/messages.ts'
import type { Needs } from './protocol/work.ts'

export type Shape = OfferEntry['shape']

/** One need that is not met: a word for the need, what is needed, what there is. */
export interface Unmet {
  need:
    | 'cores'
    | 'memory'
    | 'scratch'
    | 'gpus'
    | 'gpu memory'
    | 'architecture'
    | 'runtime'
    | 'network'
    | 'software'
    | 'group'
    | 'time left'
    | 'site'
  wanted: number | string
  offered: number | string
}

const NETWORK_RANK = { none: 0, proxy: 1, outgoing: 2 } as const

/** Whether what is wanted of the network is within what is offered. */
export function reachesNoMore(wanted: Needs['network'], offered: Needs['network']): boolean {
  return NETWORK_RANK[wanted] <= NETWORK_RANK[offered]
}

/** Nothing left means it fits. `timeLeftMs` null means no end is known. */
export function unmetNeeds(needs: Needs, shape: Shape, timeLeftMs: number | null): Unmet[] {
  const unmet: Unmet[] = []
  const atLeast = (need: Unmet['need'], wanted: number, offered: number) => {
    if (offered < wanted) unmet.push({ need, wanted, offered })
  }
  atLeast('cores', needs.cores, shape.cores)
  atLeast('memory', needs.memoryBytes, shape.memoryBytes)
  atLeast('scratch', needs.scratchBytes, shape.scratchBytes)
  atLeast('gpus', needs.gpus, shape.gpus)
  if (needs.gpus > 0) atLeast('gpu memory', needs.gpuMemoryBytes, shape.gpuMemoryBytes)
  if (needs.arch.length > 0 && !needs.arch.includes(shape.arch)) {
    unmet.push({ need: 'architecture', wanted: needs.arch.join(' or '), offered: shape.arch })
  }
  if (!shape.runtimes.includes(needs.runtime)) {
    unmet.push({ need: 'runtime', wanted: needs.runtime, offered: shape.runtimes.join(', ') || 'nothing' })
  }
  if (!reachesNoMore(needs.network, shape.network)) {
    unmet.push({ need: 'network', wanted: needs.network, offered: shape.network })
  }
  const missing = needs.software?.filter((one) => !shape.software?.includes(one)) ?? []
  if (missing.length > 0) {
    unmet.push({ need: 'software', wanted: missing.join(', '), offered: shape.software?.join(', ') || 'nothing' })
  }
  if (!mayWorkFor(shape.groups, needs.group)) {
    unmet.push({ need: 'group', wanted: needs.group, offered: shape.groups!.join(', ') })
  }
  if (timeLeftMs !== null) atLeast('time left', needs.walltimeMs, timeLeftMs)
  return unmet
}

/** Whether what is said of groups includes this one; nothing said is everybody. */
export function mayWorkFor(groups: readonly string[] | undefined, group: string): boolean {
  if (groups === undefined) return true
  return groups.map((one) => one.replace(/\/+$/, '')).some((one) => group === one || group.startsWith(`${one}/`))
}

/** How many such tasks fit side by side into one node of this shape. */
export function tasksPerShape(needs: Needs, shape: Shape): number {
  const limits = [Math.floor(shape.cores / needs.cores)]
  if (needs.memoryBytes > 0) limits.push(Math.floor(shape.memoryBytes / needs.memoryBytes))
  if (needs.scratchBytes > 0) limits.push(Math.floor(shape.scratchBytes / needs.scratchBytes))
  if (needs.gpus > 0) limits.push(Math.floor(shape.gpus / needs.gpus))
  return Math.max(0, Math.min(...limits))
}

/** What is left of a shape after `count` such tasks were put into it. */
export function shapeWithout(shape: Shape, needs: Needs, count = 1): Shape {
  return {
    ...shape,
    cores: shape.cores - count * needs.cores,
    memoryBytes: shape.memoryBytes - count * needs.memoryBytes,
    scratchBytes: shape.scratchBytes - count * needs.scratchBytes,
    gpus: shape.gpus - count * needs.gpus,
  }
}

/** A site rule: a site's name, or `label:key=value`, or `label:key` for any value. */
export function siteMatches(rule: string, site: string, labels: Readonly<Record<string, string>>): boolean {
  if (!rule.startsWith('label:')) return rule === site
  const [, key = '', value] = /^label:([^=]*)(?:=(.*))?$/s.exec(rule)!
  return Object.hasOwn(labels, key) && (value === undefined || labels[key] === value)
}

/** The rule that keeps a task away from a site, or undefined. */
export function siteRefusal(
  needs: Pick<Needs, 'allowSites' | 'denySites'>,
  site: string,
  labels: Readonly<Record<string, string>>,
): Unmet | undefined {
  const denied = needs.denySites.find((rule) => siteMatches(rule, site, labels))
  if (denied) return { need: 'site', wanted: `not ${denied}`, offered: site }
  const allowed = needs.allowSites.length === 0 || needs.allowSites.some((rule) => siteMatches(rule, site, labels))
  return allowed ? undefined : { need: 'site', wanted: needs.allowSites.join(' or '), offered: site }
}

/** A node's facts as an empty shape. */
export function shapeOf(facts: NodeFacts): Shape {
  const { node: _node, timeLeftMs: _timeLeftMs, labels: _labels, ...shape } = facts
  return shape
}
