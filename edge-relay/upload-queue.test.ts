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
/** Those that run until they are let go. */
let large: Record<string, PromiseWithResolvers<void>>

beforeEach(() => {
  clock = manualClock()
  stop = new AbortController()
  tried = []
  settled = {}
  refusals = {}
  large = {}
  queue = new UploadQueue(clock, stop.signal, {
    onPutOff: () => {},
    onError: (_, error) => {
      throw error
    },
  })
})
afterEach(async () => {
  stop.abort()
  for (const { resolve } of Object.values(large)) resolve()
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
    await large[name]?.promise
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

describe('upload queue - one that takes hours', () => {
  beforeEach(() => {
    large = { 'x/large': Promise.withResolvers() }
  })
  const rest = ['x/0', 'x/1', 'x/2', 'x/3']

  it('upload queue - begun before another was put off, it does not hold up the one that then asks', async () => {
    add('x/large')
    refusals = { 'x/0': 'link.timeout' }
    for (const name of rest.slice(0, 1)) add(name)
    await settle()
    refusals = {}
    for (const name of rest.slice(1)) add(name)
    await settle()
    expect(tried).toEqual(['x/large', 'x/0'])
    await clock.advance(1000)
    expect(settledNames()).toEqual(rest)
    large['x/large']!.resolve()
    await settle()
    expect(settled['x/large']).toBe('up')
  })

  it('upload queue - when it is the one that asks the others follow after 15 s, and rest again when they are put off', async () => {
    refusals = { 'x/': 'link.timeout' }
    add('x/large')
    await settle()
    refusals = {}
    await clock.advance(1000)
    expect(tried).toEqual(['x/large', 'x/large'])
    for (const name of rest) add(name)
    await clock.advance(14_999)
    expect(tried).toHaveLength(2)
    refusals = { 'x/0': 'link.timeout' }
    await clock.advance(1)
    expect(settledNames()).toEqual(rest.slice(1))
    refusals = {}
    await clock.advance(1000)
    expect(settledNames()).toEqual(rest)
  })

  it('upload queue - one that asked and was put off opens nothing when its 15 s are over', async () => {
    refusals = { 'x/': 'dispatcher.busy' }
    for (let i = 0; i < 20; i++) add(`x/${i}`)
    // Rests of 1, 2, 4 and 8 s: asked after 15 s; the first one asked after 1 s.
    await clock.advance(14_000)
    tried = []
    await clock.advance(3000)
    expect(tried).toHaveLength(1)
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
