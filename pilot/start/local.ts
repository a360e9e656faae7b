/**
 * Starting as processes of this machine: for one node without a batch system, and for trying things out. A pilot outlives
 * the tick that started it; it is known again by its start id: at first among its arguments, then in the title that it
 * puts in their place.
 */
import { spawn } from 'node:child_process'
import { closeSync, mkdirSync, openSync } from 'node:fs'
import { readdir, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { nodeName } from '../config.ts'
import { parseStat } from '../processes.ts'
import type { QueuedJob } from './absorb.ts'
import type { SiteFile } from './site-file.ts'
import { runWords } from './slurm.ts'
import { NotStarted, type Starter } from './tick.ts'

/**
 * What a pilot is called in lists of processes. Without a space: Slurm's proctrack/linuxproc takes such a name apart
 * wrongly and then never finds, nor ends, the pilot (test/lab, "scancel"). The id comes first: a title has no more room
 * than the arguments had.
 */
export function titleOf(pilot: string, startId: string | null): string {
  return ['indraft-pilot', ...(startId === null ? [] : [startId]), pilot].join(':')
}

const TITLE = /^indraft-pilot:([^:]+):/

export function localStarter(
  site: SiteFile,
  folders: { ends: string; logs: string; stopFile: string },
  env: Record<string, string>,
): Starter {
  const node = nodeName(env)
  return {
    async queue() {
      const pilots = await livingPilots()
      return [...pilots].map(([id, pid]): QueuedJob => {
        return { jobId: `${node}:${pid}`, id, state: 'running', nodes: [node], reason: '' }
      })
    },
    async start(order) {
      mkdirSync(folders.logs, { recursive: true, mode: 0o700 })
      const [program, ...words] = runWords(site, order, folders)
      const limit = ['--runtime-limit', `${Math.floor(order.timeMs / 1000)}s`]
      const output = openSync(join(folders.logs, `indraft:${order.id}.log`), 'a', 0o600)
      try {
        const child = spawn(program!, [...words, ...limit], { detached: true, stdio: ['ignore', output, output], env })
        const pid = await new Promise<number>((resolve, reject) => {
          child.once('spawn', () => resolve(child.pid!))
          child.once('error', (error: NodeJS.ErrnoException) => {
            const why =
              error.code === 'ENOENT'
                ? `there is no program ${program}: command in the site file names it`
                : error.message
            reject(new NotStarted(why))
          })
        })
        child.unref()
        return `${node}:${pid}`
      } finally {
        closeSync(output)
      }
    },
    // Nothing ever waits.
    async withdraw() {},
    async end(starts) {
      const pilots = await livingPilots()
      for (const { id } of starts) {
        const pid = pilots.get(id)
        if (pid !== undefined) endProcess(pid)
      }
    },
  }
}

function endProcess(pid: number): void {
  try {
    process.kill(pid, 'SIGTERM')
  } catch (error) {
    // Gone in this moment.
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

/**
 * Process ids of our own pilots by start id. Of several that bear one id the pilot is the one with the title, where another
 * program started it and carries its arguments; and then the oldest, as what it starts looks like itself until it is
 * another program.
 */
async function livingPilots(): Promise<Map<string, number>> {
  const found = new Map<string, Candidate>()
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const candidate = await candidateOf(`/proc/${pid}`)
    const other = candidate && found.get(candidate.id)
    if (candidate && (!other || isRather(candidate, other))) found.set(candidate.id, candidate)
  }
  return new Map([...found.values()].map(({ id, pid }) => [id, pid]))
}

interface Candidate {
  id: string
  pid: number
  isTitled: boolean
  startTicks: number
}

function isRather(one: Candidate, other: Candidate): boolean {
  return one.isTitled === other.isTitled ? one.startTicks < other.startTicks : one.isTitled
}

/** A process of this account that bears a start id: others may call theirs as they like. */
async function candidateOf(folder: string): Promise<Candidate | null> {
  try {
    if ((await stat(folder)).uid !== process.getuid?.()) return null
    const words = (await readFile(join(folder, 'cmdline'), 'utf8')).split('\0')
    const [, title] = TITLE.exec(words[0]!) ?? []
    const at = words.indexOf('--start-id')
    const id = title ?? (at < 0 ? undefined : words[at + 1])
    const facts = id ? parseStat(await readFile(join(folder, 'stat'), 'latin1'), 1) : null
    return facts && { id: id!, pid: facts.pid, isTitled: title !== undefined, startTicks: facts.startTicks }
  } catch {
    // It has ended.
    return null
  }
}
