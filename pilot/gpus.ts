/**
 * The GPUs that this pilot may use, with the names under which a payload can be shown some and not others. NVIDIA's by
 * nvidia-smi (MIG instances count as devices of their own), AMD's by rocm-smi; what the batch system narrowed through its
 * variables stays narrowed. The tools are asked only where their devices exist, and never for longer than ASK_MS.
 *
 * Held against captured outputs (captured/gpu).
 */
import { access } from 'node:fs/promises'
import { execa } from 'execa'
import type { GpuFiles } from './gpu-devices.ts'

export interface Gpu {
  /** As CUDA_VISIBLE_DEVICES or ROCR_VISIBLE_DEVICES take it. */
  id: string
  model: string
  memoryBytes: number
  /** Of a MIG instance: the GPU that it is a part of. */
  part?: string
}

export interface Gpus {
  vendor: 'nvidia' | 'amd'
  driver: string | null
  devices: readonly Gpu[]
  /** Where it was looked for which device files are whose. */
  files?: GpuFiles
}

/** What batch systems say about GPUs; null where a variable is not set, which is not the same as empty. */
export interface GpuEnvironment {
  cudaVisible: string | null
  rocrVisible: string | null
  /** Indices on the node, not within a device cgroup. */
  slurmGpus: string | null
}

const MIB = 2 ** 20
const ASK_MS = 20_000
/** A MIG profile's gigabytes are nominal; some instances have a little less. */
const MIG_NOMINAL = 0.93e9
/** What has less beside a GPU that has more is the processor's own graphics, or the console's. */
const LEAST_BYTES = 2 ** 30
const NOTHING_VISIBLE = new Set(['', '-1', 'NoDevFiles', 'none', 'void'])

const NVIDIA_QUERY = ['--query-gpu=index,uuid,memory.total,driver_version,name', '--format=csv,noheader,nounits']
const ROCM_QUERY = ['--showuniqueid', '--showproductname', '--showmeminfo', 'vram', '--showdriverversion', '--json']

interface Listed extends Gpu {
  /** As the tool numbers them. */
  index: number
  /** Of a MIG instance: the GPU that it is a part of. */
  parent: string | null
}
export interface Listing {
  vendor: Gpus['vendor']
  driver: string | null
  devices: Listed[]
}

/**
 * @param csv of nvidia-smi with NVIDIA_QUERY
 * @param list of nvidia-smi -L, which alone names MIG instances
 */
export function parseNvidia(csv: string, list: string): Listing {
  const whole: Listed[] = []
  let driver: string | null = null
  for (const line of csv.split('\n')) {
    const [index, id, memory, version, ...name] = line.split(',').map((field) => field.trim())
    if (!/^\d+$/.test(index ?? '') || !/^GPU-/.test(id ?? '')) continue
    driver ??= version ?? null
    const memoryBytes = /^\d+$/.test(memory ?? '') ? Number(memory) * MIB : 0
    whole.push({ index: Number(index), id: id!, model: name.join(', '), memoryBytes, parent: null })
  }
  const parts: Listed[] = []
  let parent: Listed | undefined
  for (const line of list.split('\n')) {
    const gpu = /^GPU \d+: .*\(UUID: (GPU-[^)]+)\)/.exec(line)
    if (gpu) parent = whole.find(({ id }) => id === gpu[1])
    const part = /^\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)/.exec(line)
    if (!part || !parent) continue
    parts.push({
      index: parent.index,
      id: part[2]!,
      model: `${parent.model} MIG ${part[1]}`,
      memoryBytes: partBytes(part[1]!),
      parent: parent.id,
    })
  }
  const divided = new Set(parts.map((part) => part.parent))
  return { vendor: 'nvidia', driver, devices: [...whole.filter(({ id }) => !divided.has(id)), ...parts] }
}

/** @param profile as 3g.40gb, or 1c.3g.40gb: one slice of three, that share the memory among themselves */
function partBytes(profile: string): number {
  const [, own, of, gigabytes] = /^(?:(\d+)c\.)?(\d+)g\.(\d+)gb/.exec(profile)?.map(Number) ?? []
  if (!of || !gigabytes) return 0
  return Math.floor((gigabytes * MIG_NOMINAL * (own || of)) / of)
}

/** @param json of rocm-smi with ROCM_QUERY; names of fields differ between versions */
export function parseRocm(json: string): Listing {
  const cards = JSON.parse(json) as Record<string, Record<string, string>>
  const devices: Listed[] = []
  for (const [card, facts] of Object.entries(cards)) {
    const index = /^card(\d+)$/.exec(card)?.[1]
    if (index === undefined) continue
    const field = (pattern: RegExp) => Object.entries(facts).find(([name]) => pattern.test(name))?.[1]
    const unique = field(/^unique id$/i)
    devices.push({
      index: Number(index),
      id: /^0x[0-9a-f]+$/i.test(unique ?? '') ? `GPU-${unique!.slice(2)}` : index,
      model: field(/^card series$/i) ?? field(/^card model$/i) ?? 'AMD GPU',
      memoryBytes: Number(/^\d+$/.exec(field(/^vram total memory \(b\)$/i) ?? '')?.[0] ?? 0),
      parent: null,
    })
  }
  devices.sort((a, b) => a.index - b.index)
  const most = Math.max(...devices.map(({ memoryBytes }) => memoryBytes))
  const meant = devices.filter(({ memoryBytes }) => most < LEAST_BYTES || memoryBytes >= LEAST_BYTES)
  return { vendor: 'amd', driver: cards.system?.['Driver version'] ?? null, devices: meant }
}

/** What of the listing this job was given. @throws Error where a variable names a device that the tool does not show */
export function narrow(listing: Listing, env: GpuEnvironment): Gpus {
  const { vendor, driver } = listing
  const plain = (devices: readonly Listed[]): Gpus => ({
    vendor,
    driver,
    devices: devices.map(({ id, model, memoryBytes, parent }) => ({
      ...{ id, model, memoryBytes },
      ...(parent === null ? {} : { part: parent }),
    })),
  })
  const visible = vendor === 'nvidia' ? env.cudaVisible : env.rocrVisible
  if (visible !== null) {
    if (NOTHING_VISIBLE.has(visible.trim())) return plain([])
    const names = visible.split(',').map((name) => name.trim())
    // `0,` names one: an empty name would be the beginning of every UUID.
    return plain(names.filter((name) => name !== '').flatMap((name) => named(listing, name)))
  }
  const numbers = env.slurmGpus?.match(/\d+/g)?.map(Number) ?? null
  // As many as Slurm gave: a device cgroup hides the others, and numbers what is left from 0.
  if (numbers === null || numbers.length >= listing.devices.length) return plain(listing.devices)
  return plain(listing.devices.filter(({ index }) => numbers.includes(index)))
}

/** By number, by UUID or its beginning; a GPU that is divided stands for its instances. */
function named(listing: Listing, name: string): Listed[] {
  const isNumber = /^\d+$/.test(name)
  const found = listing.devices.filter(({ index, id, parent }) =>
    isNumber ? index === Number(name) : id.startsWith(name) || parent?.startsWith(name),
  )
  if (found.length > 0) return found
  const like = listing.devices[0]
  // ROCm's tool shows every card, whatever this job may open, under numbers of its own: the job's number is kept.
  if (isNumber && listing.vendor === 'amd' && like) return [{ ...like, id: name }]
  throw new Error(`the batch system gave GPU ${name}, which is not there`)
}

export interface GpuSearch {
  gpus: Gpus | null
  /** Why there are none although there should be. */
  trouble: string | null
}

/** @param path search path for the tools */
export async function findGpus(env: GpuEnvironment, path: string): Promise<GpuSearch> {
  const ask = async (tool: string, args: readonly string[]) =>
    (
      await execa(tool, args, {
        env: { PATH: `${path}:/opt/rocm/bin`, LC_ALL: 'C' },
        extendEnv: false,
        timeout: ASK_MS,
      })
    ).stdout
  try {
    let listing: Listing | null = null
    if (await exists('/dev/nvidiactl')) {
      // Both at once: a tool that hangs holds the pilot up once.
      const [table, list] = await Promise.all([ask('nvidia-smi', NVIDIA_QUERY), ask('nvidia-smi', ['-L'])])
      listing = parseNvidia(table, list)
    } else if (await exists('/dev/kfd')) {
      listing = parseRocm(await ask('rocm-smi', ROCM_QUERY))
    }
    if (listing === null) {
      const trouble = env.slurmGpus ? `the batch system gave GPUs ${env.slurmGpus}, and no GPU device is there` : null
      return { gpus: null, trouble }
    }
    return { gpus: narrow(listing, env), trouble: null }
  } catch (error) {
    return { gpus: null, trouble: (error as Error).message.split('\n')[0]!.slice(0, 300) }
  }
}

async function exists(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  )
}
