/** Hours without central: results pile up in the journal, and drain in batches of bounded size when it is back. */
import { afterEach, beforeEach, expect, it } from 'vitest'
import { IndraftError } from '../../shared/errors.ts'
import type { Message } from '../../shared/protocol/messages.ts'
import { resultOf } from '../conformance/simulated-holder.ts'
import { RelayBench } from './bench.ts'
import { until } from './relay-in-parts.ts'
import { ScriptedCentre } from './scripted-centre.ts'

const RESULTS = 20_000

/** A centre that remembers how much it was told at a time, and can refuse for a while. */
class Busy extends ScriptedCentre {
  readonly batches: number[] = []
  refusals: IndraftError[] = []

  override async onReport(peer: unknown, report: Message<'report'>) {
    const refusal = this.refusals.shift()
    if (refusal) throw refusal
    this.batches.push(report.results.length)
    return await super.onReport(peer, report)
  }
}

let at: RelayBench<Busy>
beforeEach(async () => {
  at = await RelayBench.open({ centre: new Busy() })
})
afterEach(() => at?.close())

it(`backlog - ${RESULTS} results wait over a restart, then all go up, in batches, each once`, async () => {
  const pilot = await at.pilot('a')
  await until('the first hello', () => at.centre.hellos.length > 0)
  at.centre.isCut = true
  const lease = { bundle: 'b', campaign: 'c1', step: 'sim', fences: [5, 6], tasks: `0-${RESULTS - 1}` }
  for (let from = 0; from < RESULTS; from += 100) {
    const batch = Array.from({ length: 100 }, (_, i) => resultOf(lease, from + i))
    expect((await pilot.report(batch)).length).toBe(100)
  }
  expect(at.relay.outgoing.waiting).toBe(RESULTS)
  await at.restart()
  expect(at.relay.outgoing.waiting).toBe(RESULTS)
  expect(at.relay.gauges()).toMatchObject({ resultsWaiting: RESULTS, linkUp: 0 })
  at.centre.isCut = false
  at.centre.refusals = [503, 503].map(() => new IndraftError('dispatcher.busy')).concat(new IndraftError('store.full'))
  await until('the journal is empty', () => at.relay.outgoing.waiting === 0)
  expect(Math.max(...at.centre.batches)).toBeLessThanOrEqual(256)
  expect(at.centre.results.length).toBe(RESULTS)
  expect(new Set(at.centre.results.map(({ index }) => index)).size).toBe(RESULTS)
  expect(at.centre.refusals).toEqual([])
  await at.relay.journal.committed()
  expect([...at.relay.journal.results()]).toEqual([])
}, 120_000)

it('backlog - results that the centre has no word for now hold up none behind them, and go up again', async () => {
  const pilot = await at.pilot('a')
  await until('the first hello', () => at.centre.hellos.length > 0)
  at.centre.isCut = true
  // A whole batch of them comes first.
  at.centre.isNotJudged = (index) => index < 256
  const lease = { bundle: 'b', campaign: 'c1', step: 'sim', fences: [5, 6], tasks: '0-299' }
  for (let from = 0; from < 300; from += 100) {
    await pilot.report(Array.from({ length: 100 }, (_, i) => resultOf(lease, from + i)))
  }
  at.centre.isCut = false
  await until('the rest is there', () => at.relay.outgoing.waiting === 256)
  at.centre.isNotJudged = () => false
  await until('all are', () => at.relay.outgoing.waiting === 0)
})
