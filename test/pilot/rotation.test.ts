/** A pilot.json that was stolen is made worthless while a pilot works with it: real centre, relay and pilot. */
import { copyFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { execa } from 'execa'
import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { PATH } from '../../pilot/testbench.ts'
import { readPilotCredential } from '../../shared/credentials.ts'
import { FileClient, fileAddress } from '../../shared/files/client.ts'
import { joinedRelay, pilotLink } from '../relay/joined.ts'
import { spawnRelay } from '../relay/relay-process.ts'
import { PilotBench, type PilotProcess } from './bench.ts'

/** A pilot is lost after 18 s: longer than it takes to follow a relay that starts anew. */
const at = joinedRelay('ROTATED', { timeScale: 0.3 })
const INDRAFT = fileURLToPath(new URL('../../central/cli/indraft.mjs', import.meta.url))

let bench: PilotBench
beforeEach(async () => {
  bench = await PilotBench.open()
})
afterEach(() => bench.close())

const campaign = (go: string) => `
indraft: 1
name: rotation
group: /demo
defaults: {image: host, retries: {payload: 0, infrastructure: 0}}
steps:
  wait:
    count: 2
    command: [sh, -c, 'while [ ! -e ${go} ]; do sleep 0.1; done; echo late >line.txt']
    resources: {cores: 1, memory: 50MB, walltime: 5min}
    outputs: [{path: line.txt}]
`

async function refused(act: Promise<unknown>): Promise<string> {
  return await act.then(
    () => 'let in',
    (error: Error) => error.message,
  )
}

it('rotation - the old pilot.json opens nothing any more, and what a living pilot runs is handed in with the new one', async () => {
  const [go, stolen, current] = [join(at.folder, 'go'), join(at.folder, 'stolen.json'), at.state('pilot.json')]
  const person = await at.lab.person('alice', ['/demo'])
  await person.call('submitCampaign', { body: { source: campaign(go) } })
  const pilot: PilotProcess = bench.start({ credential: current, cores: 1 })
  await pilot.said('attempt.started')
  copyFileSync(current, stolen)

  await execa(process.execPath, [INDRAFT, 'relay', 'rotate', '--state', at.state('')], { env: { PATH } })
  // Nothing has changed so far: whoever restarts the relay decides when.
  expect(readPilotCredential(current)).toEqual(readPilotCredential(stolen))
  at.relay.kill('SIGTERM')
  await at.relay.exited
  at.relay = spawnRelay(at.settings)
  const { filesUrl } = await at.relay.said('relay.ready')

  const { files } = readPilotCredential(stolen)
  expect(await refused(pilotLink(stolen, 'thief').then((link) => link.close()))).toMatch(/authori/i)
  const client = new FileClient({ ca: files.ca, token: files.token })
  const blob = `${filesUrl}${fileAddress.blob('0'.repeat(64))}`
  expect(await refused(client.getToFile(blob, join(at.folder, 'got')))).toMatch(/token|authori/i)
  await client.close()

  await pilot.said('credential.renewed')
  writeFileSync(go, '')
  const seen = async () => {
    const { tasks } = await person.call('listTasks', { params: { campaign: 'rotation' }, query: { limit: 10 } })
    return tasks.map(({ state, attempts, reason }) => ({ state, attempts, reason }))
  }
  // One was running all the while, and was not run again; the other came after.
  const once = { state: 'done', attempts: 1, reason: null }
  await vi.waitFor(async () => expect(await seen()).toEqual([once, once]), { timeout: 200_000, interval: 200 })
  expect(pilot.lines.filter(({ msg }) => msg === 'pilot.started')).toHaveLength(1)
}, 300_000)
