/** Two relays that joined one site, each a whole relay: side by side, one for good, and a pilot that knows both. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { loadRelayConfig } from '../../edge-relay/config.ts'
import { type RunningRelay, startRelay } from '../../edge-relay/main.ts'
import { loadPilotConfig } from '../../pilot/config.ts'
import { startAtRelays } from '../../pilot/relays.ts'
import { silentLog } from '../../shared/log.ts'
import { type CentralLab, startCentralLab } from '../central/central-lab.ts'
import { resultsOf, SimulatedHolder } from '../conformance/simulated-holder.ts'
import { joinSite, pilotLink } from './joined.ts'
import { until } from './relay-in-parts.ts'

let folder: string
let lab: CentralLab
const ends: (() => unknown)[] = []
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-two-relays-'))
  lab = await startCentralLab()
})
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end()
  await lab?.stop()
  rmSync(folder, { recursive: true, force: true })
})

async function relay(name: string, outageMs: number): Promise<RunningRelay> {
  const state = join(folder, name)
  await joinSite(lab, { name: 'ALPHA', outageMs }, state)
  const running = await startRelay(loadRelayConfig({ state, timeScale: 0.05, ahead: '0s' }, undefined, {}), silentLog)
  ends.push(() => running.stop())
  return running
}

async function pilot(at: RunningRelay, name: string): Promise<SimulatedHolder> {
  const link = await pilotLink(at.pilotCredential, name)
  ends.push(() => link.close())
  const made = new SimulatedHolder(link, 'pilot', name)
  await made.hello()
  return made
}

async function submit(command: string, count: number) {
  const source = `
indraft: 1
name: two
group: /demo
defaults: {image: host}
steps:
  run:
    count: ${count}
    command: ${command}
    resources: {cores: 1, memory: 50MB, walltime: 5min}
    retries: {infrastructure: 5}
`
  const person = await lab.person('alice', ['/demo'])
  await person.call('submitCampaign', { body: { source } })
  return {
    person,
    isDone: async () => (await person.call('listCampaigns', {})).campaigns[0]?.state === 'done',
  }
}

const relays = async () => (await lab.admin.call('listHolders', { query: { role: 'relay' } })).holders
const stateOf = async (at: RunningRelay) => (await relays()).find(({ holder }) => holder === at.name)?.state

it('two relays - each has a name and pilots of its own; what one that never returns held goes to the other', async () => {
  const [a, b] = [await relay('a', 3000), await relay('b', 3000)]
  expect(a.name).not.toBe(b.name)
  const [one, two] = [await pilot(a, 'one'), await pilot(b, 'two')]
  const { isDone, person } = await submit("['true']", 4)
  await until('both are active', async () => (await stateOf(a)) === 'active' && (await stateOf(b)) === 'active')
  const lost = await until('something at b', async () => {
    await two.hello()
    const { grants } = await two.pull({ waitMs: 200 }, 2)
    two.confirm()
    return grants.length > 0 ? grants.map(({ lease }) => lease) : null
  })
  await two.beat({ started: lost.map((lease) => ({ ...lease })) })
  await until('the centre knows that they run', async () => {
    await two.beat()
    const { steps } = await person.call('showCampaign', { params: { campaign: 'two' } })
    return steps[0]!.counts.running === lost.length
  })
  // Kept for a return that never comes: as far as anybody can tell it is gone.
  await b.stop()
  await until('all is done by a', async () => {
    // What came before may have taken longer than a silent pilot lives.
    await one.hello()
    const { grants } = await one.pull({ waitMs: 100 })
    one.confirm()
    await one.beat()
    for (const { lease } of grants) await one.report(resultsOf(lease))
    return await isDone()
  })
  expect(await stateOf(b)).toBe('lost')
  expect(await stateOf(a)).toBe('active')
})

it('two relays - a pilot leaves one that is silent for the other, whose word for its results counts', async () => {
  const [a, b] = [await relay('a', 7_200_000), await relay('b', 7_200_000)]
  const go = join(folder, 'go')
  const { isDone, person } = await submit(`[sh, -c, 'until [ -e ${go} ]; do sleep 0.1; done']`, 1)
  const settings = {
    credential: `${a.pilotCredential}, ${b.pilotCredential}`,
    ...{ scratch: join(folder, 'scratch'), name: 'p', cores: 1, memory: '200MB', containerRuntime: 'none' },
    ...{ goneAfter: '2s', idleBefore: '12s', idleAfter: '3s', leastTimeLeft: '0s' },
  }
  const running = await startAtRelays(loadPilotConfig(settings, undefined, {}), silentLog)
  ends.push(() => running.stop())
  const { campaigns } = await person.call('listCampaigns', {})
  const counts = async () =>
    (await person.call('showCampaign', { params: { campaign: campaigns[0]!.id } })).steps[0]!.counts
  await until('it runs', async () => (await counts()).running === 1)
  await a.stop()
  writeFileSync(go, '')
  await until('done', isDone)
  // By the first attempt: the lease of the silent relay was not waited for, and nothing ran twice.
  const { tasks } = await person.call('listTasks', { params: { campaign: campaigns[0]!.id }, query: { limit: 10 } })
  expect(tasks).toMatchObject([{ state: 'done', attempts: 1 }])
  expect(await running.finished).toBe(300)
})
