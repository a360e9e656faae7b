/**
 * A relay whose disk has no room or cannot be written, on a small file system of its own. Needs root for the mount and is
 * skipped, saying so, without.
 */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as after } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { readPilotCredential, relayCredentialSchema, writeCredential } from '../../shared/credentials.ts'
import { FileClient, fileAddress } from '../../shared/files/client.ts'
import { connectNats, natsLink } from '../../shared/link-nats.ts'
import { type CentralLab, startCentralLab } from '../central/central-lab.ts'
import { codeOf, resultOf, SimulatedHolder } from '../conformance/simulated-holder.ts'
import { until } from './relay-in-parts.ts'
import { type RelayProcess, type SmallDisk, smallDisk, spawnRelay } from './relay-process.ts'

const isRoot = process.getuid?.() === 0
if (!isRoot) console.warn('skipped: tests of full and read-only disks need root, to mount a small file system')

const CAMPAIGN = (name: string) => `
indraft: 1
name: ${name}
group: /demo
defaults: {image: host}
steps:
  run:
    count: 8
    command: ['true']
    resources: {cores: 1, memory: 50MB, walltime: 5min}
`

describe.skipIf(!isRoot)('relay - its disk', () => {
  let folder: string
  let lab: CentralLab
  let disk: SmallDisk
  let relay: RelayProcess
  let site = 0
  const ends: (() => unknown)[] = []

  beforeAll(async () => {
    lab = await startCentralLab()
  })
  afterAll(() => lab?.stop())
  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), 'indraft-small-disk-'))
    disk = await smallDisk(join(folder, 'state'), '24m')
    const name = `DISK-${++site}`
    const { joinToken } = await lab.admin.call('addSite', { body: { name } })
    const { credential } = await lab.as(null).call('joinSite', { body: { token: joinToken } })
    writeCredential(disk.path('relay.json'), relayCredentialSchema.parse(credential))
    await start()
  })
  afterEach(async () => {
    for (const end of ends.splice(0).reverse()) await end()
    relay?.kill('SIGKILL')
    await relay?.exited
    disk?.close()
    rmSync(folder, { recursive: true, force: true })
  })

  const settings = () => [
    ...['--state', join(folder, 'state'), '--time-scale', '0.04', '--disk-reserve', '4MiB'],
    ...['--failpoints', folder],
  ]

  async function start(): Promise<void> {
    relay = spawnRelay(settings(), disk.enter)
    await relay.said('relay.ready')
  }

  async function pilot(name: string): Promise<SimulatedHolder> {
    const { nats, site } = readPilotCredential(disk.path('pilot.json'))
    const { url, ca, inboxPrefix } = nats
    const connection = await connectNats({
      url,
      ca: ca!,
      name,
      user: nats.user!,
      password: nats.password!,
      inboxPrefix,
    })
    const link = natsLink(connection, site)
    ends.push(() => link.close())
    const made = new SimulatedHolder(link, 'pilot', name)
    await made.hello()
    return made
  }

  /** Eight tasks of a new campaign, granted. */
  async function work(one: SimulatedHolder) {
    const name = `c${site}`
    const person = await lab.person(`p${site}`, ['/demo'])
    await person.call('submitCampaign', { body: { source: CAMPAIGN(name) } })
    const leases: Awaited<ReturnType<typeof one.pull>>['grants'] = []
    await until('eight tasks', async () => {
      leases.push(...(await one.pull({ waitMs: 300 })).grants)
      one.confirm()
      await one.beat()
      return leases.length >= 8
    })
    const isDone = async () => (await person.call('listCampaigns', {})).campaigns.some((one) => one.state === 'done')
    return { leases: leases.map(({ lease }) => lease), capability: leases[0]!.capability!, isDone }
  }

  /** Fills the disk up to so many bytes that stay free; again makes room. */
  function fill(freeBytes: number): () => void {
    const path = disk.path('ballast')
    const file = openSync(path, 'w')
    const chunk = Buffer.alloc(64 * 1024, 1)
    let written = 0
    try {
      for (;;) written += writeSync(file, chunk)
    } catch {
      // Full.
    }
    closeSync(file)
    if (freeBytes > 0) writeFileSync(path, Buffer.alloc(Math.max(0, written - freeBytes), 1))
    return () => rmSync(path, { force: true })
  }

  const view = async () =>
    (await lab.admin.call('listHolders', { query: { role: 'relay' } })).holders.find(
      (one) => one.site === `DISK-${site}`,
    )!

  it('relay - short of room it takes no new work and no outputs, but results; and goes on when there is room', async () => {
    const a = await pilot('a')
    const { leases, capability, isDone } = await work(a)
    const empty = fill(2 * 1024 * 1024)
    await relay.said('disk.full')
    expect(await a.pull({ waitMs: 0 })).toMatchObject({ grants: [], reason: 'storeFull' })
    const { files } = readPilotCredential(disk.path('pilot.json'))
    const client = new FileClient({ ca: files.ca, token: files.token })
    ends.push(() => client.close())
    const { filesUrl, metricsUrl } = (await relay.said('relay.ready')) as unknown as Record<string, string>
    const source = join(folder, 'output')
    writeFileSync(source, 'x')
    const lease = leases[0]!
    const path = `${lease.campaign}/${lease.step}/${lease.tasks}/${lease.fences.join('.')}/out`
    const sha = 'sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881'
    const put = (giveUpAfterMs: number) =>
      client.putFile(filesUrl + fileAddress.attempt(path), source, sha, { capability, giveUpAfterMs })
    await expect(put(0)).rejects.toMatchObject({ code: 'store.full' })
    await until('central knows', async () => (await view()).gauges.diskFull === 1)
    expect(await (await fetch(`${metricsUrl}/metrics`)).text()).toContain('indraft_disk_full 1')
    expect(await a.report([resultOf(leases[1]!, Number(leases[1]!.tasks))])).toEqual(['accepted'])
    empty()
    await relay.said('disk.hasRoom')
    await put(10_000)
    await a.report([lease, ...leases.slice(2)].map((one) => resultOf(one, Number(one.tasks))))
    await until('done', isDone)
    await until('central knows that too', async () => (await view()).gauges.diskFull === 0)
  })

  it('relay - with no room at all nothing is acknowledged, and what was not is asked again until it is', async () => {
    const a = await pilot('a')
    const { leases, isDone } = await work(a)
    const empty = fill(0)
    // What the journal's file has room for it may still take; then it refuses.
    const results = leases.map((lease) => resultOf(lease, Number(lease.tasks), { detail: 'x'.repeat(400) }))
    let code = ''
    for (let round = 0; code !== 'store.full'; round++) {
      const other = { ...resultOf(leases[0]!, 0), campaign: `none-${round}`, detail: 'x'.repeat(400) }
      const many = Array.from({ length: 40 }, (_, index) => ({ ...other, index }))
      code = codeOf(await a.ask('report', { session: a.session, results: many }))
    }
    expect(codeOf(await a.ask('report', { session: a.session, results }))).toBe('store.full')
    expect(codeOf(await a.ask('beat', a.beatBody()))).toBe('store.full')
    await until('central knows', async () => (await view()).gauges.diskFull === 1)
    // Longer than a silent pilot lives: nobody is to blame for what the relay could not hear.
    await after(1.5 * a.timings.lostAfterMs)
    empty()
    await relay.said('journal.hasRoom')
    await until('all are acknowledged', async () => {
      const answer = await a.ask('report', { session: a.session, results })
      return answer.type === 'reported'
    })
    expect(relay.lines.some(({ msg }) => msg === 'pilot.lost')).toBe(false)
    await until('done', isDone)
  })

  it('relay - on a disk that fails or is read-only it ends with a code of its own, and goes on when started on a good one', async () => {
    const a = await pilot('a')
    const { leases, isDone } = await work(a)
    const results = leases.map((lease) => resultOf(lease, Number(lease.tasks)))
    writeFileSync(join(folder, 'changes.gathered'), 'throw EIO')
    const answered = a.ask('report', { session: a.session, results }, 2000).then(codeOf, () => 'silence')
    expect(await relay.exited).toBe(74)
    expect(await answered).not.toBe('reported')
    await disk.remount('ro')
    const second = spawnRelay(settings(), disk.enter)
    expect(await second.exited).toBe(74)
    await disk.remount('rw')
    await start()
    await until('all are acknowledged', async () => {
      const answer = await a.ask('report', { session: a.session, results }, 1000).catch(() => null)
      return answer?.type === 'reported'
    })
    await until('done', isDone)
    expect(readFileSync(disk.path('pilot.json'), 'utf8')).toContain('pilot')
  })

  it('relay - its nats-server, killed, is started again where it was, and pilots go on', async () => {
    const a = await pilot('a')
    const { leases, isDone } = await work(a)
    const children = readFileSync(`/proc/${relay.pid}/task/${relay.pid}/children`, 'utf8').trim().split(' ')
    const nats = children.map(Number).find((pid) => readFileSync(`/proc/${pid}/comm`, 'utf8').startsWith('nats-server'))
    process.kill(nats!, 'SIGKILL')
    await relay.said('nats.restarted')
    const results = leases.map((lease) => resultOf(lease, Number(lease.tasks)))
    await until('they are taken', async () => {
      const answer = await a.ask('report', { session: a.session, results }, 1000).catch(() => null)
      return answer?.type === 'reported'
    })
    await until('done', isDone)
  })
})
