/**
 * What the vacuum remembers from one tick to the next: pilots it started, back-offs, nodes it avoids, how fast each
 * node did its work, and what it has used up. One JSON file, replaced by rename; schema and shape in one place.
 */
import { z } from 'zod'
import { demandedSchema } from '../../shared/protocol/messages.ts'

const count = z.number().int().min(0)
const atMs = z.number()

/** One submission: `nodes` pilots, one job or process. */
export const startedSchema = z.object({
  /** `<kind>.<folder's tag><8 hex digits>`; the job carries it, so that it is found again when its number was not written down. */
  id: z.string(),
  kind: z.string(),
  account: z.string().nullable(),
  nodes: z.number().int().min(1),
  /** What was asked of the batch system. */
  timeMs: z.number(),
  submittedAtMs: atMs,
  /** Why it was started: on the relay's word, alone after a back-off, beside proven ones, or on a latched node. */
  because: z.enum(['demand', 'probe', 'proven', 'canary']),
  /** The latched node that it tries. */
  canaryOf: z.string().nullable(),
  /** Null until the batch system's answer was written down. */
  jobId: z.string().nullable(),
  state: z.enum(['submitting', 'queued', 'running']),
  runningSinceMs: atMs.nullable(),
  /** In the queue, running. */
  seenAtMs: atMs.nullable(),
  /** Not in the queue any more; its pilots' end records may still come. */
  missingSinceMs: atMs.nullable(),
  nodeNames: z.array(z.string()),
  /** End records that came. */
  ended: count,
  /** When it was last seen waiting: it cannot have begun before. */
  waitedAtMs: atMs.nullable().default(null),
  /** The longest life among the records that came: the batch system charges every node of a job for it. */
  longestMs: z.number().default(0),
  /** Taken out of the queue by us, unless it began just then: the next look says which. */
  isWithdrawn: z.boolean().default(false),
})
export type Started = z.infer<typeof startedSchema>

/** One that was just ordered; what is known beyond that is given. */
export function newStarted(
  given: Pick<Started, 'id' | 'kind' | 'account' | 'nodes' | 'timeMs' | 'submittedAtMs' | 'because'> & Partial<Started>,
): Started {
  return {
    ...{ canaryOf: null, jobId: null, state: 'submitting', runningSinceMs: null, seenAtMs: null, missingSinceMs: null },
    ...{ nodeNames: [], ended: 0, waitedAtMs: null, longestMs: 0, isWithdrawn: false },
    ...given,
  }
}

/** Why a scope is closed, and until when. */
export const scopeSchema = z.object({
  strikes: z.number().int().min(1),
  sinceMs: atMs,
  untilMs: atMs,
  code: z.number().int(),
  reason: z.string(),
  /** A relay that says "there is work" overrides it. */
  isLiftable: z.boolean(),
  /** Which orders were refused: others may be taken. */
  orders: z.string().optional(),
})
export type Scope = z.infer<typeof scopeSchema>

/** A black hole: excluded until a canary comes back well. */
export const latchSchema = z.object({
  sinceMs: atMs,
  /** No canary before. */
  untilMs: atMs,
  times: z.number().int().min(1),
  kind: z.string(),
  reason: z.string(),
})
export type Latch = z.infer<typeof latchSchema>

export const nodeWorkSchema = z.object({
  done: count,
  failed: count,
  medianMs: z.number().nullable(),
  atMs,
  /** Of the pilot that did it last; a canary is of the same. */
  kind: z.string().optional(),
})
export type NodeWork = z.infer<typeof nodeWorkSchema>

export const stateSchema = z.object({
  version: z.literal(1),
  pilots: z.record(z.string(), startedSchema),
  /** `class:<match>`, `here:<kind>`, `node:<name>`. */
  scopes: z.record(z.string(), scopeSchema),
  latches: z.record(z.string(), latchSchema),
  /** By `campaign/step`, then node. */
  work: z.record(z.string(), z.record(z.string(), nodeWorkSchema)),
  /** Pilots of a node in a row that ended young and without a word. */
  vanished: z.record(z.string(), count),
  /** Names of end records that are counted and may still lie there. */
  absorbed: z.array(z.string()),
  demand: z.object({ askedAtMs: atMs, answer: demandedSchema.nullable() }).nullable(),
  lookedAtMs: atMs.nullable(),
  /** Times within the last hour. */
  submissions: z.array(atMs),
  calls: z.array(atMs),
  /** Node-milliseconds of jobs that are over, by account. */
  usedMs: z.record(z.string(), z.number()),
  tidiedAtMs: atMs,
  /** When living pilots' records were read. */
  progressAtMs: atMs,
  /** No canary before, whatever node is due. */
  canariesFromMs: atMs.default(0),
  /** Submissions all of whose pilots have ended, and when that was seen: the queue may show them for a while yet. */
  over: z.record(z.string(), atMs).default({}),
})
export type State = z.infer<typeof stateSchema>

export function emptyState(): State {
  return {
    ...{ version: 1, pilots: {}, scopes: {}, latches: {}, work: {}, vanished: {}, absorbed: [], demand: null },
    ...{
      lookedAtMs: null,
      submissions: [],
      calls: [],
      usedMs: {},
      tidiedAtMs: 0,
      progressAtMs: 0,
      canariesFromMs: 0,
      over: {},
    },
  }
}

/**
 * The clock was set back since the last tick, or two machines take turns whose clocks differ: what lies ahead of now
 * would hold everything up until the clock has come there. It counts as happened just now, what it closes as closed for
 * as long as it was to be.
 */
export function bringToNow(state: State, nowMs: number): void {
  const past = (at: number) => Math.min(at, nowMs)
  const pastOrNull = (at: number | null) => (at === null ? null : past(at))
  for (const start of Object.values(state.pilots)) {
    start.submittedAtMs = past(start.submittedAtMs)
    start.runningSinceMs = pastOrNull(start.runningSinceMs)
    start.seenAtMs = pastOrNull(start.seenAtMs)
    start.missingSinceMs = pastOrNull(start.missingSinceMs)
    start.waitedAtMs = pastOrNull(start.waitedAtMs)
  }
  for (const closed of [...Object.values(state.scopes), ...Object.values(state.latches)]) {
    const aheadMs = Math.max(0, closed.sinceMs - nowMs)
    closed.sinceMs -= aheadMs
    closed.untilMs -= aheadMs
  }
  for (const nodes of Object.values(state.work)) for (const one of Object.values(nodes)) one.atMs = past(one.atMs)
  if (state.demand !== null && state.demand.askedAtMs > nowMs) state.demand = null
  state.lookedAtMs = pastOrNull(state.lookedAtMs)
  state.submissions = state.submissions.map(past)
  state.calls = state.calls.map(past)
  state.tidiedAtMs = past(state.tidiedAtMs)
  state.progressAtMs = past(state.progressAtMs)
  for (const [id, at] of Object.entries(state.over)) state.over[id] = past(at)
}

export function kindOfStart(id: string): string {
  return id.slice(0, id.lastIndexOf('.'))
}
