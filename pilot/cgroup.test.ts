import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { restoreTree } from './captured/read.ts'
import { type CgroupLimits, cgroupLimits, cpusOf } from './cgroup.ts'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-cgroup-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

function files(content: Record<string, string>): void {
  for (const [path, text] of Object.entries(content)) {
    mkdirSync(join(folder, path, '..'), { recursive: true })
    writeFileSync(join(folder, path), text)
  }
}

test.each([
  ['0', [0]],
  ['0-3', [0, 1, 2, 3]],
  ['0-1,8,10-11', [0, 1, 8, 10, 11]],
  ['', []],
])('cgroup - CPU list "%s" is %j', (text, cpus) => {
  expect(cpusOf(text)).toEqual(cpus)
})

describe('captured trees', () => {
  test.each<[string, CgroupLimits]>([
    // The task's own group has no limit; its step's and its user's have.
    ['slurm-v1', { cores: 2, memoryBytes: 2147483648 }],
    ['slurm-v2', { cores: 1, memoryBytes: 1835008000 }],
    ['hybrid-v1', { cores: 2, memoryBytes: null }],
    ['made-by-hand', { cores: 2, memoryBytes: 6442450944 }],
  ])('cgroup - %s', async (name, expected) => {
    const membership = restoreTree(`cgroup/${name}.txt`, folder)
    expect(await cgroupLimits(folder, membership)).toEqual(expected)
  })
})

test('cgroup - v2: the tightest limit on the way up counts', async () => {
  files({
    'slurm/job/step/cpu.max': 'max 100000\n',
    'slurm/job/cpu.max': '250000 100000\n',
    'slurm/job/memory.max': '4294967296\n',
    'slurm/memory.max': '8589934592\n',
    'slurm/job/step/memory.max': 'max\n',
  })
  expect(await cgroupLimits(folder, '0::/slurm/job/step\n')).toEqual({ cores: 2, memoryBytes: 4294967296 })
})

test('cgroup - above the root of the namespace nothing is read', async () => {
  files({ 'root/memory.max': '2147483648\n', 'memory.max': '1\n', 'pod/memory.max': '2\n' })
  const limits = await cgroupLimits(join(folder, 'root'), '0::/../pod\n')
  expect(limits).toEqual({ cores: null, memoryBytes: 2147483648 })
})

test('cgroup - v1: quota by period, and "no limit" is none', async () => {
  files({
    'cpu,cpuacct/job/cpu.cfs_quota_us': '400000\n',
    'cpu,cpuacct/job/cpu.cfs_period_us': '100000\n',
    'memory/job/memory.limit_in_bytes': '1073741824\n',
    'memory/memory.limit_in_bytes': '9223372036854771712\n',
  })
  const membership = '4:memory:/job\n3:cpu,cpuacct:/job\n1:name=systemd:/\n'
  expect(await cgroupLimits(folder, membership)).toEqual({ cores: 4, memoryBytes: 1073741824 })
})

test('cgroup - less than one core is one, and nothing said is nothing', async () => {
  files({ 'a/cpu.max': '50000 100000\n' })
  expect(await cgroupLimits(folder, '0::/a\n')).toEqual({ cores: 1, memoryBytes: null })
  expect(await cgroupLimits(folder, '')).toEqual({ cores: null, memoryBytes: null })
})
