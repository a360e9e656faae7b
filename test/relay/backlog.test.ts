/** Hours without central: results pile up in the journal, and drain in batches of bounded size when it is back. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { frameHandler } from '../../shared/dispatcher.ts'
import { IndraftError } from '../../shared/errors.ts'
import { memoryLink } from '../../shared/link.ts'
import { silentLog } from '../../shared/log.ts'
import type { Message } from '../../shared/protocol/messages.ts'
import { resultOf, SimulatedHolder } from '../conformance/simulated-holder.ts'
import { type FastClock, fastClock } from '../fast-clock.ts'
import { type RelayInParts, relayInParts, until } from './relay-in-parts.ts'
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

let clock: FastClock
let centre: Busy
let relay: RelayInParts
let folder: string
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-backlog-'))
  clock = fastClock(20)
  centre = new Busy()
  relay = await start()
})
afterEach(async () => {
  await relay.crash()
  rmSync(folder, { recursive: true, force: true })
})

function start(): Promise<RelayInParts> {
  const link = memoryLink({ site: 'ALPHA' }, frameHandler(centre, silentLog), clock)
  return relayInParts({ clock, link, folder })
}

it(`backlog - ${RESULTS} results wait over a restart, then all go up, in batches, each once`, async () => {
  const link = memoryLink({ site: 'ALPHA' }, (peer, frame) => relay.handler(peer, frame), clock)
  const pilot = new SimulatedHolder(link, 'pilot', 'a')
  await pilot.hello()
  await until('the first hello', () => centre.hellos.length > 0)
  centre.isCut = true
  const lease = { bundle: 'b', campaign: 'c1', step: 'sim', fences: [5, 6], tasks: `0-${RESULTS - 1}` }
  for (let from = 0; from < RESULTS; from += 100) {
    const batch = Array.from({ length: 100 }, (_, i) => resultOf(lease, from + i))
    expect((await pilot.report(batch)).length).toBe(100)
  }
  expect(relay.outgoing.waiting).toBe(RESULTS)
  await relay.crash()
  relay = await start()
  expect(relay.outgoing.waiting).toBe(RESULTS)
  expect(relay.gauges()).toMatchObject({ resultsWaiting: RESULTS, linkUp: 0 })
  centre.isCut = false
  centre.refusals = [503, 503].map(() => new IndraftError('dispatcher.busy')).concat(new IndraftError('store.full'))
  await until('the journal is empty', () => relay.outgoing.waiting === 0)
  expect(Math.max(...centre.batches)).toBeLessThanOrEqual(256)
  expect(centre.results.length).toBe(RESULTS)
  expect(new Set(centre.results.map(({ index }) => index)).size).toBe(RESULTS)
  expect(centre.refusals).toEqual([])
  await relay.journal.committed()
  expect(relay.journal.read().results).toEqual([])
}, 120_000)
