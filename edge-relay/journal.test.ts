import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { silentLog } from '../shared/log.ts'
import { SAMPLES, sampleResult } from '../test/sample-messages.ts'
import { Journal } from './journal.ts'

let folder: string
let path: string
const open: Journal[] = []
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-journal-'))
  path = join(folder, 'journal.sqlite')
})
afterEach(() => {
  for (const journal of open.splice(0)) journal.close()
  rmSync(folder, { recursive: true, force: true })
})

function openJournal(onFailed: (error: unknown) => void = () => {}): Journal {
  const journal = Journal.open(path, silentLog, onFailed)
  open.push(journal)
  return journal
}
function reopen(journal: Journal): Journal {
  open.splice(open.indexOf(journal), 1)
  journal.close()
  return openJournal()
}

it('journal - what was written comes back, in the order in which results came', async () => {
  const journal = openJournal()
  const lease = { bundle: 'b1', fence: 5, arrival: 1, gone: false, free: '0-3', back: '', open: '0-9' }
  const part = { fence: 9, bundle: 'b1', above: 5, session: 's', sequence: 2, confirmed: true, tasks: '4', started: '' }
  const grant = SAMPLES.grants.full.grants[0]!
  journal.putBundle('b1', 5, grant)
  journal.putLease(lease)
  journal.putSubLease(part)
  journal.putReply('s', 2, Buffer.from('reply'))
  for (const index of [3, 1, 2]) journal.putResult(`r${index}`, { ...sampleResult, index })
  journal.putPending('publication', 'x', { from: '/a', to: null })
  journal.setMeta('lastFence', 9)
  const again = reopen(journal)
  const content = again.read()
  expect(content.leases).toMatchObject([{ row: lease, grant: { lease: grant.lease, capability: grant.capability } }])
  expect(content.subLeases).toEqual([part])
  expect(Buffer.from(content.replies.get('s')!.body).toString()).toBe('reply')
  expect([...again.results()].map(({ attempt }) => attempt)).toEqual(['r3', 'r1', 'r2'])
  expect(again.result('r3')).toEqual({ ...sampleResult, index: 3 })
  expect(again.result('r9')).toBeUndefined()
  expect(content.pending).toEqual([{ kind: 'publication', name: 'x', body: { from: '/a', to: null } }])
  expect(again.meta('lastFence')).toBe(9)
})

it('journal - the incarnation stays with the journal and goes with it', () => {
  const journal = openJournal()
  const { incarnation } = journal
  const again = reopen(journal)
  expect(again.incarnation).toBe(incarnation)
  open.splice(0)
  again.close()
  for (const name of readdirSync(folder)) rmSync(join(folder, name))
  expect(openJournal().incarnation).not.toBe(incarnation)
})

it('journal - fences beyond 32 bits are kept exactly', () => {
  const journal = openJournal()
  const fence = 1_795_299_033_498_703
  journal.putSubLease({
    fence,
    bundle: 'b',
    above: fence + 1,
    session: 's',
    sequence: 1,
    confirmed: false,
    tasks: '0',
    started: '',
  })
  expect(reopen(journal).read().subLeases[0]).toMatchObject({ fence, above: fence + 1 })
})

it('journal - committed() holds for every change before it, also where another commit took them', async () => {
  const journal = openJournal()
  const other = new DatabaseSync(path)
  const count = () => (other.prepare('SELECT count(*) AS n FROM result').get() as { n: number }).n
  for (let i = 0; i < 100; i++) journal.putResult(`r${i}`, sampleResult)
  await journal.committed()
  expect(count()).toBe(100)
  journal.putResult('more', sampleResult)
  expect(count()).toBe(100)
  await journal.committed()
  expect(count()).toBe(101)
  other.close()
})

it('journal - a commit that fails is told to all who wait, and nothing is acknowledged after it', async () => {
  const failures: unknown[] = []
  const journal = openJournal((error) => failures.push(error))
  const other = new DatabaseSync(path)
  other.exec('DROP TABLE result')
  other.close()
  journal.putResult('r', sampleResult)
  await expect(journal.committed()).rejects.toThrow()
  journal.setMeta('x', 1)
  await expect(journal.committed()).rejects.toThrow()
  expect(failures).toHaveLength(1)
})

it('journal - one of a newer version is refused and left alone', () => {
  openJournal()
  for (const journal of open.splice(0)) journal.close()
  const database = new DatabaseSync(path)
  database.exec('PRAGMA user_version = 99')
  database.close()
  expect(() => openJournal()).toThrow(/version 99/)
  expect(readdirSync(folder).some((name) => name.includes('damaged'))).toBe(false)
})
