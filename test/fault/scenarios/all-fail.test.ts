/**
 * 100,000 tasks that all fail. Central, Redis and NATS are real processes; the relays are simulated: they speak the real
 * codec and answer at once with what a payload or a node would have come to, because real pilots would start as many
 * processes for hours.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { CampaignView } from '../../../central/campaigns/model.ts'
import { relayCredentialSchema } from '../../../shared/credentials.ts'
import { isCampaignOver } from '../../../shared/lifecycle.ts'
import { connectNats, natsLink, siteInboxPrefix } from '../../../shared/link-nats.ts'
import type { Result } from '../../../shared/protocol/messages.ts'
import { failedWith, resultsOf, SimulatedHolder } from '../../conformance/simulated-holder.ts'
import { buildPrograms } from '../programs.ts'
import { startWorld, until, type World } from '../world.ts'

const TASKS = 100_000
const GOOD_TASKS = 2000
const SITE = 'ALPHA'
const HOLDERS = 4
const PER_REPORT = 64
/** What each failure carries home of its standard error: an ordinary traceback. */
const TAIL = 'Traceback (most recent call last):\n  File "analyse.py", line 11, in <module>\n'.repeat(4)
/** A task's first attempt ends by its node for every tenth index, its second one too for every hundredth. */
const INFRASTRUCTURE_EVERY = 10
const TWICE_EVERY = 100
const ATTEMPTS = TASKS + TASKS / INFRASTRUCTURE_EVERY
/** What a machine of the centre has to have, whatever fails. */
const MOST_BYTES = { redis: 400 << 20, central: 500 << 20 }

let folder: string
let world: World
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-all-fail-'))
  world = await startWorld({
    folder,
    programs: buildPrograms(join(folder, 'programs')),
    sites: {},
    centrals: 1,
    timeScale: 0.2,
    outageMs: 60_000,
    slots: 1,
    clocks: null,
    say: () => {},
  })
})
afterAll(async () => {
  await world?.stop()
  rmSync(folder, { recursive: true, force: true })
})

const campaign = (name: string, count: number) => `
indraft: 1
name: ${name}
group: /${name}
defaults: {image: host}
steps:
  run:
    count: ${count}
    command: ['true']
    resources: {cores: 1, memory: 1MB, walltime: 5min}
    retries: {payload: 0, infrastructure: 1}
`

async function openLinks(): Promise<Awaited<ReturnType<typeof natsLink>>[]> {
  const { joinToken } = await world.ask((client) => client.call('addSite', { body: { name: SITE } }))
  const { credential } = await world.ask((client) => client.call('joinSite', { body: { token: joinToken } }))
  const { nats } = relayCredentialSchema.parse(credential)
  const connect = async (_: unknown, number: number) =>
    natsLink(
      await connectNats({
        url: world.natsUrl,
        name: `holder-${number}`,
        creds: nats.creds,
        ca: world.ca,
        inboxPrefix: siteInboxPrefix(SITE),
      }),
      SITE,
    )
  return Promise.all(Array.from({ length: HOLDERS }, connect))
}

async function show(name: string): Promise<CampaignView> {
  return (await world.ask((client) => client.call('showCampaign', { params: { campaign: name } }))) as CampaignView
}

/** The most that a process ever had in memory, in bytes. */
function peakBytes(part: string): number {
  const status = readFileSync(`/proc/${world.part(part).pid}/status`, 'utf8')
  return Number(/^VmHWM:\s+(\d+) kB/m.exec(status)![1]) * 1024
}

test('fault - 100,000 tasks that all fail: each ends once, retries are counted, memory is bounded, others go on', async () => {
  const submit = (name: string, count: number) =>
    world.ask((client) => client.call('submitCampaign', { body: { source: campaign(name, count) } }))
  const links = await openLinks()
  const began = performance.now()
  const bad = await submit('bad', TASKS)
  const tries = new Map<number, number>()
  let attempts = 0
  let openWhenGoodEnded: number | undefined

  const resultOf = (one: Result): Result => {
    if (one.campaign !== bad.id) return one
    const before = tries.get(one.index) ?? 0
    tries.set(one.index, before + 1)
    const byNode = one.index % TWICE_EVERY === 0 || (before === 0 && one.index % INFRASTRUCTURE_EVERY === 0)
    return { ...one, ...failedWith(byNode ? 'node.fault' : 'payload.exit'), tail: TAIL }
  }
  let isOver = false
  const live = async (holder: SimulatedHolder) => {
    await holder.hello()
    while (!isOver) {
      const { grants } = await holder.pull({ waitMs: 200 }, 512)
      holder.confirm()
      const node = `node-of-${holder.name}`
      const results = grants.flatMap(({ lease }) => resultsOf(lease, { node })).map(resultOf)
      for (let first = 0; first < results.length; first += PER_REPORT) {
        const part = results.slice(first, first + PER_REPORT)
        expect(new Set(await holder.report(part))).toEqual(new Set(['accepted']))
        attempts += part.filter(({ end }) => end === 'failed').length
      }
      if (grants.length === 0) await holder.beat()
    }
  }
  const holders = links.map((link, number) => new SimulatedHolder(link, 'relay', `holder-${number}`))
  const living = Promise.all(holders.map(live)).finally(() => {
    isOver = true
  })

  const watch = async () => {
    await until('the first thousand has failed', async () => (await show('bad')).counts.failed > 1000)
    await submit('good', GOOD_TASKS)
    await until('the good campaign is over', async () => isCampaignOver((await show('good')).state), 600_000)
    const { counts } = await show('bad')
    openWhenGoodEnded = TASKS - counts.failed
    await until('the bad campaign is over', async () => isCampaignOver((await show('bad')).state), 900_000)
    isOver = true
  }
  try {
    await Promise.race([watch(), living.then(() => Promise.reject(new Error('the holders ended')))])
    await living
  } finally {
    isOver = true
    await living.catch(() => {})
    for (const link of links) await link.close()
  }
  const seconds = (performance.now() - began) / 1000
  const bytes = { redis: peakBytes('redis'), central: peakBytes('central-1') }
  const inMiB = (count: number) => `${Math.round(count / 2 ** 20)} MiB`
  console.log(
    `100,000 failing tasks: ${attempts} attempts in ${Math.round(seconds)} s; at most ${inMiB(bytes.redis)} in Redis' process, ` +
      `${inMiB(bytes.central)} in central's; ${openWhenGoodEnded} were open when the other campaign ended`,
  )

  const nobody = { blocked: 0, queued: 0, assigned: 0, running: 0, held: 0, skipped: 0, cancelled: 0 }
  const view = await show('bad')
  expect(view.state).toBe('done with failures')
  expect(view.counts).toEqual({ ...nobody, done: 0, failed: TASKS })
  expect(view.failures.map(({ reason, count }) => ({ reason, count }))).toEqual([
    { reason: 'payload.exit', count: TASKS - TASKS / TWICE_EVERY },
    { reason: 'node.fault', count: TASKS / INFRASTRUCTURE_EVERY + TASKS / TWICE_EVERY },
  ])
  // Once for its payload, and once more where the node was to blame: no task more often than it has credit for.
  expect(attempts).toBe(ATTEMPTS)
  expect(Math.max(...tries.values())).toBe(2)
  expect((await show('good')).counts).toEqual({ ...nobody, done: GOOD_TASKS, failed: 0 })
  expect(openWhenGoodEnded).toBeGreaterThan(TASKS / 2)
  expect(bytes.redis).toBeLessThan(MOST_BYTES.redis)
  expect(bytes.central).toBeLessThan(MOST_BYTES.central)
  expect(await world.ask((client) => client.call('verify', {}))).toEqual({ findings: [] })
}, 1_800_000)
