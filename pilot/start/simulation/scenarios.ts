/**
 * Days of a site's life, each with the bounds that the vacuum has to keep: pilots started, node-hours that stood idle,
 * time from the arrival of work to full use, calls to Slurm. One run of each gives the table and picture in docs/site.
 */
import { silentLog } from '../../../shared/log.ts'
import { parseSiteFile } from '../site-file.ts'
import { tick } from '../tick.ts'
import { type Campaign, isDeath, World, type WorldOptions } from './world.ts'

const HOUR = 3_600_000
export const NODES = 20
/** Of them the vacuum may use so many. */
export const MOST = 12

const siteText = (kind: string) => `
indraft: 1
folder: /sim
credential: /sim/pilot.json
starter: slurm
caps: {running: ${MOST}, queued: 4, submissionsAnHour: 30, startsATick: 2}
kinds:
  cpu: {time: 12h, ${kind}shape: {cores: 8, memory: 16GiB}}
`

export interface Bounds {
  pilotsAnHour: number
  idleNodeHours: number
  /** After the last arrival of work; null where full use is not to be expected. */
  minutesToFullUse: number | null
  callsAnHour: number
  /** In any hour without work and pilots. */
  idleCallsAnHour: number
  /** Tasks that bad nodes failed or skipped. */
  spoilt: number
}

export interface Scenario {
  name: string
  what: string
  hours: number
  world: Omit<WorldOptions, 'site' | 'nodes' | 'tasksPerNode' | 'seed'>
  /** Something that happens at a time. */
  at?: { ms: number; act: (world: World) => void }
  /** More about the one kind of pilot, as in the site file, with a comma after it. */
  kind?: string
  /** Two ticks at once. */
  overlaps?: boolean
  bounds: Bounds
}

const campaign = (name: string, atHours: number, tasks: number, taskMs: number): Campaign => ({
  ...{ name, arrivesMs: atHours * HOUR, tasks, taskMs },
})
/** Some hours of work for the whole site each, with gaps; the last one of short tasks. */
const days = [
  campaign('monday', 2, 4000, 600_000),
  campaign('tuesday', 24, 6000, 600_000),
  campaign('wednesday', 56, 300_000, 10_000),
]
const one = [campaign('only', 1, 12_000, 600_000)]
const long = [campaign('long', 1, 25_000, 600_000)]
const bounds = (own: Partial<Bounds>): Bounds => ({
  ...{ pilotsAnHour: 14, idleNodeHours: 2, minutesToFullUse: 10, callsAnHour: 30, idleCallsAnHour: 0, spoilt: 0 },
  ...own,
})
const between = (nowMs: number, from: number, to: number) => nowMs >= from * HOUR && nowMs < to * HOUR

export const SCENARIOS: readonly Scenario[] = [
  {
    name: 'comes and goes',
    what: 'three campaigns with idle hours between them; the relay says what would fit',
    hours: 96,
    world: { campaigns: days },
    bounds: bounds({ idleNodeHours: 3, minutesToFullUse: 10 }),
  },
  {
    name: 'nobody answers',
    what: 'the same, and the relay does not know the question: probes as Vac does',
    hours: 96,
    world: { campaigns: days, answers: false },
    bounds: bounds({ idleNodeHours: 14, minutesToFullUse: 150, idleCallsAnHour: 10 }),
  },
  {
    name: 'bad node',
    what: 'on one node every pilot ends with 500 in its first seconds, for a day and a half',
    hours: 48,
    world: { campaigns: one, health: (node, nowMs) => (node === 'n3' && nowMs < 36 * HOUR ? 'broken' : 'good') },
    bounds: bounds({}),
  },
  {
    name: 'black hole that fails',
    what: 'on one node every task fails within a second, for 12 hours; then it is mended, and a canary shows it',
    hours: 48,
    world: { campaigns: long, health: (node, nowMs) => (node === 'n3' && nowMs < 12 * HOUR ? 'fails' : 'good') },
    bounds: bounds({ spoilt: 8000 }),
  },
  {
    name: 'black hole that skips',
    what: 'the same, but its tasks end well within a second, having done nothing',
    hours: 48,
    world: { campaigns: long, health: (node, nowMs) => (node === 'n3' && nowMs < 12 * HOUR ? 'skips' : 'good') },
    bounds: bounds({ spoilt: 8000 }),
  },
  {
    name: 'black hole among four',
    what: 'one that fails, in jobs of four nodes each: its pilot is asked to end, and the other three go on',
    hours: 48,
    world: { campaigns: long, health: (node, nowMs) => (node === 'n3' && nowMs < 12 * HOUR ? 'fails' : 'good') },
    kind: 'nodesPerJob: 4, ',
    bounds: bounds({ spoilt: 8000, pilotsAnHour: 20 }),
  },
  {
    name: 'relay down',
    what: 'the relay is gone for eight hours in the middle of work',
    hours: 48,
    world: { campaigns: one, isRelayUp: (nowMs) => !between(nowMs, 3, 11) },
    bounds: bounds({ idleNodeHours: 5, idleCallsAnHour: 10 }),
  },
  {
    name: 'storm of 500s',
    what: 'for nine hours pilots end with 500 on every node, and work is there',
    hours: 48,
    world: { campaigns: one, health: (_node, nowMs) => (between(nowMs, 0, 9) ? 'broken' : 'good') },
    bounds: bounds({ minutesToFullUse: 600 }),
  },
  {
    name: 'state lost',
    what: 'the state file is lost while twelve pilots run',
    hours: 24,
    world: { campaigns: one },
    at: { ms: 3 * HOUR, act: (world) => world.loseState() },
    bounds: bounds({}),
  },
  {
    name: 'ticks die and overlap',
    what: 'two ticks at once every minute, of which about every fifth dies at one of its steps',
    hours: 48,
    world: { campaigns: one, deathRate: 0.02 },
    overlaps: true,
    bounds: bounds({ minutesToFullUse: 30, pilotsAnHour: 16 }),
  },
]

export interface Outcome extends Bounds {
  scenario: Scenario
  world: World
  pilots: number
  busyNodeHours: number
  mostRunning: number
  leftTasks: number
}

export async function simulate(scenario: Scenario, seed = 1): Promise<Outcome> {
  const site = parseSiteFile(siteText(scenario.kind ?? ''), 'site.yaml')
  const world = new World({ site, nodes: NODES, tasksPerNode: 8, seed, ...scenario.world })
  let mostRunning = 0
  const act = async () => {
    const one = tick(site, world.ports(), silentLog).catch((error) => {
      if (!isDeath(error)) throw error
    })
    await one
  }
  while (world.nowMs < scenario.hours * HOUR) {
    world.advance()
    if (scenario.at?.ms === world.nowMs) scenario.at.act(world)
    if (world.nowMs % 60_000 === 0) await Promise.all(scenario.overlaps ? [act(), act()] : [act()])
    mostRunning = Math.max(mostRunning, world.runningPilots)
  }
  const { figures } = world
  return {
    ...{ scenario, world, mostRunning, pilots: figures.pilots, busyNodeHours: figures.busyMs / HOUR },
    idleNodeHours: figures.idleMs / HOUR,
    pilotsAnHour: mostInAnHour(world.startTimes),
    callsAnHour: mostInAnHour(world.callTimes),
    idleCallsAnHour: mostIdleCalls(world),
    minutesToFullUse: slowestFullUse(scenario, world, site.caps.running),
    leftTasks: world.queuedTasks,
    spoilt: figures.tasksSpoilt,
  }
}

/** The most of these times within any 60 minutes. */
export function mostInAnHour(times: readonly number[]): number {
  let most = 0
  for (let first = 0, last = 0; last < times.length; last++) {
    while (times[last]! - times[first]! >= HOUR) first++
    most = Math.max(most, last - first + 1)
  }
  return most
}

/** Calls in the busiest hour that saw neither work nor more than a probe, from half an hour after the last of both. */
function mostIdleCalls({ samples, callTimes }: World): number {
  let idleSinceMs: number | null = null
  const calls: number[] = []
  for (const { atMs, queuedTasks, busy } of samples) {
    if (queuedTasks > 0 || busy > 0) idleSinceMs = null
    else idleSinceMs ??= atMs
    if (idleSinceMs === null || atMs - idleSinceMs < HOUR / 2) continue
    calls.push(...callTimes.filter((at) => at > atMs - 60_000 && at <= atMs))
  }
  return mostInAnHour(calls)
}

/** From the arrival of each campaign until all pilots that may run do, in minutes; null where it never came to that. */
function slowestFullUse({ world: { campaigns } }: Scenario, { samples }: World, most: number): number | null {
  let slowest = 0
  for (const { arrivesMs } of campaigns) {
    const full = samples.find(({ atMs, running }) => atMs >= arrivesMs && running >= most)
    if (!full) return null
    slowest = Math.max(slowest, (full.atMs - arrivesMs) / 60_000)
  }
  return slowest
}
