import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { execa } from 'execa'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { readRelayCredential } from '../../shared/credentials.ts'
import { type CentralLab, startCentralLab } from './central-lab.ts'

const LAUNCHER = fileURLToPath(new URL('../../central/cli/indraft.mjs', import.meta.url))
const GOOD = 'indraft: 1\nname: cli\ngroup: /cli\ndefaults: {image: host}\nsteps:\n  sim: {count: 3, command: [x]}\n'

let lab: CentralLab
let folder: string
beforeAll(async () => {
  lab = await startCentralLab()
  folder = mkdtempSync(join(tmpdir(), 'indraft-command-'))
  writeFileSync(
    join(folder, 'client.json'),
    JSON.stringify({ url: lab.central.apiUrl, token: lab.adminToken, ca: null }),
  )
  writeFileSync(join(folder, 'good.yaml'), GOOD)
  writeFileSync(join(folder, 'bad.yaml'), GOOD.replace('count: 3', 'cuont: 3, resources: {memory: 4}'))
  writeFileSync(join(folder, 'table.yaml'), GOOD.replace('count: 3', 'table: runs.csv').replace('name: cli', 'name: t'))
})
afterAll(async () => {
  await lab?.stop()
  if (folder) rmSync(folder, { recursive: true, force: true })
})

async function indraft(...words: string[]) {
  const { exitCode, stdout, stderr } = await execa(process.execPath, [LAUNCHER, ...words], {
    cwd: folder,
    env: { INDRAFT_HOME: folder },
    reject: false,
  })
  return { code: exitCode, stdout, stderr }
}

describe('command - what it says and how it ends', () => {
  test('a bad file is shown line by line, with what was expected', async () => {
    const { code, stderr } = await indraft('campaign', 'validate', 'bad.yaml')
    expect(code).toBe(1)
    expect(stderr.split('\n')).toEqual([
      'bad.yaml:6:9  steps.sim.cuont: is not a known key: did you mean count?',
      'bad.yaml:6:39  steps.sim.resources.memory: expected a size with a unit, such as 500MB or 2GiB, at most 64TiB, found 4',
      'indraft: bad.yaml is not acceptable: 2 problems',
    ])
    const asJson = await indraft('campaign', 'submit', 'bad.yaml', '--json')
    expect(JSON.parse(asJson.stdout)).toMatchObject({
      error: { code: 'campaign.invalid', problems: [{ line: 6 }, {}] },
    })
  })

  test('submit, list, show, tasks, pause, resume, cancel, with one JSON document each', async () => {
    const json = async (...words: string[]) => {
      const { code, stdout, stderr } = await indraft(...words, '--json')
      expect([code, stderr]).toEqual([0, ''])
      return JSON.parse(stdout)
    }
    expect(await json('campaign', 'submit', 'good.yaml')).toMatchObject({ created: true, tasks: 3 })
    expect(await json('campaign', 'list')).toMatchObject({ campaigns: [{ name: 'cli' }] })
    await vi.waitFor(
      async () => expect(await json('campaign', 'show', 'cli')).toMatchObject({ counts: { queued: 3 } }),
      60_000,
    )
    expect((await json('campaign', 'tasks', 'cli', '--state', 'queued')).tasks).toHaveLength(3)
    expect(await json('campaign', 'pause', 'cli')).toMatchObject({ state: 'paused' })
    expect(await json('campaign', 'resume', 'cli')).toMatchObject({ state: 'running' })
    expect(await json('campaign', 'cancel', 'cli')).toMatchObject({ desired: 'cancelled' })
    expect(await json('admin', 'verify')).toEqual({ findings: [] })
    expect((await indraft('campaign', 'show', 'cli', '--source')).stdout).toBe(GOOD.trimEnd())
  })

  test('watch ends with the campaign, and its exit code says that not everything was done', async () => {
    await indraft('campaign', 'submit', 'good.yaml')
    const { code, stdout } = await indraft('campaign', 'watch', 'cli')
    expect(code).toBe(4)
    expect(stdout).toMatch(/cli: cancelled after .* \(0 done, 3 cancelled\)/)
  })

  test('a table that is not beside the file is named', async () => {
    const { code, stderr } = await indraft('campaign', 'submit', 'table.yaml')
    expect([code, stderr]).toEqual([
      1,
      expect.stringContaining('table.yaml names the table runs.csv, but there is no '),
    ])
  })

  test.each([
    ['an unknown command', ['campaign', 'lsit'], 2, /Did you mean list/],
    ['an unknown option', ['whoami', '--bogus'], 2, /unknown option/],
    ['a state that there is not', ['campaign', 'tasks', 'cli', '--state', 'dead'], 2, /Allowed choices/],
    ['a service without its settings', ['central', 'run'], 2, /state: expected a folder/],
    ['a campaign that is not there', ['campaign', 'show', 'nothing'], 1, /there is no campaign "nothing"/],
    ['nobody at the address', ['whoami', '--url', 'http://127.0.0.1:1'], 3, /cannot reach central/],
  ])('%s', async (_what, words, expected, said) => {
    const { code, stderr } = await indraft(...words)
    expect([code, stderr]).toEqual([expected, expect.stringMatching(said)])
  })
})

test('command - a site is added and joins with what was printed', async () => {
  const added = await indraft('site', 'add', 'CSC-LUMI', '--label', 'zone=EU')
  const words = /^ {2}indraft (relay join .*)$/m
    .exec(added.stdout)![1]!
    .replace('--state DIR', '--state relay')
    .split(' ')
  expect(await indraft(...words)).toMatchObject({ code: 0, stdout: expect.stringContaining('joined as CSC-LUMI') })
  const path = join(folder, 'relay', 'relay.json')
  expect(statSync(path).mode & 0o777).toBe(0o600)
  expect(readRelayCredential(path).site).toBe('CSC-LUMI')
  expect(await indraft(...words)).toMatchObject({ code: 1, stderr: expect.stringContaining('wrong, used or expired') })
  expect((await indraft('site', 'list')).stdout).toMatch(/CSC-LUMI +enabled +none +0 +zone=EU/)
})
