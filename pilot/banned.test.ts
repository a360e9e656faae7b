import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { silentLog } from '../shared/log.ts'
import { parseDuration } from '../shared/quantity.ts'
import { timingsFor } from '../shared/timings.ts'
import { Banned } from './banned.ts'
import { PILOT_SETTINGS } from './config.ts'

let folder: string
let path: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-banned-'))
  path = join(folder, 'BANNED')
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

test('banned - by the settings for good, by the file as long as it says so', async () => {
  const banned = new Banned(['eve'], path, silentLog)
  expect(await banned.refresh()).toBe(false)
  expect([banned.has('eve'), banned.has('ada')]).toEqual([true, false])
  writeFileSync(path, '# since Monday\nada   # told us on the phone\n\n/DC=org/CN=Bob Smith #1 of two\n')
  expect(await banned.refresh()).toBe(true)
  expect(['ada', '/DC=org/CN=Bob Smith', 'told', 'bob'].map((who) => banned.has(who))).toEqual([
    true,
    true,
    false,
    false,
  ])
  expect(await banned.refresh()).toBe(false)
  rmSync(path)
  expect(await banned.refresh()).toBe(true)
  expect([banned.has('eve'), banned.has('ada')]).toEqual([true, false])
})

test('banned - a file that cannot be read lifts nothing', async () => {
  const banned = new Banned([], path, silentLog)
  writeFileSync(path, 'ada\n')
  await banned.refresh()
  writeFileSync(path, 'x'.repeat(2 ** 20 + 1))
  expect(await banned.refresh()).toBe(false)
  expect(banned.has('ada')).toBe(true)
  if (process.getuid?.() === 0) return
  writeFileSync(path, 'bob\n')
  chmodSync(path, 0)
  expect(await banned.refresh()).toBe(false)
  expect(banned.has('ada')).toBe(true)
})

test('ban - an order is with a payload within 5 minutes of contact by the intervals alone', () => {
  const [relay, pilot] = (['relay', 'pilot'] as const).map((role) => timingsFor(role, 1).beatMs) as [number, number]
  const grace = parseDuration(PILOT_SETTINGS.payloadGrace.default)!
  // One beat each that has just gone, one of each that is lost and repeated, and the payload's own grace.
  expect(2 * relay + 2 * pilot + grace).toBeLessThan(5 * 60_000)
})
