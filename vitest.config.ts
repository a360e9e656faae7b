import { join } from 'node:path'
import { defineConfig } from 'vitest/config'
import { BaseSequencer, type TestSpecification } from 'vitest/node'

/** Tests start our programs some hundred times: Node compiles them once, which is half of what a start costs. */
const env = { NODE_COMPILE_CACHE: join(import.meta.dirname, 'node_modules/.cache/indraft-compile') }

/** Files of the lab that wait for Slurm for minutes: begun last they would keep everybody waiting. */
const LONGEST = ['site-life', 'melt', 'black-hole', 'vacuum', 'bad-sites', 'hostile']

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const place = ({ moduleId }: TestSpecification) => {
      const at = LONGEST.findIndex((name) => moduleId.endsWith(`/test/lab/${name}.test.ts`))
      return at < 0 ? LONGEST.length : at
    }
    // Stable: the others stay as they are.
    return (await super.sort(files)).sort((one, other) => place(one) - place(other))
  }
}

/** A wait that ends when what it waits for is there costs nothing: no limit is near what a pausing machine takes. */
const expect = { poll: { timeout: 30_000 } }

/** Unit tests stand beside what they test; everything that starts servers or processes lives under test/. */
export default defineConfig({
  test: {
    sequence: { sequencer: LongestFirst },
    projects: [
      {
        test: {
          name: 'unit',
          include: ['{shared,central,edge-relay,pilot}/**/*.test.ts'],
          testTimeout: 60_000,
          hookTimeout: 60_000,
          expect,
          env,
        },
      },
      {
        test: {
          name: 'whole',
          include: ['test/**/*.test.ts'],
          exclude: ['test/lab/**'],
          testTimeout: 120_000,
          expect,
          env,
          hookTimeout: 120_000,
          fileParallelism: false,
        },
      },
      {
        test: {
          name: 'lab',
          include: ['test/lab/**/*.test.ts'],
          globalSetup: 'test/lab/setup.ts',
          // Generous: nothing here is timed, and a busy machine is no failure.
          testTimeout: 600_000,
          hookTimeout: 600_000,
          expect,
          // Each file has a centre of its own, which mostly waits.
          maxWorkers: 4,
        },
      },
    ],
  },
})
