/**
 * Memory that no process shows: a container has a /dev/shm of its own, in memory, as large as half the node's, and what
 * lies in it is in nobody's resident size unless it is mapped. Read through /proc, from outside.
 *
 * A payload that makes further file systems in memory by a user namespace of its own is beyond this; that takes the
 * batch system's own limit.
 */
import { readFileSync } from 'node:fs'
import { stat, statfs } from 'node:fs/promises'

const PLACE = '/dev/shm'

/** Bytes in the /dev/shm that these processes have for themselves; 0 where they share the node's. Never throws. */
export async function ownSharedMemory(pids: readonly number[]): Promise<number> {
  const node = await deviceOf(PLACE)
  for (const pid of pids) {
    const place = `/proc/${pid}/root${PLACE}`
    const device = await deviceOf(place)
    // The container runtime's own processes stand outside.
    if (device === null || device === node) continue
    const { blocks, bfree, bsize } = await statfs(place).catch(() => ({ blocks: 0, bfree: 0, bsize: 0 }))
    return (blocks - bfree) * bsize
  }
  return 0
}

/** What of it this process has mapped, which is in its memory already; its share of it, bytes. */
export function mappedSharedMemory(pid: number): number {
  try {
    const match = /^Pss_Shmem:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'latin1'))
    return match ? Number(match[1]) * 1024 : 0
  } catch {
    return 0
  }
}

async function deviceOf(path: string): Promise<number | null> {
  return await stat(path).then(
    ({ dev }) => dev,
    () => null,
  )
}
