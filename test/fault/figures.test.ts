import { expect, test } from 'vitest'
import { figuresOf, type Made, median } from './figures.ts'

test('figures - by kind: made and missed, median and worst time until work, what nothing came after', () => {
  const made = (beganMs: number | null, endedMs: number, resumedMs: number | null): Made => ({
    kind: 'kill relay',
    beganMs,
    endedMs,
    resumedMs,
  })
  const all = [made(0, 1000, 2000), made(1000, 4000, 9000), made(0, 2000, 3000), made(null, 10, null), made(5, 6, null)]
  expect(figuresOf(all)).toEqual([
    { kind: 'kill relay', count: 4, missed: 1, lastedS: 1.5, untilWork: { medianS: 3, worstS: 8 }, open: 1 },
  ])
})

test('figures - the median of an even number of values lies between the two in the middle', () => {
  expect(median([4, 1, 3, 2])).toBe(2.5)
  expect(median([5, 1, 3])).toBe(3)
})
