/**
 * The schedule of a fault run: which faults, at which points of the work's progress, on what. Pure: the seed says it all,
 * and a run that failed is had again by its seed. Points are counted in tasks that are settled, not in seconds, so that
 * a slow machine meets the same faults at the same places.
 */
import { FAILPOINTS, type Failpoint } from '../../shared/failpoint.ts'
import { type Seeded, seeded } from '../seeded.ts'

/** A relay, by its name, which no other one has, and its site. */
export interface Edge {
  site: string
  relay: string
}

/** Who can be killed or stopped. `centre` parts are one for all sites. */
export type Target =
  | { part: 'central'; number: number }
  | { part: 'redis' | 'nats' }
  | ({ part: 'relay' | 'relay-nats' } & Edge)
  | { part: 'pilot' | 'payload'; node: string }

export type FaultDoing =
  | { kind: 'kill'; target: Target; downMs: number }
  | { kind: 'stop'; target: Target; forMs: number }
  | ({ kind: 'link'; mode: 'cut' | 'half-open' | 'one-way'; forMs: number; loses: boolean } & Edge)
  | ({ kind: 'delay'; delayMs: number; forMs: number } & Edge)
  | ({ kind: 'away'; forMs: number } & Edge)
  | ({ kind: 'replay'; hop: 'relay' | 'central'; copies: number; forMs: number } & Edge)
  | ({ kind: 'failpoint'; name: Failpoint; action: 'kill' | 'stop'; forMs: number } & Edge)
  | ({ kind: 'error'; name: Failpoint; code: 'ENOSPC' | 'EROFS' } & Edge)
  | { kind: 'disk'; on: Edge | { node: string }; how: 'full' | 'read-only'; forMs: number }
  | { kind: 'clock'; target: Target; stepS: number }
  | ({ kind: 'journal'; how: 'tail cut' | 'overwritten' | 'disk lost' } & Edge)
  | { kind: 'node'; node: string; how: 'scratch lost' }

export type Fault = FaultDoing & {
  /** From 1. */
  number: number
  /** Begins when so many tasks are settled. */
  at: number
}

/** What a user does meanwhile; repeated until it is answered. */
export interface Doing {
  at: number
  what: 'submit' | 'pause' | 'resume' | 'cancel' | 'retry'
  wave: number
}

export interface Schedule {
  faults: Fault[]
  /** Made in the place of those that find nothing to hit (a payload that has just ended, a moment that nobody passes). */
  spares: Fault[]
  doings: Doing[]
}

/** Names of relays by site, for those that have not just one, of the site's own name. */
export type Relays = Record<string, string[]>

export interface ScheduleOptions {
  seed: number
  /** That will be settled all in all. */
  tasks: number
  faults: number
  /** Tasks of each wave, in their order; a cancelled one comes beside the others. */
  waves: { tasks: number; isCancelled: boolean }[]
  /** Nodes by site. */
  sites: Record<string, string[]>
  relays: Relays
  centrals: number
  /** What this machine can do; the others are not drawn. */
  able: { clock: boolean; disk: boolean }
}

type Draw = (random: Seeded, options: ScheduleOptions) => FaultDoing

/** Milliseconds, of which short ones are much more frequent than long ones. */
function skewed(random: Seeded, least: number, most: number): number {
  return Math.round(least * (most / least) ** random.next())
}

/** Every relay of these sites. */
export function edgesOf(sites: Record<string, unknown>, relays: Relays): Edge[] {
  return Object.keys(sites).flatMap((site) => (relays[site] ?? [site]).map((relay) => ({ site, relay })))
}

const edge = (random: Seeded, { sites, relays }: ScheduleOptions): Edge => random.pick(edgesOf(sites, relays))
/** One that another one of its site can stand in for; any, where there is none. */
const pairedEdge = (random: Seeded, { sites, relays }: ScheduleOptions): Edge => {
  const all = edgesOf(sites, relays)
  const paired = all.filter(({ site }) => all.filter((one) => one.site === site).length > 1)
  return random.pick(paired.length > 0 ? paired : all)
}
const node: (random: Seeded, options: ScheduleOptions) => string = (random, { sites }) =>
  random.pick(Object.values(sites).flat())

const parts: Record<Target['part'], (random: Seeded, options: ScheduleOptions) => Target> = {
  central: (random, { centrals }) => ({ part: 'central', number: 1 + random.below(centrals) }),
  redis: () => ({ part: 'redis' }),
  nats: () => ({ part: 'nats' }),
  relay: (random, options) => ({ part: 'relay', ...edge(random, options) }),
  'relay-nats': (random, options) => ({ part: 'relay-nats', ...edge(random, options) }),
  pilot: (random, options) => ({ part: 'pilot', node: node(random, options) }),
  payload: (random, options) => ({ part: 'payload', node: node(random, options) }),
}

const kill =
  (part: Target['part']): Draw =>
  (random, options) => ({ kind: 'kill', target: parts[part](random, options), downMs: skewed(random, 100, 4000) })
const stop =
  (part: Target['part']): Draw =>
  (random, options) => ({ kind: 'stop', target: parts[part](random, options), forMs: skewed(random, 500, 12_000) })

/** The moments of a program, as its table says. */
export function failpointsOf(program: 'central' | 'relay' | 'pilot'): Failpoint[] {
  return (Object.keys(FAILPOINTS) as Failpoint[]).filter((name) => programOf(name) === program)
}

/** The program that passes a moment. */
export function programOf(name: Failpoint): 'central' | 'relay' | 'pilot' {
  return FAILPOINTS[name].split(':')[0] as 'central' | 'relay' | 'pilot'
}

/** Where a program meets an error of its disk. */
export function throwingFailpoints(): Failpoint[] {
  return (Object.keys(FAILPOINTS) as Failpoint[]).filter((name) => FAILPOINTS[name].includes('`throw'))
}

const failpointIn =
  (program: 'central' | 'relay' | 'pilot'): Draw =>
  (random, options) => ({
    kind: 'failpoint',
    name: random.pick(failpointsOf(program)),
    ...edge(random, options),
    action: random.chance(0.8) ? 'kill' : 'stop',
    forMs: skewed(random, 500, 10_000),
  })

/** Moments at which a helper of the centre has done a half of what it does, by what that is. */
export const HALFWAY = {
  feeding: ['retries.fed'],
  releasing: ['step.prepared', 'step.partReleased'],
  publishing: ['output.published'],
} as const satisfies Record<string, readonly Failpoint[]>

const halfway =
  (what: keyof typeof HALFWAY): Draw =>
  (random, options) => ({
    kind: 'failpoint',
    name: random.pick(HALFWAY[what]),
    ...edge(random, options),
    action: 'kill',
    forMs: 0,
  })

/** How often each is drawn, beside the others. Every row comes at least once where there are faults enough. */
const ROWS: Record<string, { weight: number; needs?: 'clock' | 'disk'; mayMiss?: true; draw: Draw }> = {
  'kill central': { weight: 3, draw: kill('central') },
  'kill redis': { weight: 2, draw: kill('redis') },
  'kill nats': { weight: 2, draw: kill('nats') },
  'kill relay': { weight: 3, draw: kill('relay') },
  'kill relay-nats': { weight: 2, draw: kill('relay-nats') },
  'kill pilot': { weight: 5, draw: kill('pilot') },
  'kill payload': { weight: 2, mayMiss: true, draw: kill('payload') },
  'stop central': { weight: 2, draw: stop('central') },
  'stop redis': { weight: 1, draw: stop('redis') },
  'stop nats': { weight: 1, draw: stop('nats') },
  'stop relay': { weight: 2, draw: stop('relay') },
  'stop relay-nats': { weight: 1, draw: stop('relay-nats') },
  'stop pilot': { weight: 3, draw: stop('pilot') },
  'stop payload': { weight: 1, mayMiss: true, draw: stop('payload') },
  link: {
    weight: 5,
    draw: (random, options) => ({
      kind: 'link',
      ...edge(random, options),
      mode: random.pick(['cut', 'half-open', 'one-way']),
      forMs: skewed(random, 500, 16_000),
      loses: random.chance(0.7),
    }),
  },
  // Long enough for its pilots to change over, and for the centre to give its work to others.
  away: {
    weight: 1,
    draw: (random, options) => ({
      kind: 'away',
      ...pairedEdge(random, options),
      forMs: skewed(random, 12_000, 25_000),
    }),
  },
  delay: {
    weight: 2,
    draw: (random, options) => ({
      kind: 'delay',
      ...edge(random, options),
      delayMs: skewed(random, 50, 2500),
      forMs: skewed(random, 2000, 12_000),
    }),
  },
  replay: {
    weight: 4,
    draw: (random, options) => ({
      kind: 'replay',
      ...edge(random, options),
      hop: random.pick(['relay', 'central']),
      copies: 1 + random.below(3),
      forMs: skewed(random, 2000, 10_000),
    }),
  },
  'failpoint central': { weight: 6, mayMiss: true, draw: failpointIn('central') },
  'half-way feeding': { weight: 1, mayMiss: true, draw: halfway('feeding') },
  'half-way releasing': { weight: 1, mayMiss: true, draw: halfway('releasing') },
  'half-way publishing': { weight: 1, mayMiss: true, draw: halfway('publishing') },
  'failpoint relay': { weight: 5, mayMiss: true, draw: failpointIn('relay') },
  'failpoint pilot': { weight: 5, mayMiss: true, draw: failpointIn('pilot') },
  error: {
    weight: 2,
    mayMiss: true,
    draw: (random, options) => ({
      kind: 'error',
      name: random.pick(throwingFailpoints()),
      ...edge(random, options),
      code: random.pick(['ENOSPC', 'EROFS']),
    }),
  },
  'disk of a relay': {
    weight: 2,
    needs: 'disk',
    draw: (random, options) => ({
      kind: 'disk',
      on: edge(random, options),
      how: random.pick(['full', 'full', 'read-only']),
      forMs: skewed(random, 1000, 8000),
    }),
  },
  'disk of a node': {
    weight: 2,
    needs: 'disk',
    draw: (random, options) => ({
      kind: 'disk',
      on: { node: node(random, options) },
      how: random.pick(['full', 'full', 'read-only']),
      forMs: skewed(random, 1000, 8000),
    }),
  },
  clock: {
    weight: 4,
    needs: 'clock',
    draw: (random, options) => ({
      kind: 'clock',
      target: parts[random.pick(['central', 'relay', 'pilot'] as const)](random, options),
      stepS: random.pick([-3600, -60, -5, 5, 60, 3600]),
    }),
  },
  journal: {
    weight: 2,
    draw: (random, options) => ({
      kind: 'journal',
      ...edge(random, options),
      how: random.pick(['tail cut', 'overwritten', 'disk lost']),
    }),
  },
  node: { weight: 1, draw: (random, options) => ({ kind: 'node', node: node(random, options), how: 'scratch lost' }) },
}

export function drawSchedule(options: ScheduleOptions): Schedule {
  const random = seeded(options.seed)
  const rows = Object.values(ROWS).filter(({ needs }) => needs === undefined || options.able[needs])
  const pool = rows.flatMap((row) => Array.from({ length: row.weight }, () => row))
  const drawn = Array.from({ length: options.faults }, (_, i) => (i < rows.length ? rows[i]! : random.pick(pool)))
  shuffle(drawn, random)
  const spares = Array.from({ length: options.faults }, (_, i): Fault => {
    const doing = random.pick(pool.filter((row) => !row.mayMiss)).draw(random, options)
    return { number: options.faults + i + 1, at: 0, ...doing }
  })
  const faults = drawn.map(({ draw }, i): Fault => {
    // Not before there is work, not after the last task: each in a stretch of its own.
    const share = (i + 0.1 + 0.8 * random.next()) / options.faults
    return { number: i + 1, at: Math.floor(options.tasks * (0.02 + 0.93 * share)), ...draw(random, options) }
  })
  return { faults, spares, doings: drawDoings(options, random) }
}

/**
 * Each wave is submitted when half of what came before is settled; every third is paused for a while, and of every third
 * what failed is tried again when it is nearly over. Those that are cancelled are spread over the run.
 */
function drawDoings({ waves, tasks }: ScheduleOptions, random: Seeded): Doing[] {
  const doings: Doing[] = []
  const plain = [...waves.entries()].filter(([, { isCancelled }]) => !isCancelled)
  let before = 0
  for (const [place, [wave, { tasks: size }]] of plain.entries()) {
    const at = place === 0 ? 0 : Math.floor(before - plain[place - 1]![1].tasks / 2)
    doings.push({ at, what: 'submit', wave })
    if (place % 3 === 1 && place < plain.length - 1) {
      const paused = Math.floor(before + (size * random.next()) / 4)
      doings.push({ at: paused, what: 'pause', wave }, { at: paused + Math.floor(size / 8), what: 'resume', wave })
    }
    before += size
    if (place % 3 === 0) doings.push({ at: Math.floor(before - size / 20), what: 'retry', wave })
  }
  const cancelled = [...waves.entries()].filter(([, { isCancelled }]) => isCancelled)
  for (const [place, [wave, { tasks: size }]] of cancelled.entries()) {
    const at = Math.floor((tasks * (place + 0.2 + 0.4 * random.next())) / cancelled.length)
    doings.push({ at, what: 'submit', wave }, { at: at + Math.floor(size * random.next()), what: 'cancel', wave })
  }
  return doings.sort((a, b) => a.at - b.at)
}

function shuffle<T>(items: T[], random: Seeded): void {
  for (let i = items.length - 1; i > 0; i--) {
    const j = random.below(i + 1)
    ;[items[i], items[j]] = [items[j]!, items[i]!]
  }
}

/** The row of a fault in the table of figures. */
export function kindOf(fault: FaultDoing): string {
  switch (fault.kind) {
    case 'kill':
    case 'stop':
      return `${fault.kind} ${fault.target.part}`
    case 'link':
      return `link ${fault.mode}`
    case 'delay':
      return 'link delayed'
    case 'replay':
      return `replay to ${fault.hop}`
    case 'failpoint':
      return halfwayOf(fault.name) ?? `failpoint ${programOf(fault.name)}`
    case 'error':
      return `disk error ${fault.name}`
    case 'disk':
      return `disk ${fault.how} ${'relay' in fault.on ? 'relay' : 'pilot'}`
    case 'clock':
      return `clock ${fault.target.part}`
    case 'journal':
      return `journal ${fault.how}`
    case 'node':
      return fault.how
    case 'away':
      return 'relay away'
  }
}

function halfwayOf(name: Failpoint): string | undefined {
  const found = Object.entries(HALFWAY).find(([, names]) => (names as readonly Failpoint[]).includes(name))
  return found && `half-way ${found[0]}`
}

/** One line, as it is printed. */
export function describeFault(fault: FaultDoing): string {
  const { kind: _kind, ...rest } = fault as FaultDoing & { number?: number; at?: number }
  const said = Object.entries(rest)
    .filter(([name]) => name !== 'number' && name !== 'at' && name !== 'target')
    .map(([name, value]) => `${name}=${typeof value === 'object' ? JSON.stringify(value) : value}`)
  return [kindOf(fault), 'target' in fault ? nameOf(fault.target) : '', ...said].filter(Boolean).join(' ')
}

export function nameOf(target: Target): string {
  if (target.part === 'central') return `central-${target.number}`
  if ('relay' in target) return `${target.part}-${target.relay}`
  if ('node' in target) return `${target.part}@${target.node}`
  return target.part
}
