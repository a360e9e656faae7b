/**
 * How many pilots to start, of which kind, and why not more: pure decisions over the site file, what is known, the time
 * and a random number. A tick carries them out; the simulation runs the very same.
 */
import type { OfferEntry } from '../../shared/protocol/messages.ts'
import { UNANSWERED_MS } from './absorb.ts'
import { gateOf, hasOutlived, isProven, type Moment } from './back-off.ts'
import { excludedNodes } from './nodes.ts'
import { type Kind, matchOf, type SiteFile } from './site-file.ts'
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
const HOUR_MS = 3_600_000

/** What is asked of the relay: one node of each kind, in the order of the site file. */
export function offerOf(site: SiteFile): OfferEntry[] {
  return Object.values(site.kinds).map(({ shape, time }) => ({
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
    timeLeftMs: time,
    aheadMs: 0,
    node: null,
  }))
}

/** The answer is kept for a while, also that there was none. */
export function shouldAsk(state: State, site: SiteFile, nowMs: number): boolean {
  return site.ask.enabled && (state.demand === null || nowMs - state.demand.askedAtMs >= site.ask.every)
}

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
  // At full use nothing hangs on it but pilots that vanished.
  const isGrowing = wanted !== null && wanted.size > 0 && nodesOf(state, [], () => true) < site.caps.running
  return sinceMs >= (isGrowing ? site.look.wanted : site.look.quiet)
}

/** Whether `more` calls go beyond what an hour may have. */
function isOverCalls(state: State, site: SiteFile, more: number): boolean {
  return site.starter === 'slurm' && state.calls.length + more > site.caps.slurmCallsAnHour
}

/** Nodes' worth of queued work, for each step and the kinds that fit it; null where nobody knows. */
function wantedNow(state: State, site: SiteFile): Map<string, { nodes: number; kinds: Set<string> }> | null {
  const answer = state.demand?.answer
  if (!site.ask.enabled || !answer || (!answer.isWhole && answer.fits.length === 0)) return null
  const kinds = Object.keys(site.kinds)
  const wanted = new Map<string, { nodes: number; kinds: Set<string> }>()
  for (const { entry, work, tasks, perNode, estimateMs } of answer.fits) {
    const kind = kinds[entry]
    if (kind === undefined || perNode === 0) continue
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
  const waiting = starts.filter(({ state: now, jobId }) => now === 'queued' && jobId !== null)
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
    decision.withdraw = isOverCalls(state, site, 1) ? [] : waiting.filter((start) => isNeedless(start, asked, nowMs))
  }

  const excluded = excludedNodes(state, site, nowMs)
  if (excluded.nodes.length > 0)
    decision.why.push(
      `not on ${excluded.nodes.join(',')}${excluded.more ? ` (and ${excluded.more} more that are not excluded: nodes.mostExcluded)` : ''}`,
    )
  const planned: Start[] = []
  const add = (kind: string, nodes: number, because: Start['because'], canaryOf: string | null = null) => {
    const id = `${kind}.${given.newId()}`
    const exclude = canaryOf === null ? excluded.nodes : []
    planned.push({
      id,
      kind,
      nodes,
      because,
      canaryOf,
      exclude,
      timeMs: timeFor(state, site, kind, nodes, planned, nowMs).timeMs,
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
      const mine = starts.filter(onTrial)
      const young = mine.filter((start) => !hasOutlived(start, site, nowMs)).length + trials
      const proven = mine.length + trials - young
      // Nobody says what there is: one probe, then as many on trial as have proven that there is work.
      if (young >= Math.max(1, proven))
        return `nobody says what would fit: ${young} on trial, ${proven} outlived ${site.fizzle / 60_000} min`
    } else if (need < 1) return `${state.demand!.answer!.reason ?? 'all of it has pilots on their way'}`
    return whyNoRoom(state, site, kind, planned, nowMs)
  }

  for (const [node, latch] of Object.entries(state.latches)) {
    const isTried = starts.some((start) => start.canaryOf === node)
    const need = Object.hasOwn(site.kinds, latch.kind) ? asked.get(latch.kind) : 0
    if (nowMs < latch.untilMs || isTried || need === 0) continue
    const why = whyNoRoom(state, site, latch.kind, planned, nowMs)
    if (why === null) add(latch.kind, 1, 'canary', node)
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

function isOnItsWay(start: Started, nowMs: number): boolean {
  if (start.canaryOf !== null || start.missingSinceMs !== null) return false
  return start.runningSinceMs === null || nowMs - start.runningSinceMs < SETTLE_MS
}

function isNeedless(start: Started, asked: ReadonlyMap<string, number | null>, nowMs: number): boolean {
  const ageMs = nowMs - start.submittedAtMs
  if (start.canaryOf !== null) return ageMs > CANARY_WAIT_MS
  return (asked.get(start.kind) ?? 0) === 0 && ageMs > SETTLE_MS
}

type Counted = { kind: string; account: string | null; nodes: number }

function nodesOf(state: State, planned: readonly Start[], which: (start: { kind: string }) => boolean): number {
  const all: { kind: string; nodes: number }[] = [...Object.values(state.pilots), ...planned]
  return all.filter(which).reduce((sum, { nodes }) => sum + nodes, 0)
}

/** What its account, and then the kind, has for its share: the lowest starts next. */
function scoreOf(state: State, site: SiteFile, kind: string, planned: readonly Start[]): [number, number] {
  const own = site.kinds[kind]!
  const account = own.account === null ? undefined : site.accounts[own.account]
  const ofAccount = nodesOf(state, planned, (start) => site.kinds[start.kind]?.account === own.account)
  const ofKind = nodesOf(state, planned, (start) => start.kind === kind)
  return [ofAccount / (account?.share ?? 1), ofKind / own.share]
}

/** Why the caps, the account or the calendar let no further pilot of this kind start; null where they do. */
function whyNoRoom(
  state: State,
  site: SiteFile,
  kind: string,
  planned: readonly Start[],
  nowMs: number,
): string | null {
  const { caps } = site
  const own = site.kinds[kind]!
  const all = nodesOf(state, planned, () => true)
  const queued = Object.values(state.pilots).filter((start) => start.state !== 'running').length + planned.length
  const ofKind = nodesOf(state, planned, (start) => start.kind === kind)
  if (planned.length >= caps.startsATick) return `caps.startsATick is ${caps.startsATick}`
  if (all >= caps.running) return `caps.running is ${caps.running} nodes`
  if (queued >= caps.queued) return `caps.queued is ${caps.queued} jobs`
  if (ofKind >= own.most) return `kinds.${kind}.most is ${own.most} nodes`
  if (state.submissions.length + planned.length >= caps.submissionsAnHour)
    return `caps.submissionsAnHour is ${caps.submissionsAnHour}`
  if (isOverCalls(state, site, planned.length + 1)) return `caps.slurmCallsAnHour is ${caps.slurmCallsAnHour}`
  return timeFor(state, site, kind, 1, planned, nowMs).why
}

function nodesFor(
  state: State,
  site: SiteFile,
  kind: string,
  planned: readonly Start[],
  need: number | null,
  nowMs: number,
): number {
  const own: Kind = site.kinds[kind]!
  const room = Math.min(
    own.nodesPerJob,
    site.caps.running - nodesOf(state, planned, () => true),
    own.most - nodesOf(state, planned, (start) => start.kind === kind),
    need === null ? own.nodesPerJob : Math.ceil(need),
  )
  // As many as the account still pays for, at the full time.
  let nodes = Math.max(1, room)
  while (nodes > 1 && timeFor(state, site, kind, nodes, planned, nowMs).why !== null) nodes--
  return nodes
}

/** The time to ask for: less where the account ends earlier. What runs counts with all that it asked for, so a budget holds. */
function timeFor(
  state: State,
  site: SiteFile,
  kind: string,
  nodes: number,
  planned: readonly Start[],
  nowMs: number,
): { timeMs: number; why: string | null } {
  const own = site.kinds[kind]!
  const account = own.account === null ? undefined : site.accounts[own.account]
  let timeMs = own.time
  if (!account) return { timeMs, why: null }
  if (account.until !== null) timeMs = Math.min(timeMs, account.until - nowMs)
  if (timeMs < own.leastTime) return { timeMs, why: `account ${own.account} ends before a pilot of leastTime would` }
  if (account.nodeHours === null) return { timeMs, why: null }
  const committed: (Counted | Start)[] = [...Object.values(state.pilots), ...planned]
  const ofAccount = committed.filter((start) => site.kinds[start.kind]?.account === own.account) as (Counted & {
    timeMs: number
  })[]
  const usedMs =
    (state.usedMs[own.account!] ?? 0) + ofAccount.reduce((sum, start) => sum + start.nodes * start.timeMs, 0)
  const leftMs = account.nodeHours * HOUR_MS - usedMs
  timeMs = Math.min(timeMs, Math.floor(leftMs / nodes / 60_000) * 60_000)
  const why = `account ${own.account}: ${(Math.max(0, leftMs) / HOUR_MS).toFixed(1)} of ${account.nodeHours} node-hours left beside what runs`
  return { timeMs, why: timeMs < own.leastTime ? why : null }
}
