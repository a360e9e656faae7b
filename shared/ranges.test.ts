import { describe, expect, it } from 'vitest'
import { seeded } from '../test/seeded.ts'
import {
  containsIndex,
  countRanges,
  formatRanges,
  indices,
  intersectRanges,
  parseRanges,
  rangesOf,
  subtractRanges,
  takeFirst,
  uniteRanges,
} from './ranges.ts'

const random = seeded(20260101)
const someSet = () => {
  const size = random.below(40)
  return new Set(Array.from({ length: size }, () => random.below(60)))
}
const sorted = (set: Iterable<number>) => [...set].sort((x, y) => x - y)

describe('ranges - agree with a Set of the same indices', () => {
  const cases = Array.from({ length: 300 }, () => [someSet(), someSet()] as const)

  it('text and back is the same set', () => {
    for (const [a] of cases) {
      const text = formatRanges(rangesOf(a))
      expect([...indices(parseRanges(text))]).toEqual(sorted(a))
      expect(formatRanges(parseRanges(text))).toBe(text)
      expect(countRanges(parseRanges(text))).toBe(a.size)
    }
  })

  it('subtractRanges is set difference', () => {
    for (const [a, b] of cases) {
      expect([...indices(subtractRanges(rangesOf(a), rangesOf(b)))]).toEqual(
        sorted([...a].filter((index) => !b.has(index))),
      )
    }
  })

  it('intersectRanges and uniteRanges are what both and what either has', () => {
    for (const [a, b] of cases) {
      const both = sorted([...a].filter((index) => b.has(index)))
      expect([...indices(intersectRanges(rangesOf(a), rangesOf(b)))]).toEqual(both)
      expect(uniteRanges(rangesOf(a), rangesOf(b))).toEqual(rangesOf([...a, ...b]))
    }
  })

  it('takeFirst splits without loss', () => {
    for (const [a] of cases) {
      const count = random.below(50)
      const { taken, rest } = takeFirst(rangesOf(a), count)
      expect([...indices(taken)]).toEqual(sorted(a).slice(0, count))
      expect([...indices(rest)]).toEqual(sorted(a).slice(count))
    }
  })

  it('containsIndex is membership', () => {
    for (const [a] of cases) {
      for (let index = 0; index < 61; index++) expect(containsIndex(rangesOf(a), index)).toBe(a.has(index))
    }
  })
})

describe('ranges - text', () => {
  it.each([
    ['', []],
    ['0', [[0, 0]]],
    [
      '0-9,12,20-29',
      [
        [0, 9],
        [12, 12],
        [20, 29],
      ],
    ],
  ] as const)('"%s" is read', (text, spans) => {
    expect(parseRanges(text)).toEqual(spans)
  })

  it.each(['a', '1-', '-1', '5-3', '3,1', '1,1', '1-5,5', '1,,2', ' 1', '1 ', '1.5', '0x1', '12345678901', ','])(
    '"%s" is refused',
    (text) => {
      expect(() => parseRanges(text)).toThrow(RangeError)
    },
  )

  it('a wrong text is quoted only in part', () => {
    expect(() => parseRanges('x'.repeat(10_000))).toThrow(/^not a set of indices: "x{80}"$/)
  })
})
