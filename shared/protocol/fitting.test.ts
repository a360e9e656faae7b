import { expect, it } from 'vitest'
import { firstFitting } from './fitting.ts'

it('fitting - a list is cut by bytes, and what alone is too heavy holds up nothing', () => {
  const [a, b, c] = ['a'.repeat(100), 'b'.repeat(100), 'c'.repeat(100)]
  const heavy = 'h'.repeat(2000)
  expect(firstFitting([a, b, c], 1000)).toEqual([a, b, c])
  expect(firstFitting([a, b, c], 250)).toEqual([a, b])
  expect(firstFitting([heavy, a, b], 250)).toEqual([a, b])
  expect(firstFitting([heavy], 250)).toEqual([])
})
