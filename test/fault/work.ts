/**
 * The work of a fault run: campaigns ("waves") of short payloads, made from the seed alone, and what each task has to
 * come to. Pure. The payload itself is payload.sh beside this file; what it does is decided here by the table's columns.
 */
import { seeded } from '../seeded.ts'

/**
 * - good: succeeds; log: the same, with a log of some 100 kB
 * - once: exits 3 the first time that it runs at all, then succeeds
 * - always: exits 4 each time, so that its task fails for good
 * - first, second: succeed; second checks and joins what every first has written, and its own goes to the shared folder
 */
export type Kind = 'good' | 'log' | 'once' | 'always' | 'first' | 'second'

export interface Expected {
  kind: Kind
  /** `ended`: its campaign is cancelled meanwhile, and it may have come to any end. */
  state: 'done' | 'failed' | 'ended'
}

export interface Wave {
  name: string
  /** All steps together. */
  tasks: number
  /** A user cancels it while it runs; its tasks come on top of those that were asked for. */
  isCancelled: boolean
  yaml: string
  tables: Record<string, string>
  steps: Record<string, Expected[]>
}

export interface WorkOptions {
  seed: number
  tasks: number
  waves: number
  /** Where payloads keep their ledger, and the payload's path. */
  ledger: string
  payload: string
  /** Folder on the file system that all share, for outputs that do not go to the centre. */
  final: string
  /** The longest sleep of a payload. */
  longestS?: number
}

const FIRSTS = 8
const SECONDS = 4
const CANCELLED_TASKS = 60
const SHARE = { once: 0.05, log: 0.04, always: 0.02, still: 0.3 }

export function planWork(options: WorkOptions): Wave[] {
  const { seed, tasks, waves } = options
  const sizes = Array.from(
    { length: waves },
    (_, i) => Math.floor((tasks * (i + 1)) / waves) - Math.floor((tasks * i) / waves),
  )
  const plain = sizes.map((size, i) => planWave(options, `wave-${seed}-${i + 1}`, seed * 1000 + i, size))
  const cancelled = Array.from({ length: Math.ceil(waves / 4) }, (_, i) =>
    planWave(options, `cancelled-${seed}-${i + 1}`, seed * 1000 + 500 + i, CANCELLED_TASKS, true),
  )
  return [...plain, ...cancelled]
}

/** Where an output of step `second` comes to lie. */
export function finalPath(final: string, campaign: string, index: number): string {
  return `${final}/${campaign}-${index}.txt`
}

/** What an output's first three words have to be. */
export function resultValue(seed: number, index: number): number {
  return (index * 7919 + seed) % 1_000_003
}

export function planWave(options: WorkOptions, name: string, seed: number, size: number, isCancelled = false): Wave {
  const { ledger, payload, final, longestS = 1 } = options
  const random = seeded(seed)
  const fails = Math.max(1, Math.round(size * SHARE.always))
  const plain = size - fails - FIRSTS - SECONDS
  if (plain < 1) throw new Error(`wave ${name}: expected more than ${fails + FIRSTS + SECONDS} tasks, found ${size}`)
  const rows = Array.from({ length: plain }, () => {
    const kind: Kind = random.chance(SHARE.once) ? 'once' : random.chance(SHARE.log) ? 'log' : 'good'
    return { kind, rest: random.chance(SHARE.still) ? '0' : (random.next() * longestS).toFixed(2) }
  })
  const command = (kind: string, rest: string) => `[sh, ${payload}, ${kind}, "${rest}"]`
  const yaml = `
indraft: 1
name: ${name}
group: /fault
defaults:
  image: host
  env: {LEDGER: ${ledger}, SEED: "${options.seed}"}
  resources: {cores: 1, memory: 50MB, walltime: 3min}
  retries: {payload: 100, infrastructure: 1000}
steps:
  work:
    table: work.csv
    command: ${command('$(kind)', '$(rest)')}
    outputs: [{path: out.txt}]
  fails:
    count: ${fails}
    command: ${command('always', '0.1')}
    retries: {payload: 1}
  first:
    count: ${FIRSTS}
    command: ${command('first', '0.2')}
    outputs: [{path: out.txt}]
  second:
    after: {step: first}
    count: ${SECONDS}
    command: ${command('second', '0.1')}
    inputs: [{from: first, path: parts/, list: list.txt}]
    outputs: [{path: out.txt, url: "file://${final}/$(campaign_id)-$(index).txt"}]
`
  const one = (kind: Kind): Expected => ({
    kind,
    state: isCancelled ? 'ended' : kind === 'always' ? 'failed' : 'done',
  })
  const all = (count: number, kind: Kind) => Array.from({ length: count }, () => one(kind))
  return {
    name,
    tasks: size,
    isCancelled,
    yaml,
    tables: { 'work.csv': ['kind,rest', ...rows.map(({ kind, rest }) => `${kind},${rest}`), ''].join('\n') },
    steps: {
      work: rows.map(({ kind }) => one(kind)),
      fails: all(fails, 'always'),
      first: all(FIRSTS, 'first'),
      second: all(SECONDS, 'second'),
    },
  }
}
