import { setImmediate } from 'node:timers/promises'
import { describe, expect, it } from 'vitest'
import { manualClock } from '../test/manual-clock.ts'
import { systemClock } from './clock.ts'
import { memoryLink } from './link.ts'

const PEER = { site: 'ALPHA' }
const never = () => new Promise<Uint8Array>(() => {})

describe('link - in memory', () => {
  it('carries a frame up and one down, and says whose it is', async () => {
    const clock = manualClock()
    const link = memoryLink(PEER, async (peer, frame) => Buffer.concat([Buffer.from(peer.site), frame]), clock)
    expect(Buffer.from(await link.request(Buffer.from('!'), 1000)).toString()).toBe('ALPHA!')
    expect(clock.sleeping).toBe(0)
  })

  it('gives up after the timeout, and hears no late answer', async () => {
    const clock = manualClock()
    let answer!: (frame: Uint8Array) => void
    const link = memoryLink(PEER, () => new Promise((resolve) => (answer = resolve)), clock)
    const request = link.request(new Uint8Array(), 1000)
    const refused = expect(request).rejects.toMatchObject({ code: 'link.timeout' })
    await clock.advance(999)
    expect(clock.sleeping).toBe(1)
    await clock.advance(1)
    await refused
    answer(new Uint8Array())
    await setImmediate()
  })

  it('closed, refuses', async () => {
    const link = memoryLink(PEER, never)
    expect(link.isUp).toBe(true)
    await link.close()
    expect(link.isUp).toBe(false)
    await expect(link.request(new Uint8Array(), 1000)).rejects.toMatchObject({ code: 'link.closed' })
  })
})

describe('clock - sleep', () => {
  it('ends at once when it is aborted, before or during', async () => {
    await systemClock.sleep(3_600_000, AbortSignal.abort())
    const stop = new AbortController()
    const sleeping = systemClock.sleep(3_600_000, stop.signal)
    stop.abort()
    await sleeping
  })

  it('ends by itself', async () => {
    const before = systemClock.monotonicMs()
    await systemClock.sleep(5)
    expect(systemClock.monotonicMs()).toBeGreaterThan(before)
  })

  it('of a manual clock ends in order of time', async () => {
    const clock = manualClock()
    const woken: string[] = []
    for (const [name, ms] of [
      ['c', 30],
      ['a', 10],
      ['b', 20],
    ] as const) {
      void clock.sleep(ms).then(() => woken.push(`${name}@${clock.monotonicMs()}`))
    }
    await clock.advance(25)
    expect(woken).toEqual(['a@10', 'b@20'])
    await clock.advance(25)
    expect(woken).toEqual(['a@10', 'b@20', 'c@30'])
  })
})
