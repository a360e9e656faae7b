/**
 * From signed work to a payload that can be started: what it runs, as whom it is spoken to (its environment), in which
 * image, with which software at hand. First what can be said without touching anything, then the rest.
 */
import { statfs, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Clock } from '../shared/clock.ts'
import { IndraftError, isIndraftError } from '../shared/errors.ts'
import { expand, type Values, valuesOf } from '../shared/expand.ts'
import type { AttemptRef } from '../shared/ids.ts'
import type { Log } from '../shared/log.ts'
import type { BundleBody, TemplateBody } from '../shared/protocol/work.ts'
import type { AttemptFolder } from './attempt-folder.ts'
import type { Launch, Runtime } from './container.ts'
import type { Transfer } from './drivers.ts'
import type { ImageStore } from './images.ts'
import { enforceImagePath } from './policy.ts'
import { ATTEMPT_VARIABLE, RUN_VARIABLE } from './processes.ts'
import { isSif } from './sif.ts'
import { repositoriesOf, softwareScript, touchSoftware } from './software.ts'
import { type WantedOutput, wantedOutputs } from './stage-out.ts'
import type { Unpacked } from './unpacked.ts'

/** What one attempt is to do; checked before. */
export interface AttemptWork {
  ref: AttemptRef
  template: TemplateBody
  bundle: BundleBody
  earlierAttempts: number
  capability: string | null
  /** Its own for as long as it runs; null where it asked for none. */
  gpus?: Launch['gpus']
  /** Processors it is bound to; null for any. */
  cpus?: string | null
}

/** What all launches of a pilot share. */
export interface LaunchAround {
  site: string
  node: string
  pilot: string
  /** New at every start; marks the processes. */
  run: string
  /** Paths that no payload may name as an input. */
  own: readonly string[]
  runtimes: readonly Runtime[]
  /** Where CVMFS repositories are mounted. */
  cvmfs: string
  images: ImageStore
  /** For what several attempts share. */
  blobsFolder: string
  clock: Clock
  log: Log
  /** See leases.ts. */
  expiryNowMs: () => number
}

export interface Plan {
  runtime: Runtime
  values: Values
  argv: string[]
  env: Record<string, string>
  outputs: WantedOutput[]
}

/** Everything of a launch but where its output goes. */
export interface Prepared extends Omit<Launch, 'stdout' | 'stderr'> {
  /** To be called once, when nothing of it runs any more. */
  release(): void
}

/** @throws IndraftError where nothing could come of it: no runtime, a name that is none, a path that leaves its folder */
export function plan(work: AttemptWork, around: LaunchAround, folder: AttemptFolder): Plan {
  const { template, bundle, ref } = work
  if (around.expiryNowMs() > bundle.expiresAtMs) throw new IndraftError('signature.expired')
  const kind = template.image === 'host' ? 'host' : 'container'
  const runtime = around.runtimes.find((one) => one.kind === kind)
  if (!runtime) throw new IndraftError('container.failed', 'this node has no runtime for the image')
  const values = valuesOf(template, bundle, ref.index, work.earlierAttempts)
  const argv = template.command.map((argument) => expand(argument, values))
  const env = environment(work, around, values, runtime.view(folder))
  return { runtime, values, argv, env, outputs: wantedOutputs(template.outputs, values) }
}

function environment(
  { template, ref }: AttemptWork,
  { site, node, pilot }: LaunchAround,
  values: Values,
  view: ReturnType<Runtime['view']>,
): Record<string, string> {
  const env: Record<string, string> = {
    LANG: 'C.UTF-8',
    OMP_NUM_THREADS: String(template.needs.cores),
  }
  for (const [name, value] of Object.entries(template.env)) {
    if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) throw new IndraftError('campaign.invalid', `env name "${name}"`)
    env[name] = expand(value, values)
  }
  return Object.assign(env, {
    HOME: view.work,
    TMPDIR: view.temporary,
    INDRAFT_CAMPAIGN: template.campaignName,
    INDRAFT_CAMPAIGN_ID: ref.campaign,
    INDRAFT_STEP: ref.step,
    INDRAFT_INDEX: String(ref.index),
    INDRAFT_CORES: String(template.needs.cores),
    INDRAFT_MEMORY_BYTES: String(template.needs.memoryBytes),
    INDRAFT_SITE: site,
    INDRAFT_NODE: node,
    INDRAFT_PILOT: pilot,
  })
}

/**
 * Makes the attempt's folder and finds its image; inputs come after, because an image that cannot be had or run makes
 * them useless. @throws IndraftError image.* | container.failed | software.failed | policy.refused
 */
export async function prepare(
  { runtime, argv, env }: Plan,
  work: AttemptWork,
  path: string,
  around: LaunchAround,
  folder: AttemptFolder,
  transfer: Transfer,
): Promise<Prepared> {
  const { template, gpus = null, cpus = null } = work
  await folder.make()
  const image = runtime.kind === 'host' ? template.image : await around.images.locate(template.image, transfer)
  if (image.startsWith('/')) await enforceImagePath(image, around.own)
  const refused = await runtime.refusal(image)
  if (refused) throw new IndraftError(refused.reason, refused.detail)
  const binds = await prepareSoftware(runtime, template.software, around.cvmfs, folder)
  const unpacked = await unpack(image, runtime, around, transfer)
  try {
    await makeRoom(template.needs.scratchBytes, around, folder)
  } catch (error) {
    unpacked?.release()
    throw error
  }
  return {
    ...{ image, argv, env, gpus, cpus, binds },
    root: unpacked?.path ?? null,
    release: () => unpacked?.release(),
    marker: { [ATTEMPT_VARIABLE]: path, [RUN_VARIABLE]: around.run },
    work: folder.work,
    temporary: folder.temporary,
    control: folder.control,
    unpack: folder.unpack,
    network: template.needs.network,
  }
}

/** Where the runtime cannot mount it; what a registry has the runtime fetches and unpacks itself. */
async function unpack(
  image: string,
  { unpacked }: Runtime,
  { blobsFolder, run, clock, log, images }: LaunchAround,
  { signal, giveUpAfterMs }: Transfer,
): Promise<Unpacked | null> {
  if (!unpacked || !image.startsWith('/') || !(await isSif(image))) return null
  const order = { folder: join(blobsFolder, 'unpacked'), marker: { [RUN_VARIABLE]: run }, signal, clock, log }
  try {
    return await unpacked.take(image, { ...order, limitMs: giveUpAfterMs })
  } catch (error) {
    if (isIndraftError(error, 'image.damaged')) await images.distrust(image)
    throw error
  }
}

/** Unpacked images that nobody uses go where a task would not find the scratch space it asked for. */
async function makeRoom(scratchBytes: number, { runtimes, log }: LaunchAround, folder: AttemptFolder): Promise<void> {
  if (scratchBytes === 0) return
  const { bavail, bsize } = await statfs(folder.path)
  if (bavail * bsize < scratchBytes) for (const { unpacked } of runtimes) await unpacked?.makeRoom(log)
}

/** CVMFS and EESSI, where the step asks for them. @returns what a container is to see @throws IndraftError software.failed */
async function prepareSoftware(
  runtime: Runtime,
  software: AttemptWork['template']['software'],
  cvmfs: string,
  folder: AttemptFolder,
): Promise<string[]> {
  if (!software) return []
  const repositories = repositoriesOf(software)
  const missing = await touchSoftware(cvmfs, repositories)
  if (missing.length > 0) throw new IndraftError('software.failed', `${missing.join(', ')} cannot be read in ${cvmfs}`)
  const isContainer = runtime.kind === 'container'
  const script = softwareScript(software, isContainer ? '/cvmfs' : cvmfs)
  if (script !== null) await writeFile(join(folder.control, 'software'), script, { mode: 0o400 })
  // Each by itself: a container sees the repositories that its step names, whatever else the node has mounted.
  return isContainer ? repositories.map((repository) => `${cvmfs}/${repository}:/cvmfs/${repository}`) : []
}
