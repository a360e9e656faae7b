import { describe, expect, it } from 'vitest'
import type { Message, OfferEntry } from '../shared/protocol/messages.ts'
import { parseRanges } from '../shared/ranges.ts'
import { sampleNeeds, sampleShape as shape } from '../test/sample-messages.ts'
import { answerDemand, type DemandParts } from './demand.ts'
import type { Lease } from './lease.ts'
import type { Session } from './sessions.ts'

const offer: OfferEntry[] = [{ shape, count: 1, timeLeftMs: 3_600_000, aheadMs: 0, node: null }]
const lease = (tasks: string, cores = 1) =>
  ({
    campaign: 'c',
    step: 's',
    gone: false,
    free: parseRanges(tasks),
    needs: { ...sampleNeeds, cores, denySites: [], walltimeMs: 60_000 },
  }) as unknown as Lease
const some = (tasks: number, work = 'c/s') => ({ entry: 0, group: 'g', work, tasks, perNode: 4, estimateMs: null })
const centre = (...fits: Message<'demanded'>['fits']): Message<'demanded'> => ({
  ...{ fits, idlePilots: 9, isWhole: true, reason: fits.length > 0 ? null : 'nothingFits' },
})
const ask = (change: Partial<DemandParts>) =>
  answerDemand(
    {
      leases: () => [],
      estimateMs: () => null,
      pilots: () => [],
      isDraining: () => false,
      askCentre: async () => centre(),
      ...change,
    },
    { offer },
  )
const deaf = () => Promise.reject(new Error('nobody'))

describe('demand at the relay', () => {
  it.each<[string, Partial<DemandParts>, Record<string, number>, boolean, string | null]>([
    ['the centre has some', { askCentre: async () => centre(some(7)) }, { 'c/s': 7 }, true, null],
    ['the centre has none that fits', {}, {}, true, 'nothingFits'],
    ['the buffer has some', { leases: () => [lease('0-4')] }, { 'c/s': 5 }, true, null],
    [
      'both, of one step',
      { leases: () => [lease('0-4')], askCentre: async () => centre(some(7)) },
      { 'c/s': 12 },
      true,
      null,
    ],
    ['what does not fit is not counted', { leases: () => [lease('0-4', 5)] }, {}, true, 'nothingFits'],
    [
      'the centre is away, the buffer is not',
      { leases: () => [lease('0')], askCentre: deaf },
      { 'c/s': 1 },
      false,
      null,
    ],
    ['the centre is away, and nothing is known', { askCentre: deaf }, {}, false, 'noWork'],
    ['drained, nothing is wanted', { isDraining: () => true, leases: () => [lease('0')] }, {}, true, 'draining'],
  ])('demand - %s', async (_case, change, tasks, isWhole, reason) => {
    const answer = await ask(change)
    expect(Object.fromEntries(answer.fits.map((one) => [one.work, one.tasks]))).toEqual(tasks)
    expect(answer).toMatchObject({ isWhole, reason })
  })

  it('demand - idle pilots are those that wait with nothing running, by the relay that knows them', async () => {
    const pilots = [
      { isWaiting: true, running: 0 },
      { isWaiting: true, running: 1 },
      { isWaiting: false, running: 0 },
    ] as Session[]
    expect((await ask({ pilots: () => pilots })).idlePilots).toBe(1)
  })
})
