/** The centre's nats-server killed: people are served, no holder is declared dead, and all goes on when it is back. */
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { relayCredentialSchema } from '../../shared/credentials.ts'
import { connectNats, natsLink, siteInboxPrefix } from '../../shared/link-nats.ts'
import { resultsOf, SimulatedHolder } from '../conformance/simulated-holder.ts'
import { type CentralLab, startCentralLab } from './central-lab.ts'

let lab: CentralLab
beforeAll(async () => {
  // A pilot is lost after 60 s: here after 6 s, which is longer than a link takes to stand again.
  lab = await startCentralLab({ timeScale: 0.1 })
})
afterAll(() => lab?.stop())

const ready = async () => (await fetch(`${lab.central.metricsUrl}/readyz`)).status
const eventually = (check: () => Promise<unknown>) => vi.waitFor(check, { timeout: 30_000, interval: 50 })

test('nats-server killed - holders keep their work over it, and report when it is back', async () => {
  const { joinToken } = await lab.admin.call('addSite', { body: { name: 'ALPHA' } })
  const { credential } = await lab.as(null).call('joinSite', { body: { token: joinToken } })
  const { nats } = relayCredentialSchema.parse(credential)
  const options = { url: lab.natsUrl, name: 'ALPHA', creds: nats.creds, inboxPrefix: siteInboxPrefix('ALPHA') }
  const link = natsLink(await connectNats(options), 'ALPHA')
  try {
    const source = `indraft: 1\nname: c\ngroup: /g\ndefaults: {image: host}\nsteps: {sim: {count: 2, command: [x]}}\n`
    const { id } = await lab.admin.call('submitCampaign', { body: { source } })
    const holder = new SimulatedHolder(link, 'pilot', 'p')
    await holder.hello()
    await eventually(async () => {
      await holder.pull({ waitMs: 100 }, 1)
      holder.confirm()
      await holder.beat()
      expect(holder.held()).toHaveLength(1)
    })
    const startAgain = await lab.killNats()
    await eventually(async () => expect(await ready()).toBe(503))
    expect(await lab.admin.call('whoami', {})).toMatchObject({ subject: 'admin' })
    const lostAfterMs = holder.timings.lostAfterMs
    const counts = async () => (await lab.admin.call('showCampaign', { params: { campaign: id } })).counts
    // Silence that is ours proves nothing: for as long as a pilot takes to be lost, and as long again.
    await new Promise((resolve) => setTimeout(resolve, 2 * lostAfterMs))
    expect(await counts()).toMatchObject({ assigned: 1, queued: 1 })
    await startAgain()
    await eventually(async () => expect(await ready()).toBe(200))
    await eventually(async () => {
      const [lease] = holder.held()
      expect(await holder.report(resultsOf(lease!))).toEqual(['accepted'])
    })
    await eventually(async () => {
      await holder.pull({ waitMs: 100 }, 1)
      holder.confirm()
      expect(holder.held()).toHaveLength(1)
    })
    expect(await counts()).toMatchObject({ assigned: 1, done: 1 })
    expect(await lab.admin.call('verify', {})).toEqual({ findings: [] })
  } finally {
    await link.close()
  }
}, 120_000)
