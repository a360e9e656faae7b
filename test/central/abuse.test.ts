/** What a hostile or broken client can do to central's API: the API, its people and a store in memory, on real sockets. */
import { once } from 'node:events'
import { type AddressInfo, connect } from 'node:net'
import type { FastifyInstance } from 'fastify'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { campaignHandlers } from '../../central/api/campaigns.ts'
import { buildServer, type Handlers } from '../../central/api/server.ts'
import type { CampaignStore, CampaignView } from '../../central/campaigns/model.ts'
import { makeMetrics } from '../../central/metrics.ts'
import type { People, Principal } from '../../central/people.ts'
import type { ErrorCode } from '../../shared/errors.ts'
import { IndraftError } from '../../shared/errors.ts'
import { emptyCounts } from '../../shared/lifecycle.ts'
import { type Log, silentLog } from '../../shared/log.ts'

const ADA: Principal = { subject: 'ada', groups: ['/vo'], roles: ['submit'] }
const people = {
  identify: async (header?: string) => {
    if (header === undefined) throw new IndraftError('auth.missing')
    return ADA
  },
} as unknown as People
const headers = { authorization: 'Bearer ada' }

const view = (id: string, memoryBytes: number): CampaignView => ({
  id: id as CampaignView['id'],
  name: id,
  group: '/vo',
  subject: 'ada',
  activity: '',
  priority: 0,
  desired: 'run',
  desiredVersion: 0,
  state: 'running',
  createdAtMs: 0,
  endedAtMs: null,
  counts: emptyCounts(),
  steps: [
    {
      name: 'sim' as never,
      size: 1,
      after: [{ step: 'gen' as never, accept: memoryBytes }],
      counts: emptyCounts(),
      needs: undefined as never,
      meanWallMs: null,
    },
  ],
  failures: [],
})
const good = { ...view('good', 1), steps: [] }
const bad = view('bad', Number.POSITIVE_INFINITY)
const store = {
  list: async () => [good, bad],
  find: async (name: string) => [good, bad].find(({ id }) => id === name) ?? null,
  setDesired: async (_id: string, desired: string) => ({ ...bad, desired }),
} as unknown as CampaignStore

let app: FastifyInstance
let refused: ErrorCode[]
let warned: unknown[]
let checking: (() => void)[]
beforeEach(() => start())
afterEach(() => app.close())

async function start(bodyTimeoutMs = 60_000): Promise<void> {
  refused = []
  warned = []
  checking = []
  const log = { ...silentLog, info() {}, error() {}, warn: (what: unknown) => warned.push(what) } as unknown as Log
  const handlers = {
    ...campaignHandlers({ store, log, siteShapes: async () => [] }),
    submitCampaign: async () => {
      await new Promise<void>((resolve) => checking.push(resolve))
      return { id: 'x', name: 'x', group: '/vo', created: true, dryRun: false, tasks: 0, steps: [], warnings: [] }
    },
  } as unknown as Handlers
  app = await buildServer({
    people,
    handlers,
    log,
    tls: null,
    files: null,
    ready: async () => {},
    onRefused: (code) => refused.push(code),
    bodyTimeoutMs,
  })
  await app.listen({ host: '127.0.0.1', port: 0 })
}

/** Sends bytes as they are; resolves with all that comes back until the other end hangs up. */
async function raw(bytes: string): Promise<string> {
  const socket = connect((app.server.address() as AddressInfo).port, '127.0.0.1')
  let text = ''
  socket.on('data', (data) => {
    text += data
  })
  socket.on('error', () => {})
  socket.write(bytes)
  await once(socket, 'close')
  return text
}
const jsonOf = (answer: string) => JSON.parse(answer.slice(answer.indexOf('\r\n\r\n') + 4))

describe('api - bodies', () => {
  it('a body without a token is refused before any of it is read', async () => {
    const answered = new Promise<string>((resolve) => {
      const socket = connect((app.server.address() as AddressInfo).port, '127.0.0.1')
      socket.once('data', (data) => {
        socket.destroy()
        resolve(String(data))
      })
      socket.write('POST /v1/campaigns HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n')
      socket.write('Content-Length: 33000000\r\n\r\n{')
    })
    expect(await answered).toMatch(/^HTTP\/1.1 401 [\s\S]*auth.missing/)
    expect(refused).toEqual(['auth.missing'])
  })

  it('64 kB is enough everywhere but in submissions', async () => {
    const payload = { desired: 'run', more: 'x'.repeat(70_000) }
    const reply = await app.inject({ method: 'POST', url: '/v1/campaigns/good/desired', headers, payload })
    expect(reply.json()).toMatchObject({ code: 'request.invalid' })
    const submitted = app.inject({
      method: 'POST',
      url: '/v1/campaigns',
      headers,
      payload: { source: 's', tables: { a: 'x'.repeat(16 * 1024 * 1024) } },
    })
    const answer = submitted.then((answer) => answer.statusCode)
    await expect.poll(() => checking.length).toBe(1)
    checking[0]!()
    expect(await answer).toBe(200)
  })

  it('two submissions are checked at a time, a further one waits and then is told to come later', async () => {
    const submit = async () =>
      await app.inject({ method: 'POST', url: '/v1/campaigns', headers, payload: { source: 's' } })
    const first = [submit(), submit()]
    await expect.poll(() => checking.length).toBe(2)
    const third = await submit()
    expect([third.statusCode, third.json()]).toMatchObject([503, { code: 'dispatcher.busy', retryAfterMs: 5000 }])
    const fourth = submit()
    for (const end of checking.splice(0)) end()
    expect((await Promise.all(first)).map(({ statusCode }) => statusCode)).toEqual([200, 200])
    await expect.poll(() => checking.length).toBe(1)
    checking[0]!()
    expect((await fourth).statusCode).toBe(200)
  })

  it('a body that does not come ends its connection and frees its place', async () => {
    await app.close()
    await start(200)
    const slow = `POST /v1/campaigns HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ada\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{`
    await Promise.all([raw(slow), raw(slow), raw(slow)])
    expect(refused.filter((code) => code === 'request.invalid').length).toBeGreaterThanOrEqual(3)
    // Of no more than some bytes, which are there with the request.
    const submitted = app.inject({ method: 'POST', url: '/v1/campaigns', headers, payload: { source: 's' } })
    const status = submitted.then(({ statusCode }) => statusCode)
    await expect.poll(() => checking.length).toBe(1)
    checking[0]!()
    expect(await status).toBe(200)
  })
})

describe('api - what is no request', () => {
  it.each([
    ['garbage', 'what is this\r\n\r\n', '400'],
    ['too large a header', `GET / HTTP/1.1\r\nHost: x\r\nX: ${'x'.repeat(20_000)}\r\n\r\n`, '431'],
    ['an address that cannot be read', 'GET /v1/campaigns/%zz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n', '400'],
  ])('%s is refused in the usual form and counted', async (_name, bytes, status) => {
    const answer = await raw(bytes)
    expect(answer).toContain(`HTTP/1.1 ${status} `)
    expect(jsonOf(answer)).toEqual({ code: 'request.invalid', message: expect.any(String) })
    expect(refused).toEqual(['request.invalid'])
  })
})

describe('api - a stored campaign that cannot be shown', () => {
  it('is left out of the list with a warning', async () => {
    const reply = await app.inject({ url: '/v1/campaigns', headers })
    expect(reply.json().campaigns.map(({ id }: { id: string }) => id)).toEqual(['good'])
    expect(warned).toEqual([{ campaign: 'bad', misfit: expect.stringContaining('steps.0.after.0.accept') }])
  })

  it('says so when it is asked for, and can be cancelled', async () => {
    const shown = await app.inject({ url: '/v1/campaigns/bad', headers })
    expect([shown.statusCode, shown.json().code]).toEqual([422, 'campaign.invalid'])
    const url = '/v1/campaigns/bad/desired'
    const cancelled = await app.inject({ method: 'POST', url, headers, payload: { desired: 'cancelled' } })
    expect([cancelled.statusCode, cancelled.json()]).toMatchObject([200, { desired: 'cancelled', steps: [] }])
  })
})

it('metrics - a site name that somebody made up is no label', async () => {
  const metrics = makeMetrics(silentLog)
  const holders = async () => [{ site: 'LIVE', state: 'active' }]
  const known = { ...store, holders } as unknown as CampaignStore
  metrics.watch(
    known,
    async () => ({ sequence: 0, halted: false }),
    async () => ['ALPHA'],
  )
  for (const site of ['ALPHA', 'LIVE', 'made-up-1', 'made-up-2']) {
    metrics.dispatcherEvents.onRefused('message.garbled', { site })
  }
  const text = async () => (await metrics.registry.metrics()).match(/^indraft_messages_refused_total.*$/gm)?.sort()
  const series = (site: string, count: number) =>
    `indraft_messages_refused_total{code="message.garbled",site="${site}"} ${count}`
  await expect.poll(text).toEqual([series('ALPHA', 1), series('LIVE', 1), series('unknown', 2)])
})
