import { mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { runBound } from './bound.ts'
import { folderBytes } from './folder-bytes.ts'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-bytes-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

function fill(below: string, files: number, bytes: number): void {
  mkdirSync(below, { recursive: true })
  for (let i = 0; i < files; i++) writeFileSync(join(below, `f${i}`), Buffer.alloc(bytes, 1))
}

test('folder bytes - adds up what lies below, stops beyond the limit, survives what is gone', async () => {
  fill(join(folder, 'a', 'b'), 20, 8192)
  const all = await folderBytes([folder, join(folder, 'gone')], 1e9, 60_000)
  expect(all).toBeGreaterThanOrEqual(20 * 8192)
  const some = await folderBytes([folder], 10_000, 60_000)
  expect(some).toBeLessThan(all)
  expect(some).toBeGreaterThan(10_000)
})

/** Whether somebody in this process has read names of the folder, and has it open still. */
function isBeingRead(path: string): boolean {
  return readdirSync('/proc/self/fd').some((fd) => {
    try {
      if (readlinkSync(`/proc/self/fd/${fd}`) !== path) return false
      return !/^pos:\s+0$/m.test(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))
    } catch {
      return false
    }
  })
}

test('folder bytes - a file that is removed during the look does not hide those beside it', async () => {
  fill(folder, 800, 4096)
  const names = readdirSync(folder)
  const look = folderBytes([folder], 1e9, 60_000)
  while (!isBeingRead(folder)) await turn()
  for (const name of names.filter((_, i) => i % 2 === 0)) rmSync(join(folder, name))
  expect(await look).toBeGreaterThanOrEqual(400 * 4096)
})

test('folder bytes - what its user locked is counted where there is a limit, and left alone where there is none', async () => {
  const said = await runBound(`
    import { chmodSync, mkdirSync, statSync, writeFileSync } from 'node:fs'
    import { folderBytes } from './folder-bytes.ts'
    const counted = []
    for (const mode of [0o300, 0o400, 0]) {
      const locked = ${JSON.stringify(folder)} + '/' + mode
      mkdirSync(locked + '/below', { recursive: true })
      for (const name of ['/x', '/below/y']) writeFileSync(locked + name, Buffer.alloc(100_000, 1))
      chmodSync(locked, mode)
      const free = await folderBytes([locked], Infinity, 60_000)
      const before = statSync(locked).mode & 0o777
      counted.push({ isUntouched: before === mode, isFree: Number.isFinite(free), held: await folderBytes([locked], 1e9, 60_000) >= 200_000 })
    }
    console.log(JSON.stringify(counted))`)
  expect(said).toEqual(Array(3).fill({ isUntouched: true, isFree: true, held: true }))
})

test('folder bytes - what lies deeper than any path can say is more than any limit', async () => {
  const said = await runBound(`
    import { mkdirSync, writeFileSync } from 'node:fs'
    import { folderBytes } from './folder-bytes.ts'
    process.chdir(${JSON.stringify(folder)})
    for (let i = 0; i < 20; i++) {
      mkdirSync('d'.repeat(250))
      process.chdir('d'.repeat(250))
    }
    writeFileSync('x', Buffer.alloc(100_000, 1))
    console.log(JSON.stringify(await folderBytes([${JSON.stringify(folder)}], 1e9, 60_000) > 1e9))`)
  expect(said).toBe(true)
})
