import { appendFileSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { Ledger } from './ledger.ts'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-ledger-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

test('ledger - half a line waits for its rest; a task counts once however often it succeeded', () => {
  const path = join(folder, 'events')
  const ledger = new Ledger(path)
  ledger.read()
  appendFileSync(path, 'start c/work/1/5.6 100 alpha-1\nstart c/work/1/7.8 101 alpha-2\ndone c/work')
  ledger.read()
  expect(ledger.settled).toBe(0)
  expect(ledger.open('alpha-1').map(({ pid }) => pid)).toEqual([100])
  appendFileSync(path, '/1/5.6 42\ndone c/work/1/7.8 42\n')
  ledger.read()
  expect(ledger.settled).toBe(1)
  expect(ledger.successes.get('c/work/1')).toEqual(['c/work/1/5.6', 'c/work/1/7.8'])
  expect(ledger.open('alpha-1')).toEqual([])
})

test('ledger - a failure on purpose that comes again and again settles its task, one that comes once does not', () => {
  const path = join(folder, 'events')
  appendFileSync(path, 'start c/fails/0/1 9 n\nfail c/fails/0/1 4\nstart c/work/0/2 9 n\nfail c/work/0/2 3\n')
  const ledger = new Ledger(path)
  ledger.read()
  expect(ledger.settled).toBe(1)
})

test('ledger - a line that no payload writes is said, not passed over', () => {
  const path = join(folder, 'events')
  appendFileSync(path, 'done c/work/0/2 17\n')
  expect(() => new Ledger(path).read()).toThrow('no payload writes')
})
