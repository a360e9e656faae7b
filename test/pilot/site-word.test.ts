/**
 * Two whole sites under one centre, each with its relay and a pilot that runs payloads; one serves only some. What it refuses
 * is done at the other, at no cost, and what nobody serves ends with the reason.
 */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, expect, it, vi } from 'vitest'
import { loadRelayConfig } from '../../edge-relay/config.ts'
import { startRelay } from '../../edge-relay/main.ts'
import { loadPilotConfig } from '../../pilot/config.ts'
import { startAtRelays } from '../../pilot/relays.ts'
import { silentLog } from '../../shared/log.ts'
import { type CentralLab, startCentralLab } from '../central/central-lab.ts'
import { joinSite } from '../relay/joined.ts'

const PATIENCE = { timeout: 120_000, interval: 100 }

let lab: CentralLab
let folder: string
const ends: (() => unknown)[] = []
beforeAll(async () => {
  lab = await startCentralLab()
})
afterAll(() => lab?.stop())
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-site-word-'))
})
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end()
  rmSync(folder, { recursive: true, force: true })
})

/** Registers a site, which is no more when the test is over. */
async function register(name: string): Promise<void> {
  await joinSite(lab, { name }, join(folder, name))
  ends.push(() => lab.admin.call('setSiteState', { params: { site: name }, body: { state: 'disabled' } }))
}

/** Its relay and one pilot. */
async function open(name: string, pilotSettings: Record<string, unknown> = {}): Promise<void> {
  const state = join(folder, name)
  const relay = await startRelay(loadRelayConfig({ state, timeScale: 0.1 }, undefined, {}), silentLog)
  ends.push(() => relay.stop())
  const settings = {
    ...{ credential: relay.pilotCredential, scratch: join(folder, `${name}-scratch`), name: `p-${name}`, node: name },
    ...{ cores: 2, memory: '2GiB', containerRuntime: 'none', payloadGrace: '300ms', ...pilotSettings },
  }
  const pilot = await startAtRelays(loadPilotConfig(settings, undefined, {}), silentLog)
  ends.push(() => pilot.stop())
}

const NO_CREDIT = '{payload: 0, infrastructure: 0}'
async function submit(name: string, group: string, { run = 'true', count = 12 } = {}) {
  const source = `
indraft: 1
name: ${name}
group: ${group}
defaults: {image: host}
steps:
  run:
    count: ${count}
    command: [sh, -c, '${run}']
    resources: {cores: 1, memory: 50MB, walltime: 5min}
    retries: ${NO_CREDIT}
`
  const person = await lab.person(`of-${name}`, [group])
  await person.call('submitCampaign', { body: { source } })
  const look = async () => await person.call('showCampaign', { params: { campaign: name } })
  return {
    look,
    over: async () => {
      await vi.waitFor(async () => expect((await look()).endedAtMs).not.toBeNull(), PATIENCE)
      const { counts, failures } = await look()
      const some = Object.fromEntries(Object.entries(counts).filter(([, tasks]) => tasks > 0))
      return { counts: some, failures: failures.map(({ reason, detail }) => `${reason} ${detail}`).sort() }
    },
    sites: async () => {
      const { tasks } = await person.call('listTasks', { params: { campaign: name }, query: {} })
      return [...new Set(tasks.map((task) => task.site))].sort()
    },
  }
}

it('the site’s word - a group that one site does not serve is never sent there', async () => {
  await register('GROUP-A')
  await register('GROUP-ANY')
  await open('GROUP-A', { allowGroups: ['/a'] })
  await open('GROUP-ANY')
  const [a, b] = [await submit('ours', '/a/prod'), await submit('others', '/b')]
  expect(await b.over()).toEqual({ counts: { done: 12 }, failures: [] })
  expect(await b.sites()).toEqual(['GROUP-ANY'])
  expect(await a.over()).toEqual({ counts: { done: 12 }, failures: [] })
}, 200_000)

it('the site’s word - a person whom one site does not serve is served by the other, at no cost', async () => {
  await register('BANS-ONE')
  await register('BANS-NONE')
  await open('BANS-ONE', { denySubjects: ['of-banned'] })
  const banned = await submit('banned', '/a')
  await vi.waitFor(async () => expect((await banned.look()).failures).not.toEqual([]), PATIENCE)
  await open('BANS-NONE')
  expect(await banned.over()).toEqual({ counts: { done: 12 }, failures: ['policy.refused at BANS-ONE'] })
  expect(await banned.sites()).toEqual(['BANS-NONE'])
}, 200_000)

it('the site’s word - a ban file ends what runs at the one site, and it runs again at the other', async () => {
  const [mark, go, banFile] = ['mark', 'go', 'banned'].map((name) => join(folder, name)) as [string, string, string]
  await register('FILE-ONE')
  await register('FILE-NONE')
  await open('FILE-ONE', { banFile, banEvery: '200ms' })
  const run = `echo >>${mark}; until [ -e ${go} ]; do sleep 0.1; done`
  const banned = await submit('running', '/a', { run, count: 2 })
  await vi.waitFor(() => expect(existsSync(mark)).toBe(true), PATIENCE)
  writeFileSync(banFile, 'of-running\n')
  await vi.waitFor(async () => expect((await banned.look()).failures).not.toEqual([]), PATIENCE)
  await open('FILE-NONE')
  writeFileSync(go, '')
  expect((await banned.over()).counts).toEqual({ done: 2 })
  expect(await banned.sites()).toEqual(['FILE-NONE'])
}, 200_000)

it('the site’s word - whom no site serves, hears so, with the names of the sites', async () => {
  await register('NO-ONE')
  await register('NO-OTHER')
  await open('NO-ONE', { denySubjects: ['of-nobody'] })
  await open('NO-OTHER', { denySubjects: ['of-nobody'] })
  const banned = await submit('nobody', '/a')
  expect(await banned.over()).toEqual({
    counts: { failed: 12 },
    failures: ['policy.refused at NO-ONE', 'policy.refused at NO-OTHER'],
  })
  expect((await banned.look()).state).toBe('done with failures')
}, 200_000)
