/** A person is banned at the centre while the site is cut off: what of theirs runs ends once there is contact again. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { readTrace } from '../../pilot/trace-reader.ts'
import { joinedRelay } from '../relay/joined.ts'
import { PilotBench, until } from './bench.ts'

const at = joinedRelay('BANNING', { timeScale: 0.1 })
const PATIENCE = { timeout: 200_000, interval: 200 }

let bench: PilotBench
beforeEach(async () => {
  bench = await PilotBench.open()
})
afterEach(() => bench.close())

const campaign = (name: string, mark: string) => `
indraft: 1
name: ${name}
group: /demo
defaults: {image: host}
steps:
  long: {count: 1, command: [sh, -c, 'echo >${mark}; exec sleep 600'], resources: {cores: 1, memory: 50MB, walltime: 20min}}
`

it('ban - of a site that was cut off, with contact again: their payload ends, another’s goes on, and the trace says whose', async () => {
  const marks = { eve: join(at.folder, 'eve'), ada: join(at.folder, 'ada') }
  for (const [subject, mark] of Object.entries(marks)) {
    const person = await at.lab.person(subject, ['/demo'])
    await person.call('submitCampaign', { body: { source: campaign(`of-${subject}`, mark) } })
  }
  const traceLog = join(at.folder, 'trace')
  const pilot = bench.start({ credential: at.state('pilot.json'), 'trace-log': traceLog })
  await until('both run', () => Object.values(marks).every((mark) => existsSync(mark)), PATIENCE.timeout)
  const connect = await at.lab.killNats()
  await at.lab.admin.call('addBan', { body: { subject: 'eve', reason: 'token on a page' } })
  const ends = () => pilot.lines.filter(({ msg }) => msg === 'attempt.ended')
  expect(ends()).toEqual([])
  await connect()
  await vi.waitFor(() => expect(ends()).toHaveLength(1), PATIENCE)
  expect(ends()).toMatchObject([{ reason: 'attempt.cancelled' }])
  await vi.waitFor(async () => {
    const traced = await readTrace(traceLog, { subject: 'eve' })
    expect(traced).toMatchObject([{ campaign: 'of-eve', subject: 'eve', endedAt: expect.any(String) }])
  }, PATIENCE)
  expect(await readTrace(traceLog, { subject: 'ada' })).toMatchObject([{ endedAt: null }])
}, 300_000)
