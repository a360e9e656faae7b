import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { digestOf } from '../shared/signing.ts'
import { ImageDigests } from './image-digest.ts'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-digest-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

test('image digest - said by the name', () => {
  const digest = `sha256:${'ab'.repeat(32)}`
  expect(ImageDigests.ofName(`https://x/y.sif#${digest}`)).toBe(digest)
  expect(ImageDigests.ofName(`docker://r/y@${digest}`)).toBe(digest)
  for (const path of ['/images/y.sif', `/images/y.sif#${digest}`, `file:///images/y.sif@${digest}`]) {
    expect(ImageDigests.ofName(path), path).toBeNull()
  }
})

test('image digest - of a file, anew when it changes, computed once for all pilots that share the folder', async () => {
  const image = join(folder, 'a.sif')
  const kept = join(folder, 'images')
  writeFileSync(image, 'one')
  expect(await new ImageDigests(kept).of(image)).toBe(digestOf(Buffer.from('one')))
  const [name] = readdirSync(kept)
  // What was kept is believed: the file is not read again.
  writeFileSync(join(kept, name!), `sha256:${'0'.repeat(64)}`)
  const other = new ImageDigests(kept)
  expect(await other.of(image)).toBe(`sha256:${'0'.repeat(64)}`)
  writeFileSync(image, 'other content')
  expect(await other.of(image)).toBe(digestOf(Buffer.from('other content')))
  mkdirSync(join(folder, 'unpacked'))
  expect(await other.of(join(folder, 'unpacked'))).toBeNull()
  expect(await other.of(join(folder, 'none'))).toBeNull()
})
