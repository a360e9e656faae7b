/**
 * Runs the tests and counts what became of each; run.mjs finds the Node for it. Without arguments all but the site tests
 * under test/lab, which build whole operating systems first: `npm run lab`.
 */
import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { startVitest, type TestModule } from 'vitest/node'

const bundler = fileURLToPath(new URL('../pilot/build.mjs', import.meta.url))
const filters = process.argv.slice(2)

const counts = { passed: 0, failed: 0, skipped: 0 }
const started = performance.now()

/** One line per file as it ends; the default reporter prints the failures. */
const counter = {
  onTestModuleEnd(module: TestModule) {
    for (const test of module.children.allTests()) counts[keyOf(test.result().state)]++
    // A file that cannot even be loaded has no tests, and still is a failure.
    if (module.state() === 'failed' && module.errors().length > 0) counts.failed++
  },
  onTestRunEnd(_modules: readonly TestModule[], unhandled: readonly unknown[]) {
    counts.failed += unhandled.length
  },
}

function keyOf(state: 'passed' | 'failed' | 'skipped' | 'pending'): keyof typeof counts {
  // A test that never came to its end because the run was cut short did not pass.
  return state === 'pending' ? 'failed' : state
}

try {
  console.log('building the pilot bundle')
  execFileSync(process.execPath, [bundler], { stdio: 'inherit' })
  const vitest = await startVitest('test', filters, {
    watch: false,
    reporters: ['default', counter],
    ...(filters.length === 0 ? { project: ['unit', 'whole'] } : {}),
  })
  await vitest.close()
} catch (error) {
  console.error(error)
  counts.failed++
}
// Nothing found to run is a failure; everything skipped, as the site tests are on most machines, is none.
if (counts.passed + counts.failed + counts.skipped === 0) counts.failed++
process.exitCode = counts.failed > 0 ? 1 : 0
console.log(`took ${Math.round((performance.now() - started) / 1000)} s`)
const skipped = counts.skipped > 0 ? `, ${counts.skipped} skipped` : ''
console.log(`${counts.passed} passed, ${counts.failed} failed${skipped}`)
