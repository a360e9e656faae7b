/**
 * Before the site tests: bundles the programs, builds the lab's roots and images where they are missing (minutes), or says why this machine
 * cannot hold a lab; the tests then report skipped. Where it must run (CI set, or INDRAFT_LAB=required) that is an error.
 */
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import process from 'node:process'
import { buildRoots, cacheFolder, checkout, removeUnused, whyNoLab } from './roots.ts'

export default async function setup(): Promise<void> {
  const reason = whyNoLab()
  if (reason) {
    if (process.env.CI || process.env.INDRAFT_LAB === 'required')
      throw new Error(`the site tests must run here: ${reason}`)
    console.warn(`skipping the site tests: ${reason}`)
    return
  }
  execFileSync(process.execPath, [join(checkout, 'pilot/build.mjs')], { stdio: ['ignore', 'ignore', 'inherit'] })
  await buildRoots((line) => console.log(line))
  removeUnused(cacheFolder())
}
