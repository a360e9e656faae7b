/**
 * Writes docs/site/simulation.md and its picture from a run of the vacuum's simulation: `node docs/simulate.ts`. With
 * --check it writes nothing and fails where they are not what the code gives. A few seconds.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { reportPage, reportPicture } from '../pilot/start/simulation/report.ts'
import { MOST, NODES, SCENARIOS, simulate } from '../pilot/start/simulation/scenarios.ts'

const folder = join(import.meta.dirname, 'site')
const outcomes = []
for (const scenario of SCENARIOS) outcomes.push(await simulate(scenario))
const pages = {
  'simulation.md': reportPage(outcomes, NODES, MOST),
  'simulation.svg': reportPicture(outcomes, MOST),
}
const changed = Object.entries(pages).filter(([name, text]) => {
  const path = join(folder, name)
  return !existsSync(path) || readFileSync(path, 'utf8') !== text
})
if (process.argv.includes('--check')) {
  const what =
    changed.length === 0 ? 'up to date' : `not what the code gives: ${changed.map(([name]) => name).join(', ')}`
  process.stdout.write(`${what}\n`)
  process.exitCode = changed.length === 0 ? 0 : 1
} else {
  for (const [name, text] of changed) writeFileSync(join(folder, name), text)
  process.stdout.write(`${changed.length} files written\n`)
}
