/**
 * How many pilots to start, of which kind, and why not more: pure decisions over the site file, what is known, the time
 * and a random number. A tick carries them out; the simulation runs the very same.
 */
import { UNANSWERED_MS } from './absorb.ts'
import { gateOf, hasOutlived, isProven, type Moment } from './back-off.ts'
import { wantedNow } from './demand.ts'
import { excludedNodes, mayTryCanary } from './nodes.ts'
import { isOverCalls, mayGetLess, nodesFor, nodesOf, scoreOf, timeFor, whyNoRoom } from './room.ts'
import { matchOf, type SiteFile } from './site-file.ts'
import type { Started, State } from './state.ts'

export interface Start {
  id: string
  kind: string
  nodes: number
  timeMs: number
  because: Started['because']
  /** The one node that a canary goes to. */
  canaryOf: string | null
  exclude: string[]
  /** Where its account has an end: the job is over by then, however long it waits. */
  endsByMs?: number
  /** Near that end: begun late, it may have as little time as this. */
  leastTimeMs?: number
}

export interface Decision {
  starts: Start[]
  /** Waiting jobs that nothing is there for any more. */
  withdraw: Started[]
  /** A line for each kind: what is done, or why nothing is. */
  why: string[]
}

/** Until a pilot that began asks for work it is on its way, whatever the queue of tasks says. */
const SETTLE_MS = 120_000
const CANARY_WAIT_MS = 3_600_000

/**
 * One look at the queue a tick at most, and none while no pilot is known; but one before the first start of all, because
 * the state may be lost and pilots there.
 */
export function shouldLook(state: State, site: SiteFile, nowMs: number): boolean {
  const starts = Object.values(state.pilots)
  const wanted = wantedNow(state, site)
  if (isOverCalls(state, site, 1)) return false
  if (state.lookedAtMs === null) return starts.length > 0 || wanted === null || wanted.size > 0
  if (starts.length === 0) return false
  const sinceMs = nowMs - state.lookedAtMs
  const isYoung = ({ submittedAtMs }: Started) => nowMs - submittedAtMs < 2 * UNANSWERED_MS
  if (starts.some((start) => start.state === 'submitting' && isYoung(start))) {
    return sinceMs >= Math.min(60_000, site.look.wanted)
  }
  // What was withdrawn holds its place until it is seen to be gone.
  if (starts.some(({ isWithdrawn }) => isWithdrawn)) return sinceMs >= Math.min(site.look.wanted, site.look.quiet)
  // At full use nothing hangs on it but pilots that vanished.
  const isGrowing = wanted !== null && wanted.size > 0 && nodesOf(state, [], () => true) < site.caps.running
  return sinceMs >= (isGrowing ? site.look.wanted : site.look.quiet)
}

/** @param newId makes an id's second half, for a start that is not known yet */
export function decide(
  state: State,
  site: SiteFile,
  moment: Moment,
  given: { isStopped: boolean; newId: () => string },
): Decision {
  const { nowMs, random } = moment
  const decision: Decision = { starts: [], withdraw: [], why: [] }
  const starts = Object.values(state.pilots)
  const waiting = starts.filter((start) => start.state === 'queued' && start.jobId !== null && !isLeaving(start))
  if (given.isStopped) {
    decision.withdraw = isOverCalls(state, site, 1) ? [] : waiting
    decision.why.push('a STOP file asks for it: nothing starts')
    return decision
  }
  const wanted = wantedNow(state, site)
  const works = wanted && [...wanted.values()]
  const take = (kind: string, nodes: number) => {
    for (let left = nodes; left > 0; ) {
      const most = works!.filter((work) => work.kinds.has(kind) && work.nodes > 0).sort((a, b) => b.nodes - a.nodes)[0]
      if (!most) return
      const taken = Math.min(left, most.nodes)
      most.nodes -= taken
      left -= taken
    }
  }
  const wantedFor = (kind: string) =>
    works === null ? null : works.reduce((sum, work) => sum + (work.kinds.has(kind) ? work.nodes : 0), 0)
  const asked = new Map(Object.keys(site.kinds).map((kind) => [kind, wantedFor(kind)]))
  if (works) {
    for (const start of starts) if (isOnItsWay(start, nowMs)) take(start.kind, start.nodes)
    let idle = state.demand!.answer!.idlePilots
    for (const kind of Object.keys(site.kinds)) {
      const taken = Math.min(idle, wantedFor(kind)!)
      take(kind, taken)
      idle -= taken
    }
  }
  const stands = (start: Started) => isInTheWay(state, site, start, wantedFor(start.kind), nowMs)
  // Where the centre is away the relay speaks of what it has in hand: what that does not name may still be wanted.
  const isWhole = works !== null && state.demand!.answer!.isWhole
  const needless = waiting.filter((start) => stands(start) || (isWhole && isNeedless(start, asked, nowMs)))
  decision.withdraw = isOverCalls(state, site, 1) ? [] : needless

  const excluded = excludedNodes(state, site, nowMs)
  if (excluded.nodes.length > 0)
    decision.why.push(
      `not on ${excluded.nodes.join(',')}${excluded.more ? ` (and ${excluded.more} more that are not excluded: nodes.mostExcluded)` : ''}`,
    )
  const planned: Start[] = []
  const add = (kind: string, nodes: number, because: Start['because'], canaryOf: string | null = null) => {
    const id = `${kind}.${given.newId()}`
    const exclude = canaryOf === null ? excluded.nodes : []
    const { timeMs } = timeFor(state, site, kind, nodes, planned, nowMs)
    const endsByMs = endOf(site, kind)
    planned.push({
      id,
      kind,
      nodes,
      because,
      canaryOf,
      exclude,
      timeMs,
      ...(endsByMs === null ? {} : { endsByMs }),
      ...(endsByMs !== null && mayGetLess(endsByMs, timeMs, nowMs) ? { leastTimeMs: site.kinds[kind]!.leastTime } : {}),
    })
  }
  const closed = new Map<string, string>()
  const whyNot = (kind: string): string | null => {
    const gate = gateOf(state, site, kind, (asked.get(kind) ?? 0) > 0, moment)
    if (!gate.isOpen) return gate.why
    const onTrial = (start: { kind: string }) => matchOf(site, start.kind) === matchOf(site, kind)
    const trials = planned.filter(onTrial).length
    if (gate.isProbe && trials > 0) return 'one probe goes first'
    const need = wantedFor(kind)
    if (need === null) {
      // A canary waits for its one node, perhaps for long, and tells nobody what there is.
      const mine = starts.filter((start) => onTrial(start) && start.canaryOf === null)
      const young = mine.filter((start) => !hasOutlived(start, site, nowMs)).length + trials
      const proven = mine.length + trials - young
      // Nobody says what there is: one probe, then as many on trial as have proven that there is work.
      if (young >= Math.max(1, proven))
        return `nobody says what would fit: ${young} on trial, ${proven} outlived ${site.fizzle / 60_000} min`
    } else if (need < 1) return `${state.demand!.answer!.reason ?? 'all of it has pilots on their way'}`
    return whyNoRoom(state, site, kind, planned, nowMs)
  }

  const canary = nextCanary(state, site, asked, moment)
  if (canary !== null) {
    const why = whyNoRoom(state, site, canary.kind, planned, nowMs, true)
    if (why === null) add(canary.kind, 1, 'canary', canary.node)
    else decision.why.push(`no canary to ${canary.node} yet: ${why}`)
  }
  for (;;) {
    const open = Object.keys(site.kinds).filter((kind) => !closed.has(kind))
    const scored = open.map((kind) => ({ kind, score: scoreOf(state, site, kind, planned), tie: random() }))
    const next = scored.sort((a, b) => a.score[0] - b.score[0] || a.score[1] - b.score[1] || a.tie - b.tie)[0]
    if (!next) break
    const why = whyNot(next.kind)
    if (why !== null) {
      closed.set(next.kind, why)
      continue
    }
    const gate = gateOf(state, site, next.kind, (asked.get(next.kind) ?? 0) > 0, moment)
    const isProbe = (gate.isOpen && gate.isProbe) || (works === null && !isProven(state, site, next.kind, nowMs))
    const nodes = isProbe ? 1 : nodesFor(state, site, next.kind, planned, wantedFor(next.kind), nowMs)
    add(next.kind, nodes, isProbe ? 'probe' : works === null ? 'proven' : 'demand')
    if (works) take(next.kind, nodes)
  }
  for (const kind of Object.keys(site.kinds)) {
    const mine = planned.filter((start) => start.kind === kind)
    const begun = mine.map(
      ({ nodes, because, canaryOf }) => `${nodes} (${because}${canaryOf ? ` on ${canaryOf}` : ''})`,
    )
    const need = asked.get(kind)
    const said = need === null ? 'unknown demand' : `work for ${need} nodes`
    decision.why.push(
      `${kind}: ${said}, ${nodesOf(state, [], (start) => start.kind === kind)} nodes there or waiting; ${begun.length > 0 ? `starts ${begun.join(', ')}, then ` : ''}${closed.get(kind)}`,
    )
  }
  decision.starts = planned
  return decision
}

/**
 * The latched node whose turn it is, and the kind of pilot that tries it: one at a time, the longest due first, and only
 * while any pilot of the kind might start and would find work, or nothing could be learned. The kind is the one that
 * latched it; where that is gone, or had no work for long, one that has: perhaps the node is not for such pilots, but then
 * the batch system says so, or the canary is taken back.
 */
function nextCanary(
  state: State,
  site: SiteFile,
  asked: ReadonlyMap<string, number | null>,
  moment: Moment,
): { node: string; kind: string } | null {
  const { nowMs, random } = moment
  if (Object.values(state.pilots).some(({ canaryOf }) => canaryOf !== null)) return null
  if (!mayTryCanary(state, site, nowMs)) return null
  const fitting = Object.keys(site.kinds).filter((kind) => {
    const need = asked.get(kind) ?? null
    const hasWork = need === null ? isProven(state, site, kind, nowMs) : need > 0
    return hasWork && gateOf(state, site, kind, need !== null, moment).isOpen
  })
  const due = Object.entries(state.latches).sort(([, a], [, b]) => a.untilMs - b.untilMs)
  for (const [node, latch] of due) {
    if (nowMs < latch.untilMs) break
    if (fitting.includes(latch.kind)) return { node, kind: latch.kind }
    const isAnyGood = !Object.hasOwn(site.kinds, latch.kind) || nowMs - latch.untilMs >= site.nodes.latch
    if (isAnyGood && fitting.length > 0) return { node, kind: fitting[Math.floor(random() * fitting.length)]! }
  }
  return null
}

/** Out of the queue already, as far as is known. */
function isLeaving({ isWithdrawn, missingSinceMs }: Started): boolean {
  return isWithdrawn || missingSinceMs !== null
}

function isOnItsWay(start: Started, nowMs: number): boolean {
  if (start.canaryOf !== null || isLeaving(start)) return false
  return start.runningSinceMs === null || nowMs - start.runningSinceMs < SETTLE_MS
}

function isNeedless(start: Started, asked: ReadonlyMap<string, number | null>, nowMs: number): boolean {
  return start.canaryOf === null && (asked.get(start.kind) ?? 0) === 0 && nowMs - start.submittedAtMs > SETTLE_MS
}

/** A canary that waits for a node which is not to be had, or for whose place another pilot has work. */
function isInTheWay(state: State, site: SiteFile, start: Started, need: number | null, nowMs: number): boolean {
  if (start.canaryOf === null) return false
  const waitsMs = nowMs - start.submittedAtMs
  const ofKind = nodesOf(state, [], ({ kind }) => kind === start.kind)
  const isFull = nodesOf(state, [], () => true) >= site.caps.running || ofKind >= (site.kinds[start.kind]?.most ?? 0)
  return waitsMs > CANARY_WAIT_MS || (waitsMs > SETTLE_MS && isFull && (need === null || need > 0))
}

function endOf(site: SiteFile, kind: string): number | null {
  const { account } = site.kinds[kind]!
  return account === null ? null : site.accounts[account]!.until
}
