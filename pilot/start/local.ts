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

/** Process ids of our own pilots by start id; of a pilot behind a wrapper that carries the same arguments, the pilot's. */
async function livingPilots(): Promise<Map<string, number>> {
  const starting = new Map<string, number>()
  const titled = new Map<string, number>()
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const words = (await ownWords(`/proc/${pid}`)) ?? []
    const [, id] = TITLE.exec(words[0] ?? '') ?? []
    if (id !== undefined) titled.set(id, Number(pid))
    const at = words.indexOf('--start-id')
    if (at >= 0 && words[at + 1]) starting.set(words[at + 1]!, Number(pid))
  }
  return new Map([...starting, ...titled])
}

/** Of a process of this account: others may call theirs as they like. */
async function ownWords(folder: string): Promise<string[] | null> {
  try {
    if ((await stat(folder)).uid !== process.getuid?.()) return null
    return (await readFile(join(folder, 'cmdline'), 'utf8')).split('\0')
  } catch {
    // It has ended.
    return null
  }
}
