/** The shared file system hangs: stood in for by questions that are never answered. The last test leaves one behind. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { systemClock } from '../shared/clock.ts'
import { silentLog } from '../shared/log.ts'
import { Banned } from './banned.ts'
import { Lookout, type LookoutOptions } from './lookout.ts'

const hanging = vi.hoisted(() => ({ isOn: false, asked: [] as string[] }))
vi.mock('node:fs/promises', async (original) => {
  const real = (await original()) as typeof import('node:fs/promises')
  const mayHang =
    <T>(act: (path: string) => Promise<T>) =>
    (path: string) => {
      hanging.asked.push(path)
      return hanging.isOn ? new Promise<T>(() => {}) : act(path)
    }
  return { ...real, access: mayHang(real.access), stat: mayHang(real.stat) }
})

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-lookout-'))
  hanging.asked.length = 0
  hanging.isOn = false
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

function make(onBanned = () => {}, refresh = async () => {}) {
  const [stopFile, banFile] = [join(folder, 'STOP'), join(folder, 'BANNED')]
  const options = {
    ...{ clock: systemClock, stopFile, banned: new Banned([], banFile, silentLog), onBanned },
    ...{ outbox: { trouble: null }, timeLeft: { refresh }, banEvery: 100, beatMs: () => 1e9 },
    onDisk: () => {},
  }
  return { lookout: new Lookout(options as unknown as LookoutOptions), stopFile, banFile }
}

test('lookout - a STOP file is seen, and a ban file, each with the look after the question', async () => {
  let bans = 0
  const { lookout, stopFile, banFile } = make(() => bans++)
  const nowMs = systemClock.monotonicMs()
  lookout.look(nowMs + 1)
  expect(lookout.hasStopFile).toBe(false)
  writeFileSync(stopFile, '')
  writeFileSync(banFile, 'eve\n')
  await vi.waitFor(() => {
    lookout.look(nowMs + 6000 * (1 + hanging.asked.length))
    expect([lookout.hasStopFile, bans]).toEqual([true, 1])
  }, 30_000)
})

test('lookout - each question has its turn, the time left with the others', async () => {
  let refreshed = 0
  const { lookout, stopFile, banFile } = make(undefined, async () => void refreshed++)
  let nowMs = systemClock.monotonicMs()
  await vi.waitFor(() => {
    nowMs += 61_000
    lookout.look(nowMs)
    const asked = [banFile, stopFile].map((file) => hanging.asked.filter((path) => path === file).length)
    for (const times of [refreshed, ...asked]) expect(times).toBeGreaterThan(1)
  }, 30_000)
})

test('lookout - where the file system hangs no look waits, and nothing more is asked', async () => {
  let refreshed = 0
  const { lookout } = make(undefined, async () => void refreshed++)
  hanging.isOn = true
  const nowMs = systemClock.monotonicMs()
  lookout.look(nowMs + 1000)
  await expect.poll(() => hanging.asked).toHaveLength(1)
  for (let minute = 1; minute < 100; minute++) lookout.look(nowMs + minute * 60_000)
  await new Promise((resolve) => setImmediate(resolve))
  expect(hanging.asked).toHaveLength(1)
  expect(refreshed).toBe(0)
  expect(lookout.hasStopFile).toBe(false)
})
