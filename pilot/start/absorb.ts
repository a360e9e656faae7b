/**
 * What was seen since the last tick, taken into the state: end records of pilots, and the batch system's queue. Each
 * record counts once, however often it is seen. Changes the state it is given and nothing else.
 */
import { hasOutlived, hereScope, judgeEnd, type Moment, prove, strike, strikeNode } from './back-off.ts'
import type { EndRecord } from './end-record.ts'
import { judgeCanary, learn, noteVanished, postponeCanary } from './nodes.ts'
import { mayGetLess } from './room.ts'
import { folderTag, type SiteFile } from './site-file.ts'
import { kindOfStart, newStarted, type Started, type State } from './state.ts'

/** Completing: its pilots have ended, and what is left of it is the batch system's, perhaps for hours. */
export type QueueState = 'queued' | 'running' | 'completing'

/** A job of ours as the batch system knows it, or a process. */
export interface QueuedJob {
  jobId: string
  /** The id of its submission, from its name. */
  id: string
  state: QueueState
  /** Nodes that it runs on. */
  nodes: string[]
  /** How many it has or waits for; not said where that is always one. */
  nodeCount?: number
  /** Why it waits, in the batch system's word. */
  reason: string
}

/** After this a submission whose answer was never written down, and which the queue does not know, did not happen. */
export const UNANSWERED_MS = 120_000
/** An end record may be this much later to be seen than the job's absence from the queue (NFS keeps names that long). */
const LATE_RECORD_MS = 120_000
const MINUTE_MS = 60_000
const HOUR_MS = 3_600_000
const MOST_ABSORBED = 2000
/** When its last pilot has said how it ended, a job's script runs no longer than this. Later it is one that runs again. */
const SCRIPT_ENDS_WITHIN_MS = 300_000

/** @returns what to say of it */
export function onEndRecord(
  state: State,
  site: SiteFile,
  file: string,
  end: EndRecord,
  moment: Moment,
): { event: string; detail: string } | null {
  if (state.absorbed.includes(file)) return null
  state.absorbed = [...state.absorbed, file].slice(-MOST_ABSORBED)
  const start = end.start === null ? undefined : state.pilots[end.start]
  const kind = start?.kind ?? (end.start === null ? '' : kindOfStart(end.start))
  // A kind that was renamed or removed while its pilots ran: they count until the last one has ended.
  if (!start && !Object.hasOwn(site.kinds, kind))
    return { event: 'pilot.ofOthers', detail: `${end.pilot}: ${end.code} ${end.reason}` }
  const known = start ?? unknownStart(end, kind, site, moment.nowMs)
  let detail = `${end.pilot} on ${end.node}: ${end.code} ${end.reason}`
  if (known.canaryOf === end.node) detail += `; ${judgeCanary(state, site, end.node, end, moment.nowMs)}`
  else {
    for (const { node, why } of learn(state, site, kind, end, moment.nowMs)) detail += `; ${node} is latched: ${why}`
    if (known.canaryOf !== null) postponeCanary(state, site, known.canaryOf, moment.nowMs)
    // A pilot that was ended on a black hole says nothing about class and site.
    if (!Object.hasOwn(state.latches, end.node)) judgeEnd(state, site, known, end, moment)
  }
  // What the relay said before is old news: the work it meant is done.
  if (end.code >= 300 && end.code < 400) state.demand = null
  if (!start) charge(state, known, end.livedMs)
  else {
    start.longestMs = Math.max(start.longestMs, end.livedMs)
    if (++start.ended >= start.nodes) {
      charge(state, start, start.longestMs)
      delete state.pilots[start.id]
      state.over[start.id] = moment.nowMs
    }
  }
  return { event: 'pilot.ended', detail }
}

/** The batch system charges every node of a job until the last one is free, whatever the pilots on them did. */
function charge(state: State, { account, nodes }: Started, lifeMs: number): void {
  state.usedMs[account ?? ''] = (state.usedMs[account ?? ''] ?? 0) + nodes * lifeMs
}

/** The most that a job which was gone by then can have had, where its pilots do not say. */
function longestLife(start: Started, goneMs: number): number {
  return Math.max(start.longestMs, Math.min(start.timeMs, goneMs - (start.waitedAtMs ?? start.submittedAtMs)))
}

/** The pilot of a submission that this state does not know (any more). */
function unknownStart(end: EndRecord, kind: string, site: SiteFile, nowMs: number): Started {
  const beganMs = nowMs - end.livedMs
  return newStarted({
    ...{ id: end.start ?? '', kind, account: site.kinds[kind]!.account, nodes: 1, timeMs: 0, submittedAtMs: beganMs },
    ...{ because: 'proven', jobId: end.job, state: 'running', runningSinceMs: beganMs, seenAtMs: nowMs },
    nodeNames: [end.node],
  })
}

/** @returns what to say of it */
export function onQueue(state: State, site: SiteFile, jobs: readonly QueuedJob[], { nowMs }: Moment): string[] {
  const said: string[] = []
  const byId = new Map(jobs.map((job) => [job.id, job]))
  state.lookedAtMs = nowMs
  for (const start of Object.values(state.pilots)) {
    const job = byId.get(start.id)
    if (job) {
      if (start.jobId === null) said.push(`${start.id}: found again as job ${job.jobId}`)
      start.jobId = job.jobId
      start.missingSinceMs = null
      // It began just before it was to be taken out, or nothing came of that.
      start.isWithdrawn = false
      start.nodes = Math.max(start.nodes, job.nodeCount ?? 1)
      if (job.nodes.length > 0) start.nodeNames = job.nodes
      if (job.state !== 'queued') {
        start.runningSinceMs ??= nowMs
        start.seenAtMs = nowMs
      } else {
        if (start.runningSinceMs !== null) said.push(onRequeued(state, start, nowMs))
        start.waitedAtMs = nowMs
      }
      start.state = job.state === 'queued' ? 'queued' : 'running'
    } else if (start.isWithdrawn) delete state.pilots[start.id]
    else if (start.state !== 'submitting' || nowMs - start.submittedAtMs > UNANSWERED_MS) start.missingSinceMs ??= nowMs
  }
  for (const job of jobs) {
    const kind = kindOfStart(job.id)
    const isOurs = job.id.startsWith(`${kind}.${folderTag(site)}`)
    if (Object.hasOwn(state.pilots, job.id) || !Object.hasOwn(site.kinds, kind) || !isOurs) continue
    if (job.state === 'completing') continue
    if (job.state === 'running' && nowMs - (state.over[job.id] ?? 0) < SCRIPT_ENDS_WITHIN_MS) continue
    // The state file was lost, or belongs to a tick that died before it wrote even its intent.
    said.push(`${job.id}: job ${job.jobId} is taken over`)
    const { account, time: timeMs } = site.kinds[kind]!
    const isRunning = job.state === 'running'
    state.pilots[job.id] = newStarted({
      ...{ id: job.id, kind, account, nodes: Math.max(1, job.nodeCount ?? job.nodes.length), timeMs },
      ...{ submittedAtMs: nowMs, because: 'proven', jobId: job.jobId, state: job.state, nodeNames: job.nodes },
      ...(isRunning ? { runningSinceMs: nowMs, seenAtMs: nowMs } : {}),
      // When a running one began nobody knows: with all of its time behind it, at the earliest.
      waitedAtMs: isRunning ? nowMs - timeMs : nowMs,
    })
  }
  return said
}

/** It ran, and waits again: what it had is used up, and it has yet to prove anything. */
function onRequeued(state: State, start: Started, nowMs: number): string {
  charge(state, start, longestLife(start, nowMs))
  Object.assign(start, { runningSinceMs: null, seenAtMs: null, nodeNames: [], ended: 0, longestMs: 0 })
  return `${start.id}: job ${start.jobId} was requeued`
}

/** What follows from time alone: pilots that outlived the fizzle time, that vanished, and what is too old to matter. */
export function onTime(state: State, site: SiteFile, moment: Moment): string[] {
  const said: string[] = []
  const { nowMs } = moment
  for (const start of Object.values(state.pilots)) {
    if (hasOutlived(start, site, nowMs) && start.canaryOf === null)
      prove(state, site, start.kind, start.runningSinceMs!)
    if (start.missingSinceMs === null || nowMs - start.missingSinceMs < LATE_RECORD_MS) continue
    delete state.pilots[start.id]
    said.push(onVanished(state, site, start, moment))
  }
  state.submissions = state.submissions.filter((at) => nowMs - at < HOUR_MS)
  state.calls = state.calls.filter((at) => nowMs - at < HOUR_MS)
  for (const [id, at] of Object.entries(state.over)) if (nowMs - at > SCRIPT_ENDS_WITHIN_MS) delete state.over[id]
  for (const [key, { untilMs }] of Object.entries(state.scopes)) {
    // Long over: another such end would be a first one again.
    if (nowMs - untilMs > 24 * HOUR_MS) delete state.scopes[key]
  }
  return said
}

/** Gone from the queue, and not all of its pilots left a record: killed, or never came to life. */
function onVanished(state: State, site: SiteFile, start: Started, moment: Moment): string {
  if (start.jobId === null) return `${start.id}: was never submitted`
  if (leftAtItsEnd(site, start)) return `${start.id} (job ${start.jobId}): its account ends before it could begin`
  charge(state, start, longestLife(start, start.missingSinceMs!))
  const what = `${start.id} (job ${start.jobId}): ${start.nodes - start.ended} pilots ended without a word`
  if (start.canaryOf !== null) postponeCanary(state, site, start.canaryOf, moment.nowMs)
  // At least.
  const livedMs = start.runningSinceMs === null ? 0 : start.seenAtMs! - start.runningSinceMs
  if (start.canaryOf !== null || livedMs >= site.fizzle || start.ended > 0) return what
  const blow = { code: 700, reason: 'ended young and without a word', startedAtMs: start.submittedAtMs }
  const [node] = start.nodeNames
  if (start.nodeNames.length === 1 && noteVanished(state, node!)) {
    strikeNode(state, site, start.kind, node!, { ...blow, code: 500 }, moment)
  }
  strike(state, hereScope(start.kind), blow, site, moment)
  return what
}

/** The batch system takes a job out of the queue that can no longer begin before its deadline. */
function leftAtItsEnd(site: SiteFile, start: Started): boolean {
  const { account, kind, timeMs, runningSinceMs, submittedAtMs, missingSinceMs } = start
  const until = account === null ? null : (site.accounts[account]?.until ?? null)
  if (until === null || runningSinceMs !== null) return false
  const least = mayGetLess(until, timeMs, submittedAtMs) ? site.kinds[kind]?.leastTime : timeMs
  return missingSinceMs! > until - (least ?? timeMs) - MINUTE_MS
}
