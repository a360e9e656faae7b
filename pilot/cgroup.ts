/**
 * What control groups allow this process: processors and memory, the tightest on the way from its group to the root, in
 * v1 and v2 hierarchies alike. Slurm, systemd, containers and other batch systems all speak through these files.
 * Held against captured trees (captured/cgroup).
 */
import { readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'

/** v1 says "no limit" with a number near 2^63. */
const UNLIMITED = 2 ** 60

export interface CgroupLimits {
  /** Whole processors by quota and by set, at least 1; null where nothing limits them. */
  cores: number | null
  memoryBytes: number | null
}

/** `0-3,8` as /proc and cpusets say it. */
export function cpusOf(text: string): number[] {
  return [...text.matchAll(/(\d+)(?:-(\d+))?/g)].flatMap(([, first, last]) =>
    Array.from({ length: Number(last ?? first) - Number(first) + 1 }, (_, i) => Number(first) + i),
  )
}

/**
 * @param root where the hierarchies are mounted, `/sys/fs/cgroup`
 * @param membership content of /proc/self/cgroup
 */
export async function cgroupLimits(root: string, membership: string): Promise<CgroupLimits> {
  const found: Found = { cores: [], memory: [] }
  for (const line of membership.split('\n')) {
    const [, controllers, path] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? []
    if (controllers === undefined || path === undefined) continue
    if (controllers === '') {
      // Alone, or beside v1 hierarchies.
      for (const top of [root, join(root, 'unified')]) await readUpwards(top, path, found, readV2)
    } else if (!controllers.startsWith('name=')) {
      const read = readerV1(controllers.split(','))
      await readUpwards(join(root, controllers), path, found, read)
    }
  }
  return {
    cores: found.cores.length > 0 ? Math.max(1, Math.floor(Math.min(...found.cores))) : null,
    memoryBytes: found.memory.length > 0 ? Math.min(...found.memory) : null,
  }
}

interface Found {
  cores: number[]
  memory: number[]
}
type Reader = (folder: string, found: Found) => Promise<void>

async function readUpwards(top: string, path: string, found: Found, read: Reader): Promise<void> {
  // Above the root of our own namespace nothing can be seen: what is mounted here is that root.
  let at = path.split('/').includes('..') ? '/' : path
  for (;;) {
    await read(join(top, at), found)
    if (at === '/') return
    at = dirname(at)
  }
}

const readV2: Reader = async (folder, found) => {
  const [quota, period] = (await text(join(folder, 'cpu.max'))).split(' ').map(Number)
  if (quota! > 0 && period! > 0) found.cores.push(quota! / period!)
  addCpus(found, await text(join(folder, 'cpuset.cpus.effective')))
  // From `high` on a group is slowed down until nothing moves any more: as good as a limit.
  for (const name of ['memory.max', 'memory.high']) addBytes(found, await text(join(folder, name)))
}

function readerV1(controllers: readonly string[]): Reader {
  return async (folder, found) => {
    if (controllers.includes('cpu')) {
      const quota = Number(await text(join(folder, 'cpu.cfs_quota_us')))
      const period = Number(await text(join(folder, 'cpu.cfs_period_us')))
      if (quota > 0 && period > 0) found.cores.push(quota / period)
    }
    if (controllers.includes('cpuset')) {
      addCpus(found, (await text(join(folder, 'cpuset.effective_cpus'))) || (await text(join(folder, 'cpuset.cpus'))))
    }
    if (controllers.includes('memory')) addBytes(found, await text(join(folder, 'memory.limit_in_bytes')))
  }
}

function addCpus(found: Found, list: string): void {
  const cpus = cpusOf(list).length
  if (cpus > 0) found.cores.push(cpus)
}

function addBytes(found: Found, value: string): void {
  if (/^\d+$/.test(value) && Number(value) < UNLIMITED) found.memory.push(Number(value))
}

async function text(path: string): Promise<string> {
  return (await readFile(path, 'utf8').catch(() => '')).trim()
}
