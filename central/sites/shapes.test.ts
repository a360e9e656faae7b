import { expect, test } from 'vitest'
import type { Shape } from '../../shared/fit.ts'
import { sampleShape } from '../../test/sample-messages.ts'
import { covers, largest } from './shapes.ts'

const shape = (more: Partial<Shape> = {}): Shape => ({ ...sampleShape, cores: 8, memoryBytes: 16, ...more })

test.each<[string, Partial<Shape>, boolean]>([
  ['the same', {}, true],
  ['fewer cores', { cores: 4 }, true],
  ['more memory', { memoryBytes: 32 }, false],
  ['another architecture', { arch: 'aarch64' }, false],
  ['a runtime that is not there', { runtimes: ['host', 'container'] }, false],
  ['more network', { network: 'proxy' }, false],
])('shapes - a node covers %s: %#', (_what, more, expected) => {
  expect(covers(shape(), shape(more))).toBe(expected)
})

test('shapes - only the largest are kept, whatever the order', () => {
  const small = shape({ cores: 2 })
  const fat = shape({ cores: 4, memoryBytes: 64 })
  expect(largest([small, shape(), fat, shape({ cores: 0 })])).toEqual([shape(), fat])
  expect(largest([fat, shape(), small])).toEqual([shape(), fat])
})
