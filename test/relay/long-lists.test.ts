/** Lists that are short in number and long in bytes: what does not fit into one message to the centre goes with the next. */
import { afterEach, beforeEach, expect, it } from 'vitest'
import { formatRanges, rangesOf } from '../../shared/ranges.ts'
import { seeded } from '../seeded.ts'
import { RelayBench } from './bench.ts'
import { until } from './relay-in-parts.ts'

let at: RelayBench
beforeEach(async () => {
  at = await RelayBench.open()
})
afterEach(() => at?.close())

const LEASES = 200
const random = seeded(7)
/** Some hundred tasks with gaps between them, as retries leave: hardly shorter when packed. */
const gappy = () => formatRanges(rangesOf(Array.from({ length: 100 }, () => random.below(1_000_000))))
const names = Array.from({ length: LEASES }, (_, at) => `b${at}`)

it('relay - many parts with many gaps that started are told in several beats', async () => {
  await at.pilot('a')
  await until('a first beat', () => at.centre.beats.length > 0)
  const parts = names.map((bundle, at) => ({
    bundle,
    campaign: 'c1',
    step: 'sim',
    fences: [1000 + at],
    tasks: gappy(),
  }))
  for (const part of parts) at.relay.upstream.noteStarted({ ...part, node: 'n' })
  const told = () => at.centre.beats.flatMap(({ started }) => started)
  await until('all are told', () => told().length >= LEASES)
  expect(told()).toEqual(parts.map((part) => ({ ...part, node: 'n' })))
})

it('relay - drained, it gives many parts with many gaps back in several pulls', async () => {
  await at.pilot('a')
  let given = 0
  for (const [place, bundle] of names.entries()) {
    at.centre.give({ bundle, tasks: gappy(), fence: 1000 + place, needs: { walltimeMs: 10 } })
    // A reply has its own bounds.
    if (at.centre.work.length < 20) continue
    given += 20
    await until('they are here', () => at.relay.buffer.counts().leases === given)
  }
  at.relay.upstream.drain()
  await until('all is given back', () => at.relay.buffer.counts().leases === 0)
  expect(at.centre.returned.map(({ bundle }) => bundle)).toEqual(names)
})
