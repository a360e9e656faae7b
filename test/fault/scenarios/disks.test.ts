/**
 * The centre's own disks: one under Redis that fills up, one under central's state folder that is full or read-only.
 * What was acknowledged stays, what cannot be taken is refused in words, and all goes on when there is room. Needs root,
 * for small file systems of its own, and is skipped, saying so, without.
 */
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { relayCredentialSchema } from '../../../shared/credentials.ts'
import { FileClient, fileAddress } from '../../../shared/files/client.ts'
import { connectNats, natsLink, siteInboxPrefix } from '../../../shared/link-nats.ts'
import type { Grant, Message, Result } from '../../../shared/protocol/messages.ts'
import { digestOf } from '../../../shared/signing.ts'
import { type CentralLab, startCentralLab } from '../../central/central-lab.ts'
import { codeOf, failedWith, resultsOf, SimulatedHolder } from '../../conformance/simulated-holder.ts'
import { type SmallDisk, smallDisk } from '../../relay/relay-process.ts'
import { until } from '../world.ts'

const isRoot = process.getuid?.() === 0
if (!isRoot) console.warn("skipped: tests of the centre's full disks need root, to mount a small file system")
const PATIENCE_MS = 300_000
/** Campaigns that need nothing of the disk; several, because nobody says which is looked at first. */
const OTHERS = ['other-1', 'other-2', 'other-3', 'other-4', 'other-5']

const campaign = (name: string, steps: string) => `
indraft: 1
name: ${name}
group: /disks
defaults: {image: host, resources: {cores: 1, memory: 1MB, walltime: 5min}}
steps: ${steps}
`

describe.skipIf(!isRoot)("the centre's disks", () => {
  let folder: string
  let disk: SmallDisk
  let lab: CentralLab
  const ends: (() => unknown)[] = []
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'indraft-centre-disks-'))
  })
  afterEach(async () => {
    for (const end of ends.splice(0).reverse()) await end()
    await lab?.stop()
    disk?.close()
    rmSync(folder, { recursive: true, force: true })
  })

  const submit = (name: string, steps: string) =>
    lab.admin.call('submitCampaign', { body: { source: campaign(name, steps) } })
  const show = (name: string) => lab.admin.call('showCampaign', { params: { campaign: name } })
  const submitted = async () => (await lab.admin.call('listCampaigns', {})).campaigns.map(({ name }) => name).sort()
  const isDone = (name: string) => until(`${name} is done`, async () => (await show(name)).state === 'done')

  /** One that takes work for a whole site, and the token that opens the centre's files to it. */
  async function holder(): Promise<{ holder: SimulatedHolder; filesToken: string }> {
    const { joinToken } = await lab.admin.call('addSite', { body: { name: 'ALPHA' } })
    const { credential } = await lab.as(null).call('joinSite', { body: { token: joinToken } })
    const { nats, files } = relayCredentialSchema.parse(credential)
    const options = { url: lab.natsUrl, name: 'ALPHA', creds: nats.creds, inboxPrefix: siteInboxPrefix('ALPHA') }
    const link = natsLink(await connectNats(options), 'ALPHA')
    ends.push(() => link.close())
    const made = new SimulatedHolder(link, 'relay', 'holder')
    await made.hello()
    return { holder: made, filesToken: files.token }
  }

  /** Asks until so many tasks have come. */
  async function take(by: SimulatedHolder, tasks: number): Promise<Grant[]> {
    const all: Grant[] = []
    await until(`${tasks} tasks are granted`, async () => {
      const { grants } = await by.pull({ waitMs: 300 }, 64)
      by.confirm()
      await by.beat()
      all.push(...grants)
      return all.length >= tasks
    })
    return all
  }

  const answerTo = (by: SimulatedHolder, results: Result[]) =>
    by.ask('report', { session: by.session, results }, 60_000)

  /** Repeats what was refused until it is taken, as a relay does. */
  async function deliver(by: SimulatedHolder, results: Result[]): Promise<string[]> {
    let verdicts: string[] = []
    await until('results are taken', async () => {
      const answer = await answerTo(by, results)
      if (codeOf(answer) === 'session.unknown') await by.hello()
      if (answer.type === 'reported') {
        verdicts = (answer.body as Message<'reported'>).verdicts.map(({ verdict }) => verdict)
      }
      return answer.type === 'reported'
    })
    return verdicts
  }

  test(
    "fault - Redis' disk fills up: it ends rather than forget, what it acknowledged is there, the rest comes again",
    async () => {
      disk = await smallDisk(join(folder, 'disk'), '6m')
      lab = await startCentralLab({ timeScale: 0.5 }, { redis: disk.path('redis') })
      await submit('many', '{run: {count: 200, command: [x]}}')
      const { holder: by } = await holder()
      const leases = await by.takeAll()
      expect(leases).toHaveLength(200)
      const results = leases.flatMap((lease) => resultsOf(lease, { tail: 'x'.repeat(2000) }))
      const empty = disk.fill(96 * 1024)
      let acknowledged = 0
      let refused: string | undefined
      for (const result of results) {
        const answer = await answerTo(by, [result])
        if (answer.type !== 'reported') {
          refused = codeOf(answer)
          break
        }
        acknowledged++
      }
      expect(refused).toBe('dispatcher.busy')
      await lab.redisExited()
      await expect(lab.admin.call('listCampaigns', {})).rejects.toMatchObject({
        code: 'dispatcher.busy',
        message: 'the store does not answer: ask again',
      })
      empty()
      await lab.startRedisAgain()
      expect(await deliver(by, results.slice(0, acknowledged))).toEqual(Array(acknowledged).fill('duplicate'))
      const rest = results.slice(acknowledged)
      for (let first = 0; first < rest.length; first += 10) await deliver(by, rest.slice(first, first + 10))
      await isDone('many')
      expect((await show('many')).counts).toMatchObject({ done: 200, queued: 0, assigned: 0, running: 0 })

      // Set to sync only every second, as nobody should, it stays and says why it takes nothing.
      const control = new Redis(lab.redisUrl)
      ends.push(() => control.disconnect())
      await control.config('SET', 'appendfsync', 'everysec')
      const emptyAgain = disk.fill(0)
      await until('the store takes nothing', () =>
        submit('later', '{run: {count: 1, command: [x]}}').then(
          () => false,
          (error) => error.message === 'the store cannot write to its disk and takes no writes: ask again',
        ),
      )
      emptyAgain()
      await until('it is taken', () =>
        submit('later', '{run: {count: 1, command: [x]}}').then(
          () => true,
          () => false,
        ),
      )
      expect(await lab.admin.call('verify', {})).toMatchObject({ findings: [{ found: 'appendfsync everysec' }] })
    },
    PATIENCE_MS,
  )

  /** Neither a byte nor a name more. */
  function fillWholly(): () => void {
    const empty = disk.fill(0)
    const names: string[] = []
    try {
      for (;;) {
        const name = disk.path(`name-${names.length}`)
        writeFileSync(name, '')
        names.push(name)
      }
    } catch {
      // Full.
    }
    return () => {
      for (const name of names) rmSync(name)
      empty()
    }
  }

  test(
    "fault - central's disk is full, then read-only: refused in words, nothing half done, and all goes on after",
    async () => {
      disk = await smallDisk(join(folder, 'disk'), '8m,nr_inodes=400')
      lab = await startCentralLab({ timeScale: 0.1 }, { state: disk.path('state') })
      const { holder: by, filesToken } = await holder()
      const files = new FileClient({ ca: null, token: filesToken })
      ends.push(() => files.close())
      const outputs = disk.path('state/outputs')
      const chain = `{
        first: {count: 1, command: [x], outputs: [{path: out}]},
        second: {after: {step: first}, count: 1, command: [x], inputs: [{from: first, path: in/}]}}`
      const chainId = (await submit('chain', chain)).id
      for (const name of OTHERS) await submit(name, '{run: {count: 1, command: [x], retries: {infrastructure: 3}}}')
      const taken = await take(by, 1 + OTHERS.length)
      const first = taken.find(({ lease }) => lease.step === 'first')!
      const runs = taken.filter(({ lease }) => lease.step === 'run')

      const source = join(folder, 'out')
      writeFileSync(source, 'what it made')
      const checksum = digestOf(Buffer.from('what it made'))
      const path = `${first.lease.campaign}/first/0/${first.lease.fences.join('.')}.1/out`
      const put = (giveUpAfterMs: number) =>
        files.putFile(lab.central.apiUrl + fileAddress.attempt(path), source, checksum, {
          capability: first.capability!,
          giveUpAfterMs,
        })

      let empty = fillWholly()
      await expect(submit('new', '{run: {count: 1, command: [x]}}')).rejects.toMatchObject({
        code: 'store.full',
        message: 'the disk of the state folder of the centre is full: ask again',
      })
      expect(await submitted()).toEqual(['chain', ...OTHERS])
      await expect(put(0)).rejects.toMatchObject({ code: 'store.full' })
      empty()
      await put(60_000)

      // The result is taken without a byte of disk; publishing and releasing wait for room, and hold nobody else up.
      empty = fillWholly()
      const output = { path: 'out', url: `store:${path}`, sizeBytes: 12, checksum }
      const fences = [...first.lease.fences, 1]
      expect(await deliver(by, resultsOf(first.lease, { outputs: [output], fences }))).toEqual(['accepted'])
      for (const { lease } of runs) await deliver(by, resultsOf(lease, failedWith('node.fault')))
      for (const { lease } of await take(by, OTHERS.length)) await deliver(by, resultsOf(lease))
      for (const name of OTHERS) await isDone(name)
      const published = join(outputs, 'published', chainId, 'first/0/out')
      expect([existsSync(published), (await show('chain')).steps[1]!.counts.blocked]).toEqual([false, 1])
      empty()
      const [second] = await take(by, 1)
      await until('it is published', () => existsSync(published))
      expect(await deliver(by, resultsOf(second!.lease))).toEqual(['accepted'])
      await isDone('chain')

      await disk.remount('ro')
      await expect(submit('new', '{run: {count: 1, command: [x]}}')).rejects.toMatchObject({
        code: 'dispatcher.busy',
        message: 'the state folder of the centre is read-only: ask again',
      })
      await disk.remount('rw')
      expect(await submit('new', '{run: {count: 1, command: [x]}}')).toMatchObject({ created: true })
      expect(await submitted()).toEqual(['chain', 'new', ...OTHERS])
      const blobs = readdirSync(disk.path('state/blobs'), { recursive: true, encoding: 'utf8' })
      expect(blobs.filter((name) => !/^[0-9a-f]{2}(\/[0-9a-f]{64})?$/.test(name))).toEqual([])
      expect(await lab.admin.call('verify', {})).toEqual({ findings: [] })
    },
    PATIENCE_MS,
  )
})
