/**
 * The container part of the node test: which runtime this node has, the most sealed form in which it works, and how it
 * takes image files. Everything is tried for real, with images of the pilot's own, and what was taken is logged with why.
 */
import { chmod, mkdir, realpath, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { execa } from 'execa'
import type { Log } from '../shared/log.ts'
import { containerArguments, containerRuntime, ISOLATIONS, type Runtime, type SifWay } from './container.ts'
import { makeSkeletonSif } from './sif.ts'

export interface ProbeOptions {
  /** Candidates by path, in order. */
  binaries: readonly string[]
  /** The pilot's own; the probe's images and what is unpacked of them lie here. */
  folder: string
  probeImage: string | null
  binds: readonly string[]
  env: Readonly<Record<string, string>>
  log: Log
}

/** The skeletons are empty: they borrow the programs of the host. */
const HOST_PROGRAMS = ['/bin', '/usr', '/lib', '/lib64'].flatMap((path) => ['--bind', `${path}:${path}:ro`])
const TRY_MS = 60_000

/** The container runtime of this node, with the most sealed form that works; null where none does. */
export async function probeContainer(options: ProbeOptions): Promise<Runtime | null> {
  const { log, folder, binds } = options
  const env = {
    APPTAINER_CONFIGDIR: join(folder, 'config'),
    SINGULARITY_CONFIGDIR: join(folder, 'config'),
    ...options.env,
  }
  const seen = new Set<string>()
  for (const binary of options.binaries) {
    // Apptainer goes by both names.
    const real = await realpath(binary).catch(() => binary)
    if (seen.has(real)) continue
    seen.add(real)
    const asked = await execa(binary, ['--version'], { env, extendEnv: false, reject: false, timeout: 20_000 })
    if (asked.failed) {
      log.info({ binary, detail: asked.shortMessage }, 'container.absent')
      continue
    }
    const version = String(asked.stdout).trim()
    const call = async (isolation: readonly string[], image: string, ...more: string[]): Promise<Tried> => {
      const borrowed = image === options.probeImage ? [] : HOST_PROGRAMS
      const fixed = containerArguments({ isolation, binds }, /apptainer/.test(version))
      const unpack = join(folder, 'unpacked')
      await mkdir(unpack, { recursive: true, mode: 0o700 })
      const startMs = performance.now()
      const { failed, stderr, shortMessage } = await execa(
        binary,
        ['exec', ...fixed, ...more, ...borrowed, image, '/bin/true'],
        {
          env: { APPTAINER_TMPDIR: unpack, SINGULARITY_TMPDIR: unpack, ...env },
          extendEnv: false,
          reject: false,
          timeout: TRY_MS,
        },
      )
      await rm(unpack, { recursive: true, force: true }).catch(() => {})
      const said = String(stderr) || shortMessage || ''
      return { ok: !failed, said, ms: Math.round(performance.now() - startMs) }
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
      log.info({ binary, version, isolation, ms: tried.ms, sif: sif.how, why: sif.why }, 'container.found')
      return containerRuntime({ binary, version, isolation, sif, binds, env })
    }
  }
  return null
}

interface Tried {
  ok: boolean
  said: string
  ms: number
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
