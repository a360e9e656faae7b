import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { folderBlobs } from './blobs.ts'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-blobs-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

test('blobs - the same bytes at once and again are one file under their digest', async () => {
  const blobs = folderBlobs(folder)
  const bytes = Buffer.from('hello')
  const digests = await Promise.all(Array.from({ length: 8 }, () => blobs.put(bytes)))
  expect(new Set(digests)).toEqual(new Set(['sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824']))
  expect(await blobs.get(digests[0]!)).toEqual(bytes)
  expect(await blobs.has(digests[0]!)).toBe(true)
  expect(readdirSync(join(folder, '2c'))).toHaveLength(1)
})

test('blobs - what is no digest names no file', async () => {
  const blobs = folderBlobs(folder)
  for (const odd of ['', 'sha256:../../x', `sha256:${'A'.repeat(64)}`, `md5:${'a'.repeat(64)}`]) {
    expect(() => blobs.path(odd)).toThrow(RangeError)
  }
  expect(await blobs.has(`sha256:${'0'.repeat(64)}`)).toBe(false)
})
