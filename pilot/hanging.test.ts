/** Files that hang whoever opens them: named pipes that nobody writes to. */
import { execFileSync } from 'node:child_process'
import { closeSync, constants, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { silentLog } from '../shared/log.ts'
import { isDoneWithin } from './hanging.ts'
import { endTeller } from './start/end-record.ts'

let folder: string
let pipes: string[]
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-hanging-'))
  pipes = []
})
afterEach(() => {
  // Who hangs goes on, and finds the end of an empty file.
  const open = pipes.map((path) => openSync(path, constants.O_RDWR | constants.O_NONBLOCK))
  rmSync(folder, { recursive: true })
  for (const pipe of open) closeSync(pipe)
})

function makePipe(name: string): void {
  const path = join(folder, name)
  execFileSync('mkfifo', [path])
  pipes.push(path)
}

const tellerOf = (name: string) =>
  endTeller({ endFolder: folder, startId: 'start', node: 'n1' }, { name, job: null, livedMs: () => 1 }, silentLog, {
    progress: 1,
    asked: 1,
  })

/** More than Node has threads for files. */
const MANY = Array.from({ length: 8 }, (_, at) => `pilot${at}`)

test('hanging - whoever looks for an order to leave leaves the other disks within reach, and asks on when it is over', async () => {
  for (const name of MANY) makePipe(`start-${name}.leave`)
  writeFileSync(join(folder, 'start-other.leave'), 'enough')
  const tellers = [...MANY, 'other'].map(tellerOf)
  const asked = Promise.withResolvers<string>()
  for (const teller of tellers) teller.whenAsked(teller === tellers.at(-1) ? asked.resolve : () => {})
  for (let turn = 0; turn < 100; turn++) await new Promise((resolve) => setTimeout(resolve, 1))
  expect(await readFile(import.meta.filename, 'utf8')).toContain('named pipes')
  expect(await isDoneWithin(1, asked.promise)).toBe(false)
  for (const path of pipes.splice(0)) {
    const pipe = openSync(path, constants.O_RDWR | constants.O_NONBLOCK)
    rmSync(path)
    closeSync(pipe)
  }
  expect(await asked.promise).toBe('enough')
  await Promise.all(tellers.map((teller) => teller.tell({ code: 300, reason: 'done' })))
})

test('hanging - a record that cannot be written holds one thread, however often a pilot would write it', async () => {
  makePipe('.start-pilot0.tmp')
  const teller = tellerOf('pilot0')
  for (let turn = 0; turn < 100; turn++) await new Promise((resolve) => setTimeout(resolve, 1))
  const told = teller.tell({ code: 300, reason: 'done' })
  expect(await isDoneWithin(1, told)).toBe(false)
  expect(await readFile(import.meta.filename, 'utf8')).toContain('named pipes')
  const reader = openSync(pipes[0]!, constants.O_RDONLY | constants.O_NONBLOCK)
  await told
  closeSync(reader)
  pipes.length = 0
})

test('hanging - what is done in time is, and what fails fails', async () => {
  expect(await isDoneWithin(60_000, Promise.resolve(1))).toBe(true)
  await expect(isDoneWithin(60_000, Promise.reject(new Error('no disk')))).rejects.toThrow('no disk')
})
