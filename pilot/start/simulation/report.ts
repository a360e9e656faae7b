/**
 * The simulation's page and picture for docs/site, made from one run of each scenario with the first seed. Pure: the same
 * code gives the same text to the last letter, which a test holds against what is committed.
 */
import type { Outcome } from './scenarios.ts'
import type { Sample } from './world.ts'

const HEAD =
  '<!-- Written by docs/simulate.ts from a run of the simulation: change the code, then `node docs/simulate.ts`. -->'

const row = (cells: readonly (string | number)[]) => `| ${cells.join(' | ')} |\n`
/** A figure and the bound that a test holds it to. */
const held = (value: number | null, bound: number | null, digits = 0) =>
  value === null ? '-' : bound === null ? value.toFixed(digits) : `${value.toFixed(digits)} (${bound})`

export function reportPage(outcomes: readonly Outcome[], nodes: number, most: number): string {
  const heads = ['scenario', 'pilots', 'most in an hour', 'busy node-hours', 'idle node-hours', 'minutes to full use']
  const more = ['Slurm calls, most in an hour', 'in an idle hour', 'refused in an hour', 'tasks spoilt']
  const table = [
    row([...heads, ...more]),
    row([...heads, ...more].map((_, at) => (at === 0 ? '---' : '---:'))),
    ...outcomes.map((one) => {
      const { bounds, name } = one.scenario
      return row([
        name,
        one.pilots,
        held(one.pilotsAnHour, bounds.pilotsAnHour),
        one.busyNodeHours.toFixed(0),
        held(one.idleNodeHours, bounds.idleNodeHours, 1),
        held(one.minutesToFullUse, bounds.minutesToFullUse),
        held(one.callsAnHour, bounds.callsAnHour),
        held(one.idleCallsAnHour, bounds.idleCallsAnHour),
        held(one.refusedAnHour, bounds.refusedAnHour),
        held(one.spoilt, bounds.spoilt),
      ])
    }),
  ].join('')
  const scenarios = outcomes.map(({ scenario }) => `- **${scenario.name}**: ${scenario.what} (${scenario.hours} h).\n`)
  return `${HEAD}

# The vacuum, simulated

Days of a site's life in seconds, by the very code that runs at sites (\`pilot/start\`): only nodes, batch system, relay,
pilots and disk are played (\`pilot/start/simulation/world.ts\`). A site of ${nodes} nodes, of which at most ${most} may be used, with
one look a minute and the site file's defaults otherwise. In brackets the bound that a test holds the figure to, with
three seeds.

${table}
*Idle* is a pilot without tasks, or a node whose job goes on without it. *Minutes to full use* count from the arrival of
a campaign until all ${most} pilots run, the slowest of its campaigns; in a storm, in a full machine or with nobody to say
what there is, that includes the storm, the wait, and the probe that has to outlive ten minutes. *An idle hour* has
neither work nor busy pilots. *Refused* are submissions that sbatch would not have. *Spoilt* are tasks that a bad node
failed or skipped.

${scenarios.join('')}
![Pilots and work over time](simulation.svg)

Grey is work that waits (full height: the most there was), the line is pilots, filled where they have tasks.
`
}

const WIDTH = 960
const LEFT = 190
const PANEL = 84
const PLOT = 60
/** One point for so many samples of a minute. */
const EVERY = 10

export function reportPicture(outcomes: readonly Outcome[], most: number): string {
  const longest = Math.max(...outcomes.map(({ scenario }) => scenario.hours))
  const panels = outcomes.map(({ scenario, world }, at) => panel(scenario.name, world.samples, at, longest, most))
  const height = outcomes.length * PANEL + 34
  const hours = Array.from({ length: Math.floor(longest / 12) + 1 }, (_, at) => at * 12)
  const axis = hours.map(
    (hour) =>
      `<text x="${across(hour * 60, longest)}" y="${height - 10}" text-anchor="middle" class="small">${hour} h</text>`,
  )
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" font-family="sans-serif" font-size="13">
<style>.small{font-size:11px;fill:#555}.work{fill:#ddd}.busy{fill:#7fb3d5}.pilots{fill:none;stroke:#1f4e79;stroke-width:1.2}.line{stroke:#bbb}</style>
<title>Pilots and work over time, for each scenario</title>
<rect width="${WIDTH}" height="${height}" fill="#fff"/>
${panels.join('\n')}
${axis.join('\n')}
</svg>
`
}

function across(minute: number, hours: number): number {
  return Math.round(LEFT + (minute / (hours * 60)) * (WIDTH - LEFT - 20))
}

function panel(name: string, samples: readonly Sample[], at: number, hours: number, most: number): string {
  const bottom = at * PANEL + PLOT + 14
  const up = (share: number) => Math.round(bottom - share * PLOT)
  const points = samples.filter((_, index) => index % EVERY === 0)
  const mostTasks = Math.max(1, ...points.map(({ queuedTasks }) => queuedTasks))
  const line = (shareOf: (sample: Sample) => number) =>
    points.map((sample) => `${across(sample.atMs / 60_000, hours)},${up(shareOf(sample))}`).join(' ')
  const end = across((points.at(-1)?.atMs ?? 0) / 60_000, hours)
  const area = (shareOf: (sample: Sample) => number) => `${LEFT},${bottom} ${line(shareOf)} ${end},${bottom}`
  return `<g><text x="10" y="${bottom - PLOT / 2 + 4}">${name}</text>
<text x="${LEFT - 6}" y="${up(1) + 4}" text-anchor="end" class="small">${most}</text>
<polygon class="work" points="${area(({ queuedTasks }) => queuedTasks / mostTasks)}"/>
<polygon class="busy" points="${area(({ busy }) => busy / most)}"/>
<polyline class="pilots" points="${line(({ running }) => running / most)}"/>
<line class="line" x1="${LEFT}" y1="${bottom}" x2="${WIDTH - 20}" y2="${bottom}"/></g>`
}
