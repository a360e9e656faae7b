/**
 * Small file systems in memory, mounted where only this run sees them, that can be filled up and made read-only. Only in
 * a mount namespace of our own (namespace.ts).
 */
import { execFileSync } from 'node:child_process'
import { mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Ended } from './faults.ts'
import type { Kept } from './kept.ts'

const FILLER = 'full-on-purpose'
const FILL_EVERY_MS = 100

export interface Disks {
  /** Call before anything lies there. */
  mount(path: string, sizeBytes: number): void
  /** @param user who is ended where a file system that is written to has to become read-only */
  make(how: 'full' | 'read-only', path: string, forMs: number, user: Kept): Promise<Ended>
  /** Takes them off when nobody uses them any more. @param keep whether what lies there stays in the folders beneath */
  close(keep: boolean): void
}

export function openDisks(): Disks {
  const mounted: string[] = []
  return {
    close(keep) {
      for (const path of mounted.splice(0)) {
        const copy = `${path}.kept`
        if (keep) execFileSync('cp', ['-a', path, copy])
        execFileSync('umount', ['--lazy', path])
        if (!keep) continue
        rmSync(path, { recursive: true })
        renameSync(copy, path)
      }
    },
    mount(path, sizeBytes) {
      mkdirSync(path, { recursive: true, mode: 0o700 })
      execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${sizeBytes},mode=0700`, 'indraft-fault', path])
      mounted.push(path)
    },
    async make(how, path, forMs, user) {
      if (how === 'read-only') return readOnly(path, forMs, user)
      const endsAt = performance.now() + forMs
      let file = 0
      try {
        // What is freed meanwhile is filled too.
        while (performance.now() < endsAt) {
          fill(join(path, `${FILLER}-${file++}`))
          await sleep(FILL_EVERY_MS)
        }
      } finally {
        for (let i = 0; i < file; i++) rmSync(join(path, `${FILLER}-${i}`), { force: true })
      }
      return {}
    },
  }
}

/** Big pieces first, then single blocks. */
function fill(path: string): void {
  for (const size of [1 << 20, 1 << 16, 4096]) {
    const piece = Buffer.alloc(size)
    try {
      for (;;) writeFileSync(path, piece, { flag: 'a' })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
    }
  }
}

/** The kernel refuses it while a file is open for writing, so whoever writes there is ended first and meets it anew. */
async function readOnly(path: string, forMs: number, user: Kept): Promise<Ended> {
  const remount = (how: string) => execFileSync('mount', ['-o', `remount,${how}`, path], { stdio: 'pipe' })
  let isDone = false
  await user.whileDown(async () => {
    for (let tries = 0; tries < 40 && !isDone; tries++) {
      try {
        remount('ro')
        isDone = true
      } catch {
        await sleep(50)
      }
    }
  })
  if (!isDone) return { nothing: 'somebody else kept writing there' }
  try {
    await sleep(forMs)
  } finally {
    remount('rw')
  }
  return {}
}
