/** What people and administrators change from the command: tasks tried again, and somebody whom nobody is to serve. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { execa } from 'execa'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { relayCredentialSchema } from '../../shared/credentials.ts'
import { connectNats, natsLink, siteInboxPrefix } from '../../shared/link-nats.ts'
import { failedWith, resultsOf, SimulatedHolder } from '../conformance/simulated-holder.ts'
import { type CentralLab, startCentralLab } from './central-lab.ts'

const LAUNCHER = fileURLToPath(new URL('../../central/cli/indraft.mjs', import.meta.url))

let lab: CentralLab
let folder: string
let holder: SimulatedHolder
let close: () => unknown
beforeAll(async () => {
  lab = await startCentralLab()
  folder = mkdtempSync(join(tmpdir(), 'indraft-steering-'))
  const client = { url: lab.central.apiUrl, token: lab.adminToken, ca: null }
  writeFileSync(join(folder, 'client.json'), JSON.stringify(client))
  const { joinToken } = await lab.admin.call('addSite', { body: { name: 'ALPHA' } })
  const { credential } = await lab.as(null).call('joinSite', { body: { token: joinToken } })
  const { nats } = relayCredentialSchema.parse(credential)
  const inboxPrefix = siteInboxPrefix('ALPHA')
  const link = natsLink(await connectNats({ url: lab.natsUrl, name: 'ALPHA', creds: nats.creds, inboxPrefix }), 'ALPHA')
  close = () => link.close()
  holder = new SimulatedHolder(link, 'relay', 'relay')
  await holder.hello()
})
afterAll(async () => {
  await close?.()
  await lab?.stop()
  if (folder) rmSync(folder, { recursive: true, force: true })
})

const file = (name: string, more = '') =>
  `indraft: 1\nname: ${name}\ngroup: /steer\ndefaults: {image: host, retries: {payload: 0}}\nsteps:\n  sim: {count: 2, command: [x]}\n${more}`
const submit = async (name: string, more = '', client = lab.admin) =>
  (await client.call('submitCampaign', { body: { source: file(name, more) } })).id
const show = async (campaign: string) => lab.admin.call('showCampaign', { params: { campaign } })

async function indraft(...words: string[]) {
  const options = { cwd: folder, env: { INDRAFT_HOME: folder }, reject: false } as const
  const { exitCode, stdout, stderr } = await execa(process.execPath, [LAUNCHER, ...words], options)
  return { code: exitCode, stdout, stderr }
}

/** Takes so many tasks, and reports each as failed. */
async function failTasks(count: number): Promise<void> {
  let failed = 0
  await vi.waitFor(
    async () => {
      const { grants } = await holder.pull({ waitMs: 200 }, 8)
      holder.confirm()
      await holder.beat()
      const results = grants.flatMap(({ lease }) => resultsOf(lease, failedWith('payload.exit')))
      if (results.length > 0) await holder.report(results)
      failed += results.length
      expect(failed).toBe(count)
    },
    { timeout: 30_000, interval: 50 },
  )
}

test('steering - failed tasks are queued again by route and by command, what was skipped for them waits again', async () => {
  const id = await submit('again', '  merge: {command: [x], after: [sim]}\n')
  await failTasks(2)
  const counts = async () => (await show(id)).steps.map((step) => step.counts)
  await vi.waitFor(async () => expect(await counts()).toMatchObject([{ failed: 2 }, { skipped: 1 }]), 30_000)
  const nothing = await indraft('campaign', 'retry', 'again', '--held')
  expect(nothing).toEqual({ code: 0, stdout: 'nothing is held', stderr: '' })
  const params = { campaign: id }
  const ask = (body: object) => lab.admin.call('retryTasks', { params, body: body as never })
  await expect(ask({ request: 'short' })).rejects.toMatchObject({ code: 'request.invalid' })
  await expect(ask({ request: 'request-0', step: 'simm' })).rejects.toMatchObject({ code: 'request.notFound' })
  const stranger = await lab.person('bob', ['/other'])
  await expect(
    stranger.call('retryTasks', { params, body: { states: ['failed'], request: 'request-0' } }),
  ).rejects.toMatchObject({ code: 'request.notFound' })

  expect(await ask({ request: 'request-1' })).toEqual({ tasks: 2 })
  expect(await ask({ request: 'request-1' })).toEqual({ tasks: 0 })
  await vi.waitFor(async () => expect(await counts()).toMatchObject([{ queued: 2 }, { blocked: 1 }]), 30_000)
  await failTasks(2)
  await vi.waitFor(async () => expect(await counts()).toMatchObject([{ failed: 2 }, { skipped: 1 }]), 30_000)
  const said = await indraft('campaign', 'retry', '/steer/again', '--failed', '--step', 'sim')
  expect(said).toEqual({ code: 0, stdout: '2 tasks queued again', stderr: '' })
  const asJson = await indraft('campaign', 'retry', 'again', '--json')
  expect(JSON.parse(asJson.stdout)).toEqual({ tasks: 0 })
  expect((await indraft('campaign', 'retry', 'nobody')).code).toBe(1)
  await lab.admin.call('setDesired', { params, body: { desired: 'cancelled' } })
  expect(await lab.admin.call('verify', {})).toEqual({ findings: [] })
}, 300_000)

test('steering - a banned person is refused and their campaigns end, until lifted', async () => {
  const eve = await lab.person('eve', ['/steer'])
  const id = await submit('evil', '', eve)
  expect((await indraft('admin', 'ban', 'list')).stdout).toBe('nobody is banned')
  const banned = await indraft('admin', 'ban', 'add', 'eve', '--reason', 'token on a public page')
  expect(banned).toEqual({ code: 0, stdout: `eve is banned; 1 campaigns cancelled\n  ${id}`, stderr: '' })
  await expect(eve.call('whoami', {})).rejects.toMatchObject({
    code: 'auth.forbidden',
    message: 'eve is banned: token on a public page',
  })
  expect((await indraft('admin', 'ban', 'list')).stdout).toMatch(/^eve +\d{4}-.*Z +admin +token on a public page$/m)
  await vi.waitFor(async () => expect((await show(id)).state).toBe('cancelled'), 30_000)
  expect(await indraft('admin', 'ban', 'lift', 'eve')).toMatchObject({ code: 0, stdout: 'eve may submit again' })
  expect(await indraft('admin', 'ban', 'lift', 'eve')).toMatchObject({ code: 1, stdout: 'eve is not banned' })
  expect(await eve.call('whoami', {})).toMatchObject({ subject: 'eve' })
}, 300_000)

test('steering - a name that is not known in a file is refused with its place', async () => {
  writeFileSync(join(folder, 'names.yaml'), file('names').replace('[x]', "[x, '$(id)']"))
  expect(await indraft('campaign', 'submit', 'names.yaml')).toMatchObject({
    code: 1,
    stderr: expect.stringMatching(
      /^names\.yaml:6:32 {2}steps\.sim\.command\[1\]: \$\(id\) is not known here: there are index,/,
    ),
  })
})

test('tasks - the command goes on where a page ended early, because the centre looked at so many', async () => {
  const source = file('long', '  last: {command: [x], after: [sim]}\n').replace('count: 2', 'count: 70000')
  const { id } = await lab.admin.call('submitCampaign', { body: { source } })
  await vi.waitFor(async () => expect((await show(id)).steps[0]!.counts.blocked).toBe(0), 60_000)
  const query = { state: 'blocked' as const }
  const page = await lab.admin.call('listTasks', { params: { campaign: id }, query })
  expect(page).toEqual({ tasks: [], next: 'sim/65536' })
  const { code, stdout } = await indraft('campaign', 'tasks', id, '--state', 'blocked', '--json')
  expect([code, JSON.parse(stdout)]).toMatchObject([0, { tasks: [{ step: 'last', index: 0 }], next: null }])
  await lab.admin.call('setDesired', { params: { campaign: id }, body: { desired: 'cancelled' } })
})
