import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { appendFileSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { silentLog } from '../shared/log.ts'
import { Trace, type TraceOptions } from './trace.ts'
import { readTrace } from './trace-reader.ts'

const DAY_MS = 86_400_000
const NOON = Date.UTC(2026, 10, 22, 12)

let folder: string
let nowMs: number
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-trace-'))
  nowMs = NOON
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

function open(more: Partial<TraceOptions> = {}): Trace {
  const options = { folder, node: 'n1', keepMs: 90 * DAY_MS, mostBytes: 2 ** 30, log: silentLog, wallMs: () => nowMs }
  return new Trace({ ...options, ...more })
}

/** @param task its index; all else follows */
const started = (task: number, more: Record<string, unknown> = {}) => ({
  ...{ event: 'started', pilot: 'n1-7', task: `c1/sim/${task}`, attempt: '12.3', node: 'n1', pid: 100 + task },
  ...{ campaign: 'mc', issuer: 'https://centre', subject: 'ada', group: '/vo/prod', image: '/i/a.sif', digest: null },
  ...more,
})
const ended = (task: number, more: Record<string, unknown> = {}) => ({
  ...{ event: 'ended', pilot: 'n1-7', task: `c1/sim/${task}`, attempt: '12.3', exitCode: 0, reason: null },
  ...more,
})

async function write(trace: Trace, atMs: number, line: Record<string, unknown>): Promise<void> {
  nowMs = atMs
  trace.write(line)
  await trace.close()
}

const tasksAt = async (question: Parameters<typeof readTrace>[1]) =>
  (await readTrace(folder, question)).map(({ task }) => task.split('/').at(-1))

describe('what is asked', () => {
  test('trace - who ran on a node at a time: campaign, issuer, subject and image digest', async () => {
    const trace = open()
    await write(trace, NOON, started(1))
    await write(trace, NOON + 1000, { event: 'image', image: '/i/a.sif', digest: `sha256:${'a'.repeat(64)}` })
    await write(trace, NOON + 60_000, ended(1, { exitCode: 3, reason: null }))
    expect(await readTrace(folder, { node: 'n1', atMs: NOON + 30_000 })).toEqual([
      {
        ...{ node: 'n1', pilot: 'n1-7', task: 'c1/sim/1', attempt: '12.3', campaign: 'mc', group: '/vo/prod' },
        ...{ issuer: 'https://centre', subject: 'ada', image: '/i/a.sif', digest: `sha256:${'a'.repeat(64)}` },
        ...{ pid: 101, startedAt: '2026-11-22T12:00:00.000Z', endedAt: '2026-11-22T12:01:00.000Z' },
        ...{ exitCode: 3, reason: null },
      },
    ])
  })

  test('trace - before, while, after, on other nodes, of other people, and of the dead', async () => {
    const trace = open()
    await write(trace, NOON, started(1))
    await write(trace, NOON + 10_000, started(2, { subject: 'bob' }))
    await write(open({ node: 'n2' }), NOON + 10_000, started(3, { node: 'n2', pilot: 'n2-1' }))
    await write(trace, NOON + 20_000, ended(1))
    expect(await tasksAt({ atMs: NOON - 1 })).toEqual([])
    expect(await tasksAt({ node: 'n1', atMs: NOON + 15_000 })).toEqual(['1', '2'])
    // The second never ended: its pilot died with it, or it runs.
    expect(await tasksAt({ node: 'n1', atMs: NOON + 30_000 })).toEqual(['2'])
    expect(await tasksAt({ atMs: NOON + 30_000 })).toEqual(['2', '3'])
    expect(await tasksAt({ subject: 'bob' })).toEqual(['2'])
    expect(await tasksAt({ campaign: 'c1', node: 'n2' })).toEqual(['3'])
  })

  test('trace - a payload that runs over midnight is found from both days', async () => {
    const trace = open()
    const midnight = NOON + DAY_MS / 2
    await write(trace, midnight - 1000, started(1))
    await write(trace, midnight + 1000, ended(1))
    expect(readdirSync(folder).sort()).toEqual(['n1-20261122.jsonl', 'n1-20261123.jsonl'])
    expect(await readTrace(folder, { atMs: midnight - 500 })).toMatchObject([{ pid: 101, exitCode: 0 }])
    expect(await tasksAt({ atMs: midnight + 500 })).toEqual(['1'])
    expect(await tasksAt({ atMs: midnight + 2000 })).toEqual([])
  })

  test('trace - half a line of a crash hides nothing', async () => {
    const trace = open()
    await write(trace, NOON, started(1))
    appendFileSync(join(folder, 'n1-20261122.jsonl'), '{"at":"2026-11-22T12:00:01Z","event":"sta\n')
    writeFileSync(join(folder, 'notes.txt'), 'somebody else\n')
    await write(trace, NOON + 2000, started(2))
    expect(await tasksAt({ atMs: NOON + 3000 })).toEqual(['1', '2'])
  })
})

describe('bounds', () => {
  test('trace - parts, and the oldest goes when the node has too much', async () => {
    const trace = open({ partBytes: 1000, mostBytes: 3000 })
    for (let task = 0; task < 30; task++) await write(trace, NOON, started(task))
    const files = readdirSync(folder)
    expect(files.length).toBeLessThanOrEqual(4)
    expect(files).not.toContain('n1-20261122.jsonl')
    const bytes = files.reduce((sum, name) => sum + readFileSync(join(folder, name)).length, 0)
    expect(bytes).toBeLessThanOrEqual(3000 + 400)
    expect((await tasksAt({ atMs: NOON })).at(-1)).toBe('29')
  })

  test('trace - days are kept so long and no longer, and the files of other nodes are left alone', async () => {
    await write(open({ node: 'n2' }), NOON - 30 * DAY_MS, started(1))
    for (const days of [10, 3, 0]) await write(open({ keepMs: 5 * DAY_MS }), NOON - days * DAY_MS, started(days))
    expect(readdirSync(folder).sort()).toEqual(['n1-20261119.jsonl', 'n1-20261122.jsonl', 'n2-20261023.jsonl'])
  })

  test('trace - a line stays small whatever a campaign calls itself', async () => {
    await write(open(), NOON, started(1, { image: 'x'.repeat(4096), campaign: 'y'.repeat(200) }))
    expect(readFileSync(join(folder, 'n1-20261122.jsonl')).length).toBeLessThan(4096)
  })
})

test('trace - many processes write one file and every line is whole, also for who reads meanwhile', async () => {
  const writer = `
    import { Trace } from ${JSON.stringify(join(import.meta.dirname, 'trace.ts'))}
    import { silentLog } from ${JSON.stringify(join(import.meta.dirname, '../shared/log.ts'))}
    const [folder, pilot] = process.argv.slice(1)
    const trace = new Trace({ folder, node: 'n1', keepMs: 9e9, mostBytes: 2 ** 30, log: silentLog, wallMs: () => ${NOON} })
    for (let i = 0; i < 200; i++) {
      trace.write({ event: 'started', pilot, task: 'c/s/' + i, attempt: '1', node: 'n1', subject: 's'.repeat(300) })
      if (i % 5 === 0) await trace.close()
    }
    await trace.close()`
  const writers = ['p1', 'p2', 'p3', 'p4'].map((pilot) =>
    spawn(process.execPath, ['--input-type=module-typescript', '-e', writer, folder, pilot], { stdio: 'inherit' }),
  )
  const done = Promise.all(writers.map((child) => new Promise((resolve) => child.once('close', resolve))))
  let isDone = false
  void done.then(() => {
    isDone = true
  })
  while (!isDone) {
    await readTrace(folder, {})
    await new Promise((resolve) => setImmediate(resolve))
  }
  const lines = readFileSync(join(folder, 'n1-20261122.jsonl'), 'utf8').trim().split('\n')
  expect(lines).toHaveLength(800)
  expect(lines.every((line) => JSON.parse(line).subject.length === 300)).toBe(true)
  expect(await readTrace(folder, { node: 'n1' })).toHaveLength(800)
})

test('trace - the command answers without any server, and steers no terminal', async () => {
  await write(open(), NOON, started(1, { subject: 'ada\u001b[2J' }))
  const said = command('--folder', folder, '--node', 'n1', '--at', '2026-11-22T12:00:30Z')
  for (const word of ['ada?[2J', 'https://centre', 'mc of /vo/prod', 'c1/sim/1', '/i/a.sif'])
    expect(said).toContain(word)
  expect(JSON.parse(command('--folder', folder, '--json'))).toMatchObject({ subject: 'ada\u001b[2J', endedAt: null })
  expect(() => command('--folder', folder, '--at', '2026-11-21T00:00:00Z')).toThrow(/status 1|Command failed/)
})

test('trace - the site file says where the traces of all its kinds are; a folder that is not there is no answer', async () => {
  const site = join(folder, 'site.yaml')
  const kinds = `{cpu: {time: 1h, shape: {cores: 1}}, gpu: {time: 1h, shape: {cores: 1}, settings: {traceLog: ${join(folder, 'gpu')}}}}`
  writeFileSync(site, `{indraft: 1, folder: ${folder}, credential: /c, starter: local, kinds: ${kinds}}\n`)
  await write(open({ folder: join(folder, 'trace') }), NOON + 1000, started(1))
  expect(refusal('--site', site)).toContain(`the trace in ${join(folder, 'gpu')} cannot be read: ENOENT`)
  await write(open({ folder: join(folder, 'gpu'), node: 'g1' }), NOON, started(2, { node: 'g1' }))
  expect(command('--site', site).match(/c1\/sim\/\d/g)).toEqual(['c1/sim/2', 'c1/sim/1'])
  expect(command('--site', site, '--node', 'n1', '--at', '2026-11-22T12:00:30Z')).toMatch(/c1\/sim\/1/)
  expect(refusal('--site', site, '--folder', folder)).toContain('expected one of --site, --folder and --config')
})

const argv = (...words: string[]) => [join(import.meta.dirname, 'cli.ts'), 'trace', ...words]
const command = (...words: string[]) => execFileSync(process.execPath, argv(...words), { encoding: 'utf8' })
/** What it says where it ends with 2. */
function refusal(...words: string[]): string {
  const { status, stderr } = spawnSync(process.execPath, argv(...words), { encoding: 'utf8' })
  expect(status).toBe(2)
  return stderr
}
