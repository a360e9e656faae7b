/**
 * What this node has, until when, and whether it is any good. Cores by affinity and cgroup, memory by cgroup and batch
 * system, the smallest of what each says. The end of the allocation comes as wall-clock time from others' clocks and is
 * turned into monotonic time at once.
 */
import { mkdir, open, readFile, rm, statfs, writeFile } from 'node:fs/promises'
import { totalmem } from 'node:os'
import { dirname, join } from 'node:path'
import { execa } from 'execa'
import type { Clock } from '../shared/clock.ts'
import type { NodeFacts } from '../shared/protocol/messages.ts'
import type { BatchEnvironment, PilotConfig } from './config.ts'

const MIB = 2 ** 20
/** Left to the pilot itself where the memory is not set. */
const PILOT_BYTES = 256 * MIB
const ARCHITECTURES: Readonly<Record<string, string>> = { x64: 'x86_64', arm64: 'aarch64' }
/** cgroup v1 says "no limit" with a number near 2^63. */
const UNLIMITED = 2 ** 60

/** `0-3,8` as /proc says it. */
export function countCpuList(text: string): number {
  let count = 0
  for (const [, first, last] of text.matchAll(/(\d+)(?:-(\d+))?/g)) count += Number(last ?? first) - Number(first) + 1
  return count
}

export interface CgroupLimits {
  cores: number | null
  memoryBytes: number | null
}

/**
 * The tightest limits on the way from a process's cgroup to the root, v2 and v1 hierarchies alike.
 * @param root where the hierarchies are mounted, `/sys/fs/cgroup`
 * @param membership content of /proc/self/cgroup
 */
export async function cgroupLimits(root: string, membership: string): Promise<CgroupLimits> {
  const cores: number[] = []
  const memory: number[] = []
  const number = async (path: string) => {
    const text = (await readFile(path, 'utf8').catch(() => '')).trim()
    return /^-?\d+$/.test(text) ? Number(text) : null
  }
  for (const line of membership.split('\n')) {
    const [, controllers, path] = /^\d+:([^:]*):(.+)$/.exec(line) ?? []
    if (path === undefined) continue
    const tops = controllers === '' ? [root, join(root, 'unified')] : [join(root, controllers!.replace(/^name=/, ''))]
    for (const top of tops) {
      for (const folder of upwards(top, path)) {
        if (controllers === '') {
          const [quota, period] = (await readFile(join(folder, 'cpu.max'), 'utf8').catch(() => ''))
            .split(' ')
            .map(Number)
          if (quota! > 0 && period! > 0) cores.push(quota! / period!)
          const bytes = await number(join(folder, 'memory.max'))
          if (bytes !== null) memory.push(bytes)
        } else if (controllers!.split(',').includes('cpu')) {
          const quota = await number(join(folder, 'cpu.cfs_quota_us'))
          const period = await number(join(folder, 'cpu.cfs_period_us'))
          if (quota !== null && quota > 0 && period) cores.push(quota / period)
        } else if (controllers === 'memory') {
          const bytes = await number(join(folder, 'memory.limit_in_bytes'))
          if (bytes !== null && bytes < UNLIMITED) memory.push(bytes)
        }
      }
    }
  }
  return {
    cores: cores.length > 0 ? Math.max(1, Math.floor(Math.min(...cores))) : null,
    memoryBytes: memory.length > 0 ? Math.min(...memory) : null,
  }
}

function* upwards(top: string, path: string): Generator<string> {
  for (let at = path; ; at = dirname(at)) {
    yield join(top, at)
    if (at === '/' || at === '.') return
  }
}

function least(...values: (number | null)[]): number {
  return Math.min(...values.filter((value): value is number => value !== null))
}

export interface NodeSight {
  config: PilotConfig
  batch: BatchEnvironment
  runtimes: NodeFacts['runtimes']
  timeLeftMs: number | null
}

export async function nodeFacts({ config, batch, runtimes, timeLeftMs }: NodeSight): Promise<NodeFacts> {
  const limits = await cgroupLimits('/sys/fs/cgroup', await readFile('/proc/self/cgroup', 'utf8').catch(() => ''))
  const allowed = /^Cpus_allowed_list:\s*(.+)$/m.exec(await readFile('/proc/self/status', 'utf8'))?.[1] ?? ''
  const cores = config.cores ?? least(countCpuList(allowed) || 1, limits.cores, batch.slurmCpus)
  const slurmMemory = batch.slurmMemoryPerNode || (batch.slurmMemoryPerCpu ?? 0) * (batch.slurmCpus ?? 0) || null
  const allocated = least(totalmem(), limits.memoryBytes, slurmMemory === null ? null : slurmMemory * MIB)
  const disk = await statfs(config.scratch)
  return {
    node: config.node,
    cores,
    memoryBytes: config.memory ?? Math.max(64 * MIB, allocated - PILOT_BYTES),
    scratchBytes: Math.min(config.scratchSpace ?? Number.POSITIVE_INFINITY, disk.bavail * disk.bsize),
    gpus: 0,
    gpuMemoryBytes: 0,
    arch: ARCHITECTURES[process.arch] ?? process.arch,
    runtimes: [...runtimes],
    network: config.network as NodeFacts['network'],
    timeLeftMs,
    labels: Object.fromEntries(
      config.labels.map((label) => [label.split('=', 1)[0]!, label.slice(label.indexOf('=') + 1)]),
    ),
  }
}

/** The end of this allocation in Unix seconds, as far as anybody says one. */
export async function allocationEndS(batch: BatchEnvironment): Promise<number | null> {
  const feature = async (folder: string | null, key: string) => {
    const text = folder === null ? '' : await readFile(join(folder, key), 'utf8').catch(() => '')
    return /^\d+(\.\d+)?\s*$/.test(text) ? Number(text) : null
  }
  const start = await feature(batch.jobFeatures, 'jobstart_secs')
  const wall = await feature(batch.jobFeatures, 'wall_limit_secs')
  const ends = [
    batch.slurmEndTimeS,
    start !== null && wall !== null ? start + wall : null,
    await feature(batch.jobFeatures, 'shutdowntime_job'),
    await feature(batch.machineFeatures, 'shutdowntime'),
  ].filter((end): end is number => end !== null)
  return ends.length > 0 ? Math.min(...ends) : null
}

/** Until when this pilot may work, in monotonic time; what Machine/Job Features say may change while it runs. */
export class TimeLeft {
  readonly #clock: Clock
  readonly #batch: BatchEnvironment
  readonly #marginMs: number
  readonly #limitMs: number | null
  #endMs: number | null

  constructor(clock: Clock, batch: BatchEnvironment, config: Pick<PilotConfig, 'runtimeLimit' | 'endMargin'>) {
    this.#clock = clock
    this.#batch = batch
    this.#marginMs = config.endMargin
    this.#limitMs = config.runtimeLimit === null ? null : clock.monotonicMs() + config.runtimeLimit
    this.#endMs = this.#limitMs
  }

  async refresh(): Promise<void> {
    const endS = await allocationEndS(this.#batch)
    const toldMs =
      endS === null ? null : this.#clock.monotonicMs() + endS * 1000 - this.#clock.wallMs() - this.#marginMs
    this.#endMs = toldMs === null ? this.#limitMs : least(toldMs, this.#limitMs)
  }

  /** Milliseconds that payloads still have, never below 0; null where no end is known. */
  get leftMs(): number | null {
    return this.#endMs === null ? null : Math.max(0, this.#endMs - this.#clock.monotonicMs())
  }
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
