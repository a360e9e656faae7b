/** Outputs on their way up: a result never goes before its files, and says so when they cannot. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { IndraftError } from '../../shared/errors.ts'
import { enableFailpoints } from '../../shared/failpoint.ts'
import { AttemptFiles } from '../../shared/files/attempt-files.ts'
import { type FileRequest, type FileService, fileHandler } from '../../shared/files/server.ts'
import { silentLog } from '../../shared/log.ts'
import type { LeasePart, OutputRecord } from '../../shared/protocol/messages.ts'
import { failedWith, resultOf, type SimulatedHolder, tasksOf } from '../conformance/simulated-holder.ts'
import { RelayBench } from './bench.ts'
import { until } from './relay-in-parts.ts'

let at: RelayBench
let pilot: SimulatedHolder
let lease: LeasePart
let filesFolder: string
let atCentre: AttemptFiles
let server: Server
/** What the centre's file server answers instead of doing it. */
let refusal: IndraftError | undefined
/** Its files are not there to be written, as where its folder belongs to somebody else. */
let refusedCampaign: string | undefined
let asked: number
/** Without it the centre's file server refuses; null asks for none. */
let needed: string | null

beforeEach(async () => {
  filesFolder = mkdtempSync(join(tmpdir(), 'indraft-uploads-'))
  atCentre = new AttemptFiles(filesFolder)
  refusal = undefined
  refusedCampaign = undefined
  asked = 0
  needed = null
  const service = {
    authorize(wanted: FileRequest, _token: string | null, capability: string | null) {
      asked++
      if (refusal) throw refusal
      if (wanted.kind === 'attempt' && wanted.attempt.campaign === refusedCampaign)
        throw new IndraftError('internal.error')
      if (needed !== null && capability !== needed) throw new IndraftError('capability.invalid')
    },
    findBlob: async () => null,
    findAttemptFile: (...args: Parameters<AttemptFiles['find']>) => atCentre.find(...args),
    putAttemptFile: (...[attempt, path, content, checksum]: Parameters<FileService['putAttemptFile']>) =>
      atCentre.put(attempt, path, content, checksum),
  }
  server = createServer(fileHandler(service, silentLog))
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const centralUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  at = await RelayBench.open({ parts: { centralUrl } })
  pilot = await at.pilot('a')
  at.centre.give({ tasks: '0', capability: 'opens-b1' })
  await at.buffered(1)
  lease = (await pilot.takeAll())[0]!
})
afterEach(async () => {
  await at?.close()
  server.closeAllConnections()
  await new Promise((resolve) => server.close(resolve))
  rmSync(filesFolder, { recursive: true, force: true })
})

const attempt = (index = 0) => ({ campaign: lease.campaign, step: lease.step, index, fences: lease.fences })

/** As the relay's file server takes it from a pilot. */
async function handIn(path: string, content: string, index = 0): Promise<OutputRecord> {
  const outbox = new AttemptFiles(join(at.folder, 'outbox'))
  const { sizeBytes, checksum } = await outbox.put(attempt(index), path, Readable.from([Buffer.from(content)]), null)
  const url = `store:${lease.campaign}/${lease.step}/${index}/${lease.fences.join('.')}/${path}`
  return { path, sizeBytes, checksum, url }
}

it('upload - the result goes after its outputs, which then lie where they may be dropped', async () => {
  const outputs = [await handIn('a.txt', 'one'), await handIn('sub/b.txt', 'two')]
  await pilot.report([resultOf(lease, 0, { outputs })])
  await until('the result', () => at.centre.results.length === 1)
  expect(at.centre.results[0]).toMatchObject({ end: 'done', outputs })
  expect(readFileSync(atCentre.locate(attempt(), 'sub/b.txt'), 'utf8')).toBe('two')
  await until(
    'the outbox is empty',
    async () => (await new AttemptFiles(join(at.folder, 'outbox')).attempts()).length === 0,
  )
})

it('upload - with the file server away the result waits, over a crash too', async () => {
  refusal = new IndraftError('dispatcher.busy')
  const outputs = [await handIn('a.txt', 'one')]
  await pilot.report([resultOf(lease, 0, { outputs })])
  await until('a try', () => asked > 0)
  expect(at.centre.results).toEqual([])
  await at.relay.crash()
  await at.start()
  refusal = undefined
  await until('the result', () => at.centre.results.length === 1)
  expect(readFileSync(atCentre.locate(attempt(), 'a.txt'), 'utf8')).toBe('one')
})

it.each(['auth.invalid', 'site.disabled', 'auth.forbidden'] as const)(
  'upload - while central answers %s the success waits, over a crash too',
  async (code) => {
    const outputs = [await handIn('a.txt', 'one'), await handIn('b.txt', 'two')]
    refusal = new IndraftError(code)
    await pilot.report([resultOf(lease, 0, { outputs })])
    const triesMore = (most: number) =>
      until(`${most} more tries`, () => {
        at.clock.jump(60_000)
        return asked > most
      })
    // More than what is only doubtful is tried.
    await triesMore(14)
    await at.restart()
    asked = 0
    await triesMore(2)
    expect(at.centre.results).toEqual([])
    expect(at.relay.gauges()).toMatchObject({ resultsWaiting: 1, uploadsWaiting: 1 })
    refusal = undefined
    await at.atCentre(1)
    expect(at.centre.results[0]).toMatchObject({ end: 'done', outputs })
    expect(readFileSync(atCentre.locate(attempt(), 'b.txt'), 'utf8')).toBe('two')
  },
)

it('upload - what central lacks for one campaign holds up the outputs of no other', async () => {
  await at.relay.crash()
  rmSync(at.folder, { recursive: true })
  await at.start()
  const mine = await at.pilot('b')
  at.centre.give({ tasks: '0-7', fence: 2000 })
  at.centre.give({ bundle: 'b2', campaign: 'c2', tasks: '0', fence: 3000 })
  await at.buffered(9)
  const leases = await mine.takeAll()
  refusedCampaign = 'c1'
  const report = async (campaign: string) => {
    for (const one of leases.filter((lease) => lease.campaign === campaign)) {
      lease = one
      for (const index of tasksOf(one).map((name) => Number(name.split('/')[2]))) {
        await mine.report([resultOf(one, index, { outputs: [await handIn('a.txt', 'one', index)] })])
      }
    }
  }
  await report('c1')
  await until('six tries', () => asked >= 6)
  await report('c2')
  await at.atCentre(1)
  expect(at.centre.results).toMatchObject([{ campaign: 'c2', end: 'done' }])
  refusedCampaign = undefined
  await at.atCentre(9)
  expect(at.centre.results.every(({ end }) => end === 'done')).toBe(true)
})

it('upload - a log that waits goes up with what a later order brings', async () => {
  await handIn('.log/stderr', 'it broke')
  needed = 'opens-this-log'
  await pilot.report([resultOf(lease, 0, failedWith('payload.exit'))])
  await until('a try', () => asked > 0)
  const order = { kind: 'log.send' as const, attempt: { ...attempt(), bundle: 'b1' }, stream: 'stderr' as const }
  at.centre.orders.push({ ...order, capability: 'opens-this-log' })
  await until('the log', async () => (await atCentre.find(attempt(), '.log/stderr')) !== null)
})

it('upload - a relay out of descriptors half-way through tries again', async () => {
  const outputs = [await handIn('a.txt', 'one'), await handIn('b.txt', 'two')]
  const moments = mkdtempSync(join(tmpdir(), 'indraft-moments-'))
  writeFileSync(join(moments, 'upload.halfway'), 'throw EMFILE')
  enableFailpoints(moments)
  try {
    await pilot.report([resultOf(lease, 0, { outputs })])
    await at.atCentre(1)
    expect(at.centre.results[0]).toMatchObject({ end: 'done', outputs })
    expect(readdirSync(moments)).toEqual([`upload.halfway.hit.${process.pid}`])
  } finally {
    enableFailpoints(null)
    rmSync(moments, { recursive: true })
  }
})

it('upload - what central refuses for good turns the success into a failure that is not charged to the payload', async () => {
  refusal = new IndraftError('capability.invalid')
  const outputs = [await handIn('a.txt', 'one')]
  await pilot.report([resultOf(lease, 0, { outputs })])
  await until('the result', () => at.centre.results.length === 1)
  expect(at.centre.results[0]).toMatchObject({ end: 'failed', reason: 'stage.outFailed', outputs: [] })
})

it('upload - an output that is at the relay no more turns the success into a failure', async () => {
  const output = await handIn('a.txt', 'one')
  rmSync(join(at.folder, 'outbox'), { recursive: true })
  await pilot.report([resultOf(lease, 0, { outputs: [output] })])
  await until('the result', () => at.centre.results.length === 1)
  expect(at.centre.results[0]).toMatchObject({ end: 'failed', reason: 'stage.outFailed' })
})

it('upload - the log of a failed attempt goes up at once, that of a good one when it is wanted', async () => {
  await handIn('.log/stderr', 'it broke')
  await pilot.report([resultOf(lease, 0, failedWith('payload.exit'))])
  await until('the log', async () => (await atCentre.find(attempt(), '.log/stderr')) !== null)
  at.centre.give({ bundle: 'b2', tasks: '0', fence: 2000 })
  await at.buffered(1)
  lease = (await pilot.takeAll())[0]!
  await handIn('.log/stdout', 'all good')
  await pilot.report([resultOf(lease, 0)])
  await until('the result', () => at.centre.results.length === 2)
  expect(await atCentre.find(attempt(), '.log/stdout')).toBeNull()
  at.centre.orders.push({ kind: 'log.send', attempt: { ...attempt(), bundle: 'b2' }, stream: 'stdout' })
  await until('the log', async () => (await atCentre.find(attempt(), '.log/stdout')) !== null)
})

it('upload - outputs go up with the capability of their lease, which the journal keeps', async () => {
  needed = 'opens-b1'
  const outputs = [await handIn('a.txt', 'one')]
  at.centre.isCut = true
  refusal = new IndraftError('dispatcher.busy')
  await pilot.report([resultOf(lease, 0, { outputs })])
  await until('a try', () => asked > 0)
  await at.relay.crash()
  refusal = undefined
  at.centre.isCut = false
  await at.start()
  await until('the result', () => at.centre.results.length === 1)
  expect(at.centre.results[0]).toMatchObject({ end: 'done', outputs })
})

it('upload - a pilot thought lost comes back after its lease is over, and after a crash: its outputs still go up', async () => {
  needed = 'opens-b1'
  const outputs = [await handIn('a.txt', 'one')]
  await pilot.beat({ started: [lease] })
  pilot.incarnation = 'i2'
  await pilot.hello()
  await until('what the relay says of it', () => at.centre.results.length === 1)
  expect(at.centre.results[0]).toMatchObject({ end: 'failed', reason: 'node.lost' })
  await until('the lease is over', () => at.relay.buffer.counts().leases === 0)
  await at.relay.journal.committed()
  await at.relay.crash()
  await at.start()
  await pilot.hello()
  await pilot.report([resultOf(lease, 0, { outputs })])
  await until('the late result', () => at.centre.results.length === 2)
  expect(at.centre.results[1]).toMatchObject({ end: 'done', outputs })
  expect(readFileSync(atCentre.locate(attempt(), 'a.txt'), 'utf8')).toBe('one')
})

it('upload - outputs of a pilot thought lost stay where nothing drops them until its success is settled', async () => {
  await at.relay.crash()
  await at.start({ cacheBytes: 0 })
  const outputs = [await handIn('a.txt', 'one'), await handIn('b.txt', 'two')]
  await handIn('.log/stdout', 'all good')
  await pilot.hello()
  await pilot.beat({ started: [lease] })
  pilot.incarnation = 'i2'
  await pilot.hello()
  await until('the lease is over', () => at.relay.buffer.counts().leases === 0)
  at.centre.orders.push({ kind: 'log.send', attempt: { ...attempt(), bundle: 'b1' }, stream: 'stdout' })
  await until('the log', async () => (await atCentre.find(attempt(), '.log/stdout')) !== null)
  await until('nothing goes up', () => at.relay.uploads.waiting === 0)
  await pilot.report([resultOf(lease, 0, { outputs })])
  await at.atCentre(2)
  expect(at.centre.results).toMatchObject([
    { end: 'failed', reason: 'node.lost' },
    { end: 'done', outputs },
  ])
  await until('the outbox is empty', async () => (await at.relay.outbox.attempts()).length === 0)
})

it('upload - a log that is wanted when its lease is over goes up with what the order opens', async () => {
  await handIn('.log/stdout', 'all good')
  await pilot.report([resultOf(lease, 0)])
  await until('the lease is over', () => at.relay.buffer.counts().leases === 0)
  needed = 'opens-this-log'
  refusal = new IndraftError('dispatcher.busy')
  const order = { kind: 'log.send' as const, attempt: { ...attempt(), bundle: 'b1' }, stream: 'stdout' as const }
  at.centre.orders.push({ ...order, capability: 'opens-this-log' })
  await until('a try', () => asked > 0)
  await at.relay.crash()
  refusal = undefined
  await at.start()
  await until('the log', async () => (await atCentre.find(attempt(), '.log/stdout')) !== null)
})

it('upload - the log of a failed attempt goes up with the capability of its lease, over a crash too', async () => {
  needed = 'opens-b1'
  refusal = new IndraftError('dispatcher.busy')
  await handIn('.log/stderr', 'it broke')
  await pilot.report([resultOf(lease, 0, failedWith('payload.exit'))])
  await until('the lease is over', () => at.relay.buffer.counts().leases === 0)
  await at.relay.crash()
  refusal = undefined
  await at.start()
  await until('the log', async () => (await atCentre.find(attempt(), '.log/stderr')) !== null)
})

it('upload - what opens a lease is forgotten with a lease that ended well', async () => {
  expect(at.relay.buffer.capabilities.kept).toBe(1)
  await pilot.report([resultOf(lease, 0)])
  await until('the lease is over', () => at.relay.buffer.counts().leases === 0)
  expect(at.relay.buffer.capabilities.kept).toBe(0)
})
