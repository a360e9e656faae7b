/**
 * The campaign file as one schema: what may be written, with its meaning. Validation, `campaign validate`, the reference
 * page and the API's types come from it. Only forms are checked here; what fields say about each other is plan.ts's.
 *
 * Every message completes "expected ...": it is shown behind the field's path.
 */
import { z } from 'zod'
import { parseBytes, parseDuration } from '../../shared/quantity.ts'

export const MAX_TASKS = 10_000_000
export const MAX_TEMPLATE_BYTES = 16 * 1024
export const MAX_ROW_BYTES = 4 * 1024
/** Rows of a table, until tables are kept and read in parts. */
export const MAX_ROWS = 100_000
export const MAX_CELLS = 2_000_000
/** As data, over all steps: a table counts for each step that names it. */
export const MAX_ROWS_BYTES = 64 * 1024 * 1024
/** Words that programs give a meaning of their own as keys; refused wherever a file may name something. */
export const NOT_A_NAME: readonly string[] = ['__proto__', 'constructor', 'prototype']
export const NAME = /^[A-Za-z_][A-Za-z0-9_]*$/

/** An amount with a unit and an upper bound; `most` is written as in the file. */
const amount = (parse: (text: string) => number | undefined, least: number, most: string, what: string) => {
  const error = `${what}, at most ${most}`
  const max = parse(most)!
  return z.string({ error }).refine(
    (text) => {
      const value = text.length <= 100 ? parse(text) : undefined
      return value !== undefined && value >= least && value <= max
    },
    { error },
  )
}
const size = (most: string) => amount(parseBytes, 0, most, 'a size with a unit, such as 500MB or 2GiB')
const duration = (most: string) => amount(parseDuration, 1, most, 'a duration with a unit, such as 90s, 30min or 2h')
const whole = (min: number, max: number) => {
  const error = `a whole number from ${min} to ${max}`
  return z.number({ error }).int({ error }).min(min, { error }).max(max, { error })
}
/** Text that YAML may have read as a number or a boolean; its own spelling is kept. */
const word = z.union([z.string().max(8192, 'at most 8192 characters'), z.number(), z.boolean()], { error: 'text' })
const text = z.string({ error: 'text' }).min(1, 'text that is not empty').max(4096, 'at most 4096 characters')
const choice = <T extends readonly [string, ...string[]]>(...values: T) =>
  z.enum(values, { error: `one of ${values.join(', ')}` })
const listOf = <S extends z.ZodType>(item: S, what: string) => z.array(item, { error: `a list of ${what}` })

/** `$(name)` may stand in it. The task's folder is where it begins, and it stays inside. */
const path = z
  .string({ error: 'a path inside the task folder, such as out/result.json' })
  .min(1, 'a path inside the task folder, such as out/result.json')
  .max(1024, 'at most 1024 characters')
  .refine((value) => !value.startsWith('/') && !value.split('/').includes('..') && !/^\.(\/|$)/.test(value), {
    error: 'a path inside the task folder: no leading / or ./ and no ..',
  })
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is refused
  .refine((value) => !/\/\/|[\0-\x1f\x7f]/.test(value), {
    error: 'a path without empty parts (//), line breaks and other control characters',
  })
  .refine((value) => !/^\.log(\/|$)/.test(value), { error: 'another path: .log is kept for standard output and error' })
const CHECKSUM =
  /^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}|sha1:[0-9a-f]{40}|md5:[0-9a-f]{32}|(adler32|crc32):[0-9a-f]{8})$/i

export const siteRuleSchema = z
  .string({ error: 'a site name or label:key=value' })
  .max(200, 'at most 200 characters')
  .regex(
    /^(label:[A-Za-z0-9._-]+(=.*)?|[A-Za-z0-9][A-Za-z0-9_-]*)$/,
    'a site name such as CSC-LUMI, or label:key=value',
  )

export const resourcesSchema = z.strictObject({
  cores: whole(1, 100_000).optional().describe('Processor cores per task. Default 1.'),
  memory: size('64TiB').optional().describe('Memory per task. Default 1GiB.'),
  scratch: size('1024TiB').optional().describe('Disk space in the task folder, inputs included. Default none.'),
  walltime: duration('366d').optional().describe('The longest a task may run. Default 1h.'),
  gpus: whole(0, 1000).optional().describe('GPUs per task. Default 0.'),
  gpu_memory: size('64TiB').optional().describe('Memory of each GPU.'),
})

const repository = z
  .string({ error: 'a repository such as software.eessi.io' })
  .regex(/^[A-Za-z0-9][A-Za-z0-9-]*(\.[A-Za-z0-9-]+)+$/, 'a repository such as software.eessi.io')
  .max(200, 'at most 200 characters')

export const softwareSchema = z.strictObject({
  cvmfs: listOf(repository, 'CVMFS repositories')
    .max(20, 'at most 20 repositories')
    .optional()
    .describe('CVMFS repositories that the payload finds below /cvmfs, in any image.'),
  eessi: z
    .strictObject({
      version: z
        .string({ error: 'a version in quotes, such as "2025.06"' })
        .regex(/^\d{4}\.\d{2}(-\d{3})?$/, 'a version in quotes, such as "2025.06"'),
      modules: listOf(
        z
          .string({ error: 'a module such as ROOT/6.30.06-foss-2023a' })
          .max(200, 'at most 200 characters')
          .regex(/^[A-Za-z0-9][A-Za-z0-9._+/-]*$/, 'a module such as ROOT/6.30.06-foss-2023a'),
        'modules',
      )
        .max(50, 'at most 50 modules')
        .optional(),
    })
    .optional()
    .describe('The EESSI stack `version` is started and its `modules` are loaded before the command.'),
})

export const retriesSchema = z.strictObject({
  payload: whole(0, 100).optional().describe("Further tries after the payload's own failure. Default 2."),
  infrastructure: whole(0, 1000)
    .optional()
    .describe('Further tries after a lost node, preemption, stage-in and the like. Default 10.'),
  hold_exit_codes: listOf(whole(0, 255), 'exit codes')
    .max(256, 'at most 256 exit codes')
    .optional()
    .describe('Exit codes that wait for a person.'),
  exhausted: choice('fail', 'hold').optional().describe('What becomes of a task without credit. Default fail.'),
})

export const inputSchema = z.strictObject({
  url: text.optional().describe('Where it is: file:///path on a shared file system, or http(s)://.'),
  from: text.optional().describe('An earlier step (named in `after`) whose outputs are wanted.'),
  output: text.optional().describe('Which output of that step; its only one where not said.'),
  path: path.describe('Its name in the task folder; ending in / for a folder with a file per earlier task.'),
  list: path.optional().describe('With `from`: a file that lists the paths fetched, one a line.'),
  checksum: z
    .string({ error: 'a checksum such as sha256:... or adler32:03da0195' })
    .regex(CHECKSUM, 'a checksum such as sha256:... or adler32:03da0195')
    .optional()
    .describe('algorithm:hexadecimal digits; checked after fetching.'),
})

export const outputSchema = z.strictObject({
  path: path.describe('Its name in the task folder.'),
  url: text.optional().describe('Where to put it (file:///path); kept by the centre where not said.'),
  optional: z.boolean({ error: 'true or false' }).optional().describe('Whether the task is done without it.'),
})

const shareSchema = z
  .string({ error: 'a share such as 98%' })
  .regex(/^\d{1,3}(\.\d+)?\s*%$/, 'a share such as 98%')
  .refine((value) => Number.parseFloat(value) <= 100, 'at most 100%')

export const afterEntrySchema = z.strictObject({
  step: text.describe('The step that must be over first.'),
  accept: shareSchema.optional().describe('Share of its tasks that must be done. Default 100%.'),
})

const common = {
  image: text
    .optional()
    .describe('`host`, a path of a SIF or unpacked folder, https://.../x.sif#sha256:..., or docker://...@sha256:...'),
  arch: listOf(choice('x86_64', 'aarch64'), 'architectures').optional().describe('Any of these. Default: any.'),
  network: choice('none', 'proxy', 'outgoing').optional().describe('What the payload can reach. Default none.'),
  retries: retriesSchema.optional().describe('What happens after failures, see below.'),
  resources: resourcesSchema.optional().describe('What a task needs, see below.'),
  software: softwareSchema.optional().describe('What nodes have to offer beside the image, see below.'),
  env: z
    .record(z.string().regex(NAME, 'a variable name'), word, { error: 'NAME: value' })
    .optional()
    .describe('Environment variables of the payload.'),
  stalled_after: duration('366d')
    .optional()
    .describe('Ends a task that used no processor and wrote nothing for so long.'),
  log_limit: size('1GiB').optional().describe('Each of standard output and error is cut to this. Default 10MiB.'),
}

export const defaultsSchema = z.strictObject(common)

const axisValuesSchema = z.union(
  [
    z
      .string()
      .max(200, 'at most 200 characters')
      .regex(
        /^-?\d+(\.\d+)?\.\.-?\d+(\.\d+)?(\s+step\s+-?\d+(\.\d+)?)?$/,
        'a list, or a range such as 1..100 or 1..2 step 0.1',
      ),
    z.array(word).min(1, 'at least one value').max(100_000, 'at most 100000 values: use a table'),
  ],
  { error: 'a list, or a range such as 1..100 or 1..2 step 0.1' },
)

export const stepSchema = z.strictObject({
  ...common,
  count: whole(1, MAX_TASKS).optional().describe('Number of tasks. One of count, sweep, table; 1 where none is.'),
  sweep: z
    .record(z.string().regex(NAME, 'a name of letters, digits and _'), axisValuesSchema, { error: 'NAME: values' })
    .optional()
    .describe('A task for every combination; the last name varies fastest.'),
  table: z
    .string({ error: 'a file name ending in .csv or .jsonl' })
    .regex(/\.(csv|jsonl)$/, 'a file name ending in .csv or .jsonl')
    .optional()
    .describe('A task per row: at most 100000 rows, and 64 MiB of rows over all steps that name tables.'),
  command: listOf(word, 'arguments, such as [sim, --seed, $(seed)]')
    .min(1, 'at least the program to run')
    .max(1000, 'at most 1000 arguments')
    .describe('Arguments; no shell sees them. $(name) is filled in, $$( is a plain $(.'),
  after: z
    .union([text, afterEntrySchema, z.array(z.union([text, afterEntrySchema])).max(100, 'at most 100 steps')], {
      error: 'a step, {step: NAME, accept: 98%}, or a list of these',
    })
    .optional()
    .describe('The steps that must be over first, see below.'),
  inputs: listOf(inputSchema, 'inputs')
    .max(100, 'at most 100 inputs')
    .optional()
    .describe('Files put into the task folder first, see below.'),
  outputs: listOf(outputSchema, 'outputs')
    .max(100, 'at most 100 outputs')
    .optional()
    .describe('Files that a task promises, see below.'),
})

export const campaignFileSchema = z.strictObject({
  indraft: z.literal(1, { error: '1, the version of this format' }).describe('Version of the format: 1.'),
  name: z
    .string({ error: 'a name' })
    .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/, 'letters, digits, . _ and -, at most 100')
    .describe('Unique in its group; the same name with the same content is the same campaign.'),
  group: z
    .string({ error: 'a group such as /vo.example/prod' })
    .max(200, 'at most 200 characters')
    .regex(/^(\/[A-Za-z0-9._-]+)+$/, 'a group such as /vo.example/prod')
    .describe("Whose work it is: a group of your token's, such as /vo.example/prod."),
  activity: choice('production', 'analysis').optional().describe('Default production.'),
  priority: whole(-1000, 1000).optional().describe('Higher first, inside the group. Default 0.'),
  deadline: z
    .union([z.iso.datetime({ offset: true }), z.iso.datetime()], { error: 'a time such as 2026-12-15T00:00:00Z' })
    .refine((time) => Number.isSafeInteger(Date.parse(time)), 'a time such as 2026-12-15T00:00:00Z')
    .optional()
    .describe('When it should be over. Kept with the campaign; nothing is killed.'),
  max_running: whole(1, MAX_TASKS).optional().describe('Most tasks running at a time.'),
  labels: z
    .record(z.string().max(63), word, { error: 'key: value' })
    .optional()
    .describe('Names and values of your own.'),
  sites: z
    .strictObject({
      allow: listOf(siteRuleSchema, 'sites or labels').max(1000, 'at most 1000').optional(),
      deny: listOf(siteRuleSchema, 'sites or labels').max(1000, 'at most 1000').optional(),
    })
    .optional()
    .describe('`allow` and `deny`: site names, or label:key=value. Without `allow` every site may.'),
  defaults: defaultsSchema.optional().describe('For every step that does not say otherwise.'),
  steps: z
    .record(z.string().regex(/^[A-Za-z][A-Za-z0-9_-]{0,63}$/, 'a name of letters, digits, _ and -'), stepSchema, {
      error: 'NAME: step',
    })
    .refine((steps) => Object.keys(steps).length > 0, 'at least one step')
    .refine((steps) => Object.keys(steps).length <= 100, 'at most 100 steps')
    .describe('By name, in any order.'),
})
export type CampaignFile = z.infer<typeof campaignFileSchema>
export type StepFile = CampaignFile['steps'][string]

/** Keys of the reference that this version does not know yet, by the kind of place they stand in. */
export const NOT_YET: Record<string, readonly string[]> = {
  campaign: ['pause_when', 'notify', 'keep'],
  step: ['scouts', 'secrets', 'reuse_container'],
  defaults: ['scouts', 'secrets', 'reuse_container'],
  retries: ['grow'],
  after: ['each'],
  output: ['keep', 'checksum'],
}
/** Refused on purpose: one task is one node's. */
export const SEVERAL_NODES: readonly string[] = ['nodes', 'mpi', 'ntasks', 'tasks_per_node', 'ranks']
