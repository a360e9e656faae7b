/**
 * The container part of the node test: which runtime this node has, the most sealed form in which it works, whether a
 * payload can have a network of its own, and how image files are taken. Everything is tried for real, with images of the
 * pilot's own, and what was taken is logged with why.
 *
 * What always holds: the test ends within TEST_MS whatever the runtime does, and leaves none of its processes; the
 * runtime sees a home, a configuration and a cache that are the pilot's own, never the account's.
 */
import { spawn } from 'node:child_process'
import { chmod, mkdir, realpath, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Log } from '../shared/log.ts'
import { refusedBind } from './binds.ts'
import {
  containerArguments,
  containerRuntime,
  covering,
  GPU_OPTIONS,
  type GpuShare,
  ISOLATIONS,
  OFFLINE,
  type Runtime,
  type SifWay,
  startIn,
} from './container.ts'
import { makeSkeletonSif } from './sif.ts'

export interface ProbeOptions {
  /** Candidates by path, in order. */
  binaries: readonly string[]
  /** The pilot's own; the probe's images and what is unpacked of them lie here. */
  folder: string
  probeImage: string | null
  binds: readonly string[]
  /** As in Guarded; default: nothing. */
  own?: readonly string[]
  kept?: readonly string[]
  /** Milliseconds for one start of a container, and for the whole test; default TRY_MS and TEST_MS. */
  limits?: { tryMs: number; testMs: number }
  /** Whether this node reaches registries; default: it does not. */
  registries?: boolean
  /** Where this node's own programs and their libraries lie; default HOST_FOLDERS. */
  hostFolders?: readonly string[]
  /** On a node with several GPUs: the option for them is tried with this device file covered. */
  gpus?: { vendor: GpuShare['vendor']; file: string } | null
  /** PATH, and what of the pilot's environment the runtime is to know of caches and registries. */
  env: Readonly<Record<string, string>>
  log: Log
}

/** The skeletons are empty: they borrow the programs of the host. */
const HOST_FOLDERS = ['/bin', '/usr', '/lib', '/lib64']
/** One start of a container, and the whole test. */
const TRY_MS = 60_000
const TEST_MS = 180_000
/** After its end a program's output is waited for no longer: what it left behind may hold the pipe for ever. */
const DRAIN_MS = 1000
const SAID_BYTES = 64 * 1024

/** The container runtime of this node, with the most sealed form that works; null where none does. */
export async function probeContainer(options: ProbeOptions): Promise<Runtime | null> {
  const { log, folder, binds } = options
  const { tryMs, testMs } = options.limits ?? { tryMs: TRY_MS, testMs: TEST_MS }
  const endsAtMs = performance.now() + testMs
  const odd = [folder, ...binds].find((path) => /[,"\\\n]/.test(path)) ?? (folder.includes(':') ? folder : undefined)
  if (odd !== undefined) {
    log.error({ path: odd }, 'container.oddPath')
    return null
  }
  const refused = await refusedBind(binds, { own: options.own ?? [], kept: options.kept ?? [] })
  if (refused !== null) {
    log.error(refused, 'container.bindRefused')
    return null
  }
  const home = join(folder, 'home')
  await mkdir(home, { recursive: true, mode: 0o700 })
  const env = { ...ownFolders(home), ...options.env, HOME: home }
  const hostPrograms = await bindsOf(options.hostFolders ?? HOST_FOLDERS)
  const seen = new Set<string>()
  for (const binary of options.binaries) {
    // Apptainer goes by both names.
    const real = await realpath(binary).catch(() => binary)
    if (seen.has(real)) continue
    seen.add(real)
    const asked = await tryProgram(binary, ['--version'], env, Math.min(tryMs, 20_000))
    if (!asked.ok) {
      log.info({ binary, detail: asked.said.slice(-500) }, 'container.absent')
      continue
    }
    const version = (asked.said.split('\n').find((line) => line.includes('version')) ?? asked.said).trim().slice(0, 200)
    const call = async (isolation: readonly string[], image: string, ...more: string[]): Promise<Tried> => {
      const limitMs = Math.min(tryMs, endsAtMs - performance.now())
      if (limitMs <= 0) return { ok: false, said: `not tried: the test took ${testMs / 1000} s`, ms: 0 }
      const borrowed = image === options.probeImage ? [] : hostPrograms
      const fixed = containerArguments({ isolation, binds })
      const unpack = join(folder, 'unpacked')
      await mkdir(unpack, { recursive: true, mode: 0o700 })
      const unpackInto = { APPTAINER_TMPDIR: unpack, SINGULARITY_TMPDIR: unpack }
      const argv = ['exec', ...fixed, ...startIn(version, '/'), ...more, ...borrowed, image, '/bin/true']
      const tried = await tryProgram(binary, argv, { ...env, ...unpackInto }, limitMs)
      await rm(unpack, { recursive: true, force: true }).catch(() => {})
      return tried
    }
    const given = options.probeImage
    const givenIsFile =
      given !== null &&
      (await stat(given).then(
        (facts) => facts.isFile(),
        () => false,
      ))
    const first = given !== null && !givenIsFile ? given : await makeSkeleton(join(folder, 'probe-image'))
    for (const isolation of ISOLATIONS) {
      const tried = await call(isolation, first)
      if (!tried.ok) {
        log.info({ binary, version, isolation, ms: tried.ms, detail: tried.said.slice(-500) }, 'container.probeFailed')
        continue
      }
      const file = givenIsFile ? given : await makeSkeletonFile(join(folder, 'probe-image.sif'))
      const sif = await wayOfFiles((...more) => call(isolation, file, ...more))
      const alone = await call(isolation, first, ...OFFLINE)
      const network = alone.ok ? 'own' : `shared: ${complaintOf(alone.said)}`
      log.info({ binary, version, isolation, ms: tried.ms, sif: sif.how, why: sif.why, network }, 'container.found')
      const offline = alone.ok ? OFFLINE : null
      const registries = options.registries ?? false
      const cover = options.gpus
        ? await coverFor(folder, options.gpus, log, (...more) => call(isolation, first, ...more))
        : null
      return containerRuntime({ binary, version, isolation, offline, cover, sif, binds, registries, env })
    }
  }
  return null
}

/** Those that are there: no /lib64 on arm64 or with musl, and a bind without a source ends every start. */
async function bindsOf(folders: readonly string[]): Promise<string[]> {
  const isThere = (path: string) => stat(path).catch(() => null)
  const found = await Promise.all(folders.map(async (path) => ((await isThere(path)) ? [path] : [])))
  return found.flat().flatMap((path) => ['--bind', `${path}:${path}:ro`])
}

/** An empty file that nobody can read, where it can be put over device files in containers; null where it cannot. */
async function coverFor(
  folder: string,
  { vendor, file }: NonNullable<ProbeOptions['gpus']>,
  log: Log,
  call: (...more: string[]) => Promise<Tried>,
): Promise<string | null> {
  const cover = join(folder, 'covered')
  await rm(cover, { force: true })
  await writeFile(cover, '', { mode: 0 })
  const tried = await call(GPU_OPTIONS[vendor], ...covering(cover, [file]))
  if (tried.ok) return cover
  log.warn({ file, detail: complaintOf(tried.said) }, 'container.gpusNotCovered')
  return null
}

interface Tried {
  ok: boolean
  /** Both streams; the words of the failure where it could not even be started. */
  said: string
  ms: number
}

function ownFolders(home: string): Record<string, string> {
  const config = join(home, 'config')
  const cache = join(home, 'cache')
  return {
    APPTAINER_CONFIGDIR: config,
    SINGULARITY_CONFIGDIR: config,
    APPTAINER_CACHEDIR: cache,
    SINGULARITY_CACHEDIR: cache,
  }
}

/** Runs it to its end, or to the limit: then it is killed with its process group and not waited for any more. */
async function tryProgram(
  file: string,
  args: readonly string[],
  env: Readonly<Record<string, string>>,
  limitMs: number,
): Promise<Tried> {
  const startMs = performance.now()
  const ended = Promise.withResolvers<{ ok: boolean; why: string }>()
  const child = spawn(file, args, { env, stdio: ['ignore', 'pipe', 'pipe'], detached: true })
  let said = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      said = (said + text).slice(-SAID_BYTES)
    })
  }
  const endGroup = () => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
    } catch {
      // Nothing of it is left.
    }
  }
  const limit = setTimeout(() => {
    ended.resolve({ ok: false, why: `no end after ${Math.round(limitMs / 1000)} s` })
    endGroup()
  }, limitMs)
  let drain: NodeJS.Timeout | undefined
  child.on('error', (error) => ended.resolve({ ok: false, why: error.message }))
  child.on('exit', (code, signal) => {
    const end = { ok: code === 0, why: code === 0 ? '' : `ended with ${signal ?? code}` }
    drain = setTimeout(() => {
      ended.resolve(end)
      endGroup()
    }, DRAIN_MS)
    child.on('close', () => ended.resolve(end))
  })
  const { ok, why } = await ended.promise
  clearTimeout(limit)
  clearTimeout(drain)
  child.stdout.destroy()
  child.stderr.destroy()
  child.unref()
  return { ok, said: said.trim() === '' ? why : said, ms: Math.round(performance.now() - startMs) }
}

function complaintOf(said: string): string {
  const lines = said.trim().split('\n')
  return (lines.find((line) => /FATAL|ERROR|[Uu]nknown flag/.test(line)) ?? lines.at(-1) ?? '').trim().slice(0, 200)
}

async function wayOfFiles(call: (...more: string[]) => Promise<Tried>): Promise<SifWay> {
  const plain = await call()
  const complaint = plain.said.split('\n').find((line) => /FATAL|squashfuse/.test(line)) ?? plain.said.trim()
  if (plain.ok) {
    if (!/Converting SIF|temporary sandbox/i.test(plain.said)) return { how: 'mounted', why: `in ${plain.ms} ms` }
    return { how: 'unpacked', why: complaint.slice(0, 300) }
  }
  const unpacked = await call('--unsquash')
  if (unpacked.ok) return { how: 'unsquash', why: complaint.slice(0, 300) }
  const last = unpacked.said.split('\n').find((line) => /FATAL|ERROR/.test(line)) ?? unpacked.said
  return { how: 'none', why: `${complaint.slice(0, 200)}; ${last.trim().slice(0, 200)}` }
}

async function makeSkeleton(folder: string): Promise<string> {
  for (const name of ['bin', 'usr', 'lib', 'lib64', 'proc', 'sys', 'dev', 'tmp', 'var/tmp', 'etc', 'root', 'home']) {
    await mkdir(join(folder, name), { recursive: true, mode: 0o755 })
  }
  await writeFile(join(folder, 'etc', 'passwd'), 'root:x:0:0:root:/root:/bin/sh\n')
  await writeFile(join(folder, 'etc', 'group'), 'root:x:0:\n')
  await chmod(folder, 0o755)
  return folder
}

async function makeSkeletonFile(path: string): Promise<string> {
  await writeFile(path, makeSkeletonSif(), { mode: 0o600 })
  return path
}
