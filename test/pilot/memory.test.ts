/** A payload that the kernel's OOM killer ends, in a control group that the test makes: whose limit it was is told. */
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { PilotBench, sh, until } from './bench.ts'

const MIB = 2 ** 20

/** A control group with a memory limit below the root, of whichever version has the memory controller here. */
function makeGroup(name: string, bytes: number): string | null {
  const v1 = existsSync('/sys/fs/cgroup/memory/memory.limit_in_bytes')
  const folder = join(v1 ? '/sys/fs/cgroup/memory' : '/sys/fs/cgroup', name)
  try {
    mkdirSync(folder)
    writeFileSync(join(folder, v1 ? 'memory.limit_in_bytes' : 'memory.max'), String(bytes))
    return folder
  } catch {
    return null
  }
}

const trial = makeGroup(`indraft-trial-${process.pid}`, 64 * MIB)
if (trial) rmdirSync(trial)

let bench: PilotBench
let group: string
beforeEach(async () => {
  bench = await PilotBench.open()
  group = makeGroup(`indraft-test-${process.pid}`, 400 * MIB)!
})
afterEach(async () => {
  await bench.close()
  await until('the group is empty', () => readFileSync(join(group, 'cgroup.procs'), 'utf8') === '')
  rmdirSync(group)
})

describe.skipIf(trial === null)('memory (needs root and a control group with the memory controller)', () => {
  test('memory - killed by the kernel for the job’s limit: the payload’s own, and the pilot goes on', async () => {
    const { script } = bench
    // Looked at too seldom for the pilot's own watch to see it.
    const pilot = bench.start({ 'watch-every': '60s' }, {}, `echo $$ > ${group}/cgroup.procs`)
    await pilot.said('pilot.ready')
    script.give(sh('head -c 900000000 /dev/zero | tail -n 1 > /dev/null; exit $?'), '0')
    expect(await until('the result', () => script.results[0])).toMatchObject({
      end: 'failed',
      reason: 'payload.memory',
      detail: expect.stringContaining('by the kernel'),
    })
    script.give(sh('kill -KILL $$'), '1')
    expect(await until('the next', () => script.results[1])).toMatchObject({
      reason: 'payload.signal',
      signal: 'SIGKILL',
    })
  })
})
