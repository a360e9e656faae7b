import { expect, it } from 'vitest'
import { isProven, proveMark } from './store-mark.ts'

it('store mark - only what was given is proven: no other sequence, epoch or key', () => {
  const [key, other] = [new Uint8Array(32), new Uint8Array(32).fill(1)]
  const mark = proveMark(key, { epoch: 'e1.a', sequence: 7 })
  expect(mark).toMatchObject({ epoch: 'e1.a', sequence: 7 })
  expect(isProven(key, mark)).toBe(true)
  expect(isProven(key, { ...mark, sequence: 8 })).toBe(false)
  expect(isProven(key, { ...mark, epoch: 'e1.b' })).toBe(false)
  expect(isProven(other, mark)).toBe(false)
  expect(isProven(key, { epoch: 'e1.a', sequence: 7 })).toBe(false)
  expect(isProven(key, { ...mark, proof: 'no proof' })).toBe(false)
})
