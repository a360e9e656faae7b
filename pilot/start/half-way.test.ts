/**
 * A tick that dies at any call of the file system, before it or half-way through it: whatever it was at, the next ticks
 * find one job, count each end once, and in the end nothing half-written lies about.
 */
import { existsSync } from 'node:fs'
import fs from 'node:fs/promises'
import { syncBuiltinESMExports } from 'node:module'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { silentLog } from '../../shared/log.ts'
import { type CountedSlurm, countedSlurm } from '../../test/counted-slurm.ts'
import { writeEndRecord } from './end-record.ts'
import { foldersOf, readState } from './files.ts'
import type { Ports } from './tick.ts'
import { tick } from './tick.ts'

const MINUTE = 60_000
const MORE = 'look: {wanted: 1min, quiet: 1min}, caps: {running: 1},'
const CHANGING = ['open', 'writeFile', 'rename', 'link', 'rm', 'mkdir'] as const
const OF_HANDLES = ['writeFile', 'sync', 'close'] as const

class Died extends Error {}

/** Calls until it dies; what it does after that does nothing. */
let left = Number.POSITIVE_INFINITY
const undo: (() => void)[] = []

/** @param data which argument is content: half of it is written before the end */
function guard(owner: object, name: string, data: number | null): void {
  const methods = owner as Record<string, (...args: unknown[]) => Promise<unknown>>
  const real = methods[name]!
  undo.push(() => {
    methods[name] = real
  })
  methods[name] = async function (this: unknown, ...args: unknown[]) {
    if (left <= 0) throw new Died()
    if (--left > 0) return await real.apply(this, args)
    if (data !== null) await real.apply(this, args.with(data, String(args[data]).slice(0, 20)))
    throw new Died()
  }
}

beforeAll(async () => {
  for (const name of CHANGING) guard(fs, name, name === 'writeFile' ? 1 : null)
  const handle = await fs.open('/dev/null', 'r')
  for (const name of OF_HANDLES) guard(Object.getPrototypeOf(handle), name, name === 'writeFile' ? 0 : null)
  await handle.close()
  syncBuiltinESMExports()
})
afterAll(() => {
  for (const back of undo.splice(0)) back()
  syncBuiltinESMExports()
})

let slurm: CountedSlurm
let tasks: number
beforeEach(() => {
  slurm = countedSlurm('/none', MORE)
  tasks = 8
})
afterEach(() => {
  left = Number.POSITIVE_INFINITY
  slurm.close()
})

const ports = (): Ports => ({
  ...slurm.ports(),
  ask: async () => ({
    fits: tasks > 0 ? [{ entry: 0, group: 'g', work: 'c/s', tasks, perNode: 8, estimateMs: null }] : [],
    ...{ idlePilots: 0, isWhole: true, reason: null },
  }),
})
/** As a new process would: the lock of the dead one is taken over (lock.test.ts), which cannot be seen from within it. */
async function later(ms: number): Promise<void> {
  slurm.nowMs += ms
  await fs.rm(join(slurm.site.folder, 'lock'), { force: true })
  await tick(slurm.site, ports(), silentLog)
}
async function dying(at: number): Promise<boolean> {
  left = at
  const died = await tick(slurm.site, ports(), silentLog).then(
    () => left <= 0,
    (error: unknown) => {
      if (!(error instanceof Died)) throw error
      return true
    },
  )
  left = Number.POSITIVE_INFINITY
  return died
}
/** Everything in the vacuum's folder that a whole tick would not leave. */
async function halfWritten(): Promise<string[]> {
  const { ends } = foldersOf(slurm.site)
  const names = [...(await fs.readdir(slurm.site.folder)), ...(existsSync(ends) ? await fs.readdir(ends) : [])]
  return names.filter((name) => !['state.json', 'ends', 'logs'].includes(name))
}
async function tidied(): Promise<void> {
  const old = new Date(Date.now() - 2 * 3_600_000)
  for (const folder of [slurm.site.folder, foldersOf(slurm.site).ends])
    for (const name of existsSync(folder) ? await fs.readdir(folder) : []) await fs.utimes(join(folder, name), old, old)
  tasks = 0
  await later(2 * 3_600_000)
  expect(await halfWritten()).toEqual([])
}

describe('half-way', () => {
  it('a tick that starts a pilot: one job in the end, known by its number', async () => {
    let at = 0
    for (let died = true; died; ) {
      died = await dying(++at)
      for (let minute = 0; minute < 4; minute++) await later(MINUTE)
      expect(slurm.jobs(), `call ${at}`).toHaveLength(1)
      const { pilots } = await readState(foldersOf(slurm.site).state)
      expect(Object.values(pilots), `call ${at}`).toMatchObject([
        { id: slurm.jobs()[0], jobId: expect.stringMatching(/^\d+$/) },
      ])
      await tidied()
      slurm.close()
      slurm = countedSlurm('/none', MORE)
      tasks = 8
    }
    expect(at).toBeGreaterThan(15)
  })

  it('a tick that counts an end: it counts once', async () => {
    let at = 0
    for (let died = true; died; ) {
      await later(MINUTE)
      const [id = ''] = slurm.jobs()
      await writeEndRecord(foldersOf(slurm.site).ends, {
        ...{ version: 1, start: id, pilot: 'p', node: 'n1', job: '1', code: 300, reason: 'why', livedMs: 700_000 },
        work: { 'c/s': { done: 8, failed: 0, medianMs: 1000 } },
      })
      slurm.end()
      tasks = 0
      slurm.nowMs += MINUTE
      died = await dying(++at)
      for (let minute = 0; minute < 3; minute++) await later(MINUTE)
      expect(await readState(foldersOf(slurm.site).state), `call ${at}`).toMatchObject({
        ...{ usedMs: { '': 700_000 }, work: { 'c/s': { n1: { done: 8 } } } },
        scopes: { 'class:cpu': { strikes: 1 } },
      })
      expect((await readState(foldersOf(slurm.site).state)).pilots, `call ${at}`).toEqual({})
      await tidied()
      slurm.close()
      slurm = countedSlurm('/none', MORE)
      tasks = 8
    }
    expect(at).toBeGreaterThan(10)
  })
})
