/**
 * The image file format of Apptainer and Singularity (SIF), as much as a pilot needs: what can be told of an image
 * without starting anything, and the smallest image there is, for testing whether this node can run one.
 *
 * Layout: a launch script of 32 bytes, a header of 96, descriptors of 585 bytes each, then data (SIF specification, v1).
 */
import { constants } from 'node:fs'
import { lstat, open, readlink } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import type { ErrorCode } from '../shared/errors.ts'

const LAUNCH = '#!/usr/bin/env run-singularity\n'
const MAGIC = 'SIF_MAGIC'
const HEADER_BYTES = 128
const DESCRIPTOR_BYTES = 585
/** Codes of the format; 00 is unknown. */
const SIF_ARCHITECTURES: Readonly<Record<string, string>> = { x64: '02', arm64: '04' }
const ELF_MACHINES: Readonly<Record<string, number>> = { x64: 0x3e, arm64: 0xb7 }
const NAMES: Readonly<Record<string, string>> = {
  '01': '386',
  '02': 'amd64',
  '03': 'arm',
  '04': 'arm64',
  '06': 'ppc64le',
}

export interface ImageRefusal {
  reason: ErrorCode
  detail: string
}

/**
 * What is wrong with an image, a file or an unpacked folder, as far as its first bytes tell; null where nothing is.
 * @param arch as process.arch says it
 */
export async function checkImage(path: string, arch: string = process.arch): Promise<ImageRefusal | null> {
  try {
    const facts = await lstat(await followed(path))
    if (facts.isDirectory()) return await checkFolder(path, arch)
    if (facts.isFile()) return await checkFile(path, arch)
    return { reason: 'image.damaged', detail: `${path}: neither a file nor a folder` }
  } catch (error) {
    return { reason: 'image.missing', detail: `${path}: ${(error as NodeJS.ErrnoException).code ?? String(error)}` }
  }
}

export function isSif(path: string): Promise<boolean> {
  return head(path).then(
    ({ bytes }) => bytes.toString('latin1', 32, 32 + MAGIC.length) === MAGIC,
    () => false,
  )
}

async function head(path: string): Promise<{ bytes: Buffer; size: number }> {
  // Not waiting: somebody may have put a FIFO there.
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  try {
    if (!(await file.stat()).isFile()) throw new Error(`${path} is not a regular file`)
    const bytes = Buffer.alloc(1536)
    const { bytesRead } = await file.read(bytes, 0, bytes.length, 0)
    return { bytes: bytes.subarray(0, bytesRead), size: (await file.stat()).size }
  } finally {
    await file.close()
  }
}

async function checkFile(path: string, arch: string): Promise<ImageRefusal | null> {
  const { bytes, size } = await head(path)
  if (bytes.toString('latin1', 32, 32 + MAGIC.length) !== MAGIC) {
    // The other two kinds that the runtimes know: a bare squashfs and an ext3 file system.
    const isKnown =
      bytes.toString('latin1', 0, 4) === 'hsqs' || (bytes.length > 1082 && bytes.readUInt16LE(1080) === 0xef53)
    return isKnown ? null : { reason: 'image.damaged', detail: `${path}: ${size} bytes that are not an image` }
  }
  if (bytes.length < HEADER_BYTES) return { reason: 'image.damaged', detail: `${path}: ends within its header` }
  const code = bytes.toString('latin1', 45, 47)
  const own = SIF_ARCHITECTURES[arch]
  if (code !== '00' && own !== undefined && code !== own) {
    const detail = `${path}: for ${NAMES[code] ?? `architecture ${code}`}, this node is ${NAMES[own]}`
    return { reason: 'image.architecture', detail }
  }
  const end = Number(bytes.readBigInt64LE(112)) + Number(bytes.readBigInt64LE(120))
  if (end <= size) return null
  return { reason: 'image.damaged', detail: `${path}: cut off after ${size} of ${end} bytes` }
}

async function checkFolder(path: string, arch: string): Promise<ImageRefusal | null> {
  let shell: Buffer
  try {
    const program = await followed('/bin/sh', path)
    shell = (await head(program)).bytes
    if (((await lstat(program)).mode & 0o111) === 0) throw new Error(`${program} cannot be executed`)
  } catch {
    return {
      reason: 'image.damaged',
      detail: `${path}: a folder without a /bin/sh that can be run is not the root of an image`,
    }
  }
  const own = ELF_MACHINES[arch]
  if (shell.toString('latin1', 1, 4) !== 'ELF' || own === undefined || shell.readUInt16LE(18) === own) return null
  return { reason: 'image.architecture', detail: `${path}: its /bin/sh is for another processor` }
}

/** Where a path leads to, with symbolic links as they are meant inside of `root`. @throws as lstat */
async function followed(path: string, root = ''): Promise<string> {
  let at = '/'
  let left = resolve(path).split('/').filter(Boolean)
  for (let links = 0; left.length > 0; ) {
    const next = join(at, left.shift()!)
    const facts = await lstat(root + next)
    if (!facts.isSymbolicLink()) {
      at = next
      continue
    }
    if (++links > 40) throw new Error('too many symbolic links')
    left = [
      ...resolve(dirname(next), await readlink(root + next))
        .split('/')
        .filter(Boolean),
      ...left,
    ]
    at = '/'
  }
  return root + at
}

/** A squashfs of the folders that a container mounts over, empty, and /etc/passwd and /etc/group of root alone. */
const SKELETON =
  'aHNxcxUAAAAAAAAAAAACAAEAAAABABEAwAIBAAQAAACAAgAAAAAAADMCAAAAAAAAKwIAAAAAAAD//////////4IAAAAAAAAABgEAAAAAAADdAQAAAAAA' +
  'AB0CAAAAAAAAeNorys8vsaqwMrDiKoKxDKzATH0ImZSZp1+cwQUAFRgNUIIAeNqF0NkJgDAMBuBa7/v2wQfnEhzCpdzAuZxBg6htY+EPhJZ+JCR1' +
  'xOGIJ96LpHQp+/tNubS4FNvnnjAjYe4/50mheioPgIes98Q8stTr87va/Itlv9jYb/55AjwFngHPgRfAS+AV8Bp4y7xh3mj/PFrqO6N+/XmvzbmTD3Re' +
  'u6kms8UAeNo9zt0NgkAMAOD2QKP4HxdgAp+Mz4wCwqlEoOTugPjGKI7CKI5iqT+XNP2uaZv68Hk+R8ShWFdDTR0DyudG1tmeqWAGBaVJ4fJSP8Hjwg' +
  'TqxNouG7hPQQBGWyraQ0rV5bsW9hyhAlnmynr1LeM/KzjnVcgYmen2xWmkdingjOnxCaUOcc6eQl5lJrm4CAPpKvJzjAumP/J07HEpI7Wh9IkrsSFy' +
  'A66l3z7sCze/a0BthY01kdoJ28TEai9zHZn7G60qLwwOAHjaS2CAACUoDQAHIACDzQEAAAAAAAA2AHjaLcsxAQAgDMCwgRKkIGVSJmVSkIIUDtInVy' +
  'N+i5ebyWLzMIafm8li8/Aypo+LyeIDyAQIU+UBAAAAAAAABIAAAAAAJQIAAAAAAAA='

/** An image file without any program in it, of this machine's architecture; about 5 kB. */
export function makeSkeletonSif(arch: string = process.arch): Buffer {
  const code = SIF_ARCHITECTURES[arch] ?? '00'
  const content = Buffer.from(SKELETON, 'base64')
  const dataAt = 4096
  const sif = Buffer.alloc(dataAt + 4096)
  sif.write(LAUNCH, 0, 'latin1')
  sif.write(`${MAGIC}\0` + `01\0${code}\0`, 32, 'latin1')
  const longs = (at: number, values: readonly number[]) => {
    for (const [i, value] of values.entries()) sif.writeBigInt64LE(BigInt(value), at + 8 * i)
  }
  // From 64: made, changed, descriptors free and in all, where they are and their bytes, where the data is and its bytes.
  longs(64, [0, 0, 0, 1, HEADER_BYTES, DESCRIPTOR_BYTES, dataAt, content.length])
  // A partition (0x4004), used, number 1 of group 1, holding a squashfs (1) that is the root (2).
  sif.writeInt32LE(0x4004, HEADER_BYTES)
  sif.writeUInt8(1, HEADER_BYTES + 4)
  sif.writeUInt32LE(1, HEADER_BYTES + 5)
  sif.writeUInt32LE(0xf0000001, HEADER_BYTES + 9)
  longs(HEADER_BYTES + 17, [dataAt, content.length, content.length])
  const extra = HEADER_BYTES + 73 + 128
  sif.writeInt32LE(1, extra)
  sif.writeInt32LE(2, extra + 4)
  sif.write(`${code}\0`, extra + 8, 'latin1')
  content.copy(sif, dataAt)
  return sif
}
