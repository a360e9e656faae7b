/**
 * Which device files belong to which GPU, so that a container can be kept from those of others: the runtimes' options for
 * GPUs (--nv, --rocm) put the files of all GPUs of the node into every container, and variables are only a convention.
 *
 * What always holds: a payload's own files are never among those to be covered; where it is not known which files are its
 * own, none are covered and `isAlone` is false. Instances of one divided GPU (MIG) share its file: those are not told apart.
 *
 * Sources: /proc/driver/nvidia/gpus/<bus>/information (NVIDIA's driver README), the KFD topology in sysfs (kernel,
 * drivers/gpu/drm/amd/amdkfd) and DRM's nodes beside each other below their device.
 */
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Gpus } from './gpus.ts'

/** Files to be covered for one payload, and whether it is then alone with its own GPUs. */
export interface Foreign {
  covered: readonly string[]
  isAlone: boolean
}

export class GpuFiles {
  /** All of the node, also of GPUs that are not this pilot's. */
  readonly #all: readonly string[]
  /** By the id of gpus.ts. */
  readonly #own: ReadonlyMap<string, readonly string[]>
  /** Ids of GPUs that are parts of one. */
  readonly #divided: ReadonlySet<string>

  constructor(all: readonly string[], own: ReadonlyMap<string, readonly string[]>, divided: ReadonlySet<string>) {
    this.#all = all
    this.#own = own
    this.#divided = divided
  }

  /** Some file that a payload might have to be kept from; null where the node has GPUs for one at most. */
  get example(): string | null {
    return this.#own.size > 0 && this.#all.length > 1 ? this.#all[0]! : null
  }

  foreignTo(ids: readonly string[]): Foreign {
    const files = ids.map((id) => this.#own.get(id))
    if (files.length === 0 || files.includes(undefined)) return { covered: [], isAlone: false }
    const own = new Set(files.flatMap((list) => list!))
    return {
      covered: this.#all.filter((path) => !own.has(path)),
      isAlone: !ids.some((id) => this.#divided.has(id)),
    }
  }
}

/** @param root of the file system; another one is for tests. Never throws */
export async function findGpuFiles(gpus: Gpus, root = '/'): Promise<GpuFiles> {
  const names = async (folder: string) => (await readdir(join(root, folder)).catch(() => [])).sort()
  const text = async (path: string) => await readFile(join(root, path), 'latin1').catch(() => '')
  const own = new Map<string, string[]>()
  const divided = new Set<string>()
  if (gpus.vendor === 'nvidia') {
    const minors = new Map<string, string>()
    const folder = 'proc/driver/nvidia/gpus'
    for (const bus of await names(folder)) {
      const facts = await text(`${folder}/${bus}/information`)
      const [uuid, minor] = [/^GPU UUID:\s+(\S+)/m, /^Device Minor:\s+(\d+)/m].map((line) => line.exec(facts)?.[1])
      if (uuid && minor) minors.set(uuid, minor)
    }
    for (const { id, part } of gpus.devices) {
      const minor = minors.get(part ?? id)
      if (minor !== undefined) own.set(id, [`/dev/nvidia${minor}`])
      if (part) divided.add(id)
    }
    const all = (await names('dev')).filter((name) => /^nvidia\d+$/.test(name)).map((name) => `/dev/${name}`)
    return new GpuFiles(all, own, divided)
  }
  /** Several devices of one name, as partitions of one may be: none of them is told from the others. */
  const ambiguous = new Set<string>()
  const topology = 'sys/class/kfd/kfd/topology/nodes'
  for (const node of await names(topology)) {
    const facts = await text(`${topology}/${node}/properties`)
    const [unique, minor] = [/^unique_id (\d+)$/m, /^drm_render_minor (\d+)$/m].map((line) => line.exec(facts)?.[1])
    if (!unique || !minor || minor === '0') continue
    // The card beside it is another way to the same device.
    const beside = await names(`sys/class/drm/renderD${minor}/device/drm`)
    const files = new Set([`renderD${minor}`, ...beside.filter((name) => /^(card|renderD)\d+$/.test(name))])
    const id = `GPU-${BigInt(unique).toString(16).padStart(16, '0')}`
    if (own.has(id)) ambiguous.add(id)
    own.set(
      id,
      [...files].map((name) => `/dev/dri/${name}`),
    )
  }
  for (const id of ambiguous) own.delete(id)
  const all = (await names('dev/dri')).filter((name) => /^(card|renderD)\d+$/.test(name))
  return new GpuFiles(
    all.map((name) => `/dev/dri/${name}`),
    own,
    divided,
  )
}
