/**
 * What is to run, as the centre signs it. Pilots verify the signature before they expand anything; relays pass the
 * bytes on unopened for signing purposes. The template is the same for all tasks of a step; a bundle names tasks.
 *
 * Signed bytes are the msgpack encoding made once by the centre and carried verbatim, so nobody re-encodes to verify.
 */
import { z } from 'zod'

const name = z.string().min(1).max(200)
const rangesText = z.string().max(16_384)
const digest = z.string().regex(/^sha256:[0-9a-f]{64}$/)

/** What a task needs of a node, per task. All that matching looks at; tasks with equal needs share a match class. */
export const needsSchema = z.object({
  cores: z.number().int().min(1),
  memoryBytes: z.number().int().min(0),
  scratchBytes: z.number().int().min(0),
  gpus: z.number().int().min(0),
  gpuMemoryBytes: z.number().int().min(0),
  walltimeMs: z.number().int().min(1),
  /** Any of these; empty means any. `x86_64`, `aarch64`. */
  arch: z.array(name),
  network: z.enum(['none', 'proxy', 'outgoing']),
  runtime: z.enum(['host', 'container']),
  /** Site names or `label:key=value`; an empty allow list allows every site. */
  allowSites: z.array(name),
  denySites: z.array(name),
  group: name,
  /** All of these, as nodes name them: `cvmfs:REPOSITORY`, `eessi:VERSION`. Absent where none is needed. */
  software: z.array(name).max(64).optional(),
})
export type Needs = z.infer<typeof needsSchema>

/** A parameter of a sweep. Indices run in row-major order: the last axis varies fastest. */
export const axisSchema = z.object({
  name,
  values: z.union([
    z.array(z.string().max(4096)).max(100_000),
    z.object({ from: z.number(), to: z.number(), step: z.number() }),
  ]),
})
export type Axis = z.infer<typeof axisSchema>

/** A file a task needs. Exactly one of url, from. Paths are relative to the task's folder. */
export const inputSchema = z.object({
  url: z.string().max(4096).nullable(),
  /** The step whose outputs are wanted; the bundle's manifest says which attempts won. */
  from: name.nullable(),
  /** Which output of that step. null with `url`. */
  output: z.string().max(1024).nullable(),
  /** A file, or with a trailing slash a folder that gets one file per task, named `<index>/<output>`. */
  path: z.string().min(1).max(1024),
  /** A file that lists the paths of what was fetched, one a line; only with `from`. */
  list: z.string().max(1024).nullable(),
  checksum: z.string().max(200).nullable(),
})
export type Input = z.infer<typeof inputSchema>

export const outputSchema = z.object({
  path: z.string().min(1).max(1024),
  /** null: kept by the centre (or its blob store), found by `campaign outputs`. */
  url: z.string().max(4096).nullable(),
  optional: z.boolean(),
})
export type Output = z.infer<typeof outputSchema>

/** All that is the same for every task of one step. `$(name)` stands unexpanded in strings. */
export const templateBodySchema = z.object({
  kind: z.literal('template'),
  campaign: name,
  campaignName: name,
  step: name,
  group: name,
  /** The person who submitted, for the site's own trace log. */
  subject: name,
  /** Who vouches for the subject: the centre whose token it showed. */
  issuer: name.optional(),
  /** `host`, or an image: a path or URL of a SIF, a folder, `docker://...@sha256:...`. */
  image: z.string().min(1).max(4096),
  /** Argument vector; no shell ever sees it. */
  command: z.array(z.string().max(8192)).min(1).max(1000),
  env: z.record(z.string(), z.string().max(8192)),
  axes: z.array(axisSchema).nullable(),
  inputs: z.array(inputSchema),
  outputs: z.array(outputSchema),
  needs: needsSchema,
  /** Each of standard output and error is cut to its first and last halves of this. */
  logBytes: z.number().int().min(0),
  stalledAfterMs: z.number().int().min(0).nullable(),
  /** Names of secrets, never values. */
  secrets: z.array(z.object({ name, path: name })),
  /** Put before the payload; the needs say the same for matching. Absent where none is asked for. */
  software: z
    .object({ cvmfs: z.array(name), eessi: z.object({ version: name, modules: z.array(name).max(100) }).nullable() })
    .optional(),
})
export type TemplateBody = z.infer<typeof templateBodySchema>

/** Which tasks travel together, and the values that a sweep cannot compute. */
export const bundleBodySchema = z.object({
  kind: z.literal('bundle'),
  bundle: name,
  campaign: name,
  step: name,
  /** Digest of the template's signed bytes. */
  template: digest,
  tasks: rangesText,
  /** One row per task of `tasks`, in order, where the step has a table; else null. */
  rows: z.array(z.record(z.string(), z.string().max(4096))).nullable(),
  /** Per input that names a step: digest of the manifest of its winners, a blob to fetch through files. */
  manifests: z.record(z.string(), digest),
  /** The only site that may run it. */
  site: name,
  /** Wall-clock milliseconds since 1970; days ahead, so that clock skew does not matter. */
  expiresAtMs: z.number().int(),
})
export type BundleBody = z.infer<typeof bundleBodySchema>

/** Bytes with the centre's Ed25519 signature over them; `key` says which of the welcome's keys. */
export const signedSchema = z.object({
  bytes: z.instanceof(Uint8Array),
  signature: z.instanceof(Uint8Array),
  key: z.string().max(64),
})
export type Signed = z.infer<typeof signedSchema>

/** The blob that a manifest digest names: which attempt's output to fetch for each task of the earlier step. */
export const manifestSchema = z.object({
  step: name,
  entries: z.array(
    z.object({
      index: z.number().int(),
      output: z.string(),
      /** `store:<attempt path>/<output>` for what the centre keeps, or the URL it was written to. */
      url: z.string(),
      /** Of a shared file system: the name that `url` has until its site's relay has heard that this attempt won. */
      written: z.string().optional(),
      sizeBytes: z.number().int(),
      checksum: z.string(),
    }),
  ),
})
export type Manifest = z.infer<typeof manifestSchema>
