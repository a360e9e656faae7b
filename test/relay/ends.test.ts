/** A relay's process is alone in its folder, and ends by itself where it was told to. */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { relayCredentialSchema, writeCredential } from '../../shared/credentials.ts'
import { type CentralLab, startCentralLab } from '../central/central-lab.ts'
import { type RelayProcess, spawnRelay } from './relay-process.ts'

let folder: string
let lab: CentralLab
let relay: RelayProcess
let site = 0
beforeAll(async () => {
  lab = await startCentralLab()
})
afterAll(() => lab?.stop())
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-relay-ends-'))
  const name = `ENDS-${++site}`
  const { joinToken } = await lab.admin.call('addSite', { body: { name } })
  const { credential } = await lab.as(null).call('joinSite', { body: { token: joinToken } })
  mkdirSync(join(folder, 'state'))
  writeCredential(join(folder, 'state/relay.json'), relayCredentialSchema.parse(credential))
  start()
  await relay.said('relay.ready')
})
afterEach(async () => {
  relay.kill('SIGKILL')
  await relay.exited
  rmSync(folder, { recursive: true, force: true })
})

const settings = () => ['--state', join(folder, 'state'), '--time-scale', '0.05', '--failpoints', folder]

function start(...more: string[]): void {
  relay = spawnRelay([...settings(), ...more])
}

describe('relay - ends by itself', () => {
  it('relay - a second one in its folder does not start; with --once that is no failure', async () => {
    expect(await spawnRelay(settings()).exited).toBe(1)
    expect(await spawnRelay([...settings(), '--once']).exited).toBe(0)
  }, 90_000)

  it('relay - with --once it ends when nothing is left to do, and the journal is kept', async () => {
    relay.kill('SIGTERM')
    expect(await relay.exited).toBe(0)
    start('--once')
    const { incarnation } = await relay.said('journal.read')
    expect(await relay.exited).toBe(0)
    start('--for', '1s')
    expect((await relay.said('journal.read')).incarnation).toBe(incarnation)
    expect(await relay.exited).toBe(0)
  }, 90_000)
})
