import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { silentLog } from '../shared/log.ts'
import { Cache } from './cache.ts'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-cache-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const open = (limitBytes = 1000) => Cache.open(join(folder, 'cache'), limitBytes, silentLog)
const kept = () => readdirSync(join(folder, 'cache'))
/** Writes so many bytes, and counts. */
function source(bytes = 10) {
  const fetch = async (target: string) => {
    fetch.times++
    writeFileSync(target, 'x'.repeat(bytes))
    return true
  }
  fetch.times = 0
  return fetch
}

test('cache - who wants the same at the same time, or later, shares one fetch', async () => {
  const cache = await open()
  const fetch = source()
  const found = await Promise.all([cache.get('a', fetch), cache.get('a', fetch)])
  expect(found.map((file) => file?.sizeBytes)).toEqual([10, 10])
  await cache.get('a', fetch)
  expect(fetch.times).toBe(1)
  await (await open()).get('a', fetch)
  expect(fetch.times).toBe(1)
})

test('cache - a fetch that fails half-way leaves nothing, and the next one is made', async () => {
  const cache = await open()
  const failing = async (target: string) => {
    writeFileSync(target, 'half')
    writeFileSync(`${target}.part`, 'half')
    throw new Error('broken off')
  }
  const both = await Promise.allSettled([cache.get('a', failing), cache.get('a', failing)])
  expect(both.map(({ status }) => status)).toEqual(['rejected', 'rejected'])
  expect(kept()).toEqual([])
  expect(await cache.get('a', async () => false)).toBeNull()
  expect((await cache.get('a', source()))?.sizeBytes).toBe(10)
})

test('cache - when full, what was unused for longest goes; who reads it reads on', async () => {
  const cache = await open(25)
  const first = await cache.get('a', source())
  await cache.get('b', source())
  await cache.find('a')
  const old = await cache.find('b')
  const reading = old!.read(0, 9)
  await new Promise((opened) => reading.once('open', opened))
  await cache.find('a')
  await cache.get('c', source())
  expect(existsSync(first!.location)).toBe(true)
  expect(existsSync(old!.location)).toBe(false)
  expect(await text(reading)).toBe('x'.repeat(10))
  expect(cache.bytes).toBe(20)
})

test('cache - a file as large as all of it is kept alone', async () => {
  const cache = await open(25)
  await cache.get('a', source())
  const large = await cache.get('b', source(25))
  expect(readFileSync(large!.location)).toHaveLength(25)
  expect(kept()).toHaveLength(1)
  expect(cache.limitBytes).toBe(25)
})

test('cache - what an earlier process left half-fetched is removed at the start', async () => {
  await (await open()).get('a', source())
  writeFileSync(join(folder, 'cache', `${kept()[0]}.half`), 'x')
  const cache = await open()
  expect(kept()).toHaveLength(1)
  expect(cache.bytes).toBe(10)
})
