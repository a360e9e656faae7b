/** Uploads whose ends the test decides, on a clock that it moves. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { type ErrorCode, IndraftError } from '../shared/errors.ts'
import { type ManualClock, manualClock } from '../test/manual-clock.ts'
import { UploadQueue } from './upload-queue.ts'

let clock: ManualClock
let stop: AbortController
let queue: UploadQueue
/** In the order in which they were tried. */
let tried: string[]
/** What became of them. */
let settled: Record<string, string>
/** What is answered for names that begin so. */
let refusals: Record<string, ErrorCode>

beforeEach(() => {
  clock = manualClock()
  stop = new AbortController()
  tried = []
  settled = {}
  refusals = {}
  queue = new UploadQueue(clock, stop.signal, {
    onPutOff: () => {},
    onError: (_, error) => {
      throw error
    },
  })
})
afterEach(async () => {
  stop.abort()
  await queue.ended()
})

/** @param name `campaign/what` */
function add(name: string, kind: 'outputs' | 'log' = 'outputs'): void {
  const work = async () => {
    tried.push(name)
    // Others have their turn meanwhile.
    await Promise.resolve()
    const code = Object.entries(refusals).find(([beginning]) => name.startsWith(beginning))?.[1]
    if (code) throw new IndraftError(code)
  }
  const settle = (error?: unknown) => {
    settled[name] = error === undefined ? 'up' : (error as IndraftError).code
  }
  queue.add({ campaign: name.split('/')[0]!, kind, name, work, settle })
}

const settledNames = () => Object.keys(settled).sort()
/** Without time going on. */
const settle = () => clock.advance(0)

describe('upload queue - what may pass', () => {
  it.each<ErrorCode>(['internal.error', 'link.timeout', 'site.disabled'])(
    'upload queue - %s about one campaign holds up no other',
    async (code) => {
      refusals = { 'x/': code }
      for (let i = 0; i < 60; i++) add(`x/${i}`)
      await settle()
      add('y/1')
      await settle()
      expect(settled).toEqual({ 'y/1': 'up' })
      expect(queue.waiting).toBe(60)
    },
  )

  it('upload queue - six that are refused do not hold up a seventh of their campaign', async () => {
    refusals = Object.fromEntries(Array.from({ length: 6 }, (_, i) => [`x/bad${i}`, 'internal.error' as const]))
    for (let i = 0; i < 6; i++) add(`x/bad${i}`)
    await settle()
    add('x/good')
    await clock.advance(60_000)
    expect(settled).toEqual({ 'x/good': 'up' })
    refusals = {}
    await clock.advance(20_000)
    expect(settledNames()).toHaveLength(7)
  })

  it('upload queue - a campaign that was put off asks with one, at most every 15 s, and goes on when one gets through', async () => {
    refusals = { 'x/': 'dispatcher.busy' }
    for (let i = 0; i < 20; i++) add(`x/${i}`)
    await settle()
    expect(tried).toHaveLength(6)
    tried = []
    await clock.advance(150_000)
    expect(tried.length).toBeGreaterThan(9)
    expect(tried.length).toBeLessThan(15)
    refusals = {}
    await clock.advance(15_000)
    expect(settledNames()).toHaveLength(20)
    expect(queue.waiting).toBe(0)
  })
})

describe('upload queue - what may be about one file', () => {
  it('upload queue - it waits alone and is given up when it came six times', async () => {
    refusals = { 'x/bad': 'capability.invalid' }
    add('x/bad')
    await settle()
    for (let i = 0; i < 12; i++) add(`x/${i}`)
    await settle()
    expect(settledNames()).toHaveLength(12)
    await clock.advance(120_000)
    expect(settled['x/bad']).toBe('capability.invalid')
    expect(tried.filter((name) => name === 'x/bad')).toHaveLength(6)
  })

  it('upload queue - what no waiting mends is given up at once', async () => {
    refusals = { 'x/bad': 'file.conflict' }
    add('x/bad')
    await settle()
    expect(settled).toEqual({ 'x/bad': 'file.conflict' })
    expect(queue.waiting).toBe(0)
  })
})

it('upload queue - outputs go before logs, and campaigns in turn', async () => {
  for (let i = 0; i < 30; i++) add(`x/log${i}`, 'log')
  for (let i = 0; i < 6; i++) add(`x/${i}`)
  add('y/1')
  await settle()
  // Six logs had their places before there was anything else.
  const late = tried.slice(6)
  expect(late.slice(0, 7).every((name) => !name.includes('log'))).toBe(true)
  expect(late.indexOf('y/1')).toBeLessThan(2)
  expect(settledNames()).toHaveLength(37)
})

it('upload queue - told to stop it begins nothing and gives nothing up', async () => {
  refusals = { 'x/': 'file.conflict' }
  for (let i = 0; i < 12; i++) add(`x/${i}`)
  stop.abort()
  await queue.ended()
  expect(tried).toHaveLength(6)
  expect(settled).toEqual({})
})
