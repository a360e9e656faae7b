/**
 * What a folder lies on: the kind of its file system, how much is free, and how often a second it makes a small append
 * durable. For whoever advises people on where to put things; nothing here decides anything at run time.
 */
import { closeSync, existsSync, fdatasyncSync, mkdirSync, openSync, rmSync, statfsSync, writeSync } from 'node:fs'
import { dirname, join } from 'node:path'

/** By their number in statfs(2). On these, locks and fsync are not what they are on a disk of the machine. */
const NETWORK: Readonly<Record<number, string>> = {
  26985: 'NFS',
  4283649346: 'CIFS',
  4266872130: 'SMB2',
  198183888: 'Lustre',
  1196443219: 'GPFS',
  428016422: 'BeeGFS',
  12805120: 'Ceph',
  1397113167: 'AFS',
  1702057286: 'FUSE',
  1937076805: 'Coda',
}
const IN_MEMORY: Readonly<Record<number, string>> = { 16914836: 'tmpfs', 2240043254: 'ramfs' }
const PROBE_MS = 300

export interface FolderDisk {
  kind: 'disk' | 'memory' | 'network'
  /** Of the file system where it has a name here: NFS, tmpfs. */
  type: string | null
  freeBytes: number
}

/** @throws Error where the folder cannot be looked at */
export function diskOf(folder: string): FolderDisk {
  const { type, bavail, bsize } = statfsSync(folder)
  const number = type >>> 0
  const network = NETWORK[number]
  const memory = IN_MEMORY[number]
  const kind = network ? 'network' : memory ? 'memory' : 'disk'
  return { kind, type: network ?? memory ?? null, freeBytes: bavail * bsize }
}

/** Appends of 300 bytes, each made durable: what a grant or a result costs at least. @throws Error where it cannot be written */
export function fsyncsPerSecond(folder: string): number {
  const probe = join(folder, `.indraft-doctor-${process.pid}`)
  try {
    mkdirSync(probe)
    const file = openSync(join(probe, 'log'), 'w', 0o600)
    const block = Buffer.alloc(300, 'x')
    const startMs = performance.now()
    let count = 0
    while (performance.now() - startMs < PROBE_MS) {
      writeSync(file, block)
      fdatasyncSync(file)
      count++
    }
    closeSync(file)
    return Math.round((count * 1000) / (performance.now() - startMs))
  } finally {
    rmSync(probe, { recursive: true, force: true })
  }
}

export function nearestExisting(path: string): string {
  return existsSync(path) || path === dirname(path) ? path : nearestExisting(dirname(path))
}
