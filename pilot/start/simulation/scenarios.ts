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

const siteText = ({ accounts = '{}', kinds = { cpu: '' } }: Pick<Scenario, 'accounts' | 'kinds'>) => `
indraft: 1
folder: /sim
credential: /sim/pilot.json
starter: slurm
caps: {running: ${MOST}, queued: 4, submissionsAnHour: 30, startsATick: 2}
accounts: ${accounts}
kinds:
${Object.entries(kinds)
  .map(([name, more]) => `  ${name}: {time: 12h, ${more}shape: {cores: 8, memory: 16GiB}}`)
  .join('\n')}
`

/** Of the scenarios about accounts. */
export const NODE_HOURS = 200
export const ENDS_AFTER = 24
const CRASH = ['n9', 'n10', 'n11', 'n12']
const HOLES = ['n1', 'n2', 'n3', 'n4']

export interface Bounds {
  pilotsAnHour: number
  idleNodeHours: number
  /** After the last arrival of work; null where full use is not to be expected. */
  minutesToFullUse: number | null
  callsAnHour: number
  /** In any hour without work and pilots. */
  idleCallsAnHour: number
  /** Orders that sbatch refused. */
  refusedAnHour: number
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
  /** Of the site file. */
  accounts?: string
  /** What the site file says of each kind of pilot beside time and shape, with a comma after it. */
  kinds?: Record<string, string>
  /** The account ends before the work does. */
  leavesWork?: boolean
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
  refusedAnHour: 0,
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
    kinds: { cpu: 'nodesPerJob: 4, ' },
    bounds: bounds({ spoilt: 8000, pilotsAnHour: 20, idleNodeHours: 15 }),
  },
  {
    name: 'black hole, scancel deaf',
    what: 'one that fails, and for its first hours no scancel is answered: it is told again until it has ended',
    hours: 24,
    world: {
      campaigns: [campaign('only', 1, 8000, 600_000)],
      health: (node, nowMs) => (node === 'n3' && nowMs < 12 * HOUR ? 'fails' : 'good'),
      canCancel: (nowMs) => nowMs > 2 * HOUR,
    },
    bounds: bounds({ spoilt: 40_000 }),
  },
  {
    name: 'latched and drained',
    what: 'four black holes are drained once they are latched, and one of them is taken out of Slurm; more work comes',
    hours: 34,
    world: {
      campaigns: [campaign('first', 1, 8000, 600_000), campaign('second', 22, 4000, 600_000)],
      health: (node) => (HOLES.includes(node) ? 'fails' : 'good'),
      isDrained: (node, nowMs) => HOLES.includes(node) && nowMs >= 4 * HOUR,
      isKnown: (node, nowMs) => node !== HOLES[0] || nowMs < 20 * HOUR,
    },
    bounds: bounds({ spoilt: 40_000, refusedAnHour: 1, callsAnHour: 40, pilotsAnHour: 18, minutesToFullUse: 15 }),
  },
  {
    name: 'one kind refused',
    what: 'of two kinds with the same work one, for which there is room, is refused by sbatch each time: a wrong account',
    hours: 28,
    world: {
      campaigns: one,
      refusal: ({ kind }) => (kind === 'a' ? 'Batch job submission failed: Invalid account' : null),
    },
    kinds: { a: '', b: `most: ${MOST - 1}, ` },
    bounds: bounds({ refusedAnHour: 4, callsAnHour: 50, minutesToFullUse: null }),
  },
  {
    name: 'two groups, 2 to 1',
    what: 'a kind of pilot for each of two groups, the one with twice the share; when its work ends the other has all',
    hours: 40,
    world: {
      campaigns: [
        { ...campaign('of-a', 1, 8000, 600_000), group: '/a' },
        { ...campaign('of-b', 1, 9000, 600_000), group: '/b' },
      ],
    },
    kinds: { a: 'share: 2, settings: {allowGroups: [/a]}, ', b: 'settings: {allowGroups: [/b]}, ' },
    bounds: bounds({ idleNodeHours: 3 }),
  },
  {
    name: 'account runs out',
    what: `an account of ${NODE_HOURS} node-hours and jobs of four nodes, where one node's pilot leaves early and four others crash; there is more work than that`,
    hours: 40,
    world: {
      campaigns: [campaign('too-much', 1, 100_000, 600_000)],
      health: (node, nowMs) => {
        if (node === 'n5' && between(nowMs, 2, 3)) return 'broken'
        return CRASH.includes(node) && between(nowMs, 5, 5.1) ? 'gone' : 'good'
      },
    },
    accounts: `{p: {nodeHours: ${NODE_HOURS}}}`,
    kinds: { cpu: 'account: p, nodesPerJob: 4, ' },
    leavesWork: true,
    bounds: bounds({ idleNodeHours: 15, pilotsAnHour: 20, callsAnHour: 45 }),
  },
  {
    name: 'account ends',
    what: `an account that ends after ${ENDS_AFTER} hours, in a full machine where jobs wait for hours; there is more work than that`,
    hours: 28,
    world: {
      campaigns: [campaign('too-much', 1, 100_000, 600_000)],
      isDrained: (_node, nowMs) => between(nowMs, 0, 6) || between(nowMs, 14, 22),
    },
    accounts: `{p: {until: "${new Date(ENDS_AFTER * HOUR).toISOString()}"}}`,
    kinds: { cpu: 'account: p, ' },
    leavesWork: true,
    bounds: bounds({ minutesToFullUse: 310, callsAnHour: 45 }),
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
  const site = parseSiteFile(siteText(scenario), 'site.yaml')
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
    refusedAnHour: mostInAnHour(world.refusedTimes),
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
