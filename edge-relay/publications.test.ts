/** Files that are not there when they are to be named: moved by somebody, not seen yet, or on a share that is away. */
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { type Log, silentLog } from '../shared/log.ts'
import { type ManualClock, manualClock } from '../test/manual-clock.ts'
import { sampleResult } from '../test/sample-messages.ts'
import { Journal } from './journal.ts'
import { Publications } from './publications.ts'

let folder: string
let share: string
let clock: ManualClock
let journal: Journal
let publications: Publications
let errors: string[]

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-publications-'))
  share = join(folder, 'share')
  mkdirSync(share)
  clock = manualClock()
  errors = []
  start()
})
afterEach(async () => {
  await stop()
  rmSync(folder, { recursive: true, force: true })
})

function start(): void {
  const log = { ...silentLog, info() {}, warn() {}, error: (_: object, name: string) => void errors.push(name) }
  journal = Journal.open(join(folder, 'journal.sqlite'), silentLog, () => {})
  publications = new Publications(journal, clock, log as unknown as Log, journal.read().pending)
}
async function stop(): Promise<void> {
  await publications.stop()
  journal.close()
}

const final = () => join(share, 'out.txt')
const temporary = () => `${final()}.attempt-1-2`

/** Central accepted a success whose output lies, or lay, there. */
function accept(): void {
  const output = { path: 'out.txt', sizeBytes: 1, checksum: `sha256:${'0'.repeat(64)}` }
  const outputs = [{ ...output, url: pathToFileURL(temporary()).href }]
  publications.onVerdict({ ...sampleResult, end: 'done', reason: null, fences: [1, 2], outputs }, 'accepted')
}

/** In steps, because what a pass over the files does takes the time that a disk takes. */
async function pass(minutes: number): Promise<void> {
  for (let second = 0; second < minutes * 60; second += 10) {
    await clock.advance(10_000)
    while (clock.sleeping === 0 && publications.waiting > 0) await clock.settle()
  }
}

it('publications - one that was moved or removed before it got its name is given up with an error, also by the journal', async () => {
  writeFileSync(join(share, 'another'), '')
  accept()
  await pass(9)
  expect(publications.waiting).toBe(1)
  expect(errors).toEqual([])
  await pass(2)
  expect(publications.waiting).toBe(0)
  expect(errors).toEqual(['output.gone'])
  await stop()
  start()
  expect(publications.waiting).toBe(0)
})

it.each([
  ['missing', () => renameSync(share, `${share}.away`)],
  [
    'empty',
    () => {
      renameSync(share, `${share}.away`)
      mkdirSync(share)
    },
  ],
])(
  'publications - one whose folder is %s is waited for, because its file system may not be mounted',
  async (_, away) => {
    writeFileSync(temporary(), 'x')
    away()
    accept()
    await pass(60)
    expect(publications.waiting).toBe(1)
    rmSync(share, { recursive: true, force: true })
    renameSync(`${share}.away`, share)
    await pass(1)
    expect(publications.waiting).toBe(0)
    expect(existsSync(final())).toBe(true)
    expect(errors).toEqual([])
  },
)

it('publications - one that is seen minutes later gets its name, and one that is named already is done', async () => {
  writeFileSync(join(share, 'another'), '')
  accept()
  await pass(5)
  writeFileSync(temporary(), 'x')
  await pass(1)
  expect(existsSync(final())).toBe(true)
  expect(publications.waiting).toBe(0)
  accept()
  await pass(1)
  expect(publications.waiting).toBe(0)
  expect(errors).toEqual([])
})
