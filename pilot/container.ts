/**
 * Runtimes: how a payload is started, behind one small interface. `host` runs it as it is; `container` in Apptainer
 * or Singularity, by user namespace, sealed off as far as the machine allows. Both start the same wrapper in a session
 * of its own, with its output going into pipes, and say when it ended.
 *
 * A payload on the host runs as the pilot's own account: what it writes outside its folder cannot be prevented, only
 * not collected. Sites that mind set hostRuntime to false.
 */
import { constants } from 'node:fs'
import { lstat, mkdir, open, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { execa } from 'execa'
import type { ErrorCode } from '../shared/errors.ts'
import type { Offline } from './offline.ts'
import { checkImage, type ImageRefusal, isSif } from './sif.ts'
import { UnpackedImages } from './unpacked.ts'
import { WRAPPER } from './wrapper.ts'

/** GPUs that are one payload's own. */
export interface GpuShare {
  vendor: 'nvidia' | 'amd'
  /** As the vendor's tools name them: numbers, or UUIDs. */
  ids: readonly string[]
  /** Device files of others that a container is not to see, and whether it is then alone with its own; see gpu-devices.ts. */
  covered?: readonly string[]
  isAlone?: boolean
}

/** How far a payload is kept from what it shares the node with; said in the attempt's log line and in the trace. */
export interface Sealing {
  /** own: it reaches nothing but its own loopback. shared: the node's network, loopback and abstract sockets. */
  network: 'own' | 'shared'
  /** own: it sees and signals its own processes only, and all of them end with its first one. */
  processes: 'own' | 'shared'
  /** own: no other GPU of the node can be opened. Not said of payloads without GPUs. */
  gpus?: 'own' | 'shared'
}

export interface Launch {
  /** Ignored by the host runtime. */
  image: string
  /** The image unpacked, where the runtime cannot mount it. */
  root?: string | null
  argv: readonly string[]
  /** The payload's whole environment, PATH only where the template says so. */
  env: Readonly<Record<string, string>>
  /** Variables that mark the processes as this attempt's, also outside the container. */
  marker: Readonly<Record<string, string>>
  /** The task's folder, a folder for temporary files, and one for the wrapper and its status. */
  work: string
  temporary: string
  control: string
  /** For what the container runtime puts aside while it starts. */
  unpack: string
  /** Null where it asked for none; then it sees none, as far as this runtime can see to that. */
  gpus?: GpuShare | null
  /** Processors that it is bound to, as `0-3,8`; any where not given. */
  cpus?: string | null
  /** Folders of the node to be seen inside a container, as src:dst, beside those of the site. */
  binds?: readonly string[]
  /** `none`: the payload is to reach no network. */
  network?: 'none' | 'proxy' | 'outgoing'
  /** File descriptors. */
  stdout: number
  stderr: number
}

export interface Started {
  /** Leader of its own session; undefined where nothing could be started. */
  pid: number | undefined
  ended: Promise<RuntimeEnd>
}

/** How the first process ended; what the payload did stands in the status file. */
export interface RuntimeEnd {
  signal: string | null
  /** Null where a signal ended it or nothing was started. */
  exitCode: number | null
  /** Why nothing could be started, with the system's code. */
  failure: { code: string; message: string } | null
}

export interface Runtime {
  readonly kind: 'host' | 'container'
  readonly name: string
  /** What keeps this image from being started here, as far as it can be told beforehand. */
  refusal(image: string): Promise<ImageRefusal | null>
  /** Image files unpacked for `Launch.root`; null where they are mounted, or none can be run. */
  readonly unpacked: UnpackedImages | null
  start(launch: Launch): Started
  /** What start() will do about the rest of the node. */
  sealing(launch: Pick<Launch, 'network' | 'gpus'>): Sealing
  /** Folders as the payload sees them. */
  view(launch: Pick<Launch, 'work' | 'temporary'>): { work: string; temporary: string }
  /** Why the wrapper was not reached, from what the runtime said. */
  explain(said: string): ImageRefusal
}

export const STATUS_NAME = 'status'
const WRAPPER_NAME = 'run'
/** The wrapper writes some hundred bytes; a payload can write there as well, and what it likes. */
const STATUS_BYTES = 16 * 1024

/** Puts the wrapper into an attempt's control folder, and an empty status. @returns how this looks, for wasReached */
export async function prepareControl(control: string): Promise<string> {
  await mkdir(control, { mode: 0o700 })
  await writeFile(join(control, WRAPPER_NAME), WRAPPER, { mode: 0o500 })
  await writeFile(join(control, STATUS_NAME), '', { mode: 0o600 })
  return await looksOf(control)
}

/** What a payload can make of the way to its status; how a file system fails is none of these. */
const GONE = ['ENOENT', 'ENOTDIR', 'EACCES', 'EPERM', 'ELOOP']

/** Whether the wrapper was reached. A payload can empty the status file, remove it or bar the way, but not undo that. */
export async function wasReached(control: string, untouched: string): Promise<boolean> {
  return (await looksOf(control)) !== untouched
}

/** @throws as lstat, except where a payload can have brought that about */
async function looksOf(control: string): Promise<string> {
  try {
    const { ino, size, ctimeNs } = await lstat(join(control, STATUS_NAME), { bigint: true })
    return `${ino} ${size} ${ctimeNs}`
  } catch (error) {
    if (GONE.includes((error as NodeJS.ErrnoException).code ?? '')) return 'gone'
    throw error
  }
}

/** The status file's beginning; nothing where a payload put something else in its place. Never waits, never follows. */
export async function readStatus(control: string): Promise<string> {
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK
  const file = await open(join(control, STATUS_NAME), flags).catch(() => null)
  if (!file) return ''
  try {
    if (!(await file.stat()).isFile()) return ''
    const { buffer, bytesRead } = await file.read(Buffer.alloc(STATUS_BYTES), 0, STATUS_BYTES, 0)
    return buffer.toString('utf8', 0, bytesRead)
  } catch {
    return ''
  } finally {
    await file.close()
  }
}

/** The variables by which programs know which GPUs are theirs. On a node whose GPUs are others' they name none. */
function gpuVariables(gpus: GpuShare | null | undefined): Record<string, string> {
  const ids = (vendor: GpuShare['vendor']) => (gpus?.vendor === vendor ? gpus.ids.join(',') : '')
  return { CUDA_VISIBLE_DEVICES: ids('nvidia'), ROCR_VISIBLE_DEVICES: ids('amd') }
}

/** By path, because a payload's PATH is its own. */
export const TASKSET = '/usr/bin/taskset'
const ENV = '/usr/bin/env'

/** What makes the C library load or read what the payload names, in any program that is started with it. */
const STEERS_PROGRAMS =
  /^(LD_|GLIBC_TUNABLES$|GCONV_PATH$|GETCONF_DIR$|HOSTALIASES$|LOCALDOMAIN$|LOCPATH$|MALLOC_|MUSL_|NIS_PATH$|NLSPATH$|RES_OPTIONS$|RESOLV_|TZDIR$)/

function spawn(file: string, args: readonly string[], env: Record<string, string>, launch: Launch): Started {
  // It becomes the program: the process is the same.
  const [program, ...rest] = launch.cpus ? [TASKSET, '--cpu-list', launch.cpus, file, ...args] : [file, ...args]
  const child = execa(program!, rest, {
    cwd: launch.work,
    env,
    extendEnv: false,
    // Any descriptor works; the type knows those below ten.
    stdio: ['ignore', launch.stdout as 9, launch.stderr as 9],
    buffer: false,
    reject: false,
    cleanup: false,
    // A session of its own: one kill reaches the group, and the terminal's signals do not.
    detached: true,
  })
  return {
    pid: child.pid,
    ended: child.then((result) => ({
      signal: result.signal ?? null,
      exitCode: result.exitCode ?? null,
      failure:
        child.pid === undefined
          ? { code: result.code ?? 'UNKNOWN', message: result.originalMessage ?? result.shortMessage ?? 'not started' }
          : null,
    })),
  }
}

/**
 * @param path search path for payloads that bring none
 * @param offline where payloads go that ask for no network; null where this node has no such place
 */
export function hostRuntime(path: string, offline: Offline | null = null): Runtime {
  return {
    kind: 'host',
    name: 'host',
    refusal: async () => null,
    unpacked: null,
    start: (launch) => {
      const wrapper = ['/bin/sh', join(launch.control, WRAPPER_NAME), join(launch.control, STATUS_NAME)]
      const command = [...wrapper, ...launch.argv]
      const env = { PATH: path, ...launch.env, ...gpuVariables(launch.gpus), ...launch.marker }
      const start = isOffline(launch) && offline ? goOffline(offline, command, env) : { words: command, env }
      const [file, ...args] = start.words
      return spawn(file!, args, start.env, launch)
    },
    sealing: (launch) => ({
      network: offline !== null && isOffline(launch) ? 'own' : 'shared',
      processes: 'shared',
      ...(hasGpus(launch) ? { gpus: 'shared' } : {}),
    }),
    view: ({ work, temporary }) => ({ work, temporary }),
    explain: (said) => ({ reason: 'node.fault', detail: said }),
  }
}

/**
 * Its words, and its environment without what could run the payload's own code before it is in there; that is put back
 * behind it, as it stands, by `env`.
 */
function goOffline({ words }: Offline, command: readonly string[], env: Readonly<Record<string, string>>) {
  const steers = Object.entries(env).filter(([name]) => STEERS_PROGRAMS.test(name))
  const back = steers.length > 0 ? [ENV, ...steers.map(([name, value]) => `${name}=${value}`)] : []
  const ahead = Object.fromEntries(Object.entries(env).filter(([name]) => !STEERS_PROGRAMS.test(name)))
  return { words: [...words, ...back, ...command], env: ahead }
}

export interface ContainerOptions {
  binary: string
  /** As `--version` prints it. */
  version: string
  /** The first of ISOLATIONS that worked in the probe. */
  isolation: readonly string[]
  /** Options that give a payload a network of its own, with loopback alone; null where none can be had here. */
  offline: readonly string[] | null
  /** An empty file that can be put over device files; null where none can. */
  cover?: string | null
  /** How image files are run here, and why so. */
  sif: SifWay
  binds: readonly string[]
  /** Whether images may be named by registry: the runtime of each node asks there itself. */
  registries: boolean
  /** For the runtime itself, not for payloads. */
  env: Readonly<Record<string, string>>
}

/**
 * mounted: by FUSE, the runtime's own way. unpacked: it cannot mount and unpacks of its own accord. unsquash: it has to be
 * told to unpack, as where the program for mounting is there and the device is not. none: only unpacked folders run.
 */
export interface SifWay {
  how: 'mounted' | 'unpacked' | 'unsquash' | 'none'
  why: string
}

/** From the most to the least sealed: the process namespace is what most often cannot be had inside containers. */
export const ISOLATIONS: readonly (readonly string[])[] = [
  ['--containall'],
  ['--userns', '--containall'],
  ['--contain', '--ipc', '--cleanenv'],
  ['--userns', '--contain', '--ipc', '--cleanenv'],
]

/** Without CNI, without privileges: a network namespace in which loopback is up. */
export const OFFLINE = ['--net', '--network', 'none'] as const

export const GPU_OPTIONS: Readonly<Record<GpuShare['vendor'], string>> = { nvidia: '--nv', amd: '--rocm' }

const INSIDE = { work: '/work', control: '/indraft', temporary: '/tmp' } as const

export function containerRuntime(options: ContainerOptions): Runtime {
  const { binary, env } = options
  const isApptainer = /apptainer/.test(options.version)
  const prefix = isApptainer ? 'APPTAINERENV_' : 'SINGULARITYENV_'
  const unpacks = options.sif.how === 'unpacked' || options.sif.how === 'unsquash'
  return {
    kind: 'container',
    name: options.version,
    refusal: async (image) => {
      if (!image.startsWith('/')) {
        if (options.registries) return null
        const how = 'make a SIF file of it (apptainer pull) and name that by path or URL'
        return {
          reason: 'image.missing',
          detail: `this node reaches no registry (its network is not outgoing): ${how}`,
        }
      }
      const refused = await checkImage(image)
      if (refused || options.sif.how !== 'none' || !(await isSif(image))) return refused
      return { reason: 'container.failed', detail: `only unpacked images run on this node: ${options.sif.why}` }
    },
    unpacked: unpacks ? new UnpackedImages({ binary, env, explain: explainContainer }) : null,
    start: (launch) => {
      const inside: Record<string, string> = {}
      const variables = { ...launch.env, ...gpuVariables(launch.gpus), ...launch.marker }
      for (const [name, value] of Object.entries(variables)) {
        // HOME comes from --home; the runtime refuses it here.
        if (name !== 'HOME') inside[prefix + name] = value
      }
      const args = [
        '--quiet',
        'exec',
        ...containerArguments(options),
        ...(isOffline(launch) ? (options.offline ?? []) : []),
        ...(hasGpus(launch) ? [GPU_OPTIONS[launch.gpus.vendor], ...covering(options.cover, launch.gpus.covered)] : []),
        ...(options.sif.how === 'unsquash' && !launch.root ? ['--unsquash'] : []),
        '--workdir',
        launch.temporary,
        '--home',
        `${launch.work}:${INSIDE.work}`,
        ...startIn(options.version, INSIDE.work),
        '--bind',
        `${launch.control}:${INSIDE.control}`,
        ...(launch.binds ?? []).flatMap((bind) => ['--bind', bind]),
        launch.root ?? launch.image,
        '/bin/sh',
        `${INSIDE.control}/${WRAPPER_NAME}`,
        `${INSIDE.control}/${STATUS_NAME}`,
        ...launch.argv,
      ]
      const unpack = { APPTAINER_TMPDIR: launch.unpack, SINGULARITY_TMPDIR: launch.unpack }
      return spawn(binary, args, { ...env, ...unpack, ...inside, ...launch.marker }, launch)
    },
    sealing: (launch) => ({
      network: options.offline !== null && isOffline(launch) ? 'own' : 'shared',
      processes: options.isolation.includes('--containall') ? 'own' : 'shared',
      ...(hasGpus(launch) ? { gpus: options.cover && launch.gpus.isAlone ? 'own' : 'shared' } : {}),
    }),
    view: () => ({ work: INSIDE.work, temporary: INSIDE.temporary }),
    explain: explainContainer,
  }
}

function isOffline(launch: Pick<Launch, 'network'>): boolean {
  return launch.network === 'none'
}

function hasGpus<T extends Pick<Launch, 'gpus'>>(launch: T): launch is T & { gpus: GpuShare } {
  return (launch.gpus?.ids.length ?? 0) > 0
}

/** Options that put an empty file over device files: what is mounted there nobody inside can take away. */
export function covering(cover: string | null | undefined, devices: readonly string[] = []): string[] {
  return cover ? devices.flatMap((device) => ['--bind', `${cover}:${device}:ro`]) : []
}

/** The option that names the working directory goes by two names. */
export function startIn(version: string, folder: string): string[] {
  return [/apptainer/.test(version) ? '--cwd' : '--pwd', folder]
}

export function containerArguments(options: Pick<ContainerOptions, 'isolation' | 'binds'>): string[] {
  return [
    ...options.isolation,
    // Without this, values of the environment would be run by a shell inside. Runtimes that lack it are not used.
    '--no-eval',
    '--no-mount',
    'hostfs,bind-paths',
    ...options.binds.flatMap((bind) => ['--bind', bind]),
  ]
}

/** What the runtimes print, by what it means; the first that fits. */
const SAID: readonly (readonly [RegExp, ErrorCode])[] = [
  [/no space left on device|disk quota exceeded/i, 'node.scratchFull'],
  [/engine configuration too big|argument list too long/i, 'campaign.invalid'],
  [/image.*architecture|exec format error|could not run on the host/i, 'image.architecture'],
  // Before image.missing: a file that is no image "could not be opened" as well.
  [
    /image format not recognized|squashfs image|squashfs superblock|uncompress failed|filesystem corruption|input\/output error|invalid SIF|not a valid (?:SIF|image)|exec \/bin\/sh failed|FATAL:\s+permission denied|destination \S+ doesn't exist in container/i,
    'image.damaged',
  ],
  [
    /could not open image|not readable by the current user|no such image|manifest unknown|unauthorized|toomanyrequests|requested access.*denied|not found in (?:library|registry)|unable to (?:pull|get) |conveyor failed|failed to get checksum/i,
    'image.missing',
  ],
]

export function explainContainer(said: string): ImageRefusal {
  const known = SAID.find(([pattern]) => pattern.test(said))
  const line = said.split('\n').find((text) => /FATAL|ERROR/.test(text)) ?? said.trim().split('\n').at(-1) ?? ''
  return { reason: known?.[1] ?? 'container.failed', detail: line.slice(0, 400) }
}
