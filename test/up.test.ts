/** `indraft up` as people run it: a process of its own, killed in every way, started again on the same home. */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { type Client, makeClient } from '../central/api/client.ts'
import { isAlive, type ProcessRecord, recordOf } from '../shared/servers/record.ts'

const run = promisify(execFile)
const INDRAFT = join(import.meta.dirname, '..', 'central', 'cli', 'indraft.mjs')
const CAMPAIGN = `
indraft: 1
name: NAME
group: /test
defaults: {image: host}
steps:
  only:
    count: 4
    command: [sh, -c, "echo $(index) > out.txt"]
    resources: {cores: 1, memory: 100MB, walltime: 1min}
    outputs: [{path: out.txt}]
`

let home: string
const endings: (() => unknown)[] = []
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'indraft-up-test-'))
})
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end()
  rmSync(home, { recursive: true, force: true, maxRetries: 5 })
})

interface Up {
  process: ChildProcess
  /** What it printed, one object a line. */
  lines: Record<string, unknown>[]
  /** Pid and so on by name: redis, nats, central, relay, local-1. */
  parts: Map<string, ProcessRecord>
  client: Client
  said(event: string, more?: Record<string, unknown>): Promise<Record<string, unknown>>
}

async function startUp(...more: string[]): Promise<Up> {
  const child = spawn(process.execPath, [INDRAFT, 'up', '--home', home, '--pilots', '1', '--json', ...more], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const ended = new Promise<void>((done) => child.once('exit', () => done()))
  endings.push(async () => {
    child.kill('SIGKILL')
    await ended
    await vi.waitUntil(() => [...parts.values()].every((part) => !isAlive(part)), 30_000)
  })
  const lines: Record<string, unknown>[] = []
  const parts = new Map<string, ProcessRecord>()
  createInterface({ input: child.stdout! }).on('line', (line) => {
    const said = readLine(line)
    lines.push(said)
    const record = said.event === 'running' ? recordOf(said.pid as number) : undefined
    if (record) parts.set(said.name as string, record)
  })
  const said = (event: string, wanted: Record<string, unknown> = {}) =>
    vi.waitFor(() => {
      const found = lines.find(
        (line) => line.event === event && Object.entries(wanted).every(([key, value]) => line[key] === value),
      )
      if (!found) throw new Error(`up did not say ${event} ${JSON.stringify(wanted)}: ${JSON.stringify(lines)}`)
      return found
    }, 60_000)
  await said('ready')
  const client = makeClient(JSON.parse(readFileSync(join(home, 'client.json'), 'utf8')))
  endings.push(() => client.close())
  return { process: child, lines, parts, client, said }
}

/** A refusal at the start is one JSON document over several lines. */
function readLine(line: string): Record<string, unknown> {
  try {
    return JSON.parse(line) as Record<string, unknown>
  } catch {
    return { text: line }
  }
}

async function runCampaign(client: Client, name: string): Promise<void> {
  const { id } = await client.call('submitCampaign', { body: { source: CAMPAIGN.replace('NAME', name) } })
  await vi.waitFor(async () => {
    const { state, counts } = await client.call('showCampaign', { params: { campaign: id } })
    expect([state, counts.done]).toEqual(['done', 4])
  }, 60_000)
}

async function killed({ process: child }: Up): Promise<void> {
  const ended = new Promise((done) => child.once('exit', done))
  child.kill('SIGKILL')
  await ended
}

test('up - runs a campaign, and after SIGKILL of itself leaves nothing running and goes on from its state', async () => {
  const first = await startUp()
  expect([...first.parts.keys()]).toEqual(expect.arrayContaining(['redis', 'nats', 'central', 'relay', 'local-1']))
  await runCampaign(first.client, 'before')
  await killed(first)
  await vi.waitUntil(() => [...first.parts.values()].every((part) => !isAlive(part)), 30_000)

  const second = await startUp()
  const { campaigns } = await second.client.call('listCampaigns', {})
  expect(campaigns.map(({ name, state }) => [name, state])).toEqual([['before', 'done']])
  await runCampaign(second.client, 'after')
  expect(await second.client.call('verify', {})).toEqual({ findings: [] })
  const addresses = ({ lines }: Up) =>
    lines.filter(({ event }) => event === 'running').map(({ name, address }) => `${name} ${address}`)
  expect(addresses(second).sort()).toEqual(addresses(first).sort())
})

test('up - a second one on the same home is refused by a clear word, and the first goes on', async () => {
  const first = await startUp()
  const second = await run(process.execPath, [INDRAFT, 'up', '--home', home]).catch((error) => error)
  expect(second.code).not.toBe(0)
  expect(second.stderr).toContain(`already runs on ${join(home, 'up')} (process ${first.process.pid})`)
  expect(second.stderr).not.toContain('    at ')
  await first.client.call('whoami', {})
})

test('up - SIGTERM ends everything in order, with nothing left behind', async () => {
  const up = await startUp()
  const ended = new Promise<number | null>((done) => up.process.once('exit', (code) => done(code)))
  up.process.kill('SIGTERM')
  expect(await ended).toBe(0)
  expect([...up.parts].filter(([, part]) => isAlive(part)).map(([name]) => name)).toEqual([])
  expect(up.lines.at(-1)).toEqual({ event: 'stopped' })
  expect(up.lines.filter(({ event }) => event === 'died')).toEqual([])
  expect(readdirSync(join(home, 'up', 'run')).filter((entry) => entry.endsWith('.pid'))).toEqual([])
  expect(existsSync(join(home, 'up', 'up.pid'))).toBe(false)
})

test.each(['redis', 'nats', 'central', 'relay', 'local-1'])(
  'up - %s is started again after SIGKILL, and work goes on',
  async (name) => {
    const up = await startUp()
    const victim = up.parts.get(name)!
    process.kill(victim.pid, 'SIGKILL')
    await up.said('died', { name, how: 'was ended by SIGKILL' })
    await up.said('running', { name, starts: 2 })
    await vi.waitFor(() => runCampaign(up.client, `after-${name}`), { timeout: 90_000, interval: 500 })
  },
)
