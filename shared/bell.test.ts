import { expect, it } from 'vitest'
import { manualClock } from '../test/manual-clock.ts'
import { Bell } from './bell.ts'

function waiting(bell: Bell, atMostMs?: number) {
  const wait = { isOver: false }
  void bell.next(atMostMs).then(() => {
    wait.isOver = true
  })
  return wait
}

it('bell - who waits is told by the next ring', async () => {
  const clock = manualClock()
  const bell = new Bell(clock)
  const wait = waiting(bell)
  await clock.settle()
  expect(wait.isOver).toBe(false)
  bell.ring()
  await clock.settle()
  expect(wait.isOver).toBe(true)
  expect(clock.sleeping).toBe(0)
})

it('bell - rings that came while nobody waited count as one', async () => {
  const clock = manualClock()
  const bell = new Bell(clock)
  bell.ring()
  bell.ring()
  await bell.next()
  const wait = waiting(bell)
  await clock.settle()
  expect(wait.isOver).toBe(false)
})

it('bell - without a ring the wait ends by itself', async () => {
  const clock = manualClock()
  const wait = waiting(new Bell(clock), 1000)
  await clock.advance(999)
  expect(wait.isOver).toBe(false)
  await clock.advance(1)
  expect(wait.isOver).toBe(true)
})
