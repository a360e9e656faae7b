import { describe, expect, test } from 'vitest'
import type { Shape } from '../shared/fit.ts'
import type { Needs } from '../shared/protocol/work.ts'
import { seeded } from '../test/seeded.ts'
import { canEnd, Devices, freeShape, nextToStart, roomFor, type WaitingWork } from './slots.ts'
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

describe('GPUs', () => {
  test('slots - those unused for longest, and never more than there are', () => {
    const devices = new Devices(['a', 'b', 'c'])
    expect(devices.take(2)).toEqual(['a', 'b'])
    expect(() => devices.take(2)).toThrow('2 GPUs wanted, 1 free')
    devices.release(['b'])
    expect(devices.take(2)).toEqual(['c', 'b'])
    expect(devices.take(0)).toEqual([])
  })

  test('slots - one that is retired is nobody’s any more, also where somebody has it now', () => {
    const devices = new Devices(['a', 'b', 'c'])
    const own = devices.take(2)
    devices.retire(['b', 'c'])
    devices.retire(['c'])
    expect([devices.free, devices.retired]).toEqual([0, 2])
    devices.release(own)
    expect(devices.take(devices.free)).toEqual(['a'])
  })

  test.each([
    [1, 16, true],
    [1, 40, true],
    [1, 41, false],
    [4, 16, true],
    [5, 16, false],
  ])('slots - %i GPUs of %i GiB fit a node of four with 40 GiB: %s', (gpus, gpuMemory, fits) => {
    const node = { ...whole, gpus: 4, gpuMemoryBytes: 40 * GiB }
    const one = lease({ needs: needs(1, 1, { gpus, gpuMemoryBytes: gpuMemory * GiB }) })
    expect(nextToStart([one], node, null, 0) === one).toBe(fits)
  })
})

describe('whatever comes', () => {
  const SEEDS = [1, 2, 3, 4, 5, 6, 7, 8]
  test.each(SEEDS)(
    "slots - seed %i: nothing is committed twice, nothing is lost, and GPUs are one task's own",
    (seed) => {
      const { next: random } = seeded(seed)
      const upTo = (most: number) => Math.floor(random() * (most + 1))
      const ids = Array.from({ length: upTo(8) }, (_, i) => `gpu${i}`)
      const node: Shape = {
        ...whole,
        ...{ cores: 1 + upTo(127), memoryBytes: 1 + upTo(512) * GiB, scratchBytes: upTo(1000) * GiB },
        ...{ gpus: ids.length, gpuMemoryBytes: 16 * GiB },
      }
      const devices = new Devices(ids)
      const running: { needs: Needs; ids: readonly string[]; endsAtMs: number }[] = []
      let leases: WaitingWork[] = []
      const endsMs = 100_000
      for (let nowMs = 0; nowMs < endsMs; nowMs += 250) {
        if (random() < 0.6) {
          const one = needs(1 + upTo(16), upTo(32), {
            ...{ scratchBytes: upTo(50) * GiB, gpus: random() < 0.4 ? upTo(4) : 0 },
            ...{ gpuMemoryBytes: upTo(20) * GiB, walltimeMs: 1 + upTo(60_000) },
          })
          leases.push(lease({ needs: one, waiting: 1 + upTo(20), endsAtMs: nowMs + 1e6, leaseMs: 1e6 }))
        }
        const leftMs = endsMs - nowMs
        leases = leases.filter((one) => one.waiting > 0 && canEnd(one.needs, leftMs))
        for (;;) {
          const next = nextToStart(leases, freeShape(node, running), leftMs, nowMs)
          if (!next) break
          next.waiting--
          // Some end before their walltime; none is given more.
          const endsAtMs = nowMs + Math.ceil(next.needs.walltimeMs * random())
          running.push({ needs: next.needs, ids: devices.take(next.needs.gpus), endsAtMs })
          expect(nowMs + next.needs.walltimeMs).toBeLessThanOrEqual(endsMs)
        }
        const free = freeShape(node, running)
        for (const left of [free.cores, free.memoryBytes, free.scratchBytes, free.gpus])
          expect(left).toBeGreaterThanOrEqual(0)
        const given = running.flatMap((one) => one.ids)
        expect(new Set(given).size).toBe(given.length)
        expect(given.length + devices.free).toBe(ids.length)
        expect(free.gpus).toBe(devices.free)
        for (const done of running.filter(({ endsAtMs }) => endsAtMs <= nowMs)) {
          running.splice(running.indexOf(done), 1)
          devices.release(done.ids)
        }
      }
      for (const { ids: own } of running.splice(0)) devices.release(own)
      expect(freeShape(node, running)).toEqual(node)
      expect([...devices.take(ids.length)].sort()).toEqual(ids)
    },
  )
})
