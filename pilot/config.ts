/**
 * The pilot's settings: one row each with type, default, unit and meaning, and what the batch system says about this
 * job. The only file of the pilot that reads the environment. Timings that a dispatcher and its holders must agree on
 * are not here: they come with the welcome.
 */
import { hostname, tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { type Config, loadConfig, SERVICE_SETTINGS, type Settings } from '../shared/config.ts'
import type { GpuEnvironment } from './gpus.ts'

export const PILOT_SETTINGS = {
  credential: {
    type: 'text',
    default: 'pilot.json',
    meaning:
      'The pilot credential that the relay of this site wrote; of several relays all, with commas, the preferred first.',
  },
  scratch: {
    type: 'text',
    default: join(tmpdir(), `indraft-pilot-${process.getuid?.() ?? 0}`),
    meaning:
      'Folder for task folders and undelivered results; node-local where possible. Made when missing. Where others may write too, as in /tmp, a folder of our own below it is used.',
  },
  name: {
    type: 'text',
    default: null,
    meaning: 'Unique at the site while the pilot lives; made of node, batch job and process when not given.',
  },
  node: {
    type: 'text',
    default: hostname(),
    meaning:
      "Name of this node: Slurm's own for it (SLURMD_NODENAME), else the host's. Failed tasks avoid nodes by it, and `indraft-pilot start` excludes by it.",
  },
  cores: { type: 'number', default: null, min: 1, max: 4096, meaning: 'Cores to use; the allocation when not given.' },
  memory: {
    type: 'bytes',
    default: null,
    min: '64MiB',
    meaning: 'Memory for payloads; the allocation when not given.',
  },
  gpus: {
    type: 'number',
    default: null,
    min: 0,
    max: 64,
    meaning: 'Most GPUs to use; those of the allocation when not given, 0 for none.',
  },
  bindCores: {
    type: 'flag',
    default: false,
    meaning: 'Each payload is bound to processors of its own (taskset), as many as it asked for.',
  },
  cvmfs: {
    type: 'text',
    default: '/cvmfs',
    meaning: 'Where CVMFS repositories are mounted; another folder is for tests.',
  },
  cvmfsRepositories: {
    type: 'list',
    default: [],
    meaning: 'Repositories to look for beside software.eessi.io and those that show themselves (autofs shows none).',
  },
  scratchSpace: { type: 'bytes', default: null, meaning: 'Scratch space to offer; what is free when not given.' },
  network: {
    type: 'text',
    default: 'none',
    oneOf: ['none', 'proxy', 'outgoing'],
    meaning: 'What payloads reach outside the site.',
  },
  ownNetwork: {
    type: 'text',
    default: 'possible',
    oneOf: ['always', 'possible', 'never'],
    meaning:
      'Policy: payloads with `network: none` get a network namespace with loopback alone. possible: where the node can make one; always: runtimes that cannot are not used; never: not those of image `host`.',
  },
  labels: { type: 'list', default: [], meaning: 'Facts about this node as key=value.' },
  runtimeLimit: { type: 'duration', default: null, meaning: 'Leave after this long, whatever the batch system says.' },
  timeAsked: {
    type: 'duration',
    default: null,
    meaning:
      'What was asked of the batch system, less endMargin, is the time left where nobody says when the job ends; set by `indraft-pilot start`.',
  },
  endMargin: {
    type: 'duration',
    default: '60s',
    meaning: "Payloads are ended this long before the allocation's end, so that results get out.",
  },
  idleBefore: { type: 'duration', default: '10min', meaning: 'Leave when no work came for this long since the start.' },
  idleAfter: { type: 'duration', default: '3min', meaning: 'Leave when no work came for this long after the last.' },
  leastTimeLeft: { type: 'duration', default: '2min', meaning: 'Leave when less than this is left and nothing runs.' },
  goneAfter: {
    type: 'duration',
    default: '30min',
    meaning: 'Leave when the dispatcher did not answer for this long and nothing runs.',
  },
  diskPatience: {
    type: 'duration',
    default: '5min',
    meaning: 'Leave (500) when results could not be written to disk for this long; no work is taken meanwhile.',
  },
  outboxMemory: {
    type: 'bytes',
    default: '16MiB',
    min: '64kB',
    meaning: 'Take no more work while undelivered results are larger than this; they are kept in memory too.',
  },
  ahead: {
    type: 'duration',
    default: '10s',
    meaning: 'Keep this much short work in hand beyond what runs, so that slots never wait for an answer.',
  },
  payloadGrace: { type: 'duration', default: '10s', meaning: 'Between SIGTERM and SIGKILL of a payload.' },
  drainGrace: {
    type: 'duration',
    default: '20s',
    meaning: 'Within this the pilot is gone after SIGTERM; keep it below the batch system’s own (KillWait).',
  },
  noticeTime: {
    type: 'duration',
    default: '4min',
    meaning: 'SIGUSR1 announces the end this long ahead: nothing starts any more, payloads may finish until then.',
  },
  stageTimeout: {
    type: 'duration',
    default: '15min',
    meaning: 'Fetching or storing one file is repeated for this long before the attempt fails.',
  },
  watchEvery: { type: 'duration', default: '1s', min: '100ms', meaning: 'How often processes are measured.' },
  hostRuntime: { type: 'flag', default: true, meaning: 'Policy: tasks with image `host` may run here.' },
  containerRuntime: {
    type: 'text',
    default: null,
    meaning: 'apptainer or singularity by path; found on PATH when not given; `none` switches containers off.',
  },
  probeImage: { type: 'text', default: null, meaning: 'An image (folder or SIF) that the node test starts.' },
  imageFolder: {
    type: 'text',
    default: null,
    meaning:
      'Where images fetched by URL are kept; on the shared file system all pilots of the site share them (default: images in scratch). What pilots put there is removed when nobody used it for two weeks, nothing else.',
  },
  binds: {
    type: 'list',
    default: [],
    meaning:
      'Site folders that containers see, as src[:dst[:ro]]. None that holds the pilot’s own files; without :ro none that holds, or lies in, scratch, STOP and ban file, trace, end or image folder, or an image or folder of images of allowImages.',
  },
  allowGroups: {
    type: 'list',
    default: [],
    meaning: 'Policy: only these groups (and those below them) run here; empty allows all.',
  },
  allowImages: {
    type: 'list',
    default: [],
    meaning:
      'Policy: only these images: a folder, an address or a registry with all below it, one image, or sha256:<hex> from any address or registry (never as a path); empty allows all.',
  },
  denySubjects: {
    type: 'list',
    default: [],
    meaning: 'Policy: nothing of these people runs here, whatever the centre says.',
  },
  banFile: {
    type: 'text',
    default: null,
    meaning: 'File with a subject a line, to be banned while pilots run (default: BANNED in scratch).',
  },
  banEvery: {
    type: 'duration',
    default: '30s',
    min: '100ms',
    meaning: 'How often the ban file is looked at; payloads of a banned subject end then.',
  },
  sharedFolders: {
    type: 'list',
    default: [],
    meaning:
      'Policy: file: inputs and outputs only below these folders. Empty: all that the account can where hostRuntime is true, none where only containers run.',
  },
  stopFile: {
    type: 'text',
    default: null,
    meaning: 'While this file exists the pilot drains (default: STOP in scratch).',
  },
  traceLog: {
    type: 'text',
    default: null,
    meaning:
      'Folder of the files, one a node and day, that say whose payload ran where and when; on the shared file system it outlives the nodes (default: trace in scratch; with `indraft-pilot start` in the site file’s folder).',
  },
  traceKeep: { type: 'duration', default: '90d', meaning: 'The trace is kept for so long.' },
  traceSize: { type: 'bytes', default: '1GiB', min: '1MiB', meaning: 'The trace of one node takes no more than this.' },
  endFolder: {
    type: 'text',
    default: null,
    meaning: 'Where the pilot says by one small file how it ended; `indraft-pilot start` sets it and reads it there.',
  },
  startId: {
    type: 'text',
    default: null,
    meaning: 'The submission that this pilot belongs to; set by `indraft-pilot start`.',
  },
  taskLimit: {
    type: 'number',
    default: null,
    min: 1,
    max: 1_000_000_000,
    meaning: 'Start so many tasks and then leave; for a node that is to be tried out.',
  },
  ...SERVICE_SETTINGS,
} as const satisfies Settings

export type PilotConfig = Config<typeof PILOT_SETTINGS>

/** What the batch system and the machine say; times in Unix seconds, as they come. */
export interface BatchEnvironment {
  slurmJobId: string | null
  slurmEndTimeS: number | null
  slurmCpus: number | null
  /** MiB for the whole node; 0 means all of it. */
  slurmMemoryPerNode: number | null
  slurmMemoryPerCpu: number | null
  slurmMemoryPerGpu: number | null
  slurmGpuCount: number | null
  gpus: GpuEnvironment
  /** Machine/Job Features (HSF-TN-2016-02): folders or http(s) addresses. */
  machineFeatures: string | null
  jobFeatures: string | null
  /** Where Vac's shutdown_message goes. */
  jobOutputs: string | null
  path: string
  /** What the container runtime is to keep of the pilot's environment. */
  container: Record<string, string>
}

/**
 * Where a container runtime keeps the images of registries and what it shows them. Nothing else of APPTAINER_* and
 * SINGULARITY_*: a user's own settings would change how payloads run, and inside a container the binds and flags are those
 * of the outer call and would be applied a second time. Home and configuration are the pilot's own.
 */
const CONTAINER_VARIABLE = /^(APPTAINER|SINGULARITY)_(CACHEDIR|DOCKER_USERNAME|DOCKER_PASSWORD|AUTH_FILE)$/

type Environment = Readonly<Record<string, string | undefined>>

/** What ticks were given, for the programs that they start. */
export function inheritedEnvironment(env: Environment = process.env): Record<string, string> {
  return Object.fromEntries(
    Object.entries(env).filter((variable): variable is [string, string] => variable[1] !== undefined),
  )
}

/** As the batch system calls this node, in its lists and where it takes names; the host's own name is often longer. */
export function nodeName(env: Environment = process.env): string {
  return env.SLURMD_NODENAME || hostname()
}

export function loadPilotConfig(
  args: Record<string, unknown>,
  file?: string,
  env: Environment = process.env,
): PilotConfig {
  const settings = { ...PILOT_SETTINGS, node: { ...PILOT_SETTINGS.node, default: nodeName(env) } }
  return loadConfig(settings, { file, env, args }, (config) => {
    if (config.payloadGrace >= config.drainGrace) return 'payloadGrace has to be shorter than drainGrace'
    const wrong = config.labels.find((label) => !/^[^=]+=/.test(label))
    return wrong === undefined ? undefined : `labels: "${wrong}" is not key=value`
  })
}

export function readBatchEnvironment(env: Environment = process.env): BatchEnvironment {
  const number = (name: string) => {
    const value = env[name]
    return value !== undefined && /^\d+$/.test(value) ? Number(value) : null
  }
  const folder = (name: string) => (env[name]?.startsWith('/') ? env[name] : null)
  const source = (name: string) =>
    /^(\/|https?:\/\/)/.test(env[name] ?? '') ? env[name]!.replace(/(.)\/+$/, '$1') : null
  return {
    slurmJobId: env.SLURM_JOB_ID ?? null,
    slurmEndTimeS: number('SLURM_JOB_END_TIME'),
    slurmCpus: number('SLURM_CPUS_ON_NODE'),
    slurmMemoryPerNode: number('SLURM_MEM_PER_NODE'),
    slurmMemoryPerCpu: number('SLURM_MEM_PER_CPU'),
    slurmMemoryPerGpu: number('SLURM_MEM_PER_GPU'),
    slurmGpuCount: number('SLURM_GPUS_ON_NODE'),
    gpus: {
      cudaVisible: env.CUDA_VISIBLE_DEVICES ?? null,
      rocrVisible: env.ROCR_VISIBLE_DEVICES ?? null,
      slurmGpus: env.SLURM_STEP_GPUS ?? env.SLURM_JOB_GPUS ?? null,
    },
    machineFeatures: source('MACHINEFEATURES'),
    jobFeatures: source('JOBFEATURES'),
    jobOutputs: folder('JOBOUTPUTS'),
    path: env.PATH ?? '/usr/local/bin:/usr/bin:/bin',
    container: Object.fromEntries(
      Object.entries(env).filter(
        (variable): variable is [string, string] => variable[1] !== undefined && CONTAINER_VARIABLE.test(variable[0]),
      ),
    ),
  }
}

/** The credentials of the site's relays; the one to use first. */
export function credentialPaths(text: string): string[] {
  return text
    .split(',')
    .map((path) => path.trim())
    .filter((path) => path !== '')
}

/**
 * The files by which a site speaks to its pilots and they to it.
 * @param scratch the folder in use, which may lie below the one that was named
 */
export function siteFiles(config: PilotConfig, scratch: string) {
  // In the folder that was named, which an administrator knows.
  const banFile = config.banFile ?? join(resolve(config.scratch), 'BANNED')
  const stopFile = config.stopFile ?? join(resolve(config.scratch), 'STOP')
  const traceFolder = config.traceLog ?? join(scratch, 'trace')
  const imageFolder = resolve(config.imageFolder ?? join(scratch, 'images'))
  const endFolders = config.endFolder === null ? [] : [config.endFolder]
  /** None of it is a payload's to write. */
  const kept = [scratch, banFile, stopFile, traceFolder, imageFolder, ...endFolders]
  return { banFile, stopFile, traceFolder, imageFolder, kept }
}
