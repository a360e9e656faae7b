import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { Clock } from '../shared/clock.ts'
import { type BatchEnvironment, readBatchEnvironment } from './config.ts'
import { allocationEndS, cgroupLimits, countCpuList, TimeLeft, testScratch } from './node.ts'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-node-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

function files(content: Record<string, string>): void {
  for (const [path, text] of Object.entries(content)) {
    mkdirSync(join(folder, path, '..'), { recursive: true })
    writeFileSync(join(folder, path), text)
  }
}

test.each([
  ['0', 1],
  ['0-3', 4],
  ['0-3,8,10-11', 7],
])('node - CPU list %s has %i', (text, count) => {
  expect(countCpuList(text)).toBe(count)
})

describe('cgroups', () => {
  test('node - v2: the tightest limit on the way up counts', async () => {
    files({
      'slurm/job/step/cpu.max': 'max 100000\n',
      'slurm/job/cpu.max': '250000 100000\n',
      'slurm/job/memory.max': '4294967296\n',
      'slurm/memory.max': '8589934592\n',
      'slurm/job/step/memory.max': 'max\n',
    })
    expect(await cgroupLimits(folder, '0::/slurm/job/step\n')).toEqual({ cores: 2, memoryBytes: 4294967296 })
  })

  test('node - v1: quota by period, and "no limit" is none', async () => {
    files({
      'cpu,cpuacct/job/cpu.cfs_quota_us': '400000\n',
      'cpu,cpuacct/job/cpu.cfs_period_us': '100000\n',
      'memory/job/memory.limit_in_bytes': '1073741824\n',
      'memory/memory.limit_in_bytes': '9223372036854771712\n',
    })
    const membership = '4:memory:/job\n3:cpu,cpuacct:/job\n1:name=systemd:/\n'
    expect(await cgroupLimits(folder, membership)).toEqual({ cores: 4, memoryBytes: 1073741824 })
  })

  test('node - less than one core is one, and nothing said is nothing', async () => {
    files({ 'a/cpu.max': '50000 100000\n' })
    expect(await cgroupLimits(folder, '0::/a\n')).toEqual({ cores: 1, memoryBytes: null })
    expect(await cgroupLimits(folder, '')).toEqual({ cores: null, memoryBytes: null })
  })
})

describe('time left', () => {
  const batch = (more: Partial<BatchEnvironment>) => ({ ...readBatchEnvironment({}), ...more })

  test('node - the earliest of Slurm and Machine/Job Features', async () => {
    files({
      'job/jobstart_secs': '1000\n',
      'job/wall_limit_secs': '500',
      'job/shutdowntime_job': '1600',
      'machine/shutdowntime': '1450\n',
    })
    const folders = { jobFeatures: join(folder, 'job'), machineFeatures: join(folder, 'machine') }
    expect(await allocationEndS(batch(folders))).toBe(1450)
    expect(await allocationEndS(batch({ ...folders, machineFeatures: null }))).toBe(1500)
    expect(await allocationEndS(batch({ ...folders, slurmEndTimeS: 1200 }))).toBe(1200)
    expect(await allocationEndS(batch({}))).toBeNull()
  })

  test('node - is counted monotonically from the moment it was read, less the margin', async () => {
    let monotonicMs = 5000
    let wallMs = 1_000_000_000
    const clock: Clock = { wallMs: () => wallMs, monotonicMs: () => monotonicMs, sleep: async () => {} }
    const endS = wallMs / 1000 + 600
    const left = new TimeLeft(clock, batch({ slurmEndTimeS: endS }), { runtimeLimit: null, endMargin: 60_000 })
    await left.refresh()
    expect(left.leftMs).toBe(540_000)
    wallMs += 3_600_000 // Somebody sets the clock.
    monotonicMs += 40_000
    expect(left.leftMs).toBe(500_000)
    const limited = new TimeLeft(clock, batch({}), { runtimeLimit: 1000, endMargin: 60_000 })
    await limited.refresh()
    expect(limited.leftMs).toBe(1000)
  })
})

test('node - a good scratch folder passes, one that cannot be written does not', async () => {
  expect((await testScratch(folder)).filter(({ ok }) => !ok)).toEqual([])
  writeFileSync(join(folder, 'file'), '')
  const bad = await testScratch(join(folder, 'file'))
  expect(bad.map(({ ok }) => ok)).toEqual([false, false, false])
})
