/**
 * Whether the kernel's OOM killer ended a payload, and for whose limit: that of a control group around this pilot (the
 * job's memory, which its payloads overran) or the whole node's memory (somebody else's doing). The kernel tells nobody
 * directly; it counts, in memory.events (v2), memory.oom_control and memory.failcnt (v1), and /proc/vmstat.
 *
 * Reading is left for the moment a payload was killed: an attempt remembers what was known when it began.
 */
import { readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'

export interface OomCounts {
  /** Processes of this pilot's control groups that were killed; null where no control group says. */
  kills: number | null
  /** How often a control group on the way to the root met its limit. */
  limitHits: number
  /** Processes that were killed on the whole node. */
  nodeKills: number
}

export type OomBlame = 'cgroup' | 'node' | null

/** Whose limit explains a process that was killed between the two. */
export function blameOf(before: OomCounts, after: OomCounts): OomBlame {
  const isOurs = after.kills === null ? after.nodeKills > before.nodeKills : after.kills > (before.kills ?? 0)
  if (!isOurs) return null
  return after.limitHits > before.limitHits ? 'cgroup' : 'node'
}

export class OomKills {
  readonly #root: string
  readonly #proc: string
  #known: OomCounts = { kills: null, limitHits: 0, nodeKills: 0 }

  /**
   * @param root where control groups are mounted
   * @param proc the process file system
   */
  constructor(root = '/sys/fs/cgroup', proc = '/proc') {
    this.#root = root
    this.#proc = proc
  }

  /** What was known last. */
  get known(): OomCounts {
    return this.#known
  }

  async read(): Promise<OomCounts> {
    const membership = await text(join(this.#proc, 'self/cgroup'))
    const counts: OomCounts = {
      kills: null,
      limitHits: 0,
      nodeKills: numberAfter(await text(join(this.#proc, 'vmstat')), 'oom_kill') ?? 0,
    }
    for (const line of membership.split('\n')) {
      const [, controllers, path] = /^\d+:([^:]*):(.+)$/.exec(line) ?? []
      if (path === undefined) continue
      const isUnified = controllers === ''
      if (!isUnified && !controllers!.split(',').includes('memory')) continue
      const tops = isUnified ? [this.#root, join(this.#root, 'unified')] : [join(this.#root, controllers!)]
      for (const top of tops) await this.#addLevels(counts, top, path, isUnified)
    }
    this.#known = counts
    return counts
  }

  async #addLevels(counts: OomCounts, top: string, path: string, isUnified: boolean): Promise<void> {
    for (let at = path, isOwn = true; ; at = dirname(at), isOwn = false) {
      const folder = join(top, at)
      const events = await text(join(folder, isUnified ? 'memory.events' : 'memory.oom_control'))
      const kills = numberAfter(events, 'oom_kill')
      // Level by level upwards: what is counted at a limit is counted again above it, which only makes it larger.
      counts.limitHits += isUnified
        ? (numberAfter(events, 'oom') ?? 0)
        : Number((await text(join(folder, 'memory.failcnt'))).trim() || 0)
      if (isOwn && kills !== null) counts.kills = (counts.kills ?? 0) + kills
      if (at === '/' || at === '.') return
    }
  }
}

async function text(path: string): Promise<string> {
  return await readFile(path, 'utf8').catch(() => '')
}

function numberAfter(content: string, name: string): number | null {
  const found = new RegExp(`^${name} (\\d+)$`, 'm').exec(content)
  return found ? Number(found[1]) : null
}
