/**
 * `indraft-pilot doctor` on a node: everything that a pilot would need here, tried for real and without becoming one. The
 * same code as a pilot's own node test where there is one.
 */
import { readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { systemClock } from '../../shared/clock.ts'
import { diskOf } from '../../shared/disk.ts'
import type { Log } from '../../shared/log.ts'
import type { NodeFacts } from '../../shared/protocol/messages.ts'
import { formatBytes, formatDuration } from '../../shared/quantity.ts'
import { type RefusedBind, refusedBind } from '../binds.ts'
import { cgroupLimits } from '../cgroup.ts'
import { type BatchEnvironment, credentialPaths, type PilotConfig, readBatchEnvironment, siteFiles } from '../config.ts'
import { takeScratch } from '../home.ts'
import { SOFTWARE } from '../main.ts'
import { lookAround, testScratch } from '../node.ts'
import { unwritable } from '../policy.ts'
import { containerBinaries, findRuntimes } from '../runtimes.ts'
import { TimeLeft } from '../time-left.ts'
import { bad, type Check, good, warn, wordsOf } from './check.ts'
import { checkPilotCredential } from './connection.ts'
import { checkFolder, isThere } from './files.ts'

const LEAST_SCRATCH_BYTES = 1e9

export interface Examined {
  facts: NodeFacts
  checks: Check[]
}

export async function examineNode(config: PilotConfig, log: Log, batch = readBatchEnvironment()): Promise<Examined> {
  const checks: Check[] = [good('program', `${SOFTWARE} on Node ${process.version}`)]
  const scratch = await checkScratch(config, checks)
  const refused = await checkBinds(config, scratch ?? tmpdir(), checks)
  const runtimes = await checkRuntimes(config, batch, scratch ?? tmpdir(), refused, checks, log)
  const timeLeft = new TimeLeft(systemClock, batch, config)
  await timeLeft.refresh()
  checks.push(checkEnd(batch, timeLeft.leftMs), await checkLimits())
  const sight = { config: { ...config, scratch: scratch ?? tmpdir() }, batch, runtimes, timeLeftMs: timeLeft.leftMs }
  const { facts, troubles } = await lookAround(sight)
  for (const trouble of troubles) {
    checks.push(bad('what the batch system gave', trouble, 'drain the node, or start pilots with --gpus 0 there'))
  }
  const missing = config.cvmfsRepositories.filter((name) => !facts.software?.includes(`cvmfs:${name}`))
  if (missing.length > 0) {
    const advice = `ls ${config.cvmfs}/${missing[0]}: tasks that ask for it do not come here`
    checks.push(warn('CVMFS', `${missing.join(', ')}: cannot be read`, advice))
  }
  checks.push(...(await checkOwnWord(config)))
  const { node: _node, timeLeftMs: _left, labels: _labels, ...shape } = facts
  for (const path of credentialPaths(config.credential)) checks.push(...(await checkPilotCredential(path, shape)))
  return { facts, checks }
}

/** @returns the folder that a pilot would use; null where it could not use any */
async function checkScratch(config: PilotConfig, checks: Check[]): Promise<string | null> {
  let scratch: string
  try {
    scratch = await takeScratch(resolve(config.scratch))
  } catch (error) {
    checks.push(
      bad('scratch is ours alone', wordsOf(error), 'another --scratch: a folder that only this account may write'),
    )
    return null
  }
  const { kind, type, freeBytes } = diskOf(scratch)
  const found = `${scratch}: ${type ?? 'disk'}, ${formatBytes(freeBytes)} free`
  if (kind === 'memory') {
    const advice =
      'without a disk it counts as memory, and what a dead node had is gone; a local disk where there is one'
    checks.push(warn('scratch is ours alone', found, advice))
  } else if (kind === 'network') {
    const advice = 'a local disk, or /dev/shm: all files of all tasks would cross the network'
    checks.push(warn('scratch is ours alone', found, advice))
  } else if (freeBytes < LEAST_SCRATCH_BYTES) {
    checks.push(warn('scratch is ours alone', found, 'make room, or name another --scratch'))
  } else checks.push(good('scratch is ours alone', found))
  for (const { what, ok, detail } of await testScratch(scratch)) {
    checks.push(ok ? good(what, detail) : bad(what, detail, SCRATCH_ADVICE[what] ?? 'another --scratch'))
  }
  return scratch
}

const SCRATCH_ADVICE: Readonly<Record<string, string>> = {
  'programs start from scratch': 'it is mounted noexec: another --scratch',
  'scratch holds FIFOs': 'that file system has none: another --scratch',
}

async function checkRuntimes(
  config: PilotConfig,
  batch: BatchEnvironment,
  scratch: string,
  refused: RefusedBind | null,
  checks: Check[],
  log: Log,
): Promise<NodeFacts['runtimes']> {
  const folder = join(scratch, `.doctor-${process.pid}`)
  const binaries = await containerBinaries(config, batch)
  const candidates = refused === null ? binaries : []
  const found = await findRuntimes({ config, batch, log, candidates, folder, own: [], kept: [], gpus: null })
  found.offline?.close()
  await rm(folder, { recursive: true, force: true })
  const container = found.runtimes.find(({ kind }) => kind === 'container')
  const name = 'containers start'
  if (container) {
    checks.push(good(name, container.name))
    const what = 'payloads without network'
    const isOwn = container.sealing({ network: 'none' }).network === 'own'
    checks.push(
      isOwn
        ? good(what, 'have a loopback of their own')
        : warn(what, 'no network namespace can be made', SHARED_ADVICE),
    )
  } else if (config.containerRuntime === 'none') checks.push(good(name, 'switched off (--container-runtime none)'))
  else {
    const [none, because] = whyNone(binaries, refused)
    checks.push(
      config.hostRuntime
        ? warn(name, `${none}: only tasks with "image: host" come`, because)
        : bad(name, none, because),
    )
  }
  if (config.hostRuntime && config.ownNetwork !== 'never') {
    const what = '"image: host" without network'
    const { whyShared } = found
    checks.push(whyShared === null ? good(what, 'has a loopback of its own') : warn(what, whyShared, SHARED_ADVICE))
  }
  if (found.runtimes.length === 0 && (container || config.hostRuntime)) {
    checks.push(bad('a runtime works', found.checks[0]?.detail ?? '', 'ownNetwork: possible, or other nodes'))
  }
  return found.runtimes.map(({ kind }) => kind)
}

function whyNone(binaries: readonly string[], refused: RefusedBind | null): [found: string, advice: string] {
  if (binaries.length === 0) {
    return ['neither apptainer nor singularity is on PATH', 'install Apptainer, or name it: --container-runtime']
  }
  if (refused !== null) return [`${refused.bind} may not be bound`, 'see binds']
  const namespaces = 'are user namespaces allowed (sysctl user.max_user_namespaces)?'
  return [`${binaries[0]} starts none`, `${namespaces} A pilot’s log says more: container.probeFailed`]
}

const SHARED_ADVICE =
  'are user and network namespaces allowed (sysctl user.max_user_namespaces, user.max_net_namespaces), and is there util-linux 2.36 with `ip`? Payloads that ask for no network have the node’s all the same, or with ownNetwork: always do not run here'

function checkEnd(batch: BatchEnvironment, leftMs: number | null): Check {
  const name = 'end of the allocation'
  const job = batch.slurmJobId === null ? 'no batch job' : `Slurm job ${batch.slurmJobId}`
  if (leftMs !== null) return good(name, `${job}, ${formatDuration(Math.max(0, leftMs))} for tasks`)
  if (batch.slurmJobId === null) return good(name, `${job}: nobody says when a pilot has to end`)
  const advice = 'neither Slurm’s variables nor squeue say it: give pilots a --runtime-limit'
  return warn(name, `${job}, its end is not known`, advice)
}

async function checkLimits(): Promise<Check> {
  const membership = await readFile('/proc/self/cgroup', 'utf8').catch(() => '')
  const { cores, memoryBytes } = await cgroupLimits('/sys/fs/cgroup', membership)
  const version = /^\d+:[a-z]/m.test(membership) ? 'v1' : membership === '' ? 'none' : 'v2'
  const limits = [cores === null ? [] : `${cores} cores`, memoryBytes === null ? [] : formatBytes(memoryBytes)].flat()
  return good('cgroup', `${version}: ${limits.length > 0 ? limits.join(', ') : 'sets no limit here'}`)
}

/** @returns the bind for which a pilot would start no container */
async function checkBinds(config: PilotConfig, scratch: string, checks: Check[]): Promise<RefusedBind | null> {
  const name = 'binds'
  for (const bind of config.binds) {
    const source = bind.split(':')[0]!
    if (!(await isThere(source))) checks.push(bad(name, `${source} is not there`, 'mount it, or take it out of binds'))
  }
  // Any pilot's folder will do: which of them is seen makes no difference.
  const own = [...credentialPaths(config.credential), join(scratch, 'pilot')]
  const { allowImages } = config
  const kept = await unwritable({ allowImages, kept: siteFiles(config, scratch).kept })
  const refused = await refusedBind(config.binds, { own, kept })
  if (refused === null) return null
  const { bind, holds, why } = refused
  checks.push(bad(name, `${bind}: in the way of ${holds}`, `${why}; another bind, or none`))
  return refused
}

/** What the site says by files: STOP, bans, and the folders that outlive the node. */
async function checkOwnWord(config: PilotConfig): Promise<Check[]> {
  const checks: Check[] = []
  const { stopFile } = siteFiles(config, resolve(config.scratch))
  if (await isThere(stopFile)) checks.push(warn('STOP', `${stopFile} is there: pilots leave at once`, `rm ${stopFile}`))
  if (config.banFile !== null) {
    const folder = dirname(resolve(config.banFile))
    if (await isThere(folder))
      checks.push(good('ban file', `${config.banFile}${(await isThere(config.banFile)) ? '' : ': nobody yet'}`))
    else checks.push(warn('ban file', `${folder} is not there`, 'make it, or nobody can be banned by this file'))
  }
  if (config.endFolder !== null) checks.push(...(await checkFolder('end folder', config.endFolder, true)))
  if (config.traceLog !== null) checks.push(...(await checkFolder('trace folder', config.traceLog, true)))
  if (config.imageFolder !== null) checks.push(...(await checkFolder('image folder', config.imageFolder, true)))
  return checks
}
