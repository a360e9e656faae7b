/**
 * What the kernel says about processes, and which of them belong to which attempt. An attempt's processes are those of
 * its session or process group, what descends from them, and whatever carries the attempt's marker in its environment,
 * so that a daemon that left its session and its parent is still found. Once known a process stays known: the
 * membership is kept by pid and start time.
 *
 * One that left its session, parent and environment between two scans is still told by a limit that the wrapper set and
 * that it cannot raise again (see MARK_BLOCKS), or by the task's folder it works in, unless it has a terminal (somebody who
 * looks). Containers close this with --pid. IMPORTANT: where a site limits the size of files to less, the mark cannot be
 * set, and one that also left the folder is not found.
 */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { MARK_BLOCKS } from './wrapper.ts'

/** Kernel ticks a second; fixed at 100 for user space on Linux. */
const TICKS_PER_SECOND = 100

export interface ProcessFacts {
  pid: number
  parent: number
  group: number
  session: number
  /** With the pid the identity of a process: pids come round again. */
  startTicks: number
  /** Its own and that of children it waited for. */
  cpuMs: number
  rssBytes: number
  isZombie: boolean
}

/** Where facts come from; tests hand in a scripted one. */
export interface ProcessSource {
  list(): ProcessFacts[]
  /** Environment as NAME=value; null where it cannot be read, empty while a program is being loaded. */
  environment(pid: number): string[] | null
  /** Where a process without a terminal works; null where that cannot be told. */
  folder?(pid: number): string | null
  /** Its hard limit for the size of files in bytes; null where there is none. */
  fileLimit?(pid: number): number | null
  /** Memory with shared pages counted once among their users; null where the kernel does not say. */
  pssBytes(pid: number): number | null
  kill(pid: number, signal: NodeJS.Signals): void
}

export function parseStat(text: string, pageBytes: number): ProcessFacts | null {
  // The name stands in parentheses and may hold anything, also parentheses.
  const nameEnd = text.lastIndexOf(')')
  if (nameEnd < 0) return null
  const fields = text.slice(nameEnd + 2).split(' ')
  const field = (number: number) => Number(fields[number - 3])
  return {
    pid: Number.parseInt(text, 10),
    isZombie: fields[0] === 'Z' || fields[0] === 'X',
    parent: field(4),
    group: field(5),
    session: field(6),
    cpuMs: ((field(14) + field(15) + field(16) + field(17)) * 1000) / TICKS_PER_SECOND,
    startTicks: field(22),
    rssBytes: field(24) * pageBytes,
  }
}

function readText(path: string): string | null {
  try {
    return readFileSync(path, 'latin1')
  } catch {
    return null
  }
}

/** The kernel's page size, from two views of our own memory; it is a power of two, so a small difference is harmless. */
function pageSize(): number {
  const pages = parseStat(readText('/proc/self/stat') ?? '', 1)?.rssBytes ?? 0
  return pages > 0 ? 2 ** Math.round(Math.log2(process.memoryUsage.rss() / pages)) : 4096
}

export function linuxProcesses(): ProcessSource {
  const pageBytes = pageSize()
  return {
    list() {
      const found: ProcessFacts[] = []
      for (const name of readdirSync('/proc')) {
        if (name.charCodeAt(0) > 57) continue
        const text = readText(`/proc/${name}/stat`)
        const facts = text === null ? null : parseStat(text, pageBytes)
        if (facts) found.push(facts)
      }
      return found
    },
    environment: (pid) => readText(`/proc/${pid}/environ`)?.split('\0').filter(Boolean) ?? null,
    folder(pid) {
      const stat = readText(`/proc/${pid}/stat`) ?? ''
      // The fifth after the name is the terminal.
      if (stat.slice(stat.lastIndexOf(')') + 2).split(' ')[4] !== '0') return null
      try {
        return readlinkSync(`/proc/${pid}/cwd`)
      } catch {
        return null
      }
    },
    fileLimit(pid) {
      const limit = /^Max file size +\d+ +(\d+)/m.exec(readText(`/proc/${pid}/limits`) ?? '')?.[1]
      return limit === undefined ? null : Number(limit)
    },
    pssBytes(pid) {
      const match = /^Pss:\s+(\d+) kB/m.exec(readText(`/proc/${pid}/smaps_rollup`) ?? '')
      return match ? Number(match[1]) * 1024 : null
    },
    kill(pid, signal) {
      try {
        process.kill(pid, signal)
      } catch {
        // Gone already, or not ours.
      }
    },
  }
}

/** Identity of a running process for a record on disk; null when there is none of that pid. */
export function startTicksOf(pid: number): number | null {
  const facts = parseStat(readText(`/proc/${pid}/stat`) ?? '', 1)
  return facts && !facts.isZombie ? facts.startTicks : null
}

export const ATTEMPT_VARIABLE = 'INDRAFT_ATTEMPT'
/** New at every start of a pilot: what carries another one's is not ours to end. */
export const RUN_VARIABLE = 'INDRAFT_PILOT_RUN'

export class Membership {
  readonly #source: ProcessSource
  readonly #run: string
  #folders: ReadonlyMap<string, string> = new Map()
  /** Attempt by the pid of its first process, also of those that ended since. */
  #leaders: ReadonlyMap<number, string> = new Map()
  /** Attempt by `pid:start`; null for processes that are nobody's. */
  #known = new Map<string, string | null>()

  constructor(source: ProcessSource, run: string) {
    this.#source = source
    this.#run = run
  }

  /**
   * The processes of each attempt, zombies left out.
   * @param living attempt by the pid of its first process
   * @param ended the same, of first processes that have ended: what they left in their session (a FUSE server of a
   * container that was killed, say) is still theirs
   * @param folders attempt by a folder that is its alone
   */
  assign(
    living: ReadonlyMap<number, string>,
    ended: ReadonlyMap<number, string> = new Map(),
    folders: ReadonlyMap<string, string> = new Map(),
  ): Map<string, ProcessFacts[]> {
    this.#folders = folders
    const all = this.#source.list()
    const byPid = new Map(all.map((facts) => [facts.pid, facts]))
    const leaders = new Map(living)
    this.#leaders = new Map([...ended, ...living])
    for (const [pid, attempt] of ended) {
      // A pid is not given out again while its session lives; one that is there now is somebody else's.
      const now = byPid.get(pid)
      if ((!now || now.isZombie) && !leaders.has(pid)) leaders.set(pid, attempt)
    }
    const before = this.#known
    this.#known = new Map()
    const members = new Map<string, ProcessFacts[]>()
    for (const facts of all) {
      const attempt = this.#attemptOf(facts, byPid, before, leaders)
      if (attempt === null || attempt === undefined || facts.isZombie) continue
      const list = members.get(attempt)
      if (list) list.push(facts)
      else members.set(attempt, [facts])
    }
    return members
  }

  #attemptOf(
    facts: ProcessFacts,
    byPid: ReadonlyMap<number, ProcessFacts>,
    before: ReadonlyMap<string, string | null>,
    leaders: ReadonlyMap<number, string>,
  ): string | null | undefined {
    const key = `${facts.pid}:${facts.startTicks}`
    const now = this.#known.get(key)
    if (now !== undefined) return now
    const byGroup = leaders.get(facts.session) ?? leaders.get(facts.group)
    let attempt: string | null | undefined = byGroup ?? before.get(key)
    if (attempt === undefined) {
      const parent = byPid.get(facts.parent)
      const inherited = parent && parent.pid > 1 ? this.#attemptOf(parent, byPid, before, leaders) : null
      attempt = inherited ?? this.#marker(facts)
    }
    if (attempt !== undefined) this.#known.set(key, attempt)
    return attempt
  }

  /** Shells count the limit in blocks of either size. */
  #byLimit(pid: number): string | null {
    const bytes = this.#source.fileLimit?.(pid) ?? null
    if (bytes === null) return null
    for (const block of [512, 1024]) {
      const attempt = this.#leaders.get(bytes / block - MARK_BLOCKS)
      if (attempt !== undefined) return attempt
    }
    return null
  }

  #byTrace({ pid, isZombie }: ProcessFacts): string | null {
    const marked = isZombie ? null : this.#byLimit(pid)
    if (marked !== null) return marked
    const at = this.#folders.size === 0 || isZombie ? null : (this.#source.folder?.(pid) ?? null)
    if (at === null) return null
    // A folder that was removed meanwhile is shown as "PATH (deleted)".
    for (const [folder, attempt] of this.#folders) {
      if (at === folder || at.startsWith(`${folder}/`) || at === `${folder} (deleted)`) return attempt
    }
    return null
  }

  /** Undefined where it cannot be told yet. */
  #marker(facts: ProcessFacts): string | null | undefined {
    const environment = this.#source.environment(facts.pid)
    if (environment?.length === 0 && facts.rssBytes > 0 && !facts.isZombie) return this.#byTrace(facts) ?? undefined
    if (!environment?.includes(`${RUN_VARIABLE}=${this.#run}`)) return this.#byTrace(facts)
    const prefix = `${ATTEMPT_VARIABLE}=`
    return environment.find((line) => line.startsWith(prefix))?.slice(prefix.length) ?? null
  }
}
