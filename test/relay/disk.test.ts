/**
 * A relay whose disk has no room or cannot be written, on a small file system of its own. Needs root for the mount and is
 * skipped, saying so, without.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { setTimeout as after } from 'node:timers/promises'
import { describe, expect, it } from 'vitest'
import { readPilotCredential } from '../../shared/credentials.ts'
import { checksumFile } from '../../shared/files/checksum.ts'
import { FileClient, fileAddress } from '../../shared/files/client.ts'
import type { LeasePart } from '../../shared/protocol/messages.ts'
import { codeOf, resultOf, type SimulatedHolder } from '../conformance/simulated-holder.ts'
import { joinedRelay } from './joined.ts'
import { until } from './relay-in-parts.ts'

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
  // A silent pilot is lost after 12 s: longer than links and relays take to stand again, also on a slow machine.
  const at = joinedRelay('DISK', { timeScale: 0.2, more: ['--disk-reserve', '4MiB'], disk: '24m' })
  const disk = () => at.disk!

  /** Eight tasks of a new campaign, granted. */
  async function work(one: SimulatedHolder) {
    const name = at.site.toLowerCase()
    const person = await at.lab.person(name, ['/demo'])
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

  /** Hands files in as a pilot does, as outputs of a lease. */
  async function putting(lease: LeasePart, capability: string) {
    const { files } = readPilotCredential(at.state('pilot.json'))
    const client = new FileClient({ ca: files.ca, token: files.token })
    at.onEnd(() => client.close())
    const { filesUrl } = (await at.relay.said('relay.ready')) as unknown as Record<string, string>
    const folder = `${lease.campaign}/${lease.step}/${lease.tasks}/${lease.fences.join('.')}`
    return async (source: string, giveUpAfterMs: number) => {
      const address = filesUrl + fileAddress.attempt(`${folder}/${basename(source)}`)
      return await client.putFile(address, source, await checksumFile(source), { capability, giveUpAfterMs })
    }
  }

  const view = async () => {
    const { holders } = await at.lab.admin.call('listHolders', { query: { role: 'relay' } })
    return holders.find((one) => one.site === at.site)!
  }

  it('relay - short of room it takes no new work and no outputs, but results; and goes on when there is room', async () => {
    const a = await at.pilot('a')
    const { leases, capability, isDone } = await work(a)
    const empty = disk().fill(2 * 1024 * 1024)
    await at.relay.said('disk.full')
    expect(await a.pull({ waitMs: 0 })).toMatchObject({ grants: [], reason: 'storeFull' })
    const source = join(at.folder, 'output')
    writeFileSync(source, 'x')
    const put = await putting(leases[0]!, capability)
    await expect(put(source, 0)).rejects.toMatchObject({ code: 'store.full' })
    await until('central knows', async () => (await view()).gauges.diskFull === 1)
    const { metricsUrl } = (await at.relay.said('relay.ready')) as unknown as Record<string, string>
    expect(await (await fetch(`${metricsUrl}/metrics`)).text()).toContain('indraft_relay_disk_full 1')
    expect(await a.report([resultOf(leases[1]!, Number(leases[1]!.tasks))])).toEqual(['accepted'])
    empty()
    await at.relay.said('disk.hasRoom')
    await put(source, 60_000)
    await a.report([leases[0]!, ...leases.slice(2)].map((one) => resultOf(one, Number(one.tasks))))
    await until('done', isDone)
    await until('central knows that too', async () => (await view()).gauges.diskFull === 0)
  })

  it('relay - an output that its disk has no room for is refused before it is written, a smaller one is taken', async () => {
    const a = await at.pilot('a')
    const { leases, capability, isDone } = await work(a)
    const put = await putting(leases[0]!, capability)
    const [large, small] = [join(at.folder, 'large'), join(at.folder, 'small')]
    writeFileSync(large, Buffer.alloc(30 * 1024 * 1024))
    writeFileSync(small, Buffer.alloc(1024 * 1024))
    const refused = { code: 'store.full', message: expect.stringContaining('no room for 31457280 bytes') }
    await expect(put(large, 0)).rejects.toMatchObject(refused)
    await put(small, 10_000)
    expect(at.relay.lines.some(({ msg }) => msg === 'disk.full')).toBe(false)
    await a.report(leases.map((one) => resultOf(one, Number(one.tasks))))
    await until('done', isDone)
  })

  it('relay - with no room at all nothing is acknowledged, and what was not is asked again until it is', async () => {
    const a = await at.pilot('a')
    const { leases, isDone } = await work(a)
    const empty = disk().fill(0)
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
    await at.relay.said('journal.hasRoom')
    await until('all are acknowledged', async () => {
      const answer = await a.ask('report', { session: a.session, results })
      return answer.type === 'reported'
    })
    expect(at.relay.lines.some(({ msg }) => msg === 'pilot.lost')).toBe(false)
    await until('done', isDone)
  })

  it('relay - on a disk that fails or is read-only it ends with a code of its own, and goes on when started on a good one', async () => {
    const a = await at.pilot('a')
    const { leases, isDone } = await work(a)
    const results = leases.map((lease) => resultOf(lease, Number(lease.tasks)))
    writeFileSync(join(at.folder, 'changes.gathered'), 'throw EIO')
    const answered = a.ask('report', { session: a.session, results }, 2000).then(codeOf, () => 'silence')
    expect(await at.relay.exited).toBe(74)
    expect(await answered).not.toBe('reported')
    await disk().remount('ro')
    expect(await at.start().exited).toBe(74)
    await disk().remount('rw')
    await at.start().said('relay.ready')
    await until('all are acknowledged', async () => {
      const answer = await a.ask('report', { session: a.session, results }, 1000).catch(() => null)
      return answer?.type === 'reported'
    })
    await until('done', isDone)
    expect(readFileSync(at.state('pilot.json'), 'utf8')).toContain('pilot')
  })

  it('relay - its nats-server, killed, is started again where it was, and pilots go on', async () => {
    const a = await at.pilot('a')
    const { leases, isDone } = await work(a)
    const children = readFileSync(`/proc/${at.relay.pid}/task/${at.relay.pid}/children`, 'utf8').trim().split(' ')
    const nats = children.map(Number).find((pid) => readFileSync(`/proc/${pid}/comm`, 'utf8').startsWith('nats-server'))
    process.kill(nats!, 'SIGKILL')
    await at.relay.said('nats.restarted')
    const results = leases.map((lease) => resultOf(lease, Number(lease.tasks)))
    await until('they are taken', async () => {
      const answer = await a.ask('report', { session: a.session, results }, 1000).catch(() => null)
      return answer?.type === 'reported'
    })
    await until('done', isDone)
  })
})
