import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import type { Start } from './decide.ts'
import { foldersOf } from './files.ts'
import { localStarter } from './local.ts'
import { parseSiteFile } from './site-file.ts'
import { NotStarted, type Starter } from './tick.ts'

/** Says its words and stays; the end of the test at the latest ends it. */
const program = `console.log(process.argv.slice(2).join(' ')); setInterval(() => {}, 1000)
process.on('SIGTERM', () => { console.log('told to end'); process.exit(0) })`

let folder: string
let starter: Starter
let logs: string
let order: Start
const pids: number[] = []

const starterOf = (command: string[]) => {
  const site = parseSiteFile(
    `{indraft: 1, folder: ${folder}, credential: /c, command: ${JSON.stringify(command)}, starter: local, kinds: {cpu: {time: 12h, shape: {cores: 8}}}}`,
    'site.yaml',
  )
  logs = foldersOf(site).logs
  return localStarter(site, foldersOf(site), { PATH: '/usr/bin:/bin' })
}

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-local-'))
  writeFileSync(join(folder, 'pilot.mjs'), program)
  starter = starterOf([process.execPath, join(folder, 'pilot.mjs')])
  const id = `cpu.${Math.random().toString(16).slice(2, 10)}`
  order = { id, kind: 'cpu', nodes: 1, timeMs: 90_000, because: 'demand', canaryOf: null, exclude: [] }
})
afterEach(() => {
  for (const pid of pids.splice(0)) {
    try {
      process.kill(pid, 'SIGKILL')
    } catch {
      // It has ended.
    }
  }
  rmSync(folder, { recursive: true, force: true })
})

const start = async () => {
  const jobId = await starter.start(order)
  pids.push(Number(jobId.split(':')[1]))
  return jobId
}
const mine = async () => (await starter.queue()).filter(({ id }) => id === order.id)
const log = () => readFile(join(logs, `indraft:${order.id}.log`), 'utf8')

describe('local starter', () => {
  it('starts a process that is known again by its id, also by another tick', async () => {
    const jobId = await start()
    const known = { jobId, id: order.id, state: 'running', nodes: [hostname()], reason: '' }
    expect(await mine()).toEqual([known])
    starter = starterOf(['another'])
    expect(await mine()).toEqual([known])
    await vi.waitFor(async () => expect(await log()).toContain(`--start-id ${order.id}`), 60_000)
    expect(await log()).toMatch(/^run --credential \/c .*--runtime-limit 90s\n$/)
  })

  it('ends those that it is told, and no others', async () => {
    await start()
    await vi.waitFor(async () => expect(await log()).toContain('--start-id'), 60_000)
    const started = (id: string) => ({ id }) as Parameters<Starter['end']>[0][number]
    await starter.end([started('cpu.00000000')])
    expect(await mine()).toHaveLength(1)
    await starter.end([started(order.id)])
    await vi.waitFor(async () => expect(await mine()).toEqual([]), 60_000)
    expect(await log()).toMatch(/told to end\n$/)
  })

  it('a program that is not there was certainly not started', async () => {
    starter = starterOf(['/nowhere/indraft-pilot'])
    await expect(starter.start(order)).rejects.toThrow(NotStarted)
    expect(await mine()).toEqual([])
  })
})
