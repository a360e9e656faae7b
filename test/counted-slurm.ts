/**
 * For tests: a folder of the vacuum's with real files, and sbatch, squeue, scancel and sinfo as programs on PATH that do
 * nothing but keep a queue in a file and count. Time is the test's.
 */
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { inheritedEnvironment } from '../pilot/config.ts'
import { realPorts } from '../pilot/start/files.ts'
import { parseSiteFile, type SiteFile } from '../pilot/start/site-file.ts'
import type { Ports } from '../pilot/start/tick.ts'

export interface CountedSlurm {
  site: SiteFile
  ports(): Ports
  nowMs: number
  /** Names of programs, in the order of their calls, with the time of each. */
  calls(): { program: string; atMs: number }[]
  /** Ids of the jobs that wait or run. */
  jobs(): string[]
  /** What sbatch says from now on, in place of taking a job. */
  refuse(said: string): void
  /** Node lists, a line each, that sinfo gives. */
  nodes(lists: string): void
  /** They are over, and gone from the queue. */
  end(): void
  close(): void
}

const PROGRAMS: Readonly<Record<string, string>> = {
  sbatch: `for word; do case $word in --job-name=*) name=\${word#--job-name=};; esac; done
cat >/dev/null
[ ! -s "$here/refusal" ] || { cat "$here/refusal" >&2; exit 1; }
id=$(($(cat "$here"/calls | wc -l)))
echo "$id|$name|RUNNING|1|n1|None" >>"$here/queue"
echo "$id"`,
  squeue: 'cat "$here/queue"',
  scancel: ': >"$here/queue"',
  sinfo: 'cat "$here/nodes"',
}

/** @param more settings of the site file, with a comma after each */
export function countedSlurm(credential: string, more = ''): CountedSlurm {
  const folder = mkdtempSync(join(tmpdir(), 'indraft-counted-'))
  const bin = join(folder, 'bin')
  mkdirSync(bin)
  for (const [name, script] of Object.entries(PROGRAMS)) {
    writeFileSync(
      join(bin, name),
      `#!/bin/sh\nhere=${folder}\necho "${name} $(cat "$here/now")" >>"$here/calls"\n${script}\n`,
    )
    chmodSync(join(bin, name), 0o755)
  }
  for (const name of ['calls', 'queue', 'now', 'refusal', 'nodes']) writeFileSync(join(folder, name), '')
  const site = parseSiteFile(
    `{indraft: 1, folder: ${join(folder, 'vacuum')}, credential: ${credential}, starter: slurm, ${more}
      kinds: {cpu: {time: 12h, shape: {cores: 8}}}}`,
    'site.yaml',
  )
  const before = process.env.PATH
  process.env.PATH = `${bin}${delimiter}${before}`
  const lines = (name: string) => readFileSync(join(folder, name), 'utf8').split('\n').filter(Boolean)
  const slurm: CountedSlurm = {
    site,
    nowMs: 1_800_000_000_000,
    ports() {
      writeFileSync(join(folder, 'now'), String(slurm.nowMs))
      return { ...realPorts(site, inheritedEnvironment()), nowMs: () => slurm.nowMs, random: () => 0.5 }
    },
    calls: () =>
      lines('calls').map((line) => {
        const [program = '', atMs] = line.split(' ')
        return { program, atMs: Number(atMs) }
      }),
    jobs: () => lines('queue').map((line) => line.split('|')[1]!.replace('indraft:', '')),
    nodes: (lists) => writeFileSync(join(folder, 'nodes'), lists),
    refuse: (said) => writeFileSync(join(folder, 'refusal'), said),
    end: () => writeFileSync(join(folder, 'queue'), ''),
    close() {
      process.env.PATH = before
      if (existsSync(folder)) rmSync(folder, { recursive: true, force: true })
    },
  }
  return slurm
}
