import { afterEach, expect, test } from 'vitest'
import { manualClock } from '../../../test/manual-clock.ts'
import { type RunningPart, Service } from './service.ts'

/** A part that ends when the test says so. */
function fakePart() {
  let end = (_exit: { code: number | null; signal: NodeJS.Signals | null }) => {}
  const exited = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve) => {
    end = resolve
  })
  const part: RunningPart = {
    pid: 1,
    address: '',
    logPath: '',
    exited,
    kill: () => end({ code: null, signal: 'SIGKILL' }),
    stop: async () => end({ code: 0, signal: null }),
  }
  return part
}

const died: { how: string; againInMs: number }[] = []
const events = { onDied: (_: Service, how: string, againInMs: number) => void died.push({ how, againInMs }) }

afterEach(() => {
  died.length = 0
})

test('service - what dies is started again: at once, then ever later', async () => {
  const clock = manualClock()
  const service = new Service('x', async () => fakePart(), events, clock)
  await service.start()
  for (let deaths = 1; deaths <= 4; deaths++) {
    service.part!.kill()
    await clock.settle()
    expect(died.length).toBe(deaths)
    await clock.advance(died.at(-1)!.againInMs)
    expect(service.starts).toBe(deaths + 1)
  }
  expect(died.map(({ againInMs }) => againInMs)).toEqual([0, 500, 2000, 6000])
  expect(died[0]!.how).toBe('was ended by SIGKILL')
  await service.stop()
})

test('service - a start that fails is tried again, but not the first one', async () => {
  let fails = true
  const clock = manualClock()
  const start = async () => (fails ? Promise.reject(new Error('no\nmore of it')) : fakePart())
  const service = new Service('x', start, events, clock)
  await expect(service.start()).rejects.toThrow('no')
  fails = false
  await service.start()
  fails = true
  service.part!.kill()
  await clock.advance(0)
  expect(died.map(({ how }) => how)).toEqual(['was ended by SIGKILL', 'could not be started: no'])
  fails = false
  await clock.advance(died.at(-1)!.againInMs)
  expect(service.state).toBe('running')
  await service.stop()
  expect(service.state).toBe('stopped')
})

test('service - what was stopped is not started again', async () => {
  const service = new Service('x', async () => fakePart(), events)
  await service.start()
  await service.stop()
  expect(died).toEqual([])
  expect(service.starts).toBe(1)
})
