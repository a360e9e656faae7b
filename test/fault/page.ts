/**
 * The figures of docs/reliability.md from what `npm run fault -- --json` printed, one file a run:
 *
 *   node test/fault/page.ts RUN.json...
 *
 * Two tables in Markdown: a line for each run, and one for each kind of fault over all runs. A run keeps the median of
 * each kind only, so the median here is that of the runs' medians; the worst is the worst of all.
 */
import { readFileSync } from 'node:fs'
import { type KindFigures, median } from './figures.ts'

export interface RunFigures {
  seed: number
  tasks: number
  faults: number
  tasksLost: number
  doubleCounted: number
  acknowledgedLost: number
  forgotten: number
  wasted: { repeated: number; broken: number }
  findings: number
  isEnded: boolean
  seconds: number
  kinds: KindFigures[]
}

export function runsTable(runs: readonly RunFigures[]): string {
  const head = [
    '| seed | tasks | faults | lost | counted twice | acknowledged lost | repeated | broken off | forgotten | seconds |',
    '|---|---|---|---|---|---|---|---|---|---|',
  ]
  const rows = runs.map(({ wasted, ...run }) => {
    const { seed, tasks, faults, tasksLost, doubleCounted, acknowledgedLost, forgotten, seconds } = run
    const cells = [seed, grouped(tasks), faults, tasksLost, doubleCounted, acknowledgedLost]
    return `| ${[...cells, wasted.repeated, wasted.broken, forgotten, grouped(seconds)].join(' | ')} |`
  })
  return [...head, ...rows].join('\n')
}

export function kindsTable(runs: readonly RunFigures[]): string {
  const head = ['| fault | made | lasted s | until work s: median | worst |', '|---|---|---|---|---|']
  const all = runs.flatMap(({ kinds }) => kinds)
  const rows = [...new Set(all.map(({ kind }) => kind))].sort().flatMap((kind) => {
    const found = all.filter((one) => one.kind === kind)
    const made = found.reduce((sum, { count }) => sum + count, 0)
    if (made === 0) return []
    const lasted = found.flatMap(({ lastedS }) => (lastedS === null ? [] : [lastedS]))
    const until = found.flatMap(({ untilWork }) => (untilWork === null ? [] : [untilWork]))
    const typical = until.map(({ medianS }) => medianS)
    const worst = until.map(({ worstS }) => worstS)
    const cells = [kind, made, shown(lasted, median), shown(typical, median), shown(worst, (all) => Math.max(...all))]
    return [`| ${cells.join(' | ')} |`]
  })
  return [...head, ...rows].join('\n')
}

function shown(numbers: readonly number[], of: (numbers: readonly number[]) => number): string {
  return numbers.length === 0 ? '-' : of(numbers).toFixed(1)
}

function grouped(number: number): string {
  return number.toLocaleString('en-US')
}

if (import.meta.main) {
  const runs = process.argv.slice(2).map((path) => JSON.parse(readFileSync(path, 'utf8')) as RunFigures)
  console.log(`${runsTable(runs)}\n\n${kindsTable(runs)}`)
}
