import { describe, expect, test } from 'vitest'
import type { Shape } from '../shared/fit.ts'
import type { Needs } from '../shared/protocol/work.ts'
import { freeShape, nextToStart, roomFor, type WaitingWork } from './slots.ts'
import { makeTemplate } from './testbench.ts'

const GiB = 2 ** 30
const whole: Shape = {
  ...{ cores: 8, memoryBytes: 16 * GiB, scratchBytes: 100 * GiB, gpus: 0, gpuMemoryBytes: 0 },
  ...{ arch: 'x86_64', runtimes: ['host'], network: 'none' },
}

function needs(cores: number, memoryGiB = 1, more: Partial<Needs> = {}): Needs {
  return { ...makeTemplate().needs, cores, memoryBytes: memoryGiB * GiB, ...more }
}

function lease(more: Partial<WaitingWork> = {}): WaitingWork {
  const base = { needs: needs(1), waiting: 1, running: 0, estimateMs: null, endsAtMs: 60_000, leaseMs: 60_000 }
  return { ...base, ...more }
}

const busy = (one: Needs, estimateMs: number | null = null, elapsedMs = 0) => ({ needs: one, estimateMs, elapsedMs })

describe('what starts', () => {
  test.each<[string, WaitingWork[], number | null, number, number | undefined]>([
    ['the first that fits', [lease({ needs: needs(9) }), lease({ needs: needs(2) })], null, 0, 1],
    ['nothing of an empty lease', [lease({ waiting: 0 })], null, 0, undefined],
    ['nothing with too much memory', [lease({ needs: needs(1, 17) })], null, 0, undefined],
    ['nothing in the last tenth of the lease', [lease()], null, 54_000, undefined],
    ['just before the last tenth', [lease()], null, 53_999, 0],
    ['nothing longer than the time left', [lease({ needs: needs(1, 1, { walltimeMs: 1000 }) })], 999, 0, undefined],
    ['what fits the time left exactly', [lease({ needs: needs(1, 1, { walltimeMs: 1000 }) })], 1000, 0, 0],
    ['nothing for another runtime', [lease({ needs: needs(1, 1, { runtime: 'container' }) })], null, 0, undefined],
  ])('slots - %s', (_what, leases, timeLeftMs, nowMs, expected) => {
    const found = nextToStart(leases, whole, timeLeftMs, nowMs)
    expect(found === undefined ? undefined : leases.indexOf(found)).toBe(expected)
  })

  test('slots - memory and cores of what runs are taken away', () => {
    const free = freeShape(whole, [busy(needs(2, 4)), busy(needs(1, 8))])
    expect(free).toMatchObject({ cores: 5, memoryBytes: 4 * GiB })
    expect(nextToStart([lease({ needs: needs(1, 5) })], free, null, 0)).toBeUndefined()
  })
})

describe('what is asked for', () => {
  test('slots - an idle node offers all of itself', () => {
    expect(roomFor(whole, [], [], 10_000)).toEqual({ shape: whole, aheadMs: 10_000 })
  })

  test('slots - what is about to start is not offered', () => {
    const room = roomFor(whole, [], [lease({ needs: needs(2, 2), waiting: 3 })], 10_000)
    expect(room?.shape).toMatchObject({ cores: 2, memoryBytes: 10 * GiB })
  })

  test('slots - a bundle that recycles its room leaves the rest to others', () => {
    const running = [busy(needs(3, 2)), busy(needs(3, 2))]
    const room = roomFor(whole, running, [lease({ needs: needs(3, 2), waiting: 100, running: 2 })], 10_000)
    expect(room?.shape.cores).toBe(2)
  })

  test('slots - nothing is asked for beside work that waits for room', () => {
    expect(roomFor(whole, [busy(needs(4))], [lease({ needs: needs(8) })], 10_000)).toBeNull()
  })

  test.each<[string, number | null, number, number | null]>([
    ['nothing ahead of tasks of unknown length', null, 0, null],
    ['nothing ahead of long tasks', 60_000, 0, null],
    ['the whole node ahead of tasks that are nearly over', 60_000, 55_000, 5000],
    ['the whole node ahead of short tasks', 1000, 0, 9000],
  ])('slots - %s', (_what, estimateMs, elapsedMs, aheadMs) => {
    const running = Array.from({ length: 8 }, () => busy(needs(1), estimateMs, elapsedMs))
    expect(roomFor(whole, running, [], 10_000)?.aheadMs ?? null).toBe(aheadMs)
  })

  test('slots - short work in hand is enough when it lasts as long as wanted', () => {
    const running = Array.from({ length: 8 }, () => busy(needs(1), 1000))
    expect(roomFor(whole, running, [lease({ waiting: 80, running: 8, estimateMs: 1000 })], 10_000)).toBeNull()
  })
})
