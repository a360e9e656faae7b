/**
 * What the site file leaves room for: caps on nodes, waiting jobs, submissions and calls, the shares of accounts and
 * kinds, and each account's node-hours and end. Pure. What is there counts with all that it asked for, so that no budget is passed.
 */
import type { Start } from './decide.ts'
import type { SiteFile } from './site-file.ts'
import type { Started, State } from './state.ts'

const HOUR_MS = 3_600_000

type Counted = Pick<Started, 'kind' | 'nodes' | 'timeMs' | 'canaryOf'> & Partial<Pick<Started, 'account'>>

/** What runs is charged to the account that it was submitted with, whatever the site file says of its kind by now. */
function accountOf(site: SiteFile, { kind, account }: Counted): string | null | undefined {
  return account === undefined ? site.kinds[kind]?.account : account
}

/** What is there and what this tick adds to it; a job that was withdrawn counts until the next look has not found it. */
function allOf(state: State, planned: readonly Start[]): Counted[] {
  return [...Object.values(state.pilots), ...planned]
}

export function nodesOf(state: State, planned: readonly Start[], which: (start: Counted) => boolean): number {
  return allOf(state, planned)
    .filter(which)
    .reduce((sum, { nodes }) => sum + nodes, 0)
}

/** Whether `more` calls go beyond what an hour may have. */
export function isOverCalls(state: State, site: SiteFile, more: number): boolean {
  return site.starter === 'slurm' && state.calls.length + more > site.caps.slurmCallsAnHour
}

/** What its account, and then the kind, has for its share: the lowest starts next. */
export function scoreOf(state: State, site: SiteFile, kind: string, planned: readonly Start[]): [number, number] {
  const own = site.kinds[kind]!
  const account = own.account === null ? undefined : site.accounts[own.account]
  const ofAccount = nodesOf(state, planned, (start) => accountOf(site, start) === own.account)
  const ofKind = nodesOf(state, planned, (start) => start.kind === kind)
  return [ofAccount / (account?.share ?? 1), ofKind / own.share]
}

/**
 * Why the caps, the account or the calendar let no further pilot of this kind start; null where they do. A canary waits for
 * its one node, perhaps for long: it takes no place among the jobs that wait.
 */
export function whyNoRoom(
  state: State,
  site: SiteFile,
  kind: string,
  planned: readonly Start[],
  nowMs: number,
  isCanary = false,
): string | null {
  const { caps } = site
  const own = site.kinds[kind]!
  const all = nodesOf(state, planned, () => true)
  const ordinary = Object.values(state.pilots).filter((start) => start.canaryOf === null && start.state !== 'running')
  const queued = ordinary.length + planned.filter(({ canaryOf }) => canaryOf === null).length
  const ofKind = nodesOf(state, planned, (start) => start.kind === kind)
  if (planned.length >= caps.startsATick) return `caps.startsATick is ${caps.startsATick}`
  if (all >= caps.running) return `caps.running is ${caps.running} nodes`
  if (!isCanary && queued >= caps.queued) return `caps.queued is ${caps.queued} jobs`
  if (ofKind >= own.most) return `kinds.${kind}.most is ${own.most} nodes`
  if (state.submissions.length + planned.length >= caps.submissionsAnHour)
    return `caps.submissionsAnHour is ${caps.submissionsAnHour}`
  if (isOverCalls(state, site, planned.length + 1)) return `caps.slurmCallsAnHour is ${caps.slurmCallsAnHour}`
  return timeFor(state, site, kind, 1, planned, nowMs).why
}

export function nodesFor(
  state: State,
  site: SiteFile,
  kind: string,
  planned: readonly Start[],
  need: number | null,
  nowMs: number,
): number {
  const own = site.kinds[kind]!
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

/**
 * Whether the batch system may give less time than was asked for: only near the end of an account. Anywhere else it would
 * give a pilot minutes to fill a gap, and tasks of an hour would never fit.
 */
export function mayGetLess(untilMs: number, timeMs: number, submittedAtMs: number): boolean {
  return untilMs - submittedAtMs < 2 * timeMs
}

/** The time to ask for: less where the account ends earlier or has less left, and why it is too short. */
export function timeFor(
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
  const ofAccount = allOf(state, planned).filter((start) => accountOf(site, start) === own.account)
  const usedMs =
    (state.usedMs[own.account!] ?? 0) + ofAccount.reduce((sum, start) => sum + start.nodes * start.timeMs, 0)
  const leftMs = account.nodeHours * HOUR_MS - usedMs
  timeMs = Math.min(timeMs, Math.floor(leftMs / nodes / 60_000) * 60_000)
  const why = `account ${own.account}: ${(Math.max(0, leftMs) / HOUR_MS).toFixed(1)} of ${account.nodeHours} node-hours left beside what runs`
  return { timeMs, why: timeMs < own.leastTime ? why : null }
}
