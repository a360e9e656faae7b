/**
 * A relay as it runs, nats-server, TLS, files and all, between a real centre and a pilot that this test plays: one
 * campaign from submit to output, then what a stranger cannot do.
 */
import { createHash, randomBytes } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import { connect as connectPlain } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { loadRelayConfig } from '../../edge-relay/config.ts'
import { type RunningRelay, startRelay } from '../../edge-relay/main.ts'
import { askDispatcher } from '../../pilot/start/ask.ts'
import { offerOf } from '../../pilot/start/demand.ts'
import { parseSiteFile } from '../../pilot/start/site-file.ts'
import { emptyState } from '../../pilot/start/state.ts'
import { readPilotCredential, writeCredential } from '../../shared/credentials.ts'
import { makeCapability } from '../../shared/files/capability.ts'
import { FileClient, fileAddress } from '../../shared/files/client.ts'
import { connectNats, natsLink } from '../../shared/link-nats.ts'
import { silentLog } from '../../shared/log.ts'
import type { Grant } from '../../shared/protocol/messages.ts'
import { importKeys, verifyBundle } from '../../shared/signing.ts'
import { type CentralLab, startCentralLab } from '../central/central-lab.ts'
import { resultOf, SimulatedHolder } from '../conformance/simulated-holder.ts'
import { joinSite, pilotLink } from './joined.ts'
import { until } from './relay-in-parts.ts'

const CAMPAIGN = `
indraft: 1
name: files
group: /demo
defaults: {image: host}
steps:
  write:
    count: 2
    command: ['true']
    resources: {cores: 1, memory: 50MB, walltime: 5min}
    outputs: [{path: out/line.txt}]
`
const sha256 = (content: string | Uint8Array) => `sha256:${createHash('sha256').update(content).digest('hex')}`

let folder: string
let lab: CentralLab
let relay: RunningRelay
/** The capability of a lease that the first test took. */
let held = ''
const ends: (() => unknown)[] = []

/** A server of the world's, on loopback, so the relay has to be told of it. */
const asked: string[] = []
const outside: Server = createServer((request, response) => {
  asked.push(request.url ?? '')
  response.end('from outside')
})
const outsideUrl = (path: string) => `http://127.0.0.1:${(outside.address() as { port: number }).port}${path}`

const settings = () =>
  loadRelayConfig({ state: join(folder, 'relay'), timeScale: 0.1, fetchFrom: [outsideUrl('/public')] }, undefined, {})

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-whole-relay-'))
  await new Promise<void>((resolve) => outside.listen(0, '127.0.0.1', resolve))
  ends.push(() => new Promise((resolve) => outside.close(resolve)))
  lab = await startCentralLab()
  await joinSite(lab, { name: 'ALPHA' }, join(folder, 'relay'))
  relay = await startRelay(settings(), silentLog)
})
afterAll(async () => {
  for (const end of ends.reverse()) await end()
  await relay?.stop()
  await lab?.stop()
  rmSync(folder, { recursive: true, force: true })
})

const pilotCredential = () => readPilotCredential(relay.pilotCredential)

async function asPilot(name: string): Promise<SimulatedHolder> {
  const link = await pilotLink(relay.pilotCredential, name)
  ends.push(() => link.close())
  const pilot = new SimulatedHolder(link, 'pilot', name)
  await pilot.hello()
  return pilot
}

function fileClient(token = pilotCredential().files.token): FileClient {
  const client = new FileClient({ ca: pilotCredential().files.ca, token })
  ends.push(() => client.close())
  return client
}

/** What a site with two kinds of nodes asks with: one core, and so many. */
function nodes(cores: number) {
  const kind = (count: number) => `{time: 12h, shape: {cores: ${count}}}`
  const kinds = `{small: ${kind(1)}, large: ${kind(cores)}}`
  const site = parseSiteFile(`{indraft: 1, folder: /v, credential: /c, starter: slurm, kinds: ${kinds}}`, 'site.yaml')
  return offerOf(emptyState(), site, Date.now())
}

async function takeGrants(pilot: SimulatedHolder, count: number): Promise<Grant[]> {
  const grants: Grant[] = []
  await until(`${count} grants`, async () => {
    grants.push(...(await pilot.pull({ waitMs: 200 })).grants)
    pilot.confirm()
    return grants.length >= count
  })
  return grants
}

describe('whole relay', () => {
  it('whole relay - a task goes down, its output and its result come up', async () => {
    const submitter = await lab.person('alice', ['/demo'])
    await submitter.call('submitCampaign', { body: { source: CAMPAIGN } })
    const pilot = await asPilot('p1')
    const grants = await takeGrants(pilot, 2)
    const keys = importKeys(pilotCredential().keys)
    const bundle = verifyBundle(grants[0]!.bundle, keys, Date.now())
    expect(bundle).toMatchObject({ site: 'ALPHA', step: 'write' })
    const client = fileClient()
    for (const { lease, capability } of grants) {
      const index = Number(lease.tasks)
      const source = join(folder, `line-${index}`)
      writeFileSync(source, `line ${index}`)
      const path = `${lease.campaign}/${lease.step}/${index}/${lease.fences.join('.')}/out/line.txt`
      const put = await client.putFile(relay.filesUrl + fileAddress.attempt(path), source, sha256(`line ${index}`), {
        capability,
      })
      expect(put.url).toBe(`store:${path}`)
      await pilot.report([resultOf(lease, index, { outputs: [{ path: 'out/line.txt', ...put }] })])
    }
    await until('the campaign is done', async () => {
      const { campaigns } = await submitter.call('listCampaigns', {})
      return campaigns[0]?.state === 'done'
    })
    const { outputs } = await submitter.call('listOutputs', { params: { campaign: 'files' }, query: { limit: 10 } })
    expect(outputs.map(({ checksum }) => checksum)).toEqual([sha256('line 0'), sha256('line 1')])
    // What central has, the relay may drop, but still serves.
    const [{ lease, capability }] = grants as [Grant]
    const path = `${lease.campaign}/${lease.step}/${lease.tasks}/${lease.fences.join('.')}/out/line.txt`
    await client.getToFile(relay.filesUrl + fileAddress.attempt(path), join(folder, 'back'), { capability })
    expect(readFileSync(join(folder, 'back'), 'utf8')).toBe(`line ${lease.tasks}`)
    held = capability!
    // Made by the relay: what opens the centre's files stays with it.
    expect(JSON.parse(Buffer.from(held.split('.')[0]!, 'base64url').toString()).fences).toEqual(lease.fences)
  })

  it.each([
    ['no token', null],
    ['a wrong token', 'wrong'],
  ])('whole relay - %s opens no file', async (_what, token) => {
    const client = new FileClient({ ca: pilotCredential().files.ca, token })
    const code = token === null ? 'auth.missing' : 'auth.invalid'
    const url = `${relay.filesUrl}/files/blob/${'0'.repeat(64)}`
    await expect(client.getToFile(url, join(folder, 'x'), { capability: held })).rejects.toMatchObject({ code })
    await client.close()
  })

  it.each([
    ['no capability', ''],
    [
      'a capability made with another key',
      makeCapability(randomBytes(32), { campaign: 'c', step: 's', fences: [1], tasks: '0', expiresAtMs: 9e15 }),
    ],
  ])('whole relay - %s opens no file', async (_what, shown) => {
    const url = `${relay.filesUrl}/files/blob/${'0'.repeat(64)}`
    const asked = fileClient().getToFile(url, join(folder, 'x'), { capability: shown })
    await expect(asked).rejects.toMatchObject({ code: 'capability.invalid' })
  })

  it('whole relay - a capability does not open writing for another attempt', async () => {
    const source = join(folder, 'evil')
    writeFileSync(source, 'x')
    const url = relay.filesUrl + fileAddress.attempt('c/write/0/1.2/out.txt')
    const asked = fileClient().putFile(url, source, sha256('x'), { capability: held })
    await expect(asked).rejects.toMatchObject({ code: 'capability.invalid' })
  })

  it('whole relay - a blob that central lacks is not found, one that comes from outside is fetched once', async () => {
    const client = fileClient()
    const get = (checksum: string | null, target: string, url = outsideUrl('/public/data')) =>
      client.getToFile(relay.filesUrl + fileAddress.fetch(url, checksum), join(folder, target), {
        capability: held,
        checksum,
      })
    await Promise.all(['a', 'b', 'c'].map((name) => get(sha256('from outside'), name)))
    expect(readFileSync(join(folder, 'c'), 'utf8')).toBe('from outside')
    expect(asked).toEqual(['/public/data'])
    await expect(get(sha256('other'), 'd')).rejects.toMatchObject({ code: 'file.checksum' })
    const elsewhere = get(null, 'd', outsideUrl('/private'))
    await expect(elsewhere).rejects.toMatchObject({ code: 'policy.refused' })
    expect(asked).not.toContain('/private')
    const missing = client.getToFile(`${relay.filesUrl}/files/blob/${'0'.repeat(64)}`, join(folder, 'e'), {
      capability: held,
    })
    await expect(missing).rejects.toMatchObject({ code: 'request.notFound' })
  })

  it('whole relay - after a restart it stores and fetches what its leases open at the centre', async () => {
    const submitter = await lab.person('bob', ['/demo'])
    const source = CAMPAIGN.replace('name: files', 'name: again')
    await submitter.call('submitCampaign', { body: { source } })
    const [first, second] = (await takeGrants(await asPilot('p1'), 2)) as [Grant, Grant]
    const pathOf = ({ lease }: Grant) =>
      `${lease.campaign}/${lease.step}/${lease.tasks}/${lease.fences.join('.')}/out/line.txt`
    const hand = async ({ lease, capability }: Grant) => {
      const at = relay.filesUrl + fileAddress.attempt(pathOf({ lease } as Grant))
      writeFileSync(join(folder, 'line'), 'line')
      const put = await fileClient().putFile(at, join(folder, 'line'), sha256('line'), { capability })
      const pilot = await asPilot('p1')
      await pilot.report([resultOf(lease, Number(lease.tasks), { outputs: [{ path: 'out/line.txt', ...put }] })])
    }
    const isDone = async (index: number) => {
      const params = { campaign: 'again', step: 'write', index }
      return (await submitter.call('showTask', { params })).state === 'done'
    }
    await relay.stop()
    relay = await startRelay(settings(), silentLog)
    await hand(first)
    await until('the first is done', () => isDone(Number(first.lease.tasks)))
    // What the relay has of it goes, so that it has to come from the centre again.
    await relay.stop()
    rmSync(join(folder, 'relay/cache'), { recursive: true })
    relay = await startRelay(settings(), silentLog)
    const at = relay.filesUrl + fileAddress.attempt(pathOf(first))
    await fileClient().getToFile(at, join(folder, 'fetched'), { capability: second.capability })
    expect(readFileSync(join(folder, 'fetched'), 'utf8')).toBe('line')
    await hand(second)
    await until('the second is done', () => isDone(Number(second.lease.tasks)))
  })

  it("whole relay - the pilot's credential opens its site's subject and its own inbox, nothing else", async () => {
    const { nats } = pilotCredential()
    const options = { url: nats.url, ca: nats.ca!, name: 'x', user: nats.user!, password: nats.password! }
    await expect(connectNats({ ...options, password: 'wrong' }, false)).rejects.toThrow(/authorization/i)
    const connection = await connectNats({ ...options, inboxPrefix: nats.inboxPrefix })
    ends.push(() => connection.close())
    await expect(natsLink(connection, 'BETA').request(new Uint8Array(2), 1000)).rejects.toThrow()
    const denied = Promise.withResolvers<Error>()
    connection.subscribe('indraft.site.ALPHA', {
      callback: (error) => {
        if (error) denied.resolve(error)
      },
    })
    expect((await denied.promise).message).toMatch(/permission/i)
  })

  it('whole relay - garbage on its subject is refused by code and counted', async () => {
    // Heard of just now: what came before may have taken longer than a silent pilot lives.
    await asPilot('p1')
    const { nats, site } = pilotCredential()
    const { url, ca, inboxPrefix } = nats
    const connection = await connectNats({
      url,
      ca: ca!,
      name: 'x',
      user: nats.user!,
      password: nats.password!,
      inboxPrefix,
    })
    ends.push(() => connection.close())
    await natsLink(connection, site).request(Buffer.from('garbage'), 30_000)
    const text = await (await fetch(`${relay.metricsUrl}/metrics`)).text()
    expect(text).toMatch(/indraft_relay_messages_refused_total\{code="message.garbled"\} 1/)
    expect(text).toMatch(/indraft_pilots\{state="active"\} 1/)
    expect(text).toMatch(/indraft_relay_link_up 1/)
    expect((await fetch(`${relay.metricsUrl}/healthz`)).status).toBe(200)
    expect((await fetch(`${relay.metricsUrl}/readyz`)).status).toBe(200)
  })

  it('whole relay - plain HTTP at the file port gets no answer that could be mistaken for a file', async () => {
    const { port } = new URL(relay.filesUrl)
    const answer = await new Promise<string>((resolve) => {
      let text = ''
      const socket = connectPlain(Number(port), '127.0.0.1', () => socket.write('GET /files/blob/0 HTTP/1.1\r\n\r\n'))
      socket.on('data', (data) => (text += data.toString('latin1')))
      socket.on('close', () => resolve(text))
      socket.on('error', () => {})
    })
    expect(answer).not.toMatch(/ 200 /)
  })

  it('whole relay - after a restart it is the same relay at the same place', async () => {
    const before = { ...relay }
    const credential = readFileSync(relay.pilotCredential, 'utf8')
    const pilot = await asPilot('p2')
    await relay.stop()
    relay = await startRelay(settings(), silentLog)
    expect([relay.natsUrl, relay.filesUrl, relay.metricsUrl]).toEqual([
      before.natsUrl,
      before.filesUrl,
      before.metricsUrl,
    ])
    expect(readFileSync(relay.pilotCredential, 'utf8')).toBe(credential)
    expect(statSync(relay.pilotCredential).mode & 0o777).toBe(0o600)
    await until('the pilot goes on in its session', () =>
      pilot.beat().then(
        () => true,
        () => false,
      ),
    )
  })

  it('whole relay - what waits is told to who starts pilots; where nobody listens there is no answer', async () => {
    const submitter = await lab.person('bob', ['/demo'])
    const source = CAMPAIGN.replace('name: files', 'name: asked').replace('cores: 1', 'cores: 7')
    await submitter.call('submitCampaign', { body: { source } })
    const fits = async () => (await askDispatcher(relay.pilotCredential, nodes(7), 60_000)).fits
    await until('two tasks wait', async () => (await fits())[0]?.tasks === 2)
    expect(await fits()).toMatchObject([{ entry: 1, group: '/demo', tasks: 2, perNode: 1, estimateMs: null }])
    expect(await askDispatcher(relay.pilotCredential, nodes(6), 60_000)).toMatchObject({ fits: [], isWhole: true })
    const deaf = join(folder, 'deaf.json')
    const credential = pilotCredential()
    writeCredential(deaf, { ...credential, nats: { ...credential.nats, url: 'tls://127.0.0.1:1' } })
    await expect(askDispatcher(deaf, nodes(7), 1000)).rejects.toThrow()
  })

  it('whole relay - with the centre away it stops, starts and serves its pilots', async () => {
    const pilot = await asPilot('p3')
    await lab.stop()
    await relay.stop()
    relay = await startRelay(settings(), silentLog)
    await until('the pilot is served', () =>
      pilot.beat().then(
        () => true,
        () => false,
      ),
    )
    expect(await (await fetch(`${relay.metricsUrl}/metrics`)).text()).toMatch(/indraft_relay_link_up 0/)
    expect(await askDispatcher(relay.pilotCredential, nodes(6), 60_000)).toMatchObject({ isWhole: false })
  })
})
