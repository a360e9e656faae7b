import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { blameOf, OomKills } from './oom.ts'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-oom-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

function files(content: Record<string, string>): void {
  for (const [path, text] of Object.entries(content)) {
    mkdirSync(join(folder, path, '..'), { recursive: true })
    writeFileSync(join(folder, path), text)
  }
}
const oomKills = () => new OomKills(join(folder, 'sys'), join(folder, 'proc'))
const events = (oom: number, kills: number) => `low 0\nhigh 0\nmax 9\noom ${oom}\noom_kill ${kills}\noom_group_kill 0\n`
const vmstat = (kills: number) => `nr_free_pages 7\noom_kill ${kills}\nnuma_hit 3\n`

describe('oom', () => {
  test('oom - control groups v2: a kill for the job’s limit, two levels above, and one for the node’s', async () => {
    const levels = (job: number, kills: number) => ({
      'sys/slurm/job_7/memory.events': events(job, kills),
      'sys/slurm/job_7/step_0/memory.events': events(0, kills),
    })
    files({ 'proc/self/cgroup': '0::/slurm/job_7/step_0\n', 'proc/vmstat': vmstat(4), ...levels(0, 0) })
    const kernel = oomKills()
    const before = await kernel.read()
    expect(before).toEqual({ kills: 0, limitHits: 0, nodeKills: 4 })
    expect(kernel.known).toBe(before)
    files({ 'proc/vmstat': vmstat(5), ...levels(1, 1) })
    const job = await kernel.read()
    expect(blameOf(before, job)).toBe('cgroup')
    files({ 'proc/vmstat': vmstat(6), ...levels(1, 2) })
    expect(blameOf(job, await kernel.read())).toBe('node')
    expect(blameOf(job, job)).toBeNull()
  })

  test('oom - control groups v1: kills and the limit are counted in files of their own', async () => {
    const levels = (failures: number, kills: number) => ({
      'sys/memory/job/memory.failcnt': `${failures}\n`,
      'sys/memory/job/memory.oom_control': `oom_kill_disable 0\nunder_oom 0\noom_kill ${kills}\n`,
    })
    files({ 'proc/self/cgroup': '9:cpu,cpuacct:/x\n4:memory:/job\n0::/\n', 'proc/vmstat': vmstat(0), ...levels(3, 0) })
    const kernel = oomKills()
    const before = await kernel.read()
    expect(before).toEqual({ kills: 0, limitHits: 3, nodeKills: 0 })
    files(levels(9, 1))
    expect(blameOf(before, await kernel.read())).toBe('cgroup')
  })

  test('oom - no control group says anything: what the node counts is the node’s', async () => {
    files({ 'proc/self/cgroup': '0::/\n', 'proc/vmstat': vmstat(0) })
    const kernel = oomKills()
    const before = await kernel.read()
    files({ 'proc/vmstat': vmstat(1) })
    expect(blameOf(before, await kernel.read())).toBe('node')
  })

  test('oom - a kill elsewhere on the node is not ours', async () => {
    const own = { 'sys/job/memory.events': events(0, 0) }
    files({ 'proc/self/cgroup': '0::/job\n', 'proc/vmstat': vmstat(0), ...own })
    const kernel = oomKills()
    const before = await kernel.read()
    files({ 'proc/vmstat': vmstat(1) })
    expect(blameOf(before, await kernel.read())).toBeNull()
  })
})
