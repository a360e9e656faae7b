import { spawn } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { recordOf } from '../../../shared/servers/record.ts'
import { lockHome } from './home-lock.ts'

let dir: string
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'indraft-lock-'))
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

test('home lock - a second one on the same folder is refused while the first holds it', () => {
  const unlock = lockHome(dir)
  expect(() => lockHome(dir)).toThrow(`already runs on ${dir} (process ${process.pid})`)
  unlock()
  lockHome(dir)()
  expect(readdirSync(dir)).toEqual([])
})

test('home lock - the lock of a process that is gone counts for nothing', async () => {
  const child = spawn('/bin/sleep', ['100'], { stdio: 'ignore' })
  writeFileSync(join(dir, 'up.pid'), JSON.stringify(recordOf(child.pid!)))
  expect(() => lockHome(dir)).toThrow(`process ${child.pid}`)
  child.kill('SIGKILL')
  await new Promise((done) => child.once('exit', done))
  lockHome(dir)()
})

test('home lock - an unreadable lock counts for nothing', () => {
  writeFileSync(join(dir, 'up.pid'), '{half')
  lockHome(dir)()
})
