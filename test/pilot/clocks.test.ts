/** A pilot that stood still, with its payloads or without them, and one whose wall clock is stepped: no deadline is wrong for it. */
import { renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, describe, expect, test } from 'vitest'
import { makeTemplate } from '../../pilot/testbench.ts'
import { systemClock } from '../../shared/clock.ts'
import { locateFaketime } from '../../shared/servers/faketime.ts'
import { type Line, PilotBench, sh, TIMINGS, until } from './bench.ts'

/** Longer than a gap that is noticed, the lease, the walltime and the patience used below. */
const STANDSTILL_MS = 6500

let bench: PilotBench
afterEach(async () => {
  await bench.close()
})

const flag = (name: string) => join(bench.site.folder, name)
const waitFor = (name: string, then: string) => sh(`while [ ! -e ${flag(name)} ]; do sleep 0.05; done; ${then}`)

describe('suspended', () => {
  test('suspended - the pilot alone: it says so, hands in what ended meanwhile, starts nothing of an expired lease', async () => {
    bench = await PilotBench.open({ ...TIMINGS, leaseMs: 5000 })
    const { script } = bench
    const pilot = bench.start({ cores: 1, 'gone-after': '5s' })
    script.give(waitFor('end', 'exit 4'), '0-1')
    await pilot.said('attempt.started')
    await until('the grant is confirmed', () => script.beats.some(({ processed }) => processed > 0))
    pilot.signal('SIGSTOP')
    writeFileSync(flag('end'), '')
    await systemClock.sleep(STANDSTILL_MS)
    script.dead.add('s1')
    script.session = 's2'
    pilot.signal('SIGCONT')
    // A busy machine may have let it stand still for a moment before.
    const isLong = ({ msg, gapMs }: Line) => msg === 'pilot.suspended' && Number(gapMs) > STANDSTILL_MS - 1000
    await until('it says how long it stood still', () => pilot.lines.find(isLong))
    expect(await until('the result arrives', () => script.results[0])).toMatchObject({ index: 0, exitCode: 4 })
    const beat = await until('a beat of the new session', () => script.beats.find(({ session }) => session === 's2'))
    expect(beat.counters).toMatchObject({ tasks_started: 1 })
    expect(beat.counters.suspended).toBeGreaterThanOrEqual(1)
    expect(beat.counters.suspended_ms).toBeGreaterThan(STANDSTILL_MS - 1000)
    // Not for silence, which nobody kept but itself: it is here and works on.
    script.give(sh('exit 5'), '7')
    await until('it works on', () => script.results.some(({ index, exitCode }) => index === 7 && exitCode === 5))
    expect(script.results.some(({ index }) => index === 1)).toBe(false)
  })

  test('suspended - pilot and payload: the time is not the payload’s, neither as walltime nor as standstill', async () => {
    bench = await PilotBench.open()
    const { script } = bench
    const pilot = bench.start()
    const needs = { ...makeTemplate().needs, walltimeMs: 5000 }
    script.give({ ...waitFor('end', 'exit 0'), needs, stalledAfterMs: 5000 }, '0')
    const payload = Number((await pilot.said('attempt.started')).pid)
    pilot.signal('SIGSTOP')
    process.kill(-payload, 'SIGSTOP')
    await systemClock.sleep(STANDSTILL_MS)
    process.kill(-payload, 'SIGCONT')
    pilot.signal('SIGCONT')
    await pilot.said('pilot.suspended')
    writeFileSync(flag('end'), '')
    expect(await until('the result arrives', () => script.results[0])).toMatchObject({ end: 'done', reason: null })
  })
})

const library = await locateFaketime()

describe.skipIf(library === null)('clock steps (needs libfaketime)', () => {
  test('clock steps - a day ahead and back: walltime, time left, leases and signed work stay what they were', async () => {
    bench = await PilotBench.open()
    const { script } = bench
    const set = (seconds: number) => {
      writeFileSync(flag('clock.new'), `${seconds < 0 ? '' : '+'}${seconds}\n`)
      renameSync(flag('clock.new'), flag('clock'))
    }
    set(0)
    const pilot = bench.start(
      { cores: 1, 'least-time-left': '1s' },
      {
        LD_PRELOAD: library!,
        FAKETIME_TIMESTAMP_FILE: flag('clock'),
        FAKETIME_CACHE_DURATION: '1',
        FAKETIME_DONT_FAKE_MONOTONIC: '1',
        SLURM_JOB_ID: '7',
        SLURM_JOB_END_TIME: String(Math.round(Date.now() / 1000) + 3600),
      },
    )
    const leftMs = () => script.pulls.at(-1)?.offer[0]?.timeLeftMs
    const before = Number(await until('an offer', leftMs))
    expect(before).toBeGreaterThan(3_400_000)
    for (const [number, seconds] of [86_400, -86_400].entries()) {
      script.give(waitFor(`end-${number}`, 'exit 0'), '0')
      await until('it runs', () => pilot.lines.filter(({ msg }) => msg === 'attempt.started').length === number + 1)
      set(seconds)
      // The library looks once a second; what the pilot logs shows its clock, and an order makes it log.
      await until('the pilot’s clock is stepped', () => {
        script.orders.push({ kind: 'holder.inventory' })
        const { time } = pilot.lines.at(-1)!
        return Math.abs(Date.parse(String(time)) - Date.now() - seconds * 1000) < 60_000
      })
      writeFileSync(flag(`end-${number}`), '')
      await until('it is done', () => script.results.length === number + 1)
      script.give(sh('exit 3'), String(number + 5))
      await until('new work runs', () => script.results.some(({ index }) => index === number + 5))
      const pulled = script.pulls.length
      const after = Number(await until('another offer', () => script.pulls.length > pulled && leftMs()))
      expect(before - after).toBeLessThan(120_000)
      expect(after).toBeLessThan(before)
      script.results.splice(number + 1)
    }
    // A busy machine may have let it stand still for a moment, and not for hours.
    const isMoment = ({ msg, gapMs }: Line) => msg === 'pilot.suspended' && Number(gapMs) < 3_600_000
    const misled = pilot.lines.filter(({ msg }) => /suspended|refused|session\.(lost|renewed)/.test(msg))
    expect(misled.filter((line) => !isMoment(line))).toEqual([])
  })
})
