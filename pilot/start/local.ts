/**
 * Starting as processes of this machine: for one node without a batch system, and for trying things out. A pilot outlives
 * the tick that started it; it is known again by its start id, which is among its arguments.
 */
import { spawn } from 'node:child_process'
import { closeSync, mkdirSync, openSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { hostname } from 'node:os'
import { join } from 'node:path'
import type { QueuedJob } from './absorb.ts'
import type { SiteFile } from './site-file.ts'
import { runWords } from './slurm.ts'
import { NotStarted, type Starter } from './tick.ts'

export function localStarter(
  site: SiteFile,
  folders: { ends: string; logs: string; stopFile: string },
  env: Record<string, string>,
): Starter {
  return {
    queue: () => livingPilots(),
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
        return `${hostname()}:${pid}`
      } finally {
        closeSync(output)
      }
    },
    // Nothing ever waits.
    async withdraw() {},
    async end(starts) {
      const ids = new Set(starts.map(({ id }) => id))
      for (const { id, jobId } of await livingPilots())
        if (ids.has(id)) process.kill(Number(jobId.split(':')[1]), 'SIGTERM')
    },
  }
}

/** Processes of this machine that carry a start id. */
async function livingPilots(): Promise<QueuedJob[]> {
  const jobs = new Map<string, QueuedJob>()
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const argv = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0')
    const id = argv[argv.indexOf('--start-id') + 1]
    if (!argv.includes('--start-id') || !id || jobs.has(id)) continue
    jobs.set(id, { jobId: `${hostname()}:${pid}`, id, state: 'running', nodes: [hostname()], reason: '' })
  }
  return [...jobs.values()]
}
