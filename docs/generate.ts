/**
 * Writes the pages under docs/reference/ from the tables that the programs use: `npm run docs`. With --check it writes
 * nothing and fails where a page is not what the code says. Nobody edits those pages by hand.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import {
  afterEntrySchema,
  campaignFileSchema,
  inputSchema,
  outputSchema,
  resourcesSchema,
  retriesSchema,
  softwareSchema,
  stepSchema,
} from '../central/campaigns/format.ts'
import { CENTRAL_METRICS } from '../central/metric-table.ts'
import { RELAY_METRICS } from '../edge-relay/metrics.ts'
import { environmentName, type Setting, type Settings } from '../shared/config.ts'
import { ERRORS } from '../shared/errors.ts'
import {
  attemptTable,
  bundleTable,
  desiredTable,
  ENDED_TASK_STATES,
  leaseTable,
  pilotTable,
  relayTable,
  TASK_STATE_CODE,
  taskTable,
} from '../shared/lifecycle.ts'
import type { MetricRow, MetricTable } from '../shared/metrics.ts'
import { MESSAGES, REPLY_OF } from '../shared/protocol/messages.ts'
import { MAX_MESSAGE_BYTES, PROTOCOL_VERSION } from '../shared/protocol/version.ts'

const root = join(import.meta.dirname, '..')
const target = join(import.meta.dirname, 'reference')
const HEAD = '<!-- Written by docs/generate.ts from the code: change the code, then `npm run docs`. -->\n\n'

const cell = (text: string) => text.replaceAll('|', '\\|').replaceAll('\n', ' ')
const row = (...cells: string[]) => `| ${cells.map(cell).join(' | ')} |\n`
const table = (heads: string[], rows: string[][]) =>
  `${row(...heads)}| ${heads.map(() => '---').join(' | ')} |\n${rows.map((cells) => row(...cells)).join('')}`

function errorsPage(): string {
  const rows = Object.entries(ERRORS).map(([code, { status, retry, fault, meaning }]) => [
    `\`${code}\``,
    status === 0 ? '-' : String(status),
    retry ? 'yes' : 'no',
    fault,
    meaning,
  ])
  return `# Error codes

Programs match codes, never words. *Status* is the HTTP status where the API answers with the code; *again* says whether
the same request may succeed when repeated; *fault* says where to look: with the user, the site, or Indraft itself. An
attempt that ended by a fault of the user is charged to its payload retries, where *again* says that another may succeed at
all. One that ended by any other fault is tried again, elsewhere if it can, and charged to its infrastructure retries; the
first \`policy.refused\` of each site costs nothing. The table is \`shared/errors.ts\`.

${table(['code', 'status', 'again', 'fault', 'meaning'], rows)}`
}

type Arrows = Record<string, Record<string, string>>
function statesPage(): string {
  const things: [string, string, Arrows][] = [
    ['task', 'A task, as central keeps it.', taskTable],
    ['attempt', 'One attempt at a task, as the pilot that runs it sees it.', attemptTable],
    ['lease', 'A bundle granted to a holder, as the dispatcher that granted it keeps it.', leaseTable],
    ['bundle', 'Tasks that travel together.', bundleTable],
    ['pilot', 'A pilot, as its dispatcher sees it.', pilotTable],
    ['relay', 'A relay, as central sees it.', relayTable],
    ['campaign', 'What a user wants of a campaign. What is shown is computed from this and the counts.', desiredTable],
  ]
  const parts = things.map(([thing, meaning, arrows]) => {
    const rows = Object.entries(arrows).map(([state, events]) => [
      `**${state}**`,
      Object.entries(events)
        .map(([event, next]) => `\`${event}\` -> ${next}`)
        .join('<br>') || 'final',
    ])
    return `## ${thing}\n\n${meaning}\n\n${table(['state', 'what may happen'], rows)}`
  })
  const codes = Object.entries(TASK_STATE_CODE).map(([state, code]) => [state, String(code)])
  return `# States

One table for each thing that passes through states; the programs are derived from the same tables (\`shared/lifecycle.ts\`).
An event that a state does not list is refused by code when a peer sends it, and is a bug when we do.

${parts.join('\n')}
## How task states are stored

Four bits a task in one string per step. A step is over when every task is ${ENDED_TASK_STATES.join(', ')}.

${table(['state', 'code'], codes)}`
}

/** The sentence above each schema of messages.ts, and above each field that has one, by the schema's name. */
function commentsOf(source: string): Map<string, { sentence: string; fields: Map<string, string> }> {
  const found = new Map<string, { sentence: string; fields: Map<string, string> }>()
  const comment = /\/\*\*((?:(?!\*\/)[\s\S])*)\*\/\s*$/
  const plain = (text: string) =>
    text
      .replaceAll(/^\s*\*\s?/gm, '')
      .replaceAll(/\s+/g, ' ')
      .trim()
  for (const match of source.matchAll(
    /^export const (\w+)Schema = [\s\S]*?^\S.*\)$|^export const (\w+)Schema = .*$/gm,
  )) {
    const before = source.slice(0, match.index)
    const sentence = plain(comment.exec(before)?.[1] ?? '')
    const fields = new Map<string, string>()
    for (const field of match[0].matchAll(/\/\*\*((?:(?!\*\/)[\s\S])*)\*\/\s*(\w+):/g)) {
      fields.set(field[2]!, plain(field[1]!))
    }
    found.set((match[1] ?? match[2])!, { sentence, fields })
  }
  return found
}

interface JsonSchema {
  description?: string
  type?: string | string[]
  enum?: unknown[]
  const?: unknown
  anyOf?: JsonSchema[]
  oneOf?: JsonSchema[]
  items?: JsonSchema
  properties?: Record<string, JsonSchema>
  required?: string[]
  additionalProperties?: JsonSchema | boolean
  maxItems?: number
  maxLength?: number
  bytes?: boolean
}

function typeText(schema: JsonSchema): string {
  if (schema.bytes) return 'bytes'
  if (schema.const !== undefined) return `\`${schema.const}\``
  if (schema.enum) return schema.enum.length > 12 ? 'an error code' : schema.enum.map((one) => `\`${one}\``).join(', ')
  const union = schema.anyOf ?? schema.oneOf
  if (union) return union.map(typeText).join(' or ')
  if (schema.type === 'array') {
    const most = schema.maxItems === undefined ? '' : `, at most ${schema.maxItems}`
    return `list of ${typeText(schema.items ?? {})}${most}`
  }
  if (schema.type === 'object') {
    if (schema.properties) {
      const required = new Set(schema.required)
      const names = Object.keys(schema.properties).map((name) => (required.has(name) ? name : `${name}?`))
      return `{${names.join(', ')}}`
    }
    return typeof schema.additionalProperties === 'object' ? `map to ${typeText(schema.additionalProperties)}` : 'map'
  }
  if (schema.type === 'string') return schema.maxLength === undefined ? 'text' : `text, at most ${schema.maxLength}`
  return String(schema.type ?? 'anything')
}

function messagesPage(): string {
  const comments = commentsOf(readFileSync(join(root, 'shared/protocol/messages.ts'), 'utf8'))
  const requests = Object.entries(REPLY_OF).map(([request, reply]) => [`\`${request}\``, `\`${reply}\``])
  const parts = Object.entries(MESSAGES).map(([type, schema]) => {
    const json = z.toJSONSchema(schema, {
      unrepresentable: 'any',
      override: ({ zodSchema, jsonSchema }) => {
        if (zodSchema._zod.def.type === 'custom') Object.assign(jsonSchema, { bytes: true })
      },
    }) as JsonSchema
    const { sentence = '', fields = new Map<string, string>() } = comments.get(type) ?? {}
    const required = new Set(json.required)
    const rows = Object.entries(json.properties ?? {}).map(([name, field]) => [
      required.has(name) ? `\`${name}\`` : `\`${name}\` (optional)`,
      typeText(field),
      fields.get(name) ?? '',
    ])
    return `## ${type}\n\n${sentence}\n\n${table(['field', 'form', 'meaning'], rows)}`
  })
  return `# Messages

Protocol version ${PROTOCOL_VERSION}. A frame is one byte (0: plain, 1: raw deflate) and then msgpack of
\`[version, type, body]\`; no frame is larger than ${MAX_MESSAGE_BYTES / 1024} KiB. Unknown fields are ignored, unknown
types refused by code. Times are durations in milliseconds. What the messages are for is told in
[protocol.md](../protocol.md); the schemas are \`shared/protocol/messages.ts\`.

A holder asks, a dispatcher answers, with the reply of the request or with \`refused\`:

${table(['request', 'reply'], requests)}
${parts.join('\n')}`
}

function campaignPage(): string {
  const kinds: [string, string, z.ZodType][] = [
    ['At the top', '', campaignFileSchema],
    ['A step', 'What is under `defaults` holds for every step that does not say otherwise.', stepSchema],
    ['`resources`', 'Per task.', resourcesSchema],
    ['`retries`', 'Further tries, not attempts in all.', retriesSchema],
    ['`software`', 'A node has to have all of it.', softwareSchema],
    ['An entry of `inputs`', 'Exactly one of `url` and `from`.', inputSchema],
    ['An entry of `outputs`', '', outputSchema],
    ['`after`', 'A step name, one of these, or a list of them.', afterEntrySchema],
  ]
  const parts = kinds.map(([title, note, schema]) => {
    const json = z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' }) as JsonSchema
    const required = new Set(json.required)
    const rows = Object.entries(json.properties ?? {}).map(([key, field]) => [
      required.has(key) ? `\`${key}\` (needed)` : `\`${key}\``,
      field.description ?? '',
    ])
    return `## ${title}\n\n${note === '' ? '' : `${note}\n\n`}${table(['key', 'meaning'], rows)}`
  })
  return `# Keys of the campaign file

Unknown keys are refused with their path and the nearest known one. How the keys play together is told in
[campaign-file.md](../campaign-file.md); the schema is \`central/campaigns/format.ts\`.

${parts.join('\n')}`
}

function settingRow(name: string, setting: Setting): string[] {
  const limits: string[] = []
  if ('min' in setting && setting.min !== undefined) limits.push(`from ${setting.min}`)
  if ('max' in setting && setting.max !== undefined) limits.push(`to ${setting.max}`)
  if (setting.type === 'text' && setting.oneOf) limits.push(`one of ${setting.oneOf.join(', ')}`)
  const type = [setting.type, ...limits].join(' ')
  const value = Array.isArray(setting.default) ? setting.default.join(',') : setting.default
  const shown = value === null || value === '' ? '-' : shownDefault(String(value))
  const meaning = setting.secret ? `${setting.meaning} Secret: never logged.` : setting.meaning
  return [`\`${name}\``, `\`${environmentName(name)}\``, type, shown, meaning]
}

/** Defaults that differ from machine to machine are named, so that the page is the same everywhere. */
function shownDefault(value: string): string {
  if (value === hostname()) return 'the name of the host'
  const folder = tmpdir()
  return value.startsWith(`${folder}/`)
    ? `\`${value.slice(folder.length + 1).replace(/-\d+$/, '-<uid>')}\` in the temporary folder`
    : `\`${value}\``
}

function isSettings(value: unknown): value is Settings {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false
  const entries = Object.values(value)
  return entries.length > 0 && entries.every((one) => typeof one?.type === 'string' && typeof one?.meaning === 'string')
}

const PROGRAMS = [
  ['central', 'central/config.ts', 'indraft central run'],
  ['relay', 'edge-relay/config.ts', 'indraft relay run'],
  ['pilot', 'pilot/config.ts', 'indraft-pilot run'],
] as const

async function configPages(): Promise<[string, string][]> {
  const pages: [string, string][] = []
  for (const [program, file, command] of PROGRAMS) {
    if (!existsSync(join(root, file))) continue
    const exported: Record<string, unknown> = await import(join(root, file))
    const settings = Object.values(exported).find(isSettings)
    if (!settings) throw new Error(`${file} exports no table of settings`)
    const rows = Object.entries(settings).map(([name, setting]) => settingRow(name, setting))
    pages.push([
      `config-${program}.md`,
      `# Settings of \`${command}\`

Each may stand in the YAML file named by \`--config\`, in the environment, or on the command line; the last of these
wins. Durations and sizes have units, as in \`90s\`, \`2h\`, \`500MB\`, \`2GiB\`. The table is \`${file}\`.

${table(['name', 'environment', 'type', 'default', 'meaning'], rows)}`,
    ])
  }
  return pages
}

function metricsPage(): string {
  const programs: [string, string, MetricTable][] = [
    ['Central', '`indraft central run`; each replica shows the same store.', CENTRAL_METRICS],
    [
      'Relay',
      '`indraft relay run`. Where central shows the same metric it says the same, with the site, and for what is of the relay itself the relay, as labels.',
      RELAY_METRICS,
    ],
  ]
  const parts = programs.map(([title, where, metrics]) => {
    const rows = Object.entries<MetricRow>(metrics).map(([name, { type, unit, labels, meaning }]) => [
      `\`${name}\``,
      type,
      labels.map((label) => `\`${label}\``).join(', ') || '-',
      unit ?? '0 or 1',
      meaning,
    ])
    return `## ${title}\n\n${where}\n\n${table(['name', 'type', 'labels', 'unit', 'meaning'], rows)}`
  })
  return `# Metrics

For Prometheus, under \`/metrics\` of each program's own listener (\`metricsPort\`), beside what the Node runtime shows of
every process (\`process_*\`, \`nodejs_*\`). Counters begin at 0 with the process, what pilots count at a relay with its
journal. The tables are \`central/metric-table.ts\`, \`edge-relay/metrics.ts\` and, for what beats carry upwards, \`shared/carried-metrics.ts\`.

${parts.join('\n')}`
}

const pages = new Map<string, string>([
  ['errors.md', errorsPage()],
  ['messages.md', messagesPage()],
  ['states.md', statesPage()],
  ['campaign.md', campaignPage()],
  ['metrics.md', metricsPage()],
  ...(await configPages()),
])

const isCheck = process.argv.includes('--check')
const wrong: string[] = []
mkdirSync(target, { recursive: true })
for (const [name, content] of pages) {
  const path = join(target, name)
  const wanted = `${HEAD}${content.trimEnd()}\n`
  if (existsSync(path) && readFileSync(path, 'utf8') === wanted) continue
  wrong.push(`docs/reference/${name}`)
  if (!isCheck) writeFileSync(path, wanted)
}
for (const name of readdirSync(target)) {
  if (pages.has(name)) continue
  wrong.push(`docs/reference/${name} (nothing makes it any more)`)
  if (!isCheck) rmSync(join(target, name))
}
if (isCheck && wrong.length > 0) {
  process.stderr.write(`not what the code says; run npm run docs:\n${wrong.map((name) => `  ${name}\n`).join('')}`)
  process.exitCode = 1
} else process.stdout.write(isCheck ? 'docs/reference is up to date\n' : `${wrong.length} pages written\n`)
