import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { silentLog } from '../shared/log.ts'
import { Capabilities } from './capabilities.ts'
import { Journal } from './journal.ts'

const DAY_MS = 86_400_000
let folder: string
let journal: Journal

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-capabilities-'))
  journal = open()
})
afterEach(() => {
  journal.close()
  rmSync(folder, { recursive: true, force: true })
})

function open(): Journal {
  return Journal.open(join(folder, 'journal.sqlite'), silentLog, (error) => {
    throw error
  })
}
const grant = (fence: number, campaign = 'c1') => ({
  lease: { bundle: `b${fence}`, campaign, step: 'sim', fences: [fence], tasks: '0' },
  capability: `opens-${fence}`,
})
const attempt = (fence: number, campaign = 'c1') => ({ campaign, step: 'sim', fences: [fence, 7] })

it('capabilities - an attempt is opened by that of its lease, other attempts of the campaign by the newest', () => {
  const all = new Capabilities(journal, journal.read())
  for (const fence of [1, 2]) all.hold(grant(fence))
  expect([all.ofAttempt(attempt(1)), all.ofAttempt(attempt(3)), all.ofAttempt(attempt(1, 'c2'))]).toEqual([
    'opens-1',
    null,
    null,
  ])
  expect([all.ofCampaign('c1'), all.ofCampaign('c2')]).toEqual(['opens-2', null])
  for (const fence of [1, 2]) all.release(grant(fence).lease)
  expect([all.kept, all.ofCampaign('c1')]).toEqual([0, null])
})

it('capabilities - late results are opened over a restart, for 30 days and no longer', () => {
  const before = new Capabilities(journal, journal.read())
  for (const fence of [1, 2]) before.hold(grant(fence))
  before.expectLate(grant(1).lease, 0)
  for (const fence of [1, 2]) before.release(grant(fence).lease)
  journal.close()
  journal = open()
  const after = new Capabilities(journal, journal.read())
  after.forgetOld(30 * DAY_MS)
  expect([after.ofAttempt(attempt(1)), after.ofAttempt(attempt(2)), after.ofCampaign('c1')]).toEqual([
    'opens-1',
    null,
    'opens-1',
  ])
  after.forgetOld(30 * DAY_MS + 1)
  expect([after.kept, after.ofAttempt(attempt(1))]).toEqual([0, null])
  journal.close()
  journal = open()
  expect(journal.read().pending).toEqual([])
})

it('capabilities - one that is held still is not forgotten with its late results', () => {
  const all = new Capabilities(journal, journal.read())
  all.hold(grant(1))
  all.expectLate(grant(1).lease, 0)
  all.forgetOld(31 * DAY_MS)
  expect(all.ofAttempt(attempt(1))).toBe('opens-1')
})

it('capabilities - a lease of a centre that gave none opens nothing and is no trouble', () => {
  const all = new Capabilities(journal, journal.read())
  all.hold({ ...grant(1), capability: null })
  all.expectLate(grant(1).lease, 0)
  all.release(grant(1).lease)
  expect([all.kept, all.ofAttempt(attempt(1))]).toEqual([0, null])
})
