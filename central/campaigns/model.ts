/**
 * A campaign as the programs know it: the plan (what a checked file became, never changed afterwards) and the views
 * (what is shown of it). The file format and its checks are format.ts; the state lives in central/store.
 */

import type { ErrorCode } from '../../shared/errors.ts'
import type { Shape } from '../../shared/fit.ts'
import type { AttemptRef, CampaignId, Digest, StepName } from '../../shared/ids.ts'
import type { CampaignState, Counts, DesiredState, TaskState } from '../../shared/lifecycle.ts'
import type { OutputRecord, PilotSummary, Result } from '../../shared/protocol/messages.ts'
import type { Needs, TemplateBody } from '../../shared/protocol/work.ts'

export interface Retries {
  /** Further tries after the first, per credit. */
  payload: number
  infrastructure: number
  /** Exit codes that put the task on hold at once. */
  holdExitCodes: number[]
  /** What a task becomes when a credit is used up. */
  exhausted: 'failed' | 'held'
}

export interface StepPlan {
  name: StepName
  /** Number of tasks. */
  size: number
  template: TemplateBody
  needs: Needs
  /** First 12 hexadecimal digits of the digest over the canonical needs; tasks of one class are interchangeable. */
  matchClass: string
  /** Rows of a table, one per task, kept as blocks of the blob store; null for sweep and count. */
  rows: Record<string, string>[] | null
  /** The steps that must be over before this one, with the share of their tasks that must be done (0 to 1). */
  after: { step: StepName; accept: number }[]
  retries: Retries
}

export interface CampaignPlan {
  id: CampaignId
  name: string
  group: string
  /** The person who submitted. */
  subject: string
  activity: 'production' | 'analysis'
  priority: number
  deadlineMs: number | null
  maxRunning: number | null
  labels: Record<string, string>
  /** Over the checked content, tables included: equal digests are the same campaign. */
  digest: Digest
  /** The file as submitted, for `campaign show --source`. */
  source: string
  steps: StepPlan[]
}

export interface StepView {
  name: StepName
  size: number
  after: { step: StepName; accept: number }[]
  counts: Counts
  needs: Needs
  /** Mean wall time of tasks done, milliseconds; null before the first. */
  meanWallMs: number | null
}

export interface CampaignView {
  id: CampaignId
  name: string
  group: string
  subject: string
  activity: string
  priority: number
  desired: DesiredState
  desiredVersion: number
  state: CampaignState
  createdAtMs: number
  endedAtMs: number | null
  counts: Counts
  steps: StepView[]
  /** Reasons of failed attempts with how often each occurred, most frequent first. */
  failures: { step: StepName; reason: ErrorCode; detail: string; count: number }[]
}

export interface TaskRow {
  step: StepName
  index: number
  state: TaskState
  attempts: number
  site: string | null
  node: string | null
  reason: ErrorCode | null
}

export interface TaskView extends TaskRow {
  campaign: CampaignId
  /** Every attempt known, oldest first; the last one of a done task is the winner. */
  history: Result[]
  outputs: OutputRecord[]
  winner: AttemptRef | null
}

export interface HolderView {
  site: string
  holder: string
  role: 'pilot' | 'relay'
  state: 'active' | 'draining' | 'lost' | 'left'
  session: string
  software: string
  lastSeenMs: number
  gauges: Record<string, number>
  counters: Record<string, number>
}

export interface PilotView extends PilotSummary {
  site: string
  relay: string | null
  lastSeenMs: number
}

/** Something `indraft admin verify` found wrong, in words. */
export interface Finding {
  invariant: string
  where: string
  found: string
  expected: string
}

/** Queued work and a holder that should have met, and have not for minutes. */
export interface Starved {
  group: string
  campaign: string
  step: string
  /** How many of the bundles looked at fit. */
  bundles: number
  queuedForMs: number
  site: string
  holder: string
  waitingForMs: number
}

/** A person's wish that tasks be tried again. */
export interface RetryRequest {
  states: ('failed' | 'held')[]
  /** Only of this step. */
  step?: string | undefined
  /** Whoever repeats it, because no answer came, says the same: then no task is retried twice. */
  request: string
}

/** What the API asks of the store. Implemented in central/store over Redis. */
export interface CampaignStore {
  /** Idempotent. @throws IndraftError campaign.conflict | store.full */
  create(plan: CampaignPlan): Promise<{ created: boolean }>
  /** `*` among the groups stands for every group, here and in find. */
  list(groups: readonly string[]): Promise<CampaignView[]>
  /** By name within any of the groups, or by id. */
  find(nameOrId: string, groups: readonly string[]): Promise<CampaignView | null>
  /** The file as submitted. */
  source(id: CampaignId): Promise<string>
  /** `next` is null where there are no more; a page may end before `limit`, and be empty, with more to come. */
  tasks(
    id: CampaignId,
    filter: { step?: string; state?: TaskState; site?: string },
    from: { step: string; index: number } | null,
    limit: number,
  ): Promise<{ rows: TaskRow[]; next: { step: string; index: number } | null }>
  task(id: CampaignId, step: string, index: number): Promise<TaskView | null>
  /** Outputs of tasks of a step: a list for each index. */
  outputs(id: CampaignId, step: string, indices: number[]): Promise<OutputRecord[][]>
  /** Raises the version. @throws IndraftError request.invalid where the campaign is over or the change is illegal */
  setDesired(id: CampaignId, desired: DesiredState): Promise<CampaignView>
  /** @throws IndraftError request.invalid where the campaign is cancelled */
  retry(id: CampaignId, which: RetryRequest): Promise<{ tasks: number }>
  holders(): Promise<HolderView[]>
  pilots(): Promise<PilotView[]>
  /** Asks whoever holds the attempt's log to send it; it arrives in the outputs folder a beat later. */
  requestLog(attempt: AttemptRef, site: string, stream: 'stdout' | 'stderr'): Promise<void>
  /** Largest node shapes seen or declared per site, for "would this fit anywhere". */
  siteShapes(): Promise<{ site: string; labels: Record<string, string>; shapes: Shape[] }[]>
  verify(): Promise<Finding[]>
  /** Queued work that fits holders which wait, and that nobody is given: empty unless something is wrong here. */
  starved(): Promise<Starved[]>
}
