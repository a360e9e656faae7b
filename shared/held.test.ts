import { describe, expect, it } from 'vitest'
import { heldDigest, inventoryParts } from './held.ts'
import { encode } from './protocol/codec.ts'
import { MAX_MESSAGE_BYTES } from './protocol/version.ts'

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

describe('held - an inventory in parts', () => {
  const lease = (bundle: string, tasks: string) => ({ bundle, campaign: 'c', step: 's', fences: [1, 2], tasks })

  it('nothing held is one empty part', () => {
    expect(inventoryParts([])).toEqual([[]])
  })

  it.each([
    ['many leases of one task', 1000, '7'],
    ['leases of many single tasks', 50, Array.from({ length: 2000 }, (_, i) => 2 * i).join()],
  ])('%s: all are there, in their order, and every part fits a message', (_what, count, tasks) => {
    const leases = Array.from({ length: count }, (_, i) => lease(`b${i}`, tasks))
    const parts = inventoryParts(leases)
    expect(parts.flat()).toEqual(leases)
    expect(parts.length).toBeGreaterThan(1)
    for (const [part, held] of parts.entries()) {
      const frame = encode('inventory', { session: 's', processed: 1, part, parts: parts.length, leases: held })
      expect(frame.length).toBeLessThan(MAX_MESSAGE_BYTES)
    }
  })
})
