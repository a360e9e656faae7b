import { describe, expect, it } from 'vitest'
import type { NodeFacts, OfferEntry } from '../shared/protocol/messages.ts'
import { countRanges, formatRanges, parseRanges, rangesOf } from '../shared/ranges.ts'
import { sampleNeeds, sampleShape as shape } from '../test/sample-messages.ts'
import { type ChoiceInput, chooseWork } from './choice.ts'
import type { Lease } from './lease.ts'
import { aggregateOffer } from './offer.ts'
import type { Session } from './sessions.ts'

const facts: NodeFacts = { ...shape, node: 'n1', timeLeftMs: null, labels: {} }
const offer: OfferEntry = { shape, count: 1, timeLeftMs: null, aheadMs: 0, node: 'n1' }

function lease(tasks: string, change: Partial<Lease['needs']> = {}, grant: Partial<Lease['grant']> = {}): Lease {
  return {
    bundle: 'b',
    campaign: 'c',
    step: 's',
    gone: false,
    free: parseRanges(tasks),
    needs: { ...sampleNeeds, denySites: [], walltimeMs: 60_000, ...change },
    expiresAtMs: 10_000,
    grant: {
      leaseMs: 1000,
      avoidNodes: [],
      tries: {},
      template: 't',
      bundle: { bytes: new Uint8Array(500) },
      ...grant,
    },
  } as unknown as Lease
}

function choose(leases: Lease[], change: Partial<ChoiceInput> = {}) {
  return chooseWork({
    leases,
    offer: [offer],
    node: 'n1',
    others: [],
    estimateMs: () => null,
    leaseLeftMs: () => 1000,
    wallMs: 0,
    templateBytes: () => 0,
    ...change,
  })
}
const chosen = (...args: Parameters<typeof choose>) => choose(...args).picked.map(({ tasks }) => formatRanges(tasks))

describe('buffer choice', () => {
  it('buffer choice - fills what is free, oldest lease first', () => {
    expect(chosen([lease('0-2'), lease('10-12'), lease('20')])).toEqual(['0-2', '10'])
  })
  it('buffer choice - a lease that does not fit lets later ones pass', () => {
    expect(chosen([lease('0', { cores: 5 }), lease('1')])).toEqual(['1'])
    expect(choose([lease('0', { cores: 5 })]).reason).toBe('nothingFits')
    expect(choose([]).reason).toBe('noWork')
  })
  it('buffer choice - takes ahead only as much as run times are known for', () => {
    const ahead = [{ ...offer, aheadMs: 10_000 }]
    expect(chosen([lease('0-99')], { offer: ahead })).toEqual(['0-3'])
    expect(chosen([lease('0-99')], { offer: ahead, estimateMs: () => 5000 })).toEqual(['0-11'])
    const ending = [{ ...offer, aheadMs: 10_000, timeLeftMs: 60_000 }]
    expect(chosen([lease('0-99', { walltimeMs: 60_000 })], { offer: ending, estimateMs: () => 55_000 })).toEqual([
      '0-3',
    ])
  })
  it('buffer choice - what does not end in the time left is not given', () => {
    expect(chosen([lease('0')], { offer: [{ ...offer, timeLeftMs: 59_999 }] })).toEqual([])
  })
  it.each([
    [101, ['0']],
    [100, []],
  ])('buffer choice - with %i of 1000 ms left gives %j', (leftMs, expected) => {
    expect(chosen([lease('0')], { leaseLeftMs: () => leftMs })).toEqual(expected)
  })
  it('buffer choice - nothing of a bundle past its signed end', () => {
    expect(chosen([lease('0')], { wallMs: 10_000 })).toEqual([])
  })
  it('buffer choice - an avoided node gets it only when no other live node could', () => {
    const avoiding = [lease('0', {}, { avoidNodes: ['n1'] })]
    expect(chosen(avoiding, { others: [{ ...facts, node: 'n2' }] })).toEqual([])
    expect(chosen(avoiding, { others: [{ ...facts, node: 'n2', cores: 0 }] })).toEqual(['0'])
    expect(chosen(avoiding, { others: [{ ...facts, node: 'n1' }] })).toEqual(['0'])
  })
  it('buffer choice - a reply stays under what a message may have', () => {
    const many = Array.from({ length: 4 }, () => lease('0', {}, { bundle: { bytes: new Uint8Array(15_000) } as never }))
    expect(chosen(many)).toHaveLength(2)
    const one = [lease('0', {}, { bundle: { bytes: new Uint8Array(45_000) } as never })]
    expect(chosen(one)).toHaveLength(1)
  })
  it('buffer choice - ranges with gaps, earlier tries and nodes to avoid are counted, and halve what is too much', () => {
    const scattered = (first: number, avoidNodes: string[]) => {
      const list = Array.from({ length: 1000 }, (_, i) => 1_000_000 + first + 10 * i)
      const tries = Object.fromEntries(list.map((index) => [index, 1]))
      return lease(
        formatRanges(rangesOf(list)),
        {},
        { bundle: { bytes: new Uint8Array(9000) } as never, tries, avoidNodes },
      )
    }
    const ahead = { offer: Array(4).fill({ ...offer, aheadMs: 1e9 }), estimateMs: () => 100 }
    const sizes = (...leases: Lease[]) => choose(leases, ahead).picked.map(({ tasks }) => countRanges(tasks))
    expect(sizes(scattered(0, []), scattered(1, []), lease('0'))).toEqual([1000, 1])
    const nodes = Array.from({ length: 64 }, (_, i) => `${i}`.padEnd(200, 'n'))
    expect(sizes(scattered(0, nodes))).toEqual([500])
    // Without anything that is said of single tasks, as many as there may be.
    expect(sizes(lease('0-4999'), lease('5000-9999'))).toEqual([2000, 2000])
  })
})

describe('relay offer', () => {
  const pilot = (change: Partial<Session> = {}) => ({ facts, offer, isWaiting: false, ...change }) as unknown as Session
  const ask = (pilots: Session[], leases: Lease[], aheadMs: number, estimate: number | null = null) =>
    aggregateOffer({ pilots, leases, estimateMs: () => estimate, aheadMs })

  it('relay offer - without pilots nothing', () => {
    expect(ask([], [], 60_000)).toEqual([])
  })
  it('relay offer - pilots of one shape are one entry', () => {
    expect(ask([pilot(), pilot()], [], 60_000)).toMatchObject([{ count: 2, aheadMs: 60_000, node: null }])
    expect(ask([pilot()], [], 60_000)).toMatchObject([{ count: 1, node: 'n1' }])
  })
  it('relay offer - a full buffer asks for nothing, one used by a quarter for what is missing', () => {
    // 4 cores, 60 s ahead: 240 core-seconds, so 24 tasks of 10 s.
    expect(ask([pilot()], [lease('0-23')], 60_000, 10_000)).toEqual([])
    expect(ask([pilot()], [lease('0-18')], 60_000, 10_000)).toEqual([])
    expect(ask([pilot()], [lease('0-11')], 60_000, 10_000)).toMatchObject([{ aheadMs: 30_000 }])
  })
  it('relay offer - a pilot that waits for what the buffer lacks is asked for all the same', () => {
    const big = lease('0-999', { cores: 100 })
    expect(ask([pilot({ isWaiting: true })], [big], 60_000, 10_000)).toMatchObject([{ shape, aheadMs: 0 }])
    expect(ask([pilot({ isWaiting: true })], [], 0)).toMatchObject([{ shape, aheadMs: 0 }])
  })
})
