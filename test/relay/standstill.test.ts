/** A relay's process that stood still for longer than a silent pilot lives: with a real centre and pilots of the test's. */
import { setTimeout as after } from 'node:timers/promises'
import { expect, it } from 'vitest'
import type { LeasePart } from '../../shared/protocol/messages.ts'
import { resultOf } from '../conformance/simulated-holder.ts'
import { joinedRelay } from './joined.ts'
import { until } from './relay-in-parts.ts'

const at = joinedRelay('STILL', { timeScale: 0.05 })

it('relay - suspended for longer than a silent pilot lives it finds its pilots where they were', async () => {
  const pilot = await at.pilot('a')
  const group = `/${at.site.toLowerCase()}`
  const person = await at.lab.person(at.site.toLowerCase(), [group])
  const source = `
indraft: 1
name: c
group: ${group}
defaults: {image: host}
sites: {allow: [${at.site}]}
steps:
  run: {count: 2, command: ['true'], resources: {cores: 1, memory: 1MB, walltime: 5min}}
`
  const { id } = await person.call('submitCampaign', { body: { source } })
  const counts = async () => (await person.call('showCampaign', { params: { campaign: id } })).steps[0]!.counts
  const leases: LeasePart[] = []
  await until('two tasks', async () => {
    leases.push(...(await pilot.pull({ waitMs: 300 })).grants.map(({ lease }) => lease))
    pilot.confirm()
    await pilot.beat()
    return leases.length === 2
  })
  at.relay.kill('SIGSTOP')
  await after(1.5 * pilot.timings.lostAfterMs)
  at.relay.kill('SIGCONT')
  const results = leases.map((lease) => resultOf(lease, Number(lease.tasks)))
  await until('they are taken', async () => {
    const answer = await pilot.ask('report', { session: pilot.session, results }, 1000).catch(() => null)
    expect(answer?.type).not.toBe('refused')
    return answer?.type === 'reported'
  })
  expect(at.relay.lines.filter(({ msg }) => msg === 'pilot.lost')).toEqual([])
  await until('done', async () => (await counts()).done === 2)
})
