/**
 * The fault suite as CI runs it: two fixed seeds and a fresh one, one after the other. Arguments are passed on to each run
 * (`--tasks`, `--faults`). Ends with one line, "N passed, N failed".
 */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'

const FIXED_SEEDS = [11, 12]
const USUAL = ['--tasks', '2000', '--faults', '60']

const seeds = [...FIXED_SEEDS, Math.floor(Math.random() * 1_000_000)]
const words = process.argv.length > 2 ? process.argv.slice(2) : USUAL
let failed = 0
for (const seed of seeds) {
  console.log(`\n-- fault suite, seed ${seed}`)
  const run = [join(import.meta.dirname, 'run.ts'), ...words, '--seed', String(seed)]
  if (spawnSync(process.execPath, run, { stdio: 'inherit' }).status !== 0) failed++
}
console.log(`${seeds.length - failed} passed, ${failed} failed`)
process.exitCode = failed === 0 ? 0 : 1
