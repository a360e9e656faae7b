/**
 * `indraft site drain | disable | enable | rotate`, typed as a person does, with a relay as a process of its own and a
 * pilot behind it that holds a task all the while.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { execa } from 'execa'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import {
  type RelayCredential,
  readPilotCredential,
  readRelayCredential,
  relayCredentialSchema,
  writeCredential,
} from '../../shared/credentials.ts'
import { connectNats, natsLink, siteInboxPrefix } from '../../shared/link-nats.ts'
import type { LeasePart } from '../../shared/protocol/messages.ts'
import { resultsOf, SimulatedHolder } from '../conformance/simulated-holder.ts'
import { type RelayProcess, spawnRelay } from '../relay/relay-process.ts'
import { type CentralLab, startCentralLab } from './central-lab.ts'

const LAUNCHER = fileURLToPath(new URL('../../central/cli/indraft.mjs', import.meta.url))
const DOCTOR = fileURLToPath(new URL('../../pilot/indraft-pilot.mjs', import.meta.url))
/** What no event tells this process is asked for. */
const SOON = { timeout: 120_000, interval: 100 }

let lab: CentralLab
let folder: string
let state: string
let site: string
let number = 0
let relay: RelayProcess
let pilot: SimulatedHolder
const ends: (() => Promise<unknown>)[] = []

beforeAll(async () => {
  lab = await startCentralLab()
})
afterAll(() => lab?.stop())
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-site-'))
  ends.push(async () => rmSync(folder, { recursive: true, force: true }))
  const client = { url: lab.central.apiUrl, token: lab.adminToken, ca: null }
  writeFileSync(join(folder, 'client.json'), JSON.stringify(client))
  state = join(folder, 'relay')
  site = `SITE-${++number}`
})

/** A site with a relay, and a pilot at it. */
async function begin(): Promise<void> {
  const { joinToken } = await lab.admin.call('addSite', { body: { name: site } })
  const { credential } = await lab.as(null).call('joinSite', { body: { token: joinToken } })
  mkdirSync(state)
  writeCredential(join(state, 'relay.json'), relayCredentialSchema.parse(credential))
  relay = spawnRelay(['--state', state])
  ends.push(async () => {
    relay.kill('SIGKILL')
    await relay.exited
  })
  await relay.said('relay.ready')
  const { nats } = readPilotCredential(join(state, 'pilot.json'))
  const { url, inboxPrefix } = nats
  const connection = await connectNats({
    ...{ url, inboxPrefix, name: 'pilot', user: nats.user!, password: nats.password!, ca: nats.ca! },
  })
  pilot = new SimulatedHolder(natsLink(connection, site), 'pilot', 'p')
  ends.push(() => pilot.link.close())
  await pilot.hello()
}
afterEach(async () => {
  for (const end of ends.reverse().splice(0)) await end()
})

async function indraft(...words: string[]) {
  const env = { INDRAFT_HOME: folder }
  const { exitCode, stdout, stderr } = await execa(process.execPath, [LAUNCHER, ...words], { env, reject: false })
  return { code: exitCode, stdout, stderr }
}

/** What the edge's administrator is told of a check. */
async function doctor() {
  const words = ['doctor', '--edge', '--relay-state', state, '--json']
  const { stdout } = await execa(process.execPath, [DOCTOR, ...words], { reject: false })
  const { checks } = JSON.parse(stdout) as { checks: { name: string; state: string; found: string }[] }
  return (name: string) => checks.find((check) => check.name === name)
}

/** Types at the site what the command at the centre printed. */
async function join_(printed: string): Promise<RelayCredential> {
  const words = /indraft (relay join .*)$/m.exec(printed)![1]!.replace('DIR', state).split(' ')
  expect(await indraft(...words)).toMatchObject({ code: 0, stderr: '' })
  return readRelayCredential(join(state, 'relay.json'))
}

async function submit(tasks: number): Promise<string> {
  const source = `indraft: 1\nname: ${site}\ngroup: /s\ndefaults: {image: host}\nsites: {allow: [${site}]}\nsteps: {run: {count: ${tasks}, command: [x]}}\n`
  await lab.admin.call('submitCampaign', { body: { source } })
  return site
}
const counts = async () => (await lab.admin.call('showCampaign', { params: { campaign: site } })).counts

/** One task, begun. */
async function take(): Promise<LeasePart> {
  const lease = await vi.waitFor(async () => {
    const { grants } = await pilot.pull({ waitMs: 1000 }, 1)
    expect(grants).toHaveLength(1)
    return grants[0]!.lease
  }, SOON)
  pilot.confirm()
  const { bundle, campaign, step, fences, tasks } = lease
  await pilot.beat({ started: [{ bundle, campaign, step, fences, tasks, node: 'node-of-p' }] })
  await vi.waitFor(async () => expect(await counts()).toMatchObject({ running: 1 }), SOON)
  return lease
}

const asks = () => pilot.ask('demand', { offer: pilot.offer(1) })
const opens = async (creds: string) => {
  const made = await connectNats({ url: lab.natsUrl, name: 'thief', creds, inboxPrefix: siteInboxPrefix(site) }, false)
  await made.close()
}
const fileAnswer = async ({ files }: RelayCredential) => {
  const response = await fetch(`${lab.central.apiUrl}/files/blob/${'0'.repeat(64)}`, {
    headers: { authorization: `Bearer ${files.token}` },
  })
  return ((await response.json()) as { code: string }).code
}

describe('site commands', () => {
  test('site drain - nothing new is granted, what is not begun goes back, what runs counts; enable ends it', async () => {
    await begin()
    await submit(3)
    const lease = await take()
    const drained = await indraft('site', 'drain', site)
    expect(drained).toMatchObject({ code: 0, stdout: expect.stringContaining(`${site}   draining`) })
    await relay.said('relay.draining')
    await vi.waitFor(async () => expect(await counts()).toMatchObject({ queued: 2, assigned: 0, running: 1 }), SOON)
    expect((await pilot.beat()).orders).toEqual([{ kind: 'holder.drain' }])
    expect(await pilot.pull({}, 1)).toMatchObject({ grants: [], reason: 'draining' })
    expect((await asks()).body).toMatchObject({ fits: [], reason: 'draining' })
    const seen = await doctor()
    expect(seen('centre, control')).toMatchObject({ state: 'good' })
    expect(seen('work')).toMatchObject({ state: 'warn', found: 'none: this site is to get nothing new for now' })
    expect(await pilot.report(resultsOf(lease))).toEqual(['accepted'])
    await vi.waitFor(async () => expect(await counts()).toMatchObject({ done: 1, queued: 2 }), SOON)
    expect(await indraft('site', 'enable', site)).toMatchObject({ code: 0 })
    await relay.said('relay.resumed')
    await take()
  }, 300_000)

  test('site disable - the credential is refused, its work is free at once; what it finished counts after enable', async () => {
    await begin()
    await submit(1)
    const lease = await take()
    expect(await indraft('site', 'disable', site)).toMatchObject({ code: 0 })
    await vi.waitFor(async () => expect(await counts()).toMatchObject({ queued: 1, running: 0 }), SOON)
    await vi.waitFor(() => {
      expect(relay.lines).toContainEqual(expect.objectContaining({ msg: 'upstream.refused', code: 'site.disabled' }))
    }, SOON)
    expect(await fileAnswer(readRelayCredential(join(state, 'relay.json')))).toBe('site.disabled')
    const found = expect.stringContaining('the centre has disabled this site')
    expect((await doctor())('centre, files')).toMatchObject({ state: 'bad', found })
    await pilot.report(resultsOf(lease))
    expect(await indraft('site', 'add', site)).toMatchObject({ code: 0 })
    expect(await counts()).toMatchObject({ queued: 1, done: 0 })
    expect(await indraft('site', 'enable', site)).toMatchObject({ code: 0 })
    await vi.waitFor(async () => expect(await counts()).toMatchObject({ done: 1 }), SOON)
  }, 300_000)

  test('site rotate - the relay follows the new credential with its work in hand; the old one opens nothing', async () => {
    await begin()
    await submit(2)
    const lease = await take()
    const old = readRelayCredential(join(state, 'relay.json'))
    const rotated = await indraft('site', 'rotate', site, '--keep-old', '0s')
    expect(rotated.stderr).toBe('')
    // Nobody has joined: the old one is as good as before.
    expect(await fileAnswer(old)).toBe('request.notFound')
    const fresh = await join_(rotated.stdout)
    expect(fresh.nats.creds).not.toBe(old.nats.creds)
    await relay.said('credential.renewed')
    await vi.waitFor(async () => await expect(opens(old.nats.creds)).rejects.toThrow(/authorization/i), SOON)
    expect(await fileAnswer(old)).toBe('auth.invalid')
    await pilot.report(resultsOf(lease))
    await vi.waitFor(async () => expect(await counts()).toMatchObject({ done: 1, queued: 0 }), SOON)
    await take()
    // The same session: nothing it held was given to others meanwhile.
    expect(relay.lines.filter(({ msg, isNewSession }) => msg === 'upstream.welcomed' && isNewSession)).toHaveLength(1)
    // A server that forgot is told again.
    const startAgain = await lab.killNats()
    await startAgain()
    await vi.waitFor(async () => await expect(opens(old.nats.creds)).rejects.toThrow(/authorization/i), SOON)
    await opens(fresh.nats.creds)
  }, 300_000)

  test('site rotate --now - the old credential opens nothing before anybody joined; after that work goes on', async () => {
    await begin()
    await submit(1)
    const lease = await take()
    const old = readRelayCredential(join(state, 'relay.json'))
    const rotated = await indraft('site', 'rotate', site, '--now')
    expect(rotated.stdout).toContain(`1 credentials of ${site} open nothing any more`)
    await expect(opens(old.nats.creds)).rejects.toThrow(/authorization/i)
    expect(await fileAnswer(old)).toBe('auth.invalid')
    await pilot.report(resultsOf(lease))
    expect(await counts()).toMatchObject({ running: 1 })
    await join_(rotated.stdout)
    await vi.waitFor(async () => expect(await counts()).toMatchObject({ done: 1 }), SOON)
  }, 300_000)

  test('a site that is not there is named; --now keeps nothing', async () => {
    for (const command of ['drain', 'rotate']) {
      const { code, stderr } = await indraft('site', command, 'NOWHERE')
      expect([code, stderr]).toEqual([1, 'indraft: there is no site "NOWHERE"'])
    }
    expect(await indraft('site', 'rotate', site, '--now', '--keep-old', '1h')).toMatchObject({ code: 2 })
  }, 300_000)
})
