/**
 * What this node has, and whether it is any good. Cores by affinity, cgroup, batch system and Machine/Job Features, and
 * memory likewise: the smallest of what each says. Until when is time-left.ts.
 *
 * Without a disk the scratch folder lies in memory (tmpfs): what is offered as scratch is then taken from the memory, so
 * that payloads, their files and undelivered results together stay within what the job was given.
 */
import { access, mkdir, open, readFile, rm, statfs, writeFile } from 'node:fs/promises'
import { totalmem } from 'node:os'
import { join } from 'node:path'
import { execa } from 'execa'
import type { NodeFacts } from '../shared/protocol/messages.ts'
import { cgroupLimits, cpusOf } from './cgroup.ts'
import type { BatchEnvironment, PilotConfig } from './config.ts'
import { TASKSET } from './container.ts'
import { findGpuFiles } from './gpu-devices.ts'
import { findGpus, type Gpus } from './gpus.ts'
import { jobFeatures } from './machine-features.ts'
import { architecture, ownProcessorLevel } from './processor.ts'
import { findSoftware } from './software.ts'

const MIB = 2 ** 20
/** Left to the pilot itself, its outbox included, where the memory is not set. */
const PILOT_BYTES = 256 * MIB
/** Groups that are told to dispatchers: they stand in every offer. */
const MOST_GROUPS = 16
/** Of the memory, for files where scratch lies in memory and nothing else is set. */
const SCRATCH_SHARE = 0.25

/** File systems by their number (statfs(2)) that live in memory: tmpfs, ramfs. */
const IN_MEMORY = new Set([0x01021994, 0x858458f6])

function least(...values: (number | null)[]): number {
  return Math.min(...values.filter((value): value is number => value !== null))
}

export interface NodeSight {
  config: PilotConfig
  batch: BatchEnvironment
  runtimes: NodeFacts['runtimes']
  timeLeftMs: number | null
  /** For tests: instead of what the tools say. */
  gpus?: Gpus | undefined
}

export interface Node {
  facts: NodeFacts
  gpus: Gpus | null
  /** To bind payloads to; null where they are not to be bound, or cannot be. */
  cpus: string[] | null
  /** What an administrator should know, in sentences; empty where all is as it should be. */
  troubles: string[]
}

/** Waits for GPU tools and CVMFS only where there are any, and for each no longer than its bound. */
export async function lookAround({ config, batch, runtimes, timeLeftMs, gpus: given }: NodeSight): Promise<Node> {
  const [limits, allowed, features, disk, level, search, software] = await Promise.all([
    readFile('/proc/self/cgroup', 'utf8')
      .catch(() => '')
      .then((membership) => cgroupLimits('/sys/fs/cgroup', membership)),
    readFile('/proc/self/status', 'utf8').then(
      (status) => /^Cpus_allowed_list:\s*(.+)$/m.exec(status)?.[1] ?? '',
      () => '',
    ),
    jobFeatures(batch.jobFeatures),
    statfs(config.scratch),
    ownProcessorLevel(),
    given || config.gpus === 0 ? { gpus: given ?? null, trouble: null } : findGpus(batch.gpus, batch.path),
    findSoftware(config.cvmfs, config.cvmfsRepositories),
  ])
  const allowedCpus = cpusOf(allowed)
  const cores = config.cores ?? least(allowedCpus.length || 1, limits.cores, batch.slurmCpus, features.cores)
  // Slurm says one of the three.
  const slurmMemory =
    batch.slurmMemoryPerNode ||
    (batch.slurmMemoryPerCpu ?? 0) * (batch.slurmCpus ?? 0) ||
    (batch.slurmMemoryPerGpu ?? 0) * (batch.slurmGpuCount ?? 0) ||
    null
  const allocatedBytes = least(
    totalmem(),
    limits.memoryBytes,
    slurmMemory === null ? null : slurmMemory * MIB,
    features.memoryBytes,
  )
  const room = shareMemory({
    budgetBytes: Math.max(64 * MIB, allocatedBytes - PILOT_BYTES),
    freeBytes: least(disk.bavail * disk.bsize, features.scratchBytes),
    isInMemory: IN_MEMORY.has(disk.type),
    memory: config.memory,
    scratchSpace: config.scratchSpace,
  })
  const own = limitGpus(search.gpus, config.gpus)
  const gpus = own && { ...own, files: own.files ?? (await findGpuFiles(own)) }
  const facts: NodeFacts = {
    node: config.node,
    cores,
    ...room,
    gpus: gpus?.devices.length ?? 0,
    // Of the smallest: which of them a task gets is not said beforehand.
    gpuMemoryBytes: gpus ? Math.min(...gpus.devices.map((device) => device.memoryBytes)) : 0,
    arch: architecture(),
    runtimes: [...runtimes],
    network: config.network as NodeFacts['network'],
    timeLeftMs,
    labels: {
      ...(level === null ? {} : { processor: level }),
      ...(gpus ? { gpu: gpus.devices[0]!.model.slice(0, 200) } : {}),
      ...(gpus?.driver ? { gpu_driver: gpus.driver.slice(0, 200) } : {}),
      ...(IN_MEMORY.has(disk.type) ? { scratch: 'memory' } : {}),
      ...Object.fromEntries(
        config.labels.map((label) => [label.split('=', 1)[0]!, label.slice(label.indexOf('=') + 1)]),
      ),
    },
    ...(software.length > 0 ? { software } : {}),
    // A longer list is not told: what comes all the same is refused.
    ...(config.allowGroups.length > 0 && config.allowGroups.length <= MOST_GROUPS
      ? { groups: [...config.allowGroups] }
      : {}),
  }
  const troubles = search.trouble === null ? [] : [`GPUs: ${search.trouble}`]
  const canBind = allowedCpus.length >= cores && (await hasTaskset())
  if (config.bindCores && !canBind)
    troubles.push('payloads cannot be bound: no taskset, or fewer processors than cores')
  return { facts, gpus, cpus: config.bindCores && canBind ? allowedCpus.map(String) : null, troubles }
}

async function hasTaskset(): Promise<boolean> {
  return await access(TASKSET).then(
    () => true,
    () => false,
  )
}

function limitGpus(gpus: Gpus | null, most: number | null): Gpus | null {
  const devices = gpus?.devices.slice(0, most ?? undefined) ?? []
  return gpus && devices.length > 0 ? { ...gpus, devices } : null
}

/** How memory and scratch are offered; see the head of this file. What is set is taken as it is. */
export function shareMemory(given: {
  budgetBytes: number
  freeBytes: number
  isInMemory: boolean
  memory: number | null
  scratchSpace: number | null
}): Pick<NodeFacts, 'memoryBytes' | 'scratchBytes'> {
  const { budgetBytes, freeBytes, isInMemory, memory, scratchSpace } = given
  if (!isInMemory) {
    return { memoryBytes: memory ?? budgetBytes, scratchBytes: least(scratchSpace, freeBytes) }
  }
  const share = memory === null ? Math.floor(budgetBytes * SCRATCH_SHARE) : Math.max(0, budgetBytes - memory)
  const scratchBytes = least(scratchSpace ?? share, freeBytes)
  return { memoryBytes: memory ?? Math.max(64 * MIB, budgetBytes - scratchBytes), scratchBytes }
}

export interface Check {
  what: string
  ok: boolean
  detail: string
}

const TEST_LIMIT_MS = 30_000

/** The scratch folder can be written, read back, executed from and hold FIFOs, each within half a minute. */
export async function testScratch(folder: string): Promise<Check[]> {
  const place = join(folder, `.test-${process.pid}`)
  const checks: Check[] = []
  const attempt = async (what: string, act: () => Promise<string>) => {
    const limit = new Promise<never>((_, reject) => {
      setTimeout(() => reject(new Error(`took longer than ${TEST_LIMIT_MS / 1000} s`)), TEST_LIMIT_MS).unref()
    })
    try {
      checks.push({ what, ok: true, detail: await Promise.race([act(), limit]) })
    } catch (error) {
      checks.push({ what, ok: false, detail: (error as Error).message.slice(0, 300) })
    }
  }
  await attempt('scratch can be written', async () => {
    await mkdir(place, { recursive: true, mode: 0o700 })
    const startMs = performance.now()
    const path = join(place, 'data')
    const file = await open(path, 'w')
    try {
      await file.writeFile(Buffer.alloc(MIB, 0x5a))
      await file.sync()
    } finally {
      await file.close()
    }
    const read = await readFile(path)
    if (read.length !== MIB || read[MIB - 1] !== 0x5a) throw new Error('what was written is not what was read')
    return `${folder}: 1 MiB in ${Math.round(performance.now() - startMs)} ms`
  })
  await attempt('programs start from scratch', async () => {
    const program = join(place, 'program')
    await writeFile(program, '#!/bin/sh\nexit 7\n', { mode: 0o700 })
    const { exitCode, shortMessage } = await execa(program, { reject: false, timeout: TEST_LIMIT_MS })
    if (exitCode !== 7) throw new Error(shortMessage ?? `exit status ${exitCode}`)
    return 'ok'
  })
  await attempt('scratch holds FIFOs', async () => {
    await execa('mkfifo', [join(place, 'fifo')], { timeout: TEST_LIMIT_MS })
    return 'ok'
  })
  await rm(place, { recursive: true, force: true }).catch(() => {})
  return checks
}
