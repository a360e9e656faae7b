/**
 * The site file: all that an administrator tells `indraft-pilot start`, in one YAML file. The one place that knows its
 * keys, their defaults and what is wrong with a given file; deploy/slurm/site.yaml explains every key, and a test holds
 * it to this schema.
 */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { isAbsolute, join } from 'node:path'
import { LineCounter, parseDocument } from 'yaml'
import { z } from 'zod'
import { IndraftError } from '../../shared/errors.ts'
import { parseBytes, parseDuration } from '../../shared/quantity.ts'
import { loadPilotConfig, PILOT_SETTINGS } from '../config.ts'
import { forbiddenWords } from './sbatch-words.ts'

const missingOr = (what: string) => (issue: { input?: unknown }) =>
  issue.input === undefined ? `is missing; ${what}` : what

/** A text with a unit, as milliseconds. */
function duration(least = '0s') {
  return z.string({ error: missingOr('expected a duration with a unit, such as 90s or 2h') }).transform((text, ctx) => {
    const ms = parseDuration(text)
    if (ms !== undefined && ms >= parseDuration(least)!) return ms
    ctx.addIssue(`expected a duration such as 90s or 2h${least === '0s' ? '' : `, at least ${least}`}, found "${text}"`)
    return z.NEVER
  })
}

function durationOr(fallback: string, least = '0s') {
  return duration(least).prefault(fallback)
}

function bytes(fallback: string) {
  return z
    .string({ error: missingOr('expected a size with a unit, such as 64GiB') })
    .transform((text, ctx) => {
      const size = parseBytes(text)
      if (size !== undefined) return size
      ctx.addIssue(`expected a size such as 64GiB, found "${text}"`)
      return z.NEVER
    })
    .prefault(fallback)
}

const name = z.string().regex(/^[a-z0-9][a-z0-9-]{0,30}$/, 'expected a name of small letters, digits and dashes')
const atLeast = (least: number, fallback: number) => z.number().int().min(least).default(fallback)
const words = z.array(z.string()).default([])
const absolute = z.string().refine(isAbsolute, 'expected a path that begins with /')
const settings = z.record(z.string(), z.union([z.string(), z.number(), z.boolean(), z.array(z.string())])).default({})

const shape = z.strictObject({
  cores: z.number().int().min(1),
  memory: bytes('1GiB'),
  scratch: bytes('10GiB'),
  gpus: atLeast(0, 0),
  gpuMemory: bytes('0B'),
  arch: z.string().default('x86_64'),
  runtimes: z
    .array(z.enum(['host', 'container']))
    .min(1)
    .default(['host', 'container']),
  network: z.enum(['none', 'proxy', 'outgoing']).default('none'),
})

const kind = z.strictObject({
  match: z.string().nullable().default(null),
  account: z.string().nullable().default(null),
  share: z.number().positive().default(1),
  most: atLeast(1, 1_000_000),
  nodesPerJob: atLeast(1, 1),
  time: duration('1min'),
  leastTime: durationOr('10min', '1min'),
  shape,
  sbatch: words,
  settings,
})

export const siteFileSchema = z.strictObject({
  indraft: z.literal(1, 'expected 1, the version of this form'),
  folder: absolute,
  credential: absolute,
  command: z.array(z.string()).min(1).default(['indraft-pilot']),
  starter: z.enum(['slurm', 'local']),
  fizzle: durationOr('10min', '1s'),
  worthStarting: durationOr('10min'),
  ask: z
    .strictObject({ enabled: z.boolean().default(true), every: durationOr('2min'), patience: durationOr('5s') })
    .prefault({}),
  look: z.strictObject({ wanted: durationOr('2min'), quiet: durationOr('10min') }).prefault({}),
  backOff: z
    .strictObject({
      first: durationOr('5min', '1s'),
      longest: durationOr('1h', '1s'),
      jitter: z.number().min(0).max(0.9).default(0.3),
    })
    .prefault({}),
  caps: z
    .strictObject({
      running: atLeast(1, 10),
      queued: atLeast(1, 4),
      submissionsAnHour: atLeast(1, 20),
      slurmCallsAnHour: atLeast(1, 60),
      startsATick: atLeast(1, 2),
    })
    .prefault({}),
  nodes: z
    .strictObject({
      ban: durationOr('1h', '1s'),
      agree: atLeast(2, 3),
      leastTasks: atLeast(2, 5),
      timesFaster: z.number().min(2).default(20),
      latch: durationOr('1h', '1s'),
      canaryTasks: atLeast(1, 5),
      mostExcluded: atLeast(0, 20),
    })
    .prefault({}),
  keepLogs: durationOr('3d'),
  accounts: z
    .record(
      name,
      z.strictObject({
        share: z.number().positive().default(1),
        nodeHours: z.number().positive().nullable().default(null),
        until: z.iso
          .datetime({ offset: true, error: () => 'expected a time such as 2027-03-31T23:59:59Z' })
          .transform((text) => Date.parse(text))
          .nullable()
          .default(null),
      }),
    )
    .default({}),
  pilots: settings,
  kinds: z.record(name, kind).refine((kinds) => Object.keys(kinds).length > 0, 'expected at least one kind of pilot'),
})

export type SiteFile = z.infer<typeof siteFileSchema>
export type Kind = SiteFile['kinds'][string]

/** Settings that the vacuum itself gives to each pilot. */
const OWN_SETTINGS = [
  ...['credential', 'endFolder', 'startId', 'stopFile', 'taskLimit', 'runtimeLimit', 'timeAsked', 'name', 'node'],
]
/** Of the fizzle time: a pilot that found no work is gone before it could pass for one that works. */
const IDLE_SHARE = 0.8

/** @throws IndraftError request.invalid naming the file, the line, the key and what was expected */
export function readSiteFile(path: string): SiteFile {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (cause) {
    throw new IndraftError('request.invalid', `${path}: ${(cause as Error).message}`, { cause, path })
  }
  return parseSiteFile(text, path)
}

/** @throws IndraftError request.invalid naming the file, the line, the key and what was expected */
export function parseSiteFile(text: string, file: string): SiteFile {
  const lines = new LineCounter()
  const document = parseDocument(text, { version: '1.2', lineCounter: lines, prettyErrors: true })
  const lineOf = (keys: readonly PropertyKey[]): number => {
    for (let length = keys.length; length > 0; length--) {
      const node = document.getIn(keys.slice(0, length), true) as { range?: [number, number, number] } | undefined
      if (node?.range) return lines.linePos(node.range[0]).line
    }
    return 1
  }
  const problems: { line: number; path: string; what: string }[] = []
  const wrong = (keys: readonly PropertyKey[], what: string): void => {
    problems.push({ line: lineOf(keys), path: keys.map(String).join('.'), what })
  }
  /** All of them at once, in the order of their lines: nobody should have to come back for each. */
  const refuse = (): never => {
    const lines = problems
      .sort((a, b) => a.line - b.line)
      .map(({ line, path, what }) => `${file}:${line} ${path === '' ? '' : `${path}: `}${what}`)
    throw new IndraftError('request.invalid', lines.join('\n'), { path: problems[0]!.path })
  }
  const broken = document.errors[0]
  if (broken) throw new IndraftError('request.invalid', `${file}: ${broken.message.trim()}`)
  const parsed = siteFileSchema.safeParse(document.toJS({ maxAliasCount: 20 }) ?? {})
  if (!parsed.success) {
    for (const issue of parsed.error.issues) {
      if (issue.code === 'invalid_key') wrong(issue.path, issue.issues[0]?.message ?? issue.message)
      else if (issue.code !== 'unrecognized_keys') wrong(issue.path, wordsOf(issue.message))
      else
        for (const key of issue.keys)
          wrong([...issue.path, key], 'no such setting; deploy/slurm/site.yaml explains all')
    }
    return refuse()
  }
  const site = parsed.data
  checkSettings(['pilots'], site.pilots, site)
  for (const [key, one] of Object.entries(site.kinds)) {
    if (one.account !== null && !Object.hasOwn(site.accounts, one.account)) {
      wrong(
        ['kinds', key, 'account'],
        `expected one of accounts (${Object.keys(site.accounts).join(', ') || 'there are none'})`,
      )
    }
    if (one.leastTime > one.time) wrong(['kinds', key, 'leastTime'], 'expected no more than time')
    if (site.starter === 'local' && one.sbatch.length > 0)
      wrong(['kinds', key, 'sbatch'], 'starter local runs no sbatch')
    if (site.starter === 'local' && one.nodesPerJob > 1)
      wrong(['kinds', key, 'nodesPerJob'], 'starter local has one node')
    for (const { at, why } of forbiddenWords(one.sbatch)) wrong(['kinds', key, 'sbatch', at], why)
    checkSettings(['kinds', key, 'settings'], one.settings, site)
  }
  if (site.backOff.longest < site.backOff.first) wrong(['backOff', 'longest'], 'expected no less than backOff.first')
  return problems.length > 0 ? refuse() : site

  function checkSettings(path: string[], given: SiteFile['pilots'], whole: SiteFile): void {
    for (const key of Object.keys(given)) {
      if (!Object.hasOwn(PILOT_SETTINGS, key))
        wrong([...path, key], 'no such setting of a pilot (`indraft-pilot run --help`)')
      if (OWN_SETTINGS.includes(key)) wrong([...path, key], 'set by indraft-pilot start itself')
    }
    try {
      if (Object.keys(given).some((key) => !Object.hasOwn(PILOT_SETTINGS, key))) return
      const config = loadPilotConfig(given, undefined, {})
      if ('idleBefore' in given && config.idleBefore >= whole.fizzle) {
        wrong(
          [...path, 'idleBefore'],
          'expected less than fizzle, or a pilot without work would pass for one that works',
        )
      }
    } catch (error) {
      const key = (error as IndraftError).path
      wrong(key && Object.hasOwn(given, key) ? [...path, key] : path, (error as Error).message)
    }
  }
}

function wordsOf(message: string): string {
  const found = /^Invalid input: expected (\w+), received (\w+)$/.exec(message)
  if (!found) return message
  const [, wanted = '', given = ''] = found
  const plain = (type: string) => PLAIN[type] ?? `a ${type}`
  if (given === 'undefined') return `is missing; expected ${plain(wanted)}`
  return `expected ${plain(wanted)}, found ${plain(given)}`
}

/** Types, as somebody says them who writes YAML. */
const PLAIN: Readonly<Record<string, string>> = {
  ...{ record: 'settings below it', object: 'settings below it', array: 'a list, as in [a, b]', string: 'a text' },
  ...{ boolean: 'true or false', int: 'a whole number', null: 'nothing', undefined: 'nothing' },
}

/**
 * Four digits that stand for this folder in the names of its jobs: another site file of the same account, for another
 * centre perhaps, has kinds of the same names.
 */
export function folderTag(site: SiteFile): string {
  return createHash('sha256').update(site.folder).digest('hex').slice(0, 4)
}

/** The back-off for "no work" is shared by kinds that draw the same work. */
export function matchOf(site: SiteFile, kindName: string): string {
  return site.kinds[kindName]?.match ?? kindName
}

/** Settings for a pilot of this kind: the vacuum's own defaults, all pilots', the kind's. */
export function pilotSettings(site: SiteFile, kindName: string): SiteFile['pilots'] {
  return {
    idleBefore: `${Math.max(1, Math.floor((site.fizzle * IDLE_SHARE) / 1000))}s`,
    // Where an administrator finds it from here, and when the node is gone.
    traceLog: join(site.folder, 'trace'),
    ...site.pilots,
    ...site.kinds[kindName]!.settings,
  }
}

/** Every folder that pilots of this site write their trace to. */
export function traceFolders(site: SiteFile): string[] {
  return [...new Set(Object.keys(site.kinds).map((kind) => String(pilotSettings(site, kind).traceLog)))]
}

/** The same as the words of `indraft-pilot run`. */
export function pilotWords(site: SiteFile, kindName: string): string[] {
  return Object.entries(pilotSettings(site, kindName)).flatMap(([setting, value]) => [
    `--${setting.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`,
    Array.isArray(value) ? value.join(',') : String(value),
  ])
}
