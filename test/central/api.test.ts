import { statSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { ApiRefusal, type Client, Unreachable } from '../../central/api/client.ts'
import { ROUTES } from '../../central/api/routes.ts'
import type { ErrorCode } from '../../shared/errors.ts'
import { type CentralLab, startCentralLab } from './central-lab.ts'

let lab: CentralLab
beforeAll(async () => {
  lab = await startCentralLab()
})
afterAll(async () => {
  await lab?.stop()
})

const file = (name: string, more = '', group = '/vo/prod') =>
  `indraft: 1\nname: ${name}\ngroup: ${group}\ndefaults: {image: host}\nsteps:\n  sim:\n    count: 5\n    command: [echo, $(index)]\n${more}`

async function refusalOf(call: Promise<unknown>): Promise<ApiRefusal> {
  const error = await call.then(
    () => undefined,
    (refused: unknown) => refused,
  )
  if (!(error instanceof ApiRefusal)) throw new Error(`expected a refusal, got ${String(error)}`)
  return error
}
const codeOf = async (call: Promise<unknown>): Promise<ErrorCode> => (await refusalOf(call)).code

describe('api - who may ask', () => {
  test('the first start makes an administrator token in a file that only its owner reads', async () => {
    expect(statSync(join(lab.config.state!, 'admin.token')).mode & 0o777).toBe(0o600)
    expect(await lab.admin.call('whoami', {})).toEqual({ subject: 'admin', groups: ['*'], roles: ['admin'] })
  })

  test('no token, a wrong one and a role too small are told apart', async () => {
    expect(await codeOf(lab.as(null).call('listCampaigns', {}))).toBe('auth.missing')
    expect(await codeOf(lab.as('indraft-person-guess').call('listCampaigns', {}))).toBe('auth.invalid')
    const reader = await lab.person('rita', ['/vo/prod'], 'read')
    expect(await codeOf(reader.call('submitCampaign', { body: { source: file('read-only') } }))).toBe('auth.forbidden')
    expect(await codeOf((await lab.person('sam', ['/vo/prod'])).call('verify', {}))).toBe('auth.forbidden')
  })

  test('a campaign is seen and steered by its group alone', async () => {
    const ada = await lab.person('ada', ['/vo/prod'])
    const eve = await lab.person('eve', ['/other'])
    await ada.call('submitCampaign', { body: { source: file('ours') } })
    expect((await ada.call('showCampaign', { params: { campaign: 'ours' } })).subject).toBe('ada')
    expect(await codeOf(eve.call('showCampaign', { params: { campaign: 'ours' } }))).toBe('request.notFound')
    expect((await eve.call('listCampaigns', {})).campaigns).toEqual([])
    expect(await codeOf(eve.call('setDesired', { params: { campaign: 'ours' }, body: { desired: 'cancelled' } }))).toBe(
      'request.notFound',
    )
    expect(await codeOf(eve.call('submitCampaign', { body: { source: file('theirs') } }))).toBe('auth.forbidden')
    expect((await lab.admin.call('listCampaigns', {})).campaigns.map(({ name }) => name)).toContain('ours')
  })

  test('a token that was taken back opens nothing', async () => {
    const bob = await lab.person('bob', ['/vo/prod'])
    const { tokens } = await lab.admin.call('listTokens', {})
    const { id } = tokens.find(({ subject }) => subject === 'bob')!
    expect(await lab.admin.call('removeToken', { params: { id } })).toEqual({ removed: true })
    expect(await codeOf(bob.call('whoami', {}))).toBe('auth.invalid')
  })
})

describe('api - submitting', () => {
  test('every problem of a file comes back with its place', async () => {
    const source = file('bad', '    resources: {memory: 4}\n    cuont: 3\n')
    const refused = await refusalOf(lab.admin.call('submitCampaign', { body: { source } }))
    expect([refused.code, refused.path]).toEqual(['campaign.invalid', 'steps.sim.resources.memory'])
    expect(refused.problems.map(({ path, line }) => [path, line])).toEqual([
      ['steps.sim.resources.memory', 9],
      ['steps.sim.cuont', 10],
    ])
  })

  test('the same again changes nothing, other content under the same name is refused', async () => {
    const submit = (source: string) => lab.admin.call('submitCampaign', { body: { source } })
    expect(await submit(file('twice'))).toMatchObject({ created: true, tasks: 5 })
    expect(await submit(file('twice'))).toMatchObject({ created: false })
    expect(
      await codeOf(
        submit(file('twice', '    priority: 1\n').replace('count: 5', 'count: 6').replace('    priority: 1\n', '')),
      ),
    ).toBe('campaign.conflict')
  })

  test('a dry run takes nothing in', async () => {
    const reply = await lab.admin.call('submitCampaign', { body: { source: file('dry'), dryRun: true } })
    expect(reply).toMatchObject({ dryRun: true, created: false, steps: [{ name: 'sim', tasks: 5 }] })
    expect(await codeOf(lab.admin.call('showCampaign', { params: { campaign: 'dry' } }))).toBe('request.notFound')
  })

  test('a need above every site is taken in with a warning that names the nearest, and refused when strict', async () => {
    const shape = { cores: 8, memoryBytes: 16 * 2 ** 30, scratchBytes: 0, gpus: 0, gpuMemoryBytes: 0, arch: 'x86_64' }
    await lab.admin.call('addSite', {
      body: { name: 'SMALL', shapes: [{ ...shape, runtimes: ['host'], network: 'none' }] },
    })
    const source = file('huge', '    resources: {memory: 1TiB}\n')
    const { warnings } = await lab.admin.call('submitCampaign', { body: { source, dryRun: true } })
    expect(warnings).toEqual([
      {
        path: 'steps.sim.resources.memory',
        message: 'no registered site can run sim; the nearest is SMALL (memory: 1 TiB wanted, 16 GiB there)',
      },
    ])
    const strict = await refusalOf(lab.admin.call('submitCampaign', { body: { source, strict: true } }))
    expect([strict.code, strict.path]).toEqual(['campaign.unmatchable', 'steps.sim.resources.memory'])
    const fits = await lab.admin.call('submitCampaign', { body: { source: file('fits'), strict: true } })
    expect(fits.warnings).toEqual([])
  })

  test('a table travels with the submission', async () => {
    const source = file('table').replace('count: 5', 'table: runs.csv').replace('$(index)', '$(run)')
    const reply = await lab.admin.call('submitCampaign', { body: { source, tables: { 'runs.csv': 'run\n1\n2\n' } } })
    expect(reply.tasks).toBe(2)
    expect(
      await codeOf(lab.admin.call('submitCampaign', { body: { source: source.replace('table\n', 'other\n') } })),
    ).toBe('campaign.invalid')
  })
})

describe('api - looking', () => {
  let ada: Client
  beforeAll(async () => {
    ada = await lab.person('ada', ['/look'])
    await ada.call('submitCampaign', { body: { source: file('look', '', '/look') } })
  })
  const params = { campaign: 'look' }

  test('tasks come a page at a time', async () => {
    const first = await ada.call('listTasks', { params, query: { limit: 3 } })
    expect(first.tasks.map(({ index }) => index)).toEqual([0, 1, 2])
    const rest = await ada.call('listTasks', { params, query: { limit: 3, from: first.next! } })
    expect([rest.tasks.map(({ index }) => index), rest.next]).toEqual([[3, 4], null])
  })

  test('the file comes back as it was sent', async () => {
    expect(await ada.call('campaignSource', { params })).toEqual({ source: file('look', '', '/look') })
  })

  test('what is not there is named', async () => {
    const missing = await refusalOf(ada.call('showTask', { params: { ...params, step: 'simm', index: 0 } }))
    expect([missing.code, missing.message]).toEqual(['request.notFound', 'look has no step "simm"; steps: sim'])
    expect(await codeOf(ada.call('showTask', { params: { ...params, step: 'sim', index: 5 } }))).toBe(
      'request.notFound',
    )
    expect(
      await codeOf(ada.file('taskLog', { params: { ...params, step: 'sim', index: 0, stream: 'stdout' }, query: {} })),
    ).toBe('request.notFound')
    expect(await codeOf(ada.file('getOutput', { params: { ...params, step: 'sim', index: 0, '*': 'x' } }))).toBe(
      'request.notFound',
    )
  })

  test('pause, resume, cancel', async () => {
    const set = async (desired: 'run' | 'paused' | 'cancelled') =>
      (await ada.call('setDesired', { params, body: { desired } })).state
    expect([await set('paused'), await set('run')]).toEqual(['paused', 'running'])
    expect(await set('cancelled')).toMatch(/^cancell(ing|ed)$/)
    await vi.waitFor(async () => expect((await ada.call('showCampaign', { params })).state).toBe('cancelled'), 30_000)
    expect(await codeOf(set('run'))).toBe('request.invalid')
  })

  test('the invariants hold', async () => {
    expect(await lab.admin.call('verify', {})).toEqual({ findings: [] })
  })
})

describe('api - over the wire', () => {
  const fetchText = async (path: string, init: RequestInit = {}) => {
    const response = await fetch(lab.central.apiUrl + path, init)
    return { status: response.status, body: (await response.json()) as Record<string, unknown> }
  }
  const authorization = () => `Bearer ${lab.adminToken}`

  test.each([
    ['no JSON', '{', 'application/json', 400, 'request.invalid'],
    ['another content type', 'a=b', 'application/x-www-form-urlencoded', 400, 'request.invalid'],
    ['a field of the wrong type', '{"source": 7}', 'application/json', 400, 'request.invalid'],
  ])('%s is refused by code', async (_what, body, type, status, code) => {
    const answer = await fetchText('/v1/campaigns', {
      method: 'POST',
      body,
      headers: { 'content-type': type, authorization: authorization() },
    })
    expect([answer.status, answer.body.code]).toEqual([status, code])
  })

  test('a body over the limit is refused', async () => {
    const answer = await fetchText('/v1/campaigns', {
      method: 'POST',
      body: `{"source": "${'x'.repeat(33 * 1024 * 1024)}"}`,
      headers: { 'content-type': 'application/json', authorization: authorization() },
    })
    expect(answer.status).toBe(400)
  })

  test('an address that is not there', async () => {
    expect((await fetchText('/v2/nothing')).body.code).toBe('request.notFound')
  })

  test('openapi.json has every route of the table', async () => {
    const { body } = await fetchText('/openapi.json')
    const paths = body.paths as Record<string, Record<string, { operationId: string }>>
    const operations = Object.values(paths).flatMap((methods) =>
      Object.values(methods).map(({ operationId }) => operationId),
    )
    expect(operations.sort()).toEqual(Object.keys(ROUTES).sort())
  })

  test('metrics say what is queued, without naming a campaign', async () => {
    await lab.admin.call('submitCampaign', { body: { source: file('measured', '', '/measured') } })
    const read = async () => (await fetch(`${lab.central.metricsUrl}/metrics`)).text()
    await vi.waitFor(
      async () => expect(await read()).toContain('indraft_tasks{group="/measured",state="queued"} 5'),
      30_000,
    )
    const text = await read()
    expect(text).toMatch(/^indraft_store_halted 0$/m)
    expect(text).toMatch(/^indraft_store_sequence \d+$/m)
    expect(text).toContain('indraft_api_refused_total{code="campaign.invalid"}')
    expect(text).not.toContain('measured"}')
    for (const page of ['/healthz', '/readyz']) expect((await fetch(lab.central.metricsUrl + page)).status).toBe(200)
    expect((await fetchText('/readyz')).status).toBe(200)
  })

  test('nobody at the address is said as such', async () => {
    const { makeClient } = await import('../../central/api/client.ts')
    const client = makeClient({ url: 'http://127.0.0.1:1', token: null, ca: null })
    await expect(client.call('whoami', {})).rejects.toBeInstanceOf(Unreachable)
    await client.close()
  })

  test('after a restart the same token and the same campaigns are there', async () => {
    await lab.restart()
    expect((await lab.admin.call('listCampaigns', {})).campaigns.map(({ name }) => name)).toContain('measured')
  })
})
