/**
 * The fault suite as CI runs it: two fixed seeds, which must be clean, and a fresh one. What the fresh one finds is said
 * loudly with its seed and does not fail the run: it may be as old as the code, and nobody's change. Arguments are passed
 * on to each run (`--tasks`, `--faults`). Ends with one line, "N passed, N failed", of the fixed seeds.
 */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'

const FIXED_SEEDS = [11, 12]
const USUAL = ['--tasks', '2000', '--faults', '60']

const words = process.argv.length > 2 ? process.argv.slice(2) : USUAL
const isClean = (seed: number) => {
  console.log(`\n-- fault suite, seed ${seed}`)
  const run = [join(import.meta.dirname, 'run.ts'), ...words, '--seed', String(seed)]
  return spawnSync(process.execPath, run, { stdio: 'inherit' }).status === 0
}
const failed = FIXED_SEEDS.filter((seed) => !isClean(seed))
const fresh = Math.floor(Math.random() * 1_000_000)
if (!isClean(fresh)) {
  console.log(`\n!! THE FRESH SEED ${fresh} FOUND SOMETHING: npm run fault -- ${words.join(' ')} --seed ${fresh}`)
}
for (const seed of failed) console.log(`failed: fault suite, seed ${seed}`)
console.log(`${FIXED_SEEDS.length - failed.length} passed, ${failed.length} failed`)
process.exitCode = failed.length === 0 ? 0 : 1
