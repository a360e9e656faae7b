/**
 * Every message of the holder-dispatcher protocol, one schema each. A pilot is a holder, central a dispatcher, a relay
 * both; the words are the same on every hop. Requests go up, each gets exactly one reply: its own or `refused`.
 * Unknown fields are ignored (zod strips them), unknown messages refused by code; words that a newer release may add are
 * read as newer.ts says. All times are durations in milliseconds; the only wall-clock times are in signed work,
 * and the one in `demanded` by which a doctor compares clocks.
 */
import { z } from 'zod'
import { ERROR_CODES } from '../errors.ts'
import { knownCode, knownOrders, knownReason, knownWord, knownWords, readAs } from './newer.ts'
import { signedSchema } from './work.ts'

const name = z.string().min(1).max(200)
const count = z.number().int().min(0)
/** Whole or not; so far below what a number holds that any of them can be added up. */
const ms = z.number().min(0).max(Number.MAX_SAFE_INTEGER)
const fence = z.number().int().min(1).max(Number.MAX_SAFE_INTEGER)
const rangesText = z.string().max(16_384)

/** What a node has; sent once in hello. */
export const nodeFactsSchema = z.object({
  node: name,
  cores: count,
  memoryBytes: count,
  scratchBytes: count,
  gpus: count,
  gpuMemoryBytes: count,
  arch: name,
  runtimes: knownWords(['host', 'container']),
  network: knownWord(['none', 'proxy', 'outgoing'], 'none'),
  /** Milliseconds until the batch system ends this pilot; null where nothing says so. */
  timeLeftMs: ms.nullable(),
  labels: z.record(z.string(), z.string()),
  /** `cvmfs:REPOSITORY` and `eessi:VERSION`; absent where there is none, and from peers of before. */
  software: z.array(name).max(64).optional(),
  /** Whom the site's own word lets work here, group paths with all below them; absent for all, and from peers of before. */
  groups: z.array(name).max(64).optional(),
})
export type NodeFacts = z.infer<typeof nodeFactsSchema>

/** Room for work: `count` nodes (or what is left of them) of this shape. A pilot's offer has one entry. */
export const offerEntrySchema = z.object({
  shape: nodeFactsSchema.omit({ node: true, timeLeftMs: true, labels: true }),
  count: z.number().int().min(1),
  timeLeftMs: ms.nullable(),
  /** How much longer than one task at a time the holder will keep work in hand; 0 wants only what starts now. */
  aheadMs: ms,
  /** The node, where the entry is one node: work that avoids it is not granted while others could take it. */
  node: name.nullable(),
})
export type OfferEntry = z.infer<typeof offerEntrySchema>

export const attemptRefSchema = z.object({
  campaign: name,
  step: name,
  index: count,
  bundle: name,
  /** One fence per hop, central's first. */
  fences: z.array(fence).min(1).max(4),
})

export const outputRecordSchema = z.object({
  path: z.string().max(1024),
  sizeBytes: count,
  /** `sha256:` and hexadecimal digits. Checked, because it becomes a header where the file is handed on. */
  checksum: z
    .string()
    .max(200)
    .regex(/^[a-z0-9]+:[0-9a-f]+$/i),
  /** Where it durably is: `store:<attempt path>/<path>`, or the URL it was written to. */
  url: z.string().max(4096),
})
export type OutputRecord = z.infer<typeof outputRecordSchema>

/** How one attempt ended: one record of one shape, whatever happened. The first reason wins. */
const resultFields = attemptRefSchema.extend({
  end: z.enum(['done', 'failed']),
  /** From the error catalogue; null when done. */
  reason: z.enum(ERROR_CODES).nullable(),
  detail: z.string().max(500).nullable(),
  exitCode: z.number().int().nullable(),
  signal: z.string().max(20).nullable(),
  site: name,
  node: name,
  pilot: name,
  wallMs: ms,
  cpuMs: ms,
  maxRssBytes: count,
  stageInMs: ms,
  stageOutMs: ms,
  outputs: z.array(outputRecordSchema).max(100),
  /** Bytes the payload wrote, before any cut. */
  stdoutBytes: count,
  stderrBytes: count,
  /** The last of standard error (or output) of a failed attempt, at most 2 kB of text; else null. */
  tail: z.string().max(2048).nullable(),
})
export const resultSchema = readAs(knownReason, resultFields)
export type Result = z.infer<typeof resultSchema>

/** Part of a lease: some tasks of a bundle, under the fences they were granted with. */
export const leasePartSchema = z.object({
  bundle: name,
  campaign: name,
  step: name,
  fences: z.array(fence).min(1).max(4),
  tasks: rangesText,
})
export type LeasePart = z.infer<typeof leasePartSchema>

/** Tasks of a lease that run, one entry for each node that they run on; a peer of before does not say where. */
export const startedPartSchema = leasePartSchema.extend({ node: name.optional() })
export type StartedPart = z.infer<typeof startedPartSchema>

/** The store that a dispatcher answered from; a holder shows the highest it has seen, which uncovers a rollback. */
export const storeMarkSchema = z.object({
  epoch: name,
  sequence: count,
  /** Of the dispatcher, for itself: without it what a holder has seen is not believed. */
  proof: z.string().max(100).optional(),
})
export type StoreMark = z.infer<typeof storeMarkSchema>

const session = name
/** Counted up by the holder per session; a repeat carries the same number and gets the same reply. */
const sequence = z.number().int().min(1)

/** Holder, first of all and whenever its session is unknown. Followed by pull, report, beat, inventory, bye. */
export const helloSchema = z.object({
  role: z.enum(['pilot', 'relay']),
  holder: name,
  /** New whenever the holder lost its memory (a pilot's start, an empty journal). */
  incarnation: name,
  software: name,
  /** For a pilot its node; for a relay the largest shapes among its pilots, if any are known. */
  nodes: z.array(nodeFactsSchema).max(64),
  seen: storeMarkSchema.nullable(),
  /** Protocol versions that the holder speaks; a peer of before says nothing and speaks the hello's own. */
  speaks: z.array(count).max(16).optional(),
})

/** Dispatcher, to hello. Sets what both ends must agree on. */
export const welcomeSchema = z.object({
  session,
  /** Protocol version for all that follows; absent: the hello's own. */
  version: count.optional(),
  /** The last pull answered in this session: 0 in a new one; the holder counts on from here. */
  sequence: count,
  site: name,
  /** New whenever the dispatcher's store is a new one. */
  mark: storeMarkSchema,
  timings: z.object({
    beatMs: ms,
    /** Silence after which the session is dead and its leases go to others. */
    lostAfterMs: ms,
    /** A lease runs this long from the sending of the last acknowledged message. */
    leaseMs: ms,
    /** A grant not confirmed for this long is taken back. */
    confirmMs: ms,
    /** The longest a pull may wait at the dispatcher. */
    pullWaitMs: ms,
  }),
  inventory: knownWord(['list', 'digest'], 'list'),
  /** Ed25519 public keys (SPKI, base64) by name; work is signed with one of them. */
  keys: z.record(z.string(), z.string().max(500)),
  /** Where files are served, `https://host:port`; null where only a shared file system is used. */
  filesUrl: z.string().max(500).nullable(),
})

/** Holder, when it has room or results; one outstanding at a time. With results it never waits. */
export const pullSchema = z.object({
  session,
  sequence,
  /** The last grants processed: everything up to it is confirmed, and `held` judges nothing later. */
  processed: count,
  seen: storeMarkSchema.nullable(),
  offer: z.array(offerEntrySchema).max(64),
  finished: z.array(resultSchema).max(256),
  /** Unstarted tasks given back. */
  returned: z.array(leasePartSchema).max(256),
  /** Wait up to this long for work when there is none. */
  waitMs: ms,
  /** Templates already held, as the first 16 digits of their digest: they need not be sent again. */
  knows: z.array(z.string().max(16)).max(512),
})

/** What became of one result: durable, and how it was judged. */
export const verdictSchema = attemptRefSchema.pick({ campaign: true, step: true, index: true, fences: true }).extend({
  verdict: knownWord(['accepted', 'duplicate', 'stale', 'refused'], 'stale'),
})
export type Verdict = z.infer<typeof verdictSchema>

/** A lease: signed work, and an unsigned envelope that may only narrow it. */
export const grantSchema = z.object({
  bundle: signedSchema,
  /** The part of the bundle that this lease covers. */
  lease: leasePartSchema,
  /** First 16 digits of the template's digest; the template is in `templates` or was sent before. */
  template: z.string().max(71),
  leaseMs: ms,
  /** Number of earlier attempts, for tasks that had any: index -> attempts. */
  tries: z.record(z.string(), count),
  /** Nodes that these tasks should not run on while another can. */
  avoidNodes: z.array(name).max(64),
  /** What a task is expected to take; null until known. */
  estimateMs: ms.nullable(),
  /** Opens the files of this lease's attempts at `filesUrl`; payloads never see it. */
  capability: z.string().max(1000).nullable(),
})
export type Grant = z.infer<typeof grantSchema>

/** Dispatcher, to pull. */
export const grantsSchema = z.object({
  sequence,
  mark: storeMarkSchema,
  grants: z.array(grantSchema).max(256),
  templates: z.array(signedSchema).max(64),
  verdicts: z.array(verdictSchema).max(256),
  /** Why there is nothing, in words of `noWorkReasons`; null with grants. */
  reason: knownWord(['noWork', 'nothingFits', 'limits', 'draining', 'halted', 'storeFull'], 'noWork').nullable(),
  askAgainMs: ms,
})

/** Holder, with results at any time, also beside an outstanding pull. Repeating is harmless. */
export const reportSchema = z.object({
  session,
  results: z.array(resultSchema).min(1).max(256),
  seen: storeMarkSchema.nullable().optional(),
})

/** Dispatcher, to report: each result is durable when this arrives. */
export const reportedSchema = z.object({ mark: storeMarkSchema, verdicts: z.array(verdictSchema).max(256) })

/** A pilot as its relay describes it to central. */
export const pilotSummarySchema = z.object({
  pilot: name,
  node: name,
  state: knownWord(['active', 'draining', 'lost', 'left'], 'active'),
  cores: count,
  coresBusy: count,
  running: count,
  upMs: ms,
  code: z.number().int().nullable(),
})
export type PilotSummary = z.infer<typeof pilotSummarySchema>

/** Totals since the holder's incarnation began (deltas would count twice on a repeat). */
export const countersSchema = z.record(z.string().max(100), z.number())

/** Holder, every beatMs from its first second, whatever else it does. Renews all confirmed leases of the session. */
export const beatSchema = z.object({
  session,
  processed: count,
  seen: storeMarkSchema.nullable(),
  incarnation: name,
  draining: z.boolean(),
  /** Attempts started since the last acknowledged beat or pull. */
  started: z.array(startedPartSchema).max(256),
  /** `list` form: every lease held, else it is the digest. `digest` form: see heldDigest in shared/held.ts. */
  held: z.union([
    z.array(leasePartSchema.pick({ bundle: true, campaign: true, step: true, fences: true })).max(512),
    z.object({ count, digest: name }),
  ]),
  counters: countersSchema,
  /** Gauges of now: slots busy, cores busy, tasks in buffer, link up. */
  gauges: countersSchema,
  /** From a relay: pilots that changed since the last acknowledged beat. */
  pilots: z.array(pilotSummarySchema).max(200),
  /** From a pilot: its running attempts. */
  usage: z.array(z.object({ attempt: attemptRefSchema, wallMs: ms, cpuMs: ms, rssBytes: count })).max(512),
})

/** Something the dispatcher wants done; each names what it is about, so that a late one does no harm. */
export const orderSchema = z.discriminatedUnion('kind', [
  /** End this attempt; another one won, or its lease is gone. */
  z.object({ kind: z.literal('attempt.cancel'), attempt: attemptRefSchema }),
  /** End all work of a campaign whose desired state is no longer run. */
  z.object({ kind: z.literal('campaign.cancel'), campaign: name, version: count }),
  /** Take nothing more, finish, leave. */
  z.object({ kind: z.literal('holder.drain') }),
  /** Send an inventory. */
  z.object({ kind: z.literal('holder.inventory') }),
  /** Store this attempt's log where central can read it (`attempt path/.log/<stream>`). */
  z.object({
    kind: z.literal('log.send'),
    attempt: attemptRefSchema,
    stream: z.enum(['stdout', 'stderr']),
    /** Opens the attempt's files, because its lease may be long over. */
    capability: z.string().max(1000).optional(),
  }),
])
export type Order = z.infer<typeof orderSchema>

const ORDER_KINDS = orderSchema.options.map((option) => option.shape.kind.value)

/** Dispatcher, to beat and inventory. */
export const ordersSchema = readAs(
  knownOrders(ORDER_KINDS),
  z.object({
    mark: storeMarkSchema,
    orders: z.array(orderSchema).max(256),
    /** Never sent: so many orders were of kinds that the reader does not know, and were left out. */
    ignored: count.optional(),
  }),
)

/** Holder, to the order holder.inventory: all leases it holds, in parts. Judged only up to `processed`. */
export const inventorySchema = z.object({
  session,
  processed: count,
  part: count,
  parts: z.number().int().min(1),
  leases: z.array(leasePartSchema).max(256),
})

/** Holder, last: why it leaves (a code in Vac's classes) and what it gives back unstarted. */
export const byeSchema = z.object({
  session,
  /** 200 work completed, 300 no work, 400 banned, 500 node or site, 600 ours, 700 transient. */
  code: z.number().int().min(100).max(999),
  reason: z.string().max(500),
  returned: z.array(leasePartSchema).max(256),
})

/** Dispatcher, to bye. */
export const farewellSchema = z.object({ mark: storeMarkSchema })

/** Whoever decides at a site whether to start pilots, without a session: what would such nodes be given now? Changes nothing. */
export const demandSchema = z.object({ offer: z.array(offerEntrySchema).min(1).max(16) })

/** Dispatcher, to demand. A wish, not a promise: others may take the work first. */
export const demandedSchema = z.object({
  fits: z
    .array(
      z.object({
        /** Which entry of the offer. */
        entry: count,
        group: name,
        /** `campaign/step`. */
        work: z.string().max(400),
        /** Queued tasks that such a node may be given. */
        tasks: count,
        /** How many of them run side by side on one such node. */
        perNode: count,
        /** What a task is expected to take; null until known. */
        estimateMs: ms.nullable(),
      }),
    )
    .max(256),
  /** Pilots of the site that have nothing to do: they come first. */
  idlePilots: count,
  /** False where a relay could not ask the centre: there may be more. */
  isWhole: z.boolean(),
  reason: knownWord(['noWork', 'nothingFits', 'draining'], 'noWork').nullable(),
  /** The wall clock of who answers, Unix time: whoever asked can see how far its own is off. */
  nowMs: ms.optional(),
})

/** Dispatcher, instead of any other reply. */
export const refusedSchema = readAs(
  knownCode,
  z.object({
    code: z.enum(ERROR_CODES),
    message: z.string().max(1000),
    path: z.string().max(500).optional(),
    retryAfterMs: ms.optional(),
  }),
)

/** Requests and the reply that belongs to each. */
export const REPLY_OF = {
  hello: 'welcome',
  pull: 'grants',
  report: 'reported',
  beat: 'orders',
  inventory: 'orders',
  bye: 'farewell',
  demand: 'demanded',
} as const
export type RequestType = keyof typeof REPLY_OF

export const MESSAGES = {
  hello: helloSchema,
  welcome: welcomeSchema,
  pull: pullSchema,
  grants: grantsSchema,
  report: reportSchema,
  reported: reportedSchema,
  beat: beatSchema,
  orders: ordersSchema,
  inventory: inventorySchema,
  bye: byeSchema,
  farewell: farewellSchema,
  demand: demandSchema,
  demanded: demandedSchema,
  refused: refusedSchema,
} as const
export type MessageType = keyof typeof MESSAGES
export type Message<T extends MessageType> = z.infer<(typeof MESSAGES)[T]>
export type ReplyTo<T extends RequestType> = Message<(typeof REPLY_OF)[T]>
