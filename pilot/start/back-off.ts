/**
 * Back-off at three scopes, after Vac: the class of work (3xx no work, 6xx ours), the class at this site (4xx banned,
 * 5xx when several nodes agree, 7xx), and the node (5xx). After a back-off one probe goes first; while it is younger than
 * the fizzle time nothing else of its scope starts; when it outlives it, the scope is open. Changes the state it is
 * given and nothing else.
 */
import { createHash } from 'node:crypto'
import type { EndRecord } from './end-record.ts'
import { matchOf, type SiteFile } from './site-file.ts'
import type { Scope, Started, State } from './state.ts'

export interface Moment {
  nowMs: number
  /** 0 to 1, as Math.random. */
  random: () => number
}

export const classScope = (site: SiteFile, kind: string) => `class:${matchOf(site, kind)}`
export const hereScope = (kind: string) => `here:${kind}`
export const nodeScope = (node: string) => `node:${node}`

/** How the first back-off of each class of codes compares with the one that the site file gives. */
const FACTOR: Readonly<Record<number, number>> = { 3: 1, 4: 2, 5: 2, 6: 2, 7: 0.2 }
/** Of the time that was asked for. */
const USED_UP_SHARE = 0.8
/** Bans that agree about the site are not older than this. */
const AGREE_WITHIN_MS = 3_600_000

interface Blow {
  code: number
  reason: string
  /** Of the pilot that ended. */
  startedAtMs: number
  isLiftable?: boolean
  firstMs?: number
  longestMs?: number
}

/** A bad end: a longer back-off where it was a probe's, none again where the pilot was started before the last one. */
export function strike(state: State, key: string, blow: Blow, site: SiteFile, { nowMs, random }: Moment): void {
  const known = state.scopes[key]
  if (known && blow.startedAtMs < known.sinceMs) return
  const strikes = (known?.strikes ?? 0) + 1
  const { first, longest, jitter } = site.backOff
  const firstMs = blow.firstMs ?? first * (FACTOR[Math.floor(blow.code / 100)] ?? 1)
  const plainMs = Math.min(blow.longestMs ?? longest, firstMs * 2 ** Math.min(strikes - 1, 20))
  const waitMs = plainMs * (1 + jitter * (2 * random() - 1))
  state.scopes[key] = {
    strikes,
    sinceMs: nowMs,
    untilMs: nowMs + waitMs,
    code: blow.code,
    reason: blow.reason.slice(0, 200),
    isLiftable: blow.isLiftable ?? false,
  }
}

/** What one pilot's end says about class, site and node. */
export function judgeEnd(state: State, site: SiteFile, start: Started, end: EndRecord, moment: Moment): void {
  const { kind } = start
  const classOf = Math.floor(end.code / 100)
  const tasks = Object.values(end.work).reduce((sum, { done, failed }) => sum + done + failed, 0)
  // By our own clock, and by when it was ordered: what waits in the queue while others fail is no new evidence.
  const blow = { code: end.code, reason: end.reason, startedAtMs: start.submittedAtMs }
  // At the end of its time there is none left for work: that is no word about how much work there is.
  const isUsedUp = start.timeMs > 0 && end.livedMs >= USED_UP_SHARE * start.timeMs
  switch (classOf === 3 && isUsedUp ? 2 : classOf) {
    case 3: {
      const key = classScope(site, kind)
      const known = state.scopes[key]
      if (tasks > 0 && known && known.sinceMs <= start.submittedAtMs) delete state.scopes[key]
      // Twice in a row sent because the relay said that there is work, and found none: its word no longer counts.
      const isMisled = start.because === 'demand' && tasks === 0 && known !== undefined
      const isLiftable = !isMisled || isProven(state, site, kind, moment.nowMs)
      strike(state, key, { ...blow, isLiftable }, site, moment)
      break
    }
    case 4:
      strike(state, hereScope(kind), blow, site, moment)
      break
    case 5:
      strikeNode(state, site, kind, end.node, blow, moment)
      break
    case 6:
      strike(state, classScope(site, kind), blow, site, moment)
      break
    case 7:
      // Long lives that end so were ended from outside (preemption, scancel): nobody's fault here.
      if (end.livedMs < site.fizzle || tasks === 0) strike(state, hereScope(kind), blow, site, moment)
      break
    default:
      prove(state, site, kind, moment.nowMs - end.livedMs)
      if (tasks > 0) delete state.scopes[nodeScope(end.node)]
  }
}

/** Bans the node; where enough nodes were banned for such reasons lately, it is the site. */
export function strikeNode(state: State, site: SiteFile, kind: string, node: string, blow: Blow, moment: Moment): void {
  const key = nodeScope(node)
  strike(state, key, { ...blow, firstMs: site.nodes.ban, longestMs: 24 * site.nodes.ban }, site, moment)
  const agree = Object.entries(state.scopes).filter(
    ([name, scope]) => name.startsWith('node:') && moment.nowMs - scope.sinceMs < AGREE_WITHIN_MS,
  )
  if (agree.length < site.nodes.agree) return
  const reason = `${agree.length} nodes agree, the last one: ${blow.reason}`
  strike(state, hereScope(kind), { ...blow, reason }, site, moment)
}

/** The batch system would not have it: this kind's orders, not the work and not a node, are at fault. */
export function strikeRefused(state: State, site: SiteFile, kind: string, why: string, moment: Moment): void {
  const reason = `not taken by the batch system: ${why}`
  const key = hereScope(kind)
  const orders = ordersOf(site, kind)
  if (isOfOtherOrders(state.scopes[key], orders)) delete state.scopes[key]
  strike(state, key, { code: 400, reason, startedAtMs: moment.nowMs }, site, moment)
  state.scopes[key]!.orders = orders
}

/** The batch system takes this kind's orders: that it once did not is over, and no pilot needs to prove it first. */
export function noteTaken(state: State, kind: string): void {
  if (state.scopes[hereScope(kind)]?.orders !== undefined) delete state.scopes[hereScope(kind)]
}

/** What the site file says about how such a pilot is started, as a mark: whoever mends that need not wait. */
function ordersOf(site: SiteFile, kind: string): string {
  const said = [site.starter, site.command, site.kinds[kind]]
  return createHash('sha256').update(JSON.stringify(said)).digest('hex').slice(0, 16)
}

function isOfOtherOrders(scope: Scope | undefined, orders: string): boolean {
  return scope?.orders !== undefined && scope.orders !== orders
}

/** A pilot ended well, or outlived the fizzle time: what was held against its scopes before it started is over. */
export function prove(state: State, site: SiteFile, kind: string, startedAtMs: number): void {
  for (const key of [classScope(site, kind), hereScope(kind)]) {
    const scope = state.scopes[key]
    if (scope && scope.sinceMs <= startedAtMs) delete state.scopes[key]
  }
}

export function hasOutlived(start: Started, site: SiteFile, nowMs: number): boolean {
  return start.runningSinceMs !== null && start.missingSinceMs === null && nowMs - start.runningSinceMs > site.fizzle
}

/** Whether a pilot that draws the same work lives beyond the fizzle time. */
export function isProven(state: State, site: SiteFile, kind: string, nowMs: number): boolean {
  return livingOf(state, site, kind).some((start) => hasOutlived(start, site, nowMs))
}

function livingOf(state: State, site: SiteFile, kind: string): Started[] {
  const match = matchOf(site, kind)
  return Object.values(state.pilots).filter((start) => matchOf(site, start.kind) === match && start.canaryOf === null)
}

export type Gate = { isOpen: true; isProbe: boolean } | { isOpen: false; why: string }

/** Whether a pilot of this kind may start, by the back-offs of its class and of its class here. */
export function gateOf(
  state: State,
  site: SiteFile,
  kind: string,
  isWorkKnown: boolean,
  { nowMs }: Pick<Moment, 'nowMs'>,
): Gate {
  let isProbe = false
  for (const key of [classScope(site, kind), hereScope(kind)]) {
    const scope: Scope | undefined = state.scopes[key]
    if (!scope || (scope.isLiftable && isWorkKnown) || isOfOtherOrders(scope, ordersOf(site, kind))) continue
    const what = `${scope.code} ${scope.reason}`
    if (nowMs < scope.untilMs) {
      return {
        isOpen: false,
        why: `back-off for ${minutes(scope.untilMs - nowMs)} more, strike ${scope.strikes}: ${what}`,
      }
    }
    const isOfScope = (start: Started) => key.startsWith('class:') || start.kind === kind
    const trial = livingOf(state, site, kind).find(
      (start) => isOfScope(start) && start.submittedAtMs >= scope.sinceMs && !hasOutlived(start, site, nowMs),
    )
    if (trial) return { isOpen: false, why: `one probe is on its way (${trial.id}), since ${what}` }
    isProbe = true
  }
  return { isOpen: true, isProbe }
}

function minutes(ms: number): string {
  return ms < 60_000 ? `${Math.ceil(ms / 1000)} s` : `${Math.ceil(ms / 60_000)} min`
}
