import { expect, test } from 'vitest'
import { chooseBundleSize } from './bundle-size.ts'

test.each([
  ['run times unknown', null, 1e6, 10, 0, 1],
  ['second-long tasks: two minutes of work', 1000, 1e6, 10, 0, 120],
  ['very short ones: no more than a thousand', 1, 1e9, 10, 0, 1000],
  ['long ones: one', 3600_000, 1e6, 10, 0, 1],
  ['near the end: a quarter of what is left for each slot', 1000, 400, 10, 0, 10],
  ['the last ones', 1000, 20, 10, 0, 1],
  ['rows stay under eight kilobytes', 1000, 1e6, 10, 1000, 8],
  ['a row of four kilobytes', 1000, 1e6, 10, 4096, 2],
])('bundles - %s', (_title, meanWallMs, remaining, slots, rowBytes, size) => {
  expect(chooseBundleSize(meanWallMs, remaining, slots, rowBytes)).toBe(size)
})
