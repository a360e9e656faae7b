/**
 * Starting by Slurm: sbatch with the script on standard input, squeue once for all jobs, scancel for waiting ones. The
 * id of each submission is the job's name, `indraft:<id>`: what a dead tick submitted is found by it.
 */
import { join } from 'node:path'
import { execa } from 'execa'
import type { QueuedJob, QueueState } from './absorb.ts'
import type { Start } from './decide.ts'
import { expandNodeList } from './node-list.ts'
import { takeExcluded } from './sbatch-words.ts'
import { pilotWords, type SiteFile } from './site-file.ts'
import { NotStarted, NotStartedForNodes, type Starter } from './tick.ts'

const TIMEOUT_MS = 60_000
const NAME = 'indraft:'
/** Slurm answers such before it has taken the job; whatever else goes wrong leaves open whether it was taken. */
const REFUSED = /unrecognized option|error: (Batch job submission failed|Unable to allocate|.*[Ii]nvalid)/
/** A node that it is to go to, or not to, has another name by now, or is gone from the configuration. */
const OF_NODES = /invalid node name/i
/** All that Slurm says of the way to its controller and back, on which an answer may be lost. */
const UNKNOWN = new RegExp(
  [
    ...['timed out', 'Unable to contact', 'connection', 'Zero Bytes', 'rate limit', 'not responding', 'standby mode'],
    ...['Message (send|receive) failure', 'shutdown failure', 'Unexpected message', 'longer than data received'],
    ...['Insane message', 'Broken pipe', 'Resource temporarily unavailable', 'Protocol authentication'],
  ].join('|'),
  'i',
)

/**
 * @param given environment of this tick. Where that is a job itself (scrontab, a login node's salloc), sbatch and srun
 * take its variables for orders: as many tasks as it had, its memory.
 */
export function slurmStarter(
  site: SiteFile,
  folders: { ends: string; logs: string; stopFile: string },
  given: Record<string, string>,
): Starter {
  const env = withoutJob(given)
  /** @throws Error in the program's own words, or where it is not there or silent */
  const slurm = async (program: string, words: string[]): Promise<string> => {
    const result = await execa(program, words, { timeout: TIMEOUT_MS, reject: false, env, extendEnv: false })
    if (!result.failed) return result.stdout
    if (result.code === 'ENOENT') throw new Error(notFound(program))
    if (result.timedOut) throw new Error(`${program} did not answer within ${TIMEOUT_MS / 1000} s`)
    throw new Error(`${program}: ${result.stderr.trim().slice(0, 300) || result.shortMessage}`)
  }
  return {
    async queue() {
      return readQueue(await slurm('squeue', ['--me', '-h', '-o', '%i|%j|%T|%D|%N|%r']))
    },
    async nodeNames() {
      return expandNodeList((await slurm('sinfo', ['--all', '-h', '-o', '%N'])).trim().split(/\s+/).join(','))
    },
    async start(order) {
      const args = sbatchWords(site, order, folders.logs)
      const result = await execa('sbatch', args, {
        input: batchScript(site, order, folders),
        timeout: TIMEOUT_MS,
        reject: false,
        env,
        extendEnv: false,
      })
      const said = `${result.stderr}`.trim().slice(0, 300)
      if (result.code === 'ENOENT') throw new NotStarted(notFound('sbatch'))
      if (result.exitCode !== 0 || result.failed) {
        const isCertain = REFUSED.test(said) && !UNKNOWN.test(said)
        if (isCertain) throw OF_NODES.test(said) ? new NotStartedForNodes(said) : new NotStarted(said)
        throw new Error(said || result.shortMessage)
      }
      return result.stdout.trim().split(';')[0]!
    },
    async withdraw(starts) {
      const ids = starts.flatMap(({ jobId }) => jobId ?? [])
      await slurm('scancel', ['--state=PENDING', ...ids])
    },
    async end(starts) {
      const ids = starts.flatMap(({ jobId }) => jobId ?? [])
      await slurm('scancel', ids)
    },
  }
}

/** Of Slurm's variables those that say how it is reached, and as whom. */
const REACHES_SLURM = /^SLURM_(CONF|CONF_SERVER|CLUSTERS|JWT|SACK_.*)$/

export function withoutJob(env: Record<string, string>): Record<string, string> {
  const isOfJob = (name: string) => /^SLURMD?_/.test(name) && !REACHES_SLURM.test(name)
  return Object.fromEntries(Object.entries(env).filter(([name]) => !isOfJob(name)))
}

function notFound(program: string): string {
  return `there is no ${program} on the PATH of this tick (cron's is short: set it in the crontab)`
}

/** The lines of `squeue -o '%i|%j|%T|%D|%N|%r'`. */
export function readQueue(text: string): QueuedJob[] {
  return text.split('\n').flatMap((line): QueuedJob[] => {
    const [jobId = '', name = '', state = '', count = '', nodes = '', reason = ''] = line.split('|')
    if (!name.startsWith(NAME)) return []
    const known = stateOf(state)
    return [
      {
        jobId,
        id: name.slice(NAME.length),
        state: known,
        nodeCount: nodeCount(count),
        nodes: known === 'queued' ? [] : expandNodeList(nodes),
        reason,
      },
    ]
  })
}

function stateOf(word: string): QueueState {
  if (word === 'COMPLETING') return 'completing'
  return /^(PENDING|REQUEUED|REQUEUE_HOLD|SPECIAL_EXIT)$/.test(word) ? 'queued' : 'running'
}

/** Thousands come as 2K. */
function nodeCount(text: string): number {
  const [, digits, unit] = /^(\d+)(K?)/.exec(text) ?? []
  return Math.max(1, Number(digits ?? 1) * (unit === 'K' ? 1024 : 1))
}

/** Minutes, rounded down, at least one, as sbatch takes them. */
const minutes = (ms: number) => String(Math.max(1, Math.floor(ms / 60_000)))

export function sbatchWords(site: SiteFile, order: Start, logFolder: string): string[] {
  const kind = site.kinds[order.kind]!
  const { others, excluded } = takeExcluded(kind.sbatch)
  // Slurm takes the last one of two.
  const exclude = [...new Set([...excluded, ...order.exclude])]
  return [
    ...['--parsable', `--job-name=${NAME}${order.id}`, `--nodes=${order.nodes}`, `--time=${minutes(order.timeMs)}`],
    ...['--no-requeue', '--signal=USR1@300', '--open-mode=append', `--output=${join(logFolder, '%x.log')}`],
    ...(kind.account === null ? [] : [`--account=${kind.account}`]),
    ...others,
    // However long it waits: too late it is taken out of the queue.
    ...(order.endsByMs === undefined ? [] : [`--deadline=uts${Math.floor(order.endsByMs / 1000)}`]),
    ...(order.leastTimeMs === undefined ? [] : [`--time-min=${minutes(order.leastTimeMs)}`]),
    ...(exclude.length > 0 ? [`--exclude=${exclude.join(',')}`] : []),
    ...(order.canaryOf === null ? [] : [`--nodelist=${order.canaryOf}`]),
  ]
}

/** Words of `indraft-pilot run` for one start; the same for either starter. */
export function runWords(site: SiteFile, order: Start, folders: { ends: string; stopFile: string }): string[] {
  return [
    ...site.command,
    'run',
    ...['--credential', site.credential, '--end-folder', folders.ends, '--start-id', order.id],
    ...['--stop-file', folders.stopFile],
    ...pilotWords(site, order.kind),
    ...(order.canaryOf === null ? [] : ['--task-limit', String(site.nodes.canaryTasks)]),
  ]
}

const quoted = (word: string) => (/^[\w./:=@,+-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`)

/**
 * One pilot on each node of the job; a step of its own, because Slurm's signals reach steps and not the script. The step
 * takes of each node what the smallest has, as srun refuses what one of them cannot give.
 */
export function batchScript(site: SiteFile, order: Start, folders: { ends: string; stopFile: string }): string {
  const words = [...runWords(site, order, folders), '--time-asked', `${minutes(order.timeMs)}min`].map(quoted).join(' ')
  return `#!/bin/bash
# Written by \`indraft-pilot start\`. A job that is submitted with --export=NONE hands that on to srun.
export SLURM_EXPORT_ENV=ALL
# An older Slurm does not say when the job ends: asked once for all of its nodes.
export SLURM_JOB_END_TIME="\${SLURM_JOB_END_TIME:-$(SLURM_TIME_FORMAT=%s timeout 30 squeue -h -j "$SLURM_JOB_ID" -o %e)}"
# As in 64(x3),32
cores=$(tr , '\\n' <<<"\${SLURM_JOB_CPUS_PER_NODE:-$SLURM_CPUS_ON_NODE}" | cut -d'(' -f1 | sort -n | head -n1)
exec srun --ntasks-per-node=1 --cpus-per-task="$cores" --mem=0 --kill-on-bad-exit=0 ${words}
`
}
