import { execFileSync } from 'node:child_process'
import {
  closeSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { CappedLog, PipeMaker, tailOf } from './logs.ts'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-logs-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

async function keep(capBytes: number, ...chunks: string[]): Promise<{ text: string | null; bytes: number }> {
  const { read, write } = await new PipeMaker(join(folder, 'pipes')).take()
  rmSync(join(folder, 'log'), { force: true })
  const log = new CappedLog(read, join(folder, 'log'), capBytes)
  for (const chunk of chunks) {
    writeSync(write, chunk)
    // Let the reader see each chunk by itself.
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  closeSync(write)
  const path = await log.finish()
  return { text: path === null ? null : readFileSync(path, 'utf8'), bytes: log.bytes }
}

test.each<[string, number, string[], string | null]>([
  ['nothing written is no file', 10, [], null],
  ['less than the cap is kept as it is', 10, ['abc', 'defgh'], 'abcdefgh'],
  ['exactly the cap too', 10, ['abcde', 'fghij'], 'abcdefghij'],
  ['more keeps the first and the last half', 10, ['abcdefghijk'], 'abcde\n[... 1 bytes left out ...]\nghijk'],
  ['in pieces as well', 10, ['abc', 'def', 'ghi', 'jkl', 'mno'], 'abcde\n[... 5 bytes left out ...]\nklmno'],
  ['a piece larger than the cap', 10, ['ab', 'x'.repeat(100), 'yz'], 'abxxx\n[... 94 bytes left out ...]\nxxxyz'],
  ['an odd cap', 5, ['abcdefgh'], 'abc\n[... 3 bytes left out ...]\ngh'],
  ['a cap of one byte', 1, ['abc'], 'a\n[... 2 bytes left out ...]\n'],
  ['a cap of nothing', 0, ['abc'], null],
])('logs - %s', async (_what, cap, chunks, expected) => {
  const { text, bytes } = await keep(cap, ...chunks)
  expect(text).toBe(expected)
  expect(bytes).toBe(chunks.join('').length)
})

test('logs - random pieces agree with what head and tail would keep', async () => {
  let seed = 7
  const random = (below: number) => {
    seed = (seed * 48_271) % 2_147_483_647
    return seed % below
  }
  for (const cap of [7, 64, 1001]) {
    const chunks = Array.from({ length: 12 }, () => String.fromCharCode(97 + random(26)).repeat(1 + random(400)))
    const all = chunks.join('')
    const head = Math.ceil(cap / 2)
    const expected = `${all.slice(0, head)}\n[... ${all.length - cap} bytes left out ...]\n${all.slice(all.length - (cap - head))}`
    expect((await keep(cap, ...chunks)).text).toBe(expected)
  }
})

test('logs - a process that outlives the payload with the pipe in hand delays nobody', async () => {
  const { read, write } = await new PipeMaker(join(folder, 'pipes')).take()
  const log = new CappedLog(read, join(folder, 'log'), 100)
  writeSync(write, 'said')
  await expect.poll(() => log.bytes).toBe(4)
  const path = await log.finish(50)
  closeSync(write)
  expect(readFileSync(path!, 'utf8')).toBe('said')
})

test.each<[string, (path: string) => void]>([
  ['a file of the name that the order takes', (path) => writeFileSync(`${path}.ordered`, 'other')],
  [
    'a folder in its own place',
    (path) => {
      rmSync(path)
      mkdirSync(path)
    },
  ],
])('logs - more than the cap beside %s is the first half, and no error', async (_what, meddle) => {
  const { read, write } = await new PipeMaker(join(folder, 'pipes')).take()
  const path = join(folder, 'log')
  const log = new CappedLog(read, path, 10)
  writeSync(write, 'abcdefghijkl')
  await expect.poll(() => log.bytes).toBe(12)
  linkSync(path, join(folder, 'seen'))
  meddle(path)
  closeSync(write)
  expect(await log.finish()).toBe(path)
  expect(readFileSync(join(folder, 'seen'), 'utf8')).toBe('abcde\n[... 7 bytes left out ...]\n')
})

test('logs - the tail of a file', async () => {
  const { text } = await keep(100, 'one two three')
  expect(text).toBe('one two three')
  expect(await tailOf(join(folder, 'log'), 5)).toBe('three')
  expect(await tailOf(null, 5)).toBeNull()
})

test('logs - what a payload on the host puts in their place is neither followed nor waited for', async () => {
  const elsewhere = join(folder, 'elsewhere')
  writeFileSync(elsewhere, 'precious')
  const log = join(folder, 'log')
  for (const put of [() => symlinkSync(elsewhere, log), () => execFileSync('mkfifo', [log])]) {
    rmSync(log, { force: true })
    put()
    const { read, write } = await new PipeMaker(join(folder, 'pipes')).take()
    const kept = new CappedLog(read, log, 100)
    writeSync(write, 'said')
    await expect.poll(() => kept.bytes).toBe(4)
    closeSync(write)
    expect(await kept.finish()).toBeNull()
    expect(await tailOf(log, 5)).toBeNull()
  }
  expect(readFileSync(elsewhere, 'utf8')).toBe('precious')
  rmSync(log)
  expect(await tailOf(log, 5)).toBeNull()
})
