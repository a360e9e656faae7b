import { spawnSync } from 'node:child_process'
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { enableFailpoints } from '../shared/failpoint.ts'
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

describe('journal - damaged', () => {
  const moments = () => join(folder, 'moments')

  /** Ten results that can be read, and a page that cannot. @returns its incarnation */
  async function damage(): Promise<string> {
    const journal = openJournal()
    for (let i = 0; i < 10; i++) journal.putResult(`r${i}`, sampleResult)
    await journal.committed()
    const { incarnation } = journal
    for (const one of open.splice(0)) one.close()
    const database = new DatabaseSync(path)
    const { page } = database.prepare("SELECT rootpage AS page FROM sqlite_schema WHERE name = 'lease'").get() as {
      page: number
    }
    database.close()
    const file = openSync(path, 'r+')
    writeSync(file, Buffer.alloc(4096, 0xff), 0, 4096, (page - 1) * 4096)
    closeSync(file)
    return incarnation
  }

  /** @param action of failpoint.ts */
  function arm(name: string, action: string): void {
    mkdirSync(moments())
    writeFileSync(join(moments(), name), action)
  }

  function expectSalvaged(before: string): void {
    const journal = openJournal()
    expect([...journal.results()].map(({ attempt }) => attempt)).toEqual(Array.from({ length: 10 }, (_, i) => `r${i}`))
    expect(journal.incarnation).not.toBe(before)
    journal.setMeta('x', 1)
    const again = reopen(journal)
    expect([...again.results()]).toHaveLength(10)
    expect(again.meta('x')).toBe(1)
    expect(readdirSync(folder).filter((name) => name.includes('.next'))).toEqual([])
  }

  it.each(['journal.salvaging', 'journal.setAside'])(
    'journal - killed at %s, the next start still has every result that could be read',
    async (moment) => {
      const before = await damage()
      arm(moment, 'kill')
      const script = `
        import { enableFailpoints } from '${import.meta.dirname}/../shared/failpoint.ts'
        import { silentLog } from '${import.meta.dirname}/../shared/log.ts'
        import { Journal } from '${import.meta.dirname}/journal.ts'
        enableFailpoints('${moments()}')
        Journal.open('${path}', silentLog, () => {})`
      const { signal, stderr } = spawnSync(process.execPath, ['--input-type=module', '--eval', script])
      expect(signal, `${stderr}`).toBe('SIGKILL')
      expectSalvaged(before)
    },
  )

  it('journal - with a disk that is full meanwhile the start fails, and the next one has every result', async () => {
    const before = await damage()
    arm('journal.salvaging', 'throw ENOSPC')
    enableFailpoints(moments())
    try {
      expect(() => openJournal()).toThrow(/ENOSPC/)
    } finally {
      enableFailpoints(null)
    }
    expect(readdirSync(folder).filter((name) => name.includes('damaged'))).toEqual([])
    expectSalvaged(before)
  })

  it('journal - the log of changes of one that was set aside half-way is not given to the next', async () => {
    const before = await damage()
    arm('journal.setAside', 'throw EIO')
    enableFailpoints(moments())
    try {
      expect(() => openJournal()).toThrow(/EIO/)
    } finally {
      enableFailpoints(null)
    }
    expect(existsSync(path)).toBe(false)
    writeFileSync(`${path}-wal`, 'of the one set aside')
    expectSalvaged(before)
    expect(readdirSync(folder).filter((name) => /damaged-.*-wal$/.test(name))).toHaveLength(1)
  })
})
