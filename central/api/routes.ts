/**
 * Every route of the API in one table: the server, /openapi.json and the typed client are made from it. A route without
 * `reply` answers with the bytes of a file. Times are milliseconds since 1970.
 */
import { z } from 'zod'
import { banSchema } from '../bans.ts'
import { principalSchema, type Role } from '../people.ts'
import { siteNameSchema, siteSchema, siteSettingsSchema, siteStateSchema } from '../sites/registry.ts'
import {
  campaignViewSchema,
  findingSchema,
  holderViewSchema,
  pilotViewSchema,
  taskRowSchema,
  taskStateSchema,
  taskViewSchema,
} from './views.ts'

export interface Route {
  method: 'GET' | 'POST' | 'DELETE'
  path: string
  summary: string
  /** Null: whoever comes; the body carries its own proof. */
  role: Role | null
  params?: z.ZodObject
  query?: z.ZodObject
  body?: z.ZodObject
  /** The largest body in bytes, where it is more than the usual 64 kB. Only a few such requests are taken at a time. */
  bodyLimit?: number
  /** Absent: the bytes of a file, or 202 with {retryAfterMs} while it is on its way. */
  reply?: z.ZodType
}

/** A relay follows its new credential within seconds; people may need minutes to copy a direct site's. */
const KEEP_OLD_MS = 600_000
/** A file of 1 MiB and tables of 16 MiB, each character perhaps escaped. */
const MAX_SUBMISSION_BYTES = 2 * (1 + 16) * 1024 * 1024

const campaign = z.object({ campaign: z.string().max(200).describe('Name or id.') })
const task = campaign.extend({ step: z.string().max(200), index: z.coerce.number().int().min(0) })
const cursor = z.string().regex(/^[^/]+\/\d+$/, 'expected STEP/INDEX')

const submissionSchema = z.object({
  source: z
    .string()
    .max(1024 * 1024)
    .describe('The campaign file, YAML 1.2 or JSON.'),
  tables: z
    .record(z.string().max(1024), z.string())
    .default({})
    .describe('Text of each table by the name in the file.'),
  dryRun: z.boolean().default(false).describe('Check only.'),
  strict: z.boolean().default(false).describe('Refuse what no registered site can run.'),
})
const warningSchema = z.object({ path: z.string(), message: z.string() })
const submittedSchema = z.object({
  id: z.string(),
  name: z.string(),
  group: z.string(),
  /** False: the same campaign was there already. */
  created: z.boolean(),
  dryRun: z.boolean(),
  tasks: z.number(),
  steps: z.array(z.object({ name: z.string(), tasks: z.number() })),
  warnings: z.array(warningSchema),
})
const outputEntrySchema = z.object({
  step: z.string(),
  index: z.number(),
  path: z.string(),
  sizeBytes: z.number(),
  checksum: z.string(),
  /** `store:...`: the centre keeps it and the outputs route serves it; else where it was written. */
  url: z.string(),
})
const siteViewSchema = siteSchema.extend({
  holders: z.array(holderViewSchema),
  pilots: z.number(),
})
const tokenSchema = principalSchema.extend({ id: z.string() })

export const ROUTES = {
  whoami: {
    method: 'GET',
    path: '/v1/whoami',
    role: 'read',
    summary: 'The person behind the token.',
    reply: principalSchema,
  },

  submitCampaign: {
    method: 'POST',
    path: '/v1/campaigns',
    role: 'submit',
    bodyLimit: MAX_SUBMISSION_BYTES,
    summary: 'Checks a campaign and takes it in. The same one again changes nothing.',
    body: submissionSchema,
    reply: submittedSchema,
  },
  listCampaigns: {
    method: 'GET',
    path: '/v1/campaigns',
    role: 'read',
    summary: "Campaigns of the caller's groups, newest first.",
    reply: z.object({ campaigns: z.array(campaignViewSchema) }),
  },
  showCampaign: {
    method: 'GET',
    path: '/v1/campaigns/:campaign',
    role: 'read',
    summary: 'One campaign with its steps, counts and reasons of failures.',
    params: campaign,
    reply: campaignViewSchema,
  },
  campaignSource: {
    method: 'GET',
    path: '/v1/campaigns/:campaign/source',
    role: 'read',
    summary: 'The file as it was submitted.',
    params: campaign,
    reply: z.object({ source: z.string() }),
  },
  setDesired: {
    method: 'POST',
    path: '/v1/campaigns/:campaign/desired',
    role: 'submit',
    summary: 'Runs, pauses or cancels. Cancelled is for ever.',
    params: campaign,
    body: z.object({ desired: z.enum(['run', 'paused', 'cancelled']) }),
    reply: campaignViewSchema,
  },
  retryTasks: {
    method: 'POST',
    path: '/v1/campaigns/:campaign/retry',
    role: 'submit',
    summary: 'Queues failed or held tasks again, with fresh credit; steps skipped for them wait again.',
    params: campaign,
    body: z.object({
      states: z
        .array(z.enum(['failed', 'held']))
        .min(1)
        .max(2)
        .default(['failed', 'held']),
      step: z.string().optional(),
      request: z
        .string()
        .min(8)
        .max(64)
        .describe('Made by the caller. Repeated under the same one, a task is not retried twice.'),
    }),
    reply: z.object({ tasks: z.number() }),
  },
  listTasks: {
    method: 'GET',
    path: '/v1/campaigns/:campaign/tasks',
    role: 'read',
    summary:
      'Tasks by step, state and site, a page at a time; one may be short or empty while `next` says where to go on.',
    params: campaign,
    query: z.object({
      step: z.string().optional(),
      state: taskStateSchema.optional(),
      site: z.string().optional(),
      from: cursor.optional(),
      limit: z.coerce.number().int().min(1).max(1000).default(100),
    }),
    reply: z.object({ tasks: z.array(taskRowSchema), next: z.string().nullable() }),
  },
  showTask: {
    method: 'GET',
    path: '/v1/campaigns/:campaign/tasks/:step/:index',
    role: 'read',
    summary: 'One task with every attempt and its outputs.',
    params: task,
    reply: taskViewSchema,
  },
  taskLog: {
    method: 'GET',
    path: '/v1/campaigns/:campaign/tasks/:step/:index/logs/:stream',
    role: 'read',
    summary: "An attempt's standard output or error. 202 while the site is asked for it.",
    params: task.extend({ stream: z.enum(['stdout', 'stderr']) }),
    query: z.object({
      attempt: z.coerce.number().int().min(1).optional().describe('1 is the first; the last by default.'),
    }),
  },
  listOutputs: {
    method: 'GET',
    path: '/v1/campaigns/:campaign/outputs',
    role: 'read',
    summary:
      'Outputs of the tasks that are done, a page of tasks at a time; one may be short or empty while `next` says where to go on.',
    params: campaign,
    query: z.object({
      step: z.string().optional(),
      from: cursor.optional(),
      limit: z.coerce.number().int().min(1).max(1000).default(200),
    }),
    reply: z.object({ outputs: z.array(outputEntrySchema), next: z.string().nullable() }),
  },
  getOutput: {
    method: 'GET',
    path: '/v1/campaigns/:campaign/outputs/:step/:index/*',
    role: 'read',
    summary: 'An output that the centre keeps.',
    params: task.extend({ '*': z.string().min(1).max(1024) }),
  },

  listPilots: {
    method: 'GET',
    path: '/v1/pilots',
    role: 'read',
    summary: 'Pilots, those that are gone too while they are remembered.',
    reply: z.object({ pilots: z.array(pilotViewSchema) }),
  },
  listHolders: {
    method: 'GET',
    path: '/v1/holders',
    role: 'read',
    summary: 'Relays and direct pilots: who speaks to the centre.',
    query: z.object({ role: z.enum(['pilot', 'relay']).optional() }),
    reply: z.object({ holders: z.array(holderViewSchema) }),
  },

  addSite: {
    method: 'POST',
    path: '/v1/sites',
    role: 'admin',
    summary: 'Adds a site, or changes one, and makes a join token that works once.',
    body: siteSettingsSchema.partial().extend({ name: siteNameSchema }),
    reply: z.object({ site: siteSchema, joinToken: z.string(), validMs: z.number(), url: z.string() }),
  },
  listSites: {
    method: 'GET',
    path: '/v1/sites',
    role: 'read',
    summary: 'Every registered site with who speaks for it.',
    reply: z.object({ sites: z.array(siteViewSchema) }),
  },
  showSite: {
    method: 'GET',
    path: '/v1/sites/:site',
    role: 'read',
    summary: 'One site.',
    params: z.object({ site: siteNameSchema }),
    reply: siteViewSchema,
  },
  setSiteState: {
    method: 'POST',
    path: '/v1/sites/:site/state',
    role: 'admin',
    summary:
      'Enables a site; drains it: nothing new is granted, what runs ends there; or disables it: it is not heard, and what it had goes to others.',
    params: z.object({ site: siteNameSchema }),
    body: z.object({ state: siteStateSchema }),
    reply: siteViewSchema,
  },
  rotateSite: {
    method: 'POST',
    path: '/v1/sites/:site/rotate',
    role: 'admin',
    summary: "Makes a join token for a credential in the place of the site's earlier ones. Work goes on.",
    params: z.object({ site: siteNameSchema }),
    body: z.object({
      now: z
        .boolean()
        .default(false)
        .describe('Earlier credentials and join tokens open nothing any more, from now on.'),
      keepOldMs: z
        .number()
        .int()
        .min(0)
        .max(30 * 24 * 3_600_000)
        .default(KEEP_OLD_MS)
        .describe('For so long after the join they still do; without meaning where they end now.'),
    }),
    reply: z.object({
      site: siteSchema,
      joinToken: z.string(),
      validMs: z.number(),
      url: z.string(),
      ended: z.number().describe('Credentials that were ended now.'),
    }),
  },
  joinSite: {
    method: 'POST',
    path: '/v1/join',
    role: null,
    summary: "Exchanges a join token for the site's credential, once.",
    body: z.object({ token: z.string().max(200) }),
    reply: z.object({ credential: z.record(z.string(), z.unknown()) }),
  },

  addToken: {
    method: 'POST',
    path: '/v1/tokens',
    role: 'admin',
    summary: 'Makes a bearer token for a person or service. It is shown once.',
    body: principalSchema,
    reply: z.object({ token: z.string() }),
  },
  listTokens: {
    method: 'GET',
    path: '/v1/tokens',
    role: 'admin',
    summary: 'Who has tokens; never the tokens themselves.',
    reply: z.object({ tokens: z.array(tokenSchema) }),
  },
  removeToken: {
    method: 'DELETE',
    path: '/v1/tokens/:id',
    role: 'admin',
    summary: 'Takes a token back.',
    params: z.object({ id: z.string().regex(/^[0-9a-f]{12}$/) }),
    reply: z.object({ removed: z.boolean() }),
  },
  addBan: {
    method: 'POST',
    path: '/v1/bans',
    role: 'admin',
    summary: 'Serves a person no more: refuses their tokens, cancels their campaigns. Again does what is left to do.',
    body: banSchema.pick({ subject: true, reason: true }),
    reply: z.object({ cancelled: z.array(z.string()) }),
  },
  listBans: {
    method: 'GET',
    path: '/v1/bans',
    role: 'admin',
    summary: 'Who is not served.',
    reply: z.object({ bans: z.array(banSchema) }),
  },
  liftBan: {
    method: 'POST',
    path: '/v1/bans/lift',
    role: 'admin',
    summary: 'Serves a person again. What was cancelled stays cancelled.',
    body: banSchema.pick({ subject: true }),
    reply: z.object({ lifted: z.boolean() }),
  },
  verify: {
    method: 'POST',
    path: '/v1/verify',
    role: 'admin',
    summary: 'Holds every invariant against the store.',
    reply: z.object({ findings: z.array(findingSchema) }),
  },
  liftHalt: {
    method: 'POST',
    path: '/v1/lift-halt',
    role: 'admin',
    summary: 'Grants again after the store lost acknowledged writes and the inventories were looked at.',
    reply: z.object({ lifted: z.literal(true) }),
  },
} as const satisfies Record<string, Route>

export type RouteName = keyof typeof ROUTES
type PartOf<R extends RouteName, K extends 'params' | 'query' | 'body', Side extends 'in' | 'out'> =
  (typeof ROUTES)[R] extends Record<K, infer S extends z.ZodType>
    ? { [P in K]: Side extends 'in' ? z.input<S> : z.output<S> }
    : unknown
/** What a caller sends: params, query and body as far as the route has them. */
export type Sent<R extends RouteName> = PartOf<R, 'params', 'in'> & PartOf<R, 'query', 'in'> & PartOf<R, 'body', 'in'>
/** What a handler gets: the same, checked, with defaults. */
export type Given<R extends RouteName> = PartOf<R, 'params', 'out'> &
  PartOf<R, 'query', 'out'> &
  PartOf<R, 'body', 'out'>
export type Reply<R extends RouteName> = (typeof ROUTES)[R] extends { reply: infer S extends z.ZodType }
  ? z.output<S>
  : never
export type FileRoute = { [R in RouteName]: (typeof ROUTES)[R] extends { reply: z.ZodType } ? never : R }[RouteName]
export type DataRoute = Exclude<RouteName, FileRoute>
