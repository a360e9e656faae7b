import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { Clock } from '../shared/clock.ts'
import { type BatchEnvironment, readBatchEnvironment } from './config.ts'
import { allocationEndS, TimeLeft } from './time-left.ts'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-time-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

function files(content: Record<string, string>): void {
  for (const [path, text] of Object.entries(content)) {
    mkdirSync(join(folder, path, '..'), { recursive: true })
    writeFileSync(join(folder, path), text)
  }
}

describe('time left', () => {
  const batch = (more: Partial<BatchEnvironment>) => ({ ...readBatchEnvironment({}), ...more })

  const settings = (more: { runtimeLimit?: number; timeAsked?: number; endMargin?: number } = {}) => {
    return { runtimeLimit: null, timeAsked: null, endMargin: 60_000, ...more }
  }

  test('time left - the earliest of Slurm and Machine/Job Features', async () => {
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

  test('time left - a wall clock that is stepped moves no end, whenever it is read again', async () => {
    let stepMs = 0
    const clock: Clock = { wallMs: () => Date.now() + stepMs, monotonicMs: () => 1000, sleep: async () => {} }
    const endS = Math.round(Date.now() / 1000) + 600
    const left = new TimeLeft(clock, batch({ slurmEndTimeS: endS }), settings())
    await left.refresh()
    const before = left.leftMs!
    for (stepMs of [500_000, -500_000]) {
      await left.refresh()
      expect(left.leftMs).toBe(before)
    }
    expect(before).toBeLessThanOrEqual(541_000)
    expect(before).toBeGreaterThan(530_000)
  })

  test('time left - is counted monotonically from the moment it was read, less the margin', async () => {
    let monotonicMs = 5000
    let wallMs = 1_000_000_000
    const clock: Clock = { wallMs: () => wallMs, monotonicMs: () => monotonicMs, sleep: async () => {} }
    const endS = wallMs / 1000 + 600
    const left = new TimeLeft(clock, batch({ slurmEndTimeS: endS }), settings())
    await left.refresh()
    expect(left.leftMs).toBe(540_000)
    wallMs += 3_600_000 // Somebody sets the clock.
    monotonicMs += 40_000
    expect(left.leftMs).toBe(500_000)
    const limited = new TimeLeft(clock, batch({}), settings({ runtimeLimit: 1000 }))
    await limited.refresh()
    expect(limited.leftMs).toBe(1000)
  })

  test('time left - an end before our start is a mistake', async () => {
    files({ 'machine/shutdowntime': '1450', 'job/shutdowntime_job': '1600' })
    const said = batch({ machineFeatures: join(folder, 'machine'), jobFeatures: join(folder, 'job') })
    expect(await allocationEndS(said, 1500)).toBe(1600)
  })

  /** A squeue that says this, after as many calls as fail, and notes each call. */
  function fakeSqueue(says: string, failing = 0): { path: string; calls: () => string[] } {
    const calls = join(folder, 'calls')
    const fails = `[ $(wc -l <${calls}) -gt ${failing} ] || { echo 'slurm_load_jobs error: Socket timed out' >&2; exit 1; }`
    writeFileSync(
      join(folder, 'squeue'),
      `#!/bin/sh\necho "$SLURM_TIME_FORMAT $*" >>${calls}\n${fails}\necho "${says}"\n`,
    )
    chmodSync(join(folder, 'squeue'), 0o755)
    return {
      path: `${folder}:/usr/bin:/bin`,
      calls: () => readFileSync(join(folder, 'calls'), 'utf8').trim().split('\n'),
    }
  }
  const clock: Clock = { wallMs: () => 1_800_000_000_000, monotonicMs: () => 7000, sleep: async () => {} }

  test('time left - where nobody says an end Slurm is asked, once', async () => {
    const { path, calls } = fakeSqueue('1800000600')
    const left = new TimeLeft(clock, batch({ slurmJobId: '42', path }), settings())
    await left.refresh()
    await left.refresh()
    expect(left.leftMs).toBe(540_000)
    expect(calls()).toEqual(['%s --noheader --jobs 42 --format %e'])
  })

  test('time left - what Slurm does not know leaves no end', async () => {
    const { path } = fakeSqueue('N/A')
    const left = new TimeLeft(clock, batch({ slurmJobId: '42', path }), settings())
    await left.refresh()
    expect(left.leftMs).toBeNull()
  })

  test('time left - Slurm that does not answer is asked once more, and then left alone', async () => {
    const { path, calls } = fakeSqueue('1800000600', 1)
    const left = new TimeLeft(clock, batch({ slurmJobId: '42', path }), settings())
    await left.refresh()
    expect(left.leftMs).toBeNull()
    await Promise.all([left.refresh(), left.refresh()])
    expect(left.leftMs).toBe(540_000)
    expect(calls()).toHaveLength(2)
    const deaf = fakeSqueue('1800000600', 99)
    const unknown = new TimeLeft(clock, batch({ slurmJobId: '42', path: deaf.path }), settings())
    for (let i = 0; i < 4; i++) await unknown.refresh()
    expect(unknown.leftMs).toBeNull()
    expect(calls()).toHaveLength(4)
  })

  test('time left - what the vacuum asked for counts where nobody says an end, and Slurm is not asked', async () => {
    const { path, calls } = fakeSqueue('1800000600')
    const asked = settings({ timeAsked: 300_000 })
    const guessed = new TimeLeft(clock, batch({ slurmJobId: '42', path }), asked)
    await guessed.refresh()
    expect(guessed.leftMs).toBe(240_000)
    expect(calls).toThrow()
    for (const endS of [1_800_000_100, 1_800_000_900]) {
      const said = new TimeLeft(clock, batch({ slurmEndTimeS: endS }), asked)
      await said.refresh()
      expect(said.leftMs).toBe((endS - 1_800_000_000) * 1000 - 60_000)
    }
  })

  test('time left - Slurm is not asked where an end is said, or set', async () => {
    const { path, calls } = fakeSqueue('1800000600')
    const said = new TimeLeft(
      clock,
      batch({ slurmJobId: '42', path, slurmEndTimeS: 1_800_000_100 }),
      settings({ endMargin: 0 }),
    )
    await said.refresh()
    expect(said.leftMs).toBe(100_000)
    const set = new TimeLeft(clock, batch({ slurmJobId: '42', path }), settings({ runtimeLimit: 5000, endMargin: 0 }))
    await set.refresh()
    expect(set.leftMs).toBe(5000)
    expect(calls).toThrow()
  })
})
