import { describe, expect, it } from 'vitest'
import { timingsFor } from './timings.ts'

const SCALES = [1, 0.1, 0.02, 0.001]

describe('timings - what a welcome says', () => {
  it.each(SCALES)('at scale %d a pilot is lost after several beats, and not before its lease ends', (scale) => {
    const timings = timingsFor('pilot', scale)
    expect(timings.beatMs).toBeGreaterThan(0)
    expect(timings.lostAfterMs).toBeGreaterThanOrEqual(5 * timings.beatMs)
    expect(timings.leaseMs).toBeLessThanOrEqual(timings.lostAfterMs)
    expect(timings.pullWaitMs).toBeGreaterThan(0)
  })

  it('a relay outlives a cut of the length its site set, whatever the scale', () => {
    for (const scale of SCALES) {
      const timings = timingsFor('relay', scale, 1_800_000)
      expect(timings).toMatchObject({ lostAfterMs: 1_800_000, leaseMs: 1_800_000 })
    }
    expect(timingsFor('relay', 1).lostAfterMs).toBe(2 * 3_600_000)
  })
})
