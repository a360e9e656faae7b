import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { execa } from 'execa'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { checkImage, isSif, makeSkeletonSif } from './sif.ts'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-sif-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const put = (content: Uint8Array | string) => {
  const path = join(folder, 'image')
  writeFileSync(path, content)
  return path
}

test('image - the skeleton is a SIF of its architecture', async () => {
  const path = put(makeSkeletonSif('arm64'))
  expect(await isSif(path)).toBe(true)
  expect(await checkImage(path, 'arm64')).toBeNull()
  expect(await checkImage(path, 'x64')).toMatchObject({
    reason: 'image.architecture',
    detail: expect.stringMatching(/arm64.*amd64/),
  })
})

test.each([
  ['an empty file', ''],
  ['a text', 'not an image'],
  ['a SIF cut within its data', makeSkeletonSif('x64').subarray(0, 4200)],
  ['a SIF cut within its header', makeSkeletonSif('x64').subarray(0, 100)],
])('image - %s is damaged', async (_, content) => {
  expect(await checkImage(put(content), 'x64')).toMatchObject({ reason: 'image.damaged' })
})

test('image - a bare squashfs and an ext3 image are left to the runtime', async () => {
  expect(await checkImage(put('hsqs and more'), 'x64')).toBeNull()
  const ext3 = Buffer.alloc(4096)
  ext3.writeUInt16LE(0xef53, 1080)
  expect(await checkImage(put(ext3), 'x64')).toBeNull()
})

test('image - what is not there or leads nowhere is missing', async () => {
  expect(await checkImage(join(folder, 'none'))).toMatchObject({
    reason: 'image.missing',
    detail: expect.stringContaining('ENOENT'),
  })
  symlinkSync('loop', join(folder, 'loop'))
  expect(await checkImage(join(folder, 'loop'))).toMatchObject({ reason: 'image.missing' })
})

test('image - a FIFO, in the place of a file or of /bin/sh, is damaged and waited for by nobody', async () => {
  await execa('mkfifo', [join(folder, 'fifo')])
  expect(await checkImage(join(folder, 'fifo'))).toMatchObject({ reason: 'image.damaged' })
  mkdirSync(join(folder, 'root/bin'), { recursive: true })
  await execa('mkfifo', ['-m', '755', join(folder, 'root/bin/sh')])
  expect(await checkImage(join(folder, 'root'))).toMatchObject({ reason: 'image.damaged' })
  expect(await isSif(join(folder, 'fifo'))).toBe(false)
})

test('image - a folder whose /bin/sh cannot be executed is damaged', async () => {
  mkdirSync(join(folder, 'bin'))
  writeFileSync(join(folder, 'bin/sh'), 'ELF', { mode: 0o644 })
  expect(await checkImage(folder)).toMatchObject({ reason: 'image.damaged' })
})

test('image - a folder needs /bin/sh, found as links are meant inside of it', async () => {
  expect(await checkImage(folder)).toMatchObject({ reason: 'image.damaged' })
  mkdirSync(join(folder, 'usr/bin'), { recursive: true })
  symlinkSync('/usr/bin', join(folder, 'bin'))
  symlinkSync('dash', join(folder, 'usr/bin/sh'))
  const elf = Buffer.alloc(64)
  elf.write('\x7fELF', 0, 'latin1')
  elf.writeUInt16LE(0x3e, 18)
  writeFileSync(join(folder, 'usr/bin/dash'), elf)
  chmodSync(join(folder, 'usr/bin/dash'), 0o755)
  expect(await checkImage(folder, 'x64')).toBeNull()
  expect(await checkImage(folder, 'arm64')).toMatchObject({ reason: 'image.architecture' })
  expect(await checkImage('/')).toBeNull()
})
