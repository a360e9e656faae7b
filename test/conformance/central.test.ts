/**
 * Central under the conformance suite: its dispatcher over a real Redis, with the background work running. Its
 * liveness is by the server's clock, so time is real here and every interval short.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import { afterAll, beforeAll } from 'vitest'
import { folderBlobs } from '../../central/blobs.ts'
import { checkCampaign } from '../../central/campaigns/check.ts'
import { openStore } from '../../central/leases/open.ts'
import { systemClock } from '../../shared/clock.ts'
import { frameHandler } from '../../shared/dispatcher.ts'
import type { CampaignId } from '../../shared/ids.ts'
import { silentLog } from '../../shared/log.ts'
import { type RunningRedis, startRedis } from '../../shared/servers/redis.ts'
import { testSigner } from '../sample-messages.ts'
import { overNats } from './over-nats.ts'
import { conformance, type DispatcherUnderTest, inMemory } from './suite.ts'

/** A silent holder is lost after 3.3 s: a pause of the machine is shorter, or one of 3 s, which the centre forgives. */
const TIME_SCALE = 0.055
const SITE = 'ALPHA'
const nats = overNats()
const folder = mkdtempSync(join(tmpdir(), 'indraft-central-'))
let redis: RunningRedis

beforeAll(async () => {
  await nats.start()
  redis = await startRedis({ dir: join(folder, 'redis') })
})
afterAll(async () => {
  await redis.stop()
  await nats.stop()
  rmSync(folder, { recursive: true, force: true })
})

const campaignFile = (name: string, count: number) => `
indraft: 1
name: ${name}
group: /test
steps:
  only:
    count: ${count}
    image: host
    command: ["true"]
    retries: {payload: 0, infrastructure: 20}
    arch: [x86_64]
    resources: {cores: 1, memory: 1MB, walltime: 10min}
`

function makeCentral(role: 'pilot' | 'relay') {
  return async (): Promise<DispatcherUnderTest> => {
    const admin = new Redis(redis.url)
    await admin.flushall()
    let accepted = 0
    const central = await openStore({
      events: {
        onVerdict: (verdict, end) => {
          if (verdict === 'accepted' && end === 'done') accepted++
        },
      },
      redis: redis.url,
      blobs: folderBlobs(join(folder, 'blobs')),
      signer: testSigner,
      markKey: new Uint8Array(32),
      clock: systemClock,
      log: silentLog,
      timeScale: TIME_SCALE,
      outputsDir: join(folder, 'outputs'),
      siteOf: async (site) => (site === SITE ? { labels: {}, state: 'enabled', outageMs: 60_000 * TIME_SCALE } : null),
      siteNames: async () => [SITE],
      filesUrl: () => null,
    })
    await central.work.start()
    const campaigns: CampaignId[] = []
    const tasksOf = async (id: CampaignId) => {
      const rows = []
      let from: { step: string; index: number } | null = null
      do {
        const page: Awaited<ReturnType<typeof central.store.tasks>> = await central.store.tasks(id, {}, from, 500)
        rows.push(...page.rows)
        from = page.next
      } while (from)
      return rows.map((row) => [`${id}/${row.step}/${row.index}`, row.state] as const)
    }
    return {
      handler: frameHandler(central.dispatcher, silentLog),
      site: SITE,
      role,
      clock: systemClock,
      timeScale: TIME_SCALE,
      async seed(count) {
        const checked = checkCampaign(campaignFile(`c${campaigns.length}`, count), {}, 'tester')
        if ('problems' in checked) throw new Error(JSON.stringify(checked.problems))
        await central.store.create(checked.plan)
        campaigns.push(checked.plan.id)
        await central.work.sweep()
        return (await tasksOf(checked.plan.id)).map(([name]) => name).sort()
      },
      acceptedSuccesses: () => accepted,
      outcome: async () => new Map((await Promise.all(campaigns.map(tasksOf))).flat()),
      invariants: async () => (await central.store.verify()).map((finding) => JSON.stringify(finding)),
      async advance(ms) {
        await systemClock.sleep(ms)
        await central.work.sweep()
      },
      async close() {
        await central.work.stop()
        await central.close()
        admin.disconnect()
      },
    }
  }
}

conformance('central to pilots', makeCentral('pilot'), { carriers: [inMemory], churnTasks: 200 })
// The transport changes nothing but the transport; to relays central differs in the inventory's form and the timings.
conformance('central to pilots', makeCentral('pilot'), {
  carriers: [nats],
  churnTasks: 200,
  only: /^(every task|garbage|pull - a repeat)/,
})
conformance('central to relays', makeCentral('relay'), {
  carriers: [inMemory],
  churnTasks: 200,
  only: /^(held-list|inventory|hello|grant|duplicates|session|bye|every task .* (no faults|late|fail)$)/,
})
