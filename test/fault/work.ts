/**
 * The work of a fault run: campaigns ("waves") of short payloads, made from the seed alone, and what each task has to
 * come to. Pure. The payload itself is payload.sh beside this file; what it does is decided here by the table's columns.
 */
import { seeded } from '../seeded.ts'

/**
 * - good: succeeds; log: the same, with a log of some 100 kB
 * - once: exits 3 the first time that it runs at all, then succeeds
 * - always: exits 4 each time, so that its task fails for good
 * - first, second: succeed; second checks and joins what every first has written
 */
export type Kind = 'good' | 'log' | 'once' | 'always' | 'first' | 'second'

export interface Expected {
  kind: Kind
  state: 'done' | 'failed'
}

export interface Wave {
  name: string
  /** All steps together. */
  tasks: number
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
  /** The longest sleep of a payload. */
  longestS?: number
}

const FIRSTS = 8
const SECONDS = 4
const SHARE = { once: 0.05, log: 0.04, always: 0.02, still: 0.3 }

export function planWork(options: WorkOptions): Wave[] {
  const { seed, tasks, waves } = options
  const sizes = Array.from(
    { length: waves },
    (_, i) => Math.floor((tasks * (i + 1)) / waves) - Math.floor((tasks * i) / waves),
  )
  return sizes.map((size, i) => planWave(options, `wave-${seed}-${i + 1}`, seed * 1000 + i, size))
}

/** What an output's first three words have to be. */
export function resultValue(seed: number, index: number): number {
  return (index * 7919 + seed) % 1_000_003
}

export function planWave(options: WorkOptions, name: string, seed: number, size: number): Wave {
  const { ledger, payload, longestS = 1 } = options
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
    outputs: [{path: out.txt}]
`
  const all = (count: number, kind: Kind, state: Expected['state'] = 'done') =>
    Array.from({ length: count }, () => ({ kind, state }))
  return {
    name,
    tasks: size,
    yaml,
    tables: { 'work.csv': ['kind,rest', ...rows.map(({ kind, rest }) => `${kind},${rest}`), ''].join('\n') },
    steps: {
      work: rows.map(({ kind }) => ({ kind, state: 'done' })),
      fails: all(fails, 'always', 'failed'),
      first: all(FIRSTS, 'first'),
      second: all(SECONDS, 'second'),
    },
  }
}
