/**
 * A node without a disk, as near as a machine with one can make it: a job in a control group with a memory limit, whose
 * scratch is a tmpfs of its mount namespace, so that files, payloads and pilot together are all that the limit counts.
 */
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { makeTemplate } from '../../pilot/testbench.ts'
import { PilotBench, sh, until } from './bench.ts'

const MIB = 2 ** 20
const JOB_BYTES = 700 * MIB
const isV1 = existsSync('/sys/fs/cgroup/memory/memory.limit_in_bytes')
const group = join(isV1 ? '/sys/fs/cgroup/memory' : '/sys/fs/cgroup', `indraft-diskless-${process.pid}`)

/** Why no such node can be made here. */
function whyNot(): string | null {
  try {
    mkdirSync(group)
    writeFileSync(join(group, isV1 ? 'memory.limit_in_bytes' : 'memory.max'), String(JOB_BYTES))
    rmdirSync(group)
    return null
  } catch (error) {
    return (error as Error).message
  }
}

/** How often the kernel ended something of the job for want of memory. */
function kills(): number {
  const text = readFileSync(join(group, isV1 ? 'memory.oom_control' : 'memory.events'), 'utf8')
  return Number(/^oom_kill (\d+)$/m.exec(text)?.[1] ?? 0)
}

describe.skipIf(whyNot() !== null)('a node without a disk (needs root and the memory controller)', () => {
  let bench: PilotBench
  beforeEach(async () => {
    bench = await PilotBench.open()
    mkdirSync(group)
    writeFileSync(join(group, isV1 ? 'memory.limit_in_bytes' : 'memory.max'), String(JOB_BYTES))
    mkdirSync(bench.scratch)
  })
  afterEach(async () => {
    await bench.close()
    await until('the group is empty', () => readFileSync(join(group, 'cgroup.procs'), 'utf8') === '')
    rmdirSync(group)
  })

  test('diskless - payloads that use all memory and all scratch that was offered, and results that nobody takes, stay within the job', async () => {
    const { script, scratch } = bench
    // The group first: what is written into a tmpfs is charged to who writes it.
    const before = `echo $$ >${group}/cgroup.procs
      set -- unshare --mount sh -c 'mount -t tmpfs -o mode=700 scratch "$0" && exec "$@"' ${scratch} "$@"`
    const pilot = bench.start({ memory: null, 'outbox-memory': '64kB', cores: 2 }, {}, before)
    const node = (await until('it says hello', () => script.hellos[0])).nodes[0]!
    expect(node.labels).toMatchObject({ scratch: 'memory' })
    expect(node.memoryBytes + node.scratchBytes).toBeLessThanOrEqual(JOB_BYTES - 256 * MIB)
    expect(node.scratchBytes).toBeGreaterThan(50 * MIB)
    const needs = { ...makeTemplate().needs, memoryBytes: node.memoryBytes, scratchBytes: node.scratchBytes }
    const [file, memory] = [node.scratchBytes - 8 * MIB, node.memoryBytes - 24 * MIB]
    // Both at once: the file is there while the memory is held.
    const fill = `head -c ${file} /dev/zero >file && head -c ${memory} /dev/zero | tail -n 1 | wc -c`
    script.give({ ...sh(fill), needs }, '0')
    const result = await until('it ends', () => script.results[0], 120_000)
    expect(result).toMatchObject({ end: 'done', reason: null })
    expect(kills()).toBe(0)
    // Its file is gone with it, and the next has the room again.
    script.give(
      { ...sh(`head -c ${file} /dev/zero >file; head -c ${file} /dev/zero >other; exec sleep 60`), needs },
      '1',
    )
    expect(await until('the second ends', () => script.results[1], 120_000)).toMatchObject({
      reason: 'payload.scratch',
    })
    // Nobody takes results any more: so many are kept in that memory, then no work is asked for.
    script.isDeaf = true
    const small = { ...makeTemplate().needs, memoryBytes: 16 * MIB }
    const long = sh('head -c 1900 /dev/zero | tr "\\0" x; exit 3')
    script.give({ ...long, needs: small }, '10-300')
    const ended = () => pilot.lines.filter(({ msg }) => msg === 'attempt.ended').length - 2
    await until('the outbox has what it may', () => ended() > 20, 120_000)
    const kept = () => script.beats.at(-1)!.gauges.undeliveredBytes!
    await until('it keeps what it may', () => kept() >= 64_000, 120_000)
    const beats = async (count: number) => {
      const { length } = script.beats
      await until(`${count} beats`, () => script.beats.length >= length + count)
      return script.pulls.filter(({ offer }) => offer.length > 0).length
    }
    const asked = await beats(3)
    expect(await beats(10)).toBe(asked)
    expect(kills()).toBe(0)
    script.isDeaf = false
  }, 300_000)
})
