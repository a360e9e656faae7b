/**
 * Runs the tests and counts what became of each; run.mjs finds the Node for it. Without arguments all but the site tests
 * under test/lab, which build whole operating systems first: `npm run lab`. The end names every test that failed or was
 * skipped, on a line of its own: who has only the end of a long log knows which.
 */
import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import type { SerializedError } from 'vitest'
import { startVitest, type TestCase, type TestModule } from 'vitest/node'

const bundler = fileURLToPath(new URL('../pilot/build.mjs', import.meta.url))
const filters = process.argv.slice(2)

const counts = { passed: 0, failed: 0, skipped: 0 }
const notPassed: string[] = []
const started = performance.now()

/** Counts and names; the default reporter prints the failures themselves. */
const counter = {
  onTestModuleEnd(module: TestModule) {
    for (const test of module.children.allTests()) {
      const became = keyOf(test.result().state)
      counts[became]++
      if (became !== 'passed')
        notPassed.push(`${became}: ${module.relativeModuleId} > ${test.fullName}${firstLineOf(test)}`)
    }
    // A file that cannot even be loaded has no tests, and still is a failure.
    if (module.state() === 'failed' && module.errors().length > 0) {
      counts.failed++
      notPassed.push(`failed: ${module.relativeModuleId}${firstLine(module.errors()[0]?.message)}`)
    }
  },
  onTestRunEnd(_modules: readonly TestModule[], unhandled: readonly SerializedError[]) {
    counts.failed += unhandled.length
    for (const error of unhandled) notPassed.push(`failed: outside of every test${firstLine(error.message)}`)
  },
}

function firstLineOf(test: TestCase): string {
  const result = test.result()
  return firstLine(result.state === 'skipped' ? result.note : result.errors?.[0]?.message)
}

/** ": TEXT", cut to a line that is read at a glance; nothing where there is no text. */
function firstLine(text: string | undefined): string {
  return text ? `: ${text.split('\n', 1)[0]?.slice(0, 200)}` : ''
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
for (const line of notPassed) console.log(line)
// Nothing found to run is a failure; everything skipped, as the site tests are on most machines, is none.
if (counts.passed + counts.failed + counts.skipped === 0) counts.failed++
process.exitCode = counts.failed > 0 ? 1 : 0
console.log(`took ${Math.round((performance.now() - started) / 1000)} s`)
const skipped = counts.skipped > 0 ? `, ${counts.skipped} skipped` : ''
console.log(`${counts.passed} passed, ${counts.failed} failed${skipped}`)
