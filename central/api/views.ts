/** What the API shows, as schemas; their types are those of central/campaigns/model.ts, which the compiler checks below. */
import { z } from 'zod'
import { ERROR_CODES } from '../../shared/errors.ts'
import { type Counts, TASK_STATES } from '../../shared/lifecycle.ts'
import {
  attemptRefSchema,
  outputRecordSchema,
  pilotSummarySchema,
  resultSchema,
} from '../../shared/protocol/messages.ts'
import { needsSchema } from '../../shared/protocol/work.ts'
import type { CampaignView, HolderView, PilotView, TaskRow, TaskView } from '../campaigns/model.ts'

const count = z.number().int().min(0)
export const taskStateSchema = z.enum(TASK_STATES)
const countsSchema = z.object(
  Object.fromEntries(TASK_STATES.map((state) => [state, count])) as Record<keyof Counts, z.ZodNumber>,
)
const reason = z.enum(ERROR_CODES)
const totalsSchema = z.record(z.string(), z.number())

export const stepViewSchema = z.object({
  name: z.string(),
  size: count,
  after: z.array(z.object({ step: z.string(), accept: z.number() })),
  counts: countsSchema,
  needs: needsSchema,
  meanWallMs: z.number().nullable(),
})

export const campaignViewSchema = z.object({
  id: z.string(),
  name: z.string(),
  group: z.string(),
  subject: z.string(),
  activity: z.string(),
  priority: z.number(),
  desired: z.enum(['run', 'paused', 'cancelled']),
  desiredVersion: z.number(),
  state: z.enum(['running', 'paused', 'held', 'done', 'done with failures', 'cancelling', 'cancelled']),
  createdAtMs: z.number(),
  endedAtMs: z.number().nullable(),
  counts: countsSchema,
  steps: z.array(stepViewSchema),
  failures: z.array(z.object({ step: z.string(), reason, detail: z.string(), count })),
})

export const taskRowSchema = z.object({
  step: z.string(),
  index: count,
  state: taskStateSchema,
  attempts: count,
  site: z.string().nullable(),
  node: z.string().nullable(),
  reason: reason.nullable(),
})

export const taskViewSchema = taskRowSchema.extend({
  campaign: z.string(),
  history: z.array(resultSchema),
  outputs: z.array(outputRecordSchema),
  winner: attemptRefSchema.nullable(),
})

export const holderViewSchema = z.object({
  site: z.string(),
  holder: z.string(),
  role: z.enum(['pilot', 'relay']),
  state: z.enum(['active', 'draining', 'lost', 'left']),
  session: z.string(),
  software: z.string(),
  lastSeenMs: z.number(),
  gauges: totalsSchema,
  counters: totalsSchema,
})

export const pilotViewSchema = pilotSummarySchema.extend({
  site: z.string(),
  relay: z.string().nullable(),
  lastSeenMs: z.number(),
})

export const findingSchema = z.object({
  invariant: z.string(),
  where: z.string(),
  found: z.string(),
  expected: z.string(),
})

export const problemSchema = z.object({
  path: z.string(),
  message: z.string(),
  line: z.number().nullable(),
  column: z.number().nullable(),
})

/** Every refusal of the API. */
export const errorSchema = z.object({
  code: reason,
  message: z.string(),
  path: z.string().optional(),
  retryAfterMs: z.number().optional(),
  /** All that is wrong with a campaign file, in its order. */
  problems: z.array(problemSchema).optional(),
})
export type ErrorReply = z.infer<typeof errorSchema>

/** What goes over the wire must be able to carry every view: a field added to a view and not here fails to compile. */
type Carries<View, Schema extends z.ZodType> = View extends z.infer<Schema> ? true : never
export const carried: [
  Carries<CampaignView, typeof campaignViewSchema>,
  Carries<TaskRow, typeof taskRowSchema>,
  Carries<TaskView, typeof taskViewSchema>,
  Carries<HolderView, typeof holderViewSchema>,
  Carries<PilotView, typeof pilotViewSchema>,
] = [true, true, true, true, true]
