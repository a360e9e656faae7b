/**
 * Checksums as they are written everywhere: `<algorithm>:<hexadecimal digits>`. sha256 is what Indraft itself computes;
 * the others are what scientific data already comes with.
 */
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { crc32 } from 'node:zlib'
import { IndraftError } from '../errors.ts'

export interface RunningChecksum {
  update(chunk: Uint8Array): void
  /** `<algorithm>:<hex>`; call once. */
  finish(): string
}

const ADLER_MODULUS = 65_521
/** The most additions before the sums of an Adler-32 (RFC 1950) could leave 32 bits. */
const ADLER_STRIDE = 3800

function adler32(): RunningChecksum {
  let a = 1
  let b = 0
  return {
    update(chunk) {
      for (let start = 0; start < chunk.length; start += ADLER_STRIDE) {
        const end = Math.min(start + ADLER_STRIDE, chunk.length)
        for (let i = start; i < end; i++) {
          a += chunk[i]!
          b += a
        }
        a %= ADLER_MODULUS
        b %= ADLER_MODULUS
      }
    },
    finish: () => `adler32:${(((b << 16) | a) >>> 0).toString(16).padStart(8, '0')}`,
  }
}

function crc(): RunningChecksum {
  let value = 0
  return {
    update(chunk) {
      value = crc32(chunk, value)
    },
    finish: () => `crc32:${(value >>> 0).toString(16).padStart(8, '0')}`,
  }
}

function hash(algorithm: string): RunningChecksum {
  const running = createHash(algorithm)
  return {
    update: (chunk) => void running.update(chunk),
    finish: () => `${algorithm}:${running.digest('hex')}`,
  }
}

export const CHECKSUM_ALGORITHMS = ['sha256', 'sha512', 'sha1', 'md5', 'adler32', 'crc32'] as const

/** @param like a checksum whose algorithm is wanted, or its name @throws IndraftError request.invalid */
export function startChecksum(like: string): RunningChecksum {
  const algorithm = like.split(':', 1)[0]!.toLowerCase()
  if (!(CHECKSUM_ALGORITHMS as readonly string[]).includes(algorithm)) {
    throw new IndraftError(
      'request.invalid',
      `checksum "${like.slice(0, 40)}": expected ${CHECKSUM_ALGORITHMS.join(', ')}`,
    )
  }
  if (algorithm === 'adler32') return adler32()
  return algorithm === 'crc32' ? crc() : hash(algorithm)
}

export function sameChecksum(one: string, other: string): boolean {
  return one.toLowerCase() === other.toLowerCase()
}

/** Reads the whole file. @param like as in startChecksum */
export async function checksumFile(path: string, like = 'sha256', signal?: AbortSignal): Promise<string> {
  const running = startChecksum(like)
  for await (const chunk of createReadStream(path, { signal })) running.update(chunk as Uint8Array)
  return running.finish()
}
