import { expect, test } from 'vitest'
import { captured } from './captured/read.ts'
import { processorLevel } from './processor.ts'

test.each([
  ['a real AMD EPYC', captured('cpu/epyc-virtual.txt'), 'x86-64-v4'],
  ['the same without AVX-512', captured('cpu/epyc-virtual.txt').replaceAll('avx512', 'no512'), 'x86-64-v3'],
  ['an NVIDIA Grace', captured('cpu/grace.txt'), 'aarch64-sve2'],
  ['an old one', 'flags\t\t: fpu sse sse2 lm\n', 'x86-64-v1'],
  ['nothing said', 'processor : 0\n', null],
])('processor - %s', (_what, cpuinfo, expected) => {
  expect(processorLevel(cpuinfo)).toEqual(expected)
})
