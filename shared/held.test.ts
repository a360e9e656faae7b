import { describe, expect, it } from 'vitest'
import { heldDigest } from './held.ts'

const leases = [
  { bundle: 'b1', fence: 1 },
  { bundle: 'b2', fence: 2 },
  { bundle: 'b10', fence: 1_767_225_600_000_001 },
]

describe('held - a digest of what is held', () => {
  it('does not depend on the order', () => {
    expect(heldDigest([...leases].reverse())).toBe(heldDigest(leases))
    expect(heldDigest(new Set(leases))).toBe(heldDigest(leases))
  })

  it('changes with every lease and every fence', () => {
    const others = [
      [],
      leases.slice(1),
      [...leases, { bundle: 'b3', fence: 3 }],
      leases.map((l) => ({ ...l, fence: 9 })),
    ]
    const digests = [leases, ...others].map(heldDigest)
    expect(new Set(digests).size).toBe(digests.length)
  })

  it('one lease is never read as two', () => {
    expect(heldDigest([{ bundle: 'b1', fence: 12 }])).not.toBe(heldDigest([{ bundle: 'b11', fence: 2 }]))
  })

  it('is what every released version computes', () => {
    expect(heldDigest([])).toBe('47DEQpj8HBSa-_TImW-5')
    expect(heldDigest(leases)).toMatchInlineSnapshot(`"wf_BbhGvFWHX4VuiiUjO"`)
  })
})
