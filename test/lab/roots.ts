/**
 * The root folders and images that the lab's centre is made of, built from the machine's own Debian mirror without any
 * container registry and cached outside the checkout, under a name that holds the digest of their recipe: a changed
 * recipe makes a new folder beside the old one, an unchanged one is found again. Whole or absent, never half; a second
 * process that wants the same waits for the first. What nothing has used for a month is removed.
 *
 * `npm run build && node test/lab/roots.ts` builds them all and prints where they are.
 */
import { execFileSync, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { homedir, release } from 'node:os'
import { join, resolve } from 'node:path'
import process from 'node:process'

export const checkout = resolve(import.meta.dirname, '../..')
const deploy = join(checkout, 'deploy/apptainer')

/** The user who owns jobs in the lab; the only account beside the system's. */
export const alice = { name: 'alice', uid: 1000, home: '/shared/home/alice' } as const

/** A root folder from Debian packages; the ones "later" come from Debian's sid, one package each. */
interface Recipe {
  packages: readonly string[]
  later?: readonly string[]
  finish?: string
}

const recipes = {
  /** What every host of the centre runs on: Slurm, munge, Apptainer, and the servers that edge and outside start. */
  site: {
    packages: [
      ...['ca-certificates', 'curl', 'iproute2', 'iputils-ping', 'openssl', 'procps', 'sqlite3', 'uidmap'],
      ...['munge', 'slurmctld', 'slurmd', 'slurm-client'],
      ...['fuse2fs', 'squashfs-tools', 'squashfuse', 'busybox-static'],
      ...['nats-server', 'redis-server'],
    ],
    later: ['apptainer'],
    finish: `groupadd --gid ${alice.uid} ${alice.name}
      useradd --uid ${alice.uid} --gid ${alice.uid} --no-create-home --home-dir ${alice.home} --shell /bin/bash ${alice.name}
      mkdir -p /shared /srv/indraft /var/lib/apptainer/mnt/session
      ln -s /srv/indraft/node_modules/.bin/node /usr/local/bin/node
      ln -s /srv/indraft/central/cli/indraft.mjs /usr/local/bin/indraft
      ln -s /srv/indraft/pilot/indraft-pilot.mjs /usr/local/bin/indraft-pilot`,
  },
  /** A payload's image: LAMMPS as Debian has it, and Python to merge and plot what it prints. */
  lammps: { packages: ['lammps', 'python3-minimal'], finish: 'mkdir -p /work /shared /scratch' },
  /** The smallest image there is: one static busybox. */
  busybox: {
    packages: ['busybox-static'],
    finish: `mkdir -p /image/bin /image/etc /image/proc /image/sys /image/dev /image/tmp /image/work /image/shared
      for name in $(busybox --list); do ln -sf busybox /image/bin/$name; done
      cp --remove-destination /usr/bin/busybox /image/bin/busybox
      printf 'root:x:0:0::/:/bin/sh\\n' >/image/etc/passwd; printf 'root:x:0:\\n' >/image/etc/group
      touch /image/etc/hosts /image/etc/resolv.conf /image/etc/localtime`,
  },
} as const satisfies Record<string, Recipe>

/** Paths on this machine. `lammps`, `pilot` and `relay` are unpacked image folders, `busybox` is one SIF file. */
export interface Roots {
  site: string
  lammps: string
  pilot: string
  relay: string
  busybox: string
  /**
   * What deploy/apptainer/pilot.def and relay.def make of a Debian of ours: a registry's base, which they start from, cannot
   * be had here, so it is stood in for by a root with the same Node at the same place.
   */
  pilotByDefinition: string
  relayByDefinition: string
}

export type Progress = (line: string) => void

/** The folder all of it is kept in. */
export function cacheFolder(): string {
  return join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'indraft', 'lab')
}

/** What a machine has to be to hold a lab. */
export interface Machine {
  platform: string
  arch: string
  /** Undefined where there are no users. */
  user: number | undefined
  /** The text of /etc/os-release. */
  system: string
  /** The text of /proc/filesystems, and of this kernel's modules.dep: those that root's first mount loads. */
  filesystems: string
  modules: string
}

function thisMachine(): Machine {
  const textOf = (path: string) => (existsSync(path) ? readFileSync(path, 'utf8') : '')
  return {
    platform: process.platform,
    arch: process.arch,
    user: process.getuid?.(),
    system: textOf('/etc/os-release'),
    filesystems: textOf('/proc/filesystems'),
    modules: textOf(`/lib/modules/${release()}/modules.dep`),
  }
}

/** Why this machine cannot hold a lab, in a sentence for a person, or null when it can. */
export function whyNoLab(machine: Machine = thisMachine()): string | null {
  if (machine.platform !== 'linux') return 'the lab needs Linux'
  if (machine.user !== 0) return 'the lab needs root: it makes network namespaces and Debian root folders'
  // Not its derivatives: their mirrors have other suites.
  if (!/^ID="?debian"?$/m.test(machine.system))
    return "the lab needs Debian: it builds its hosts from this machine's apt mirror"
  if (machine.arch !== 'x64' && machine.arch !== 'arm64') return `the lab has no images for ${machine.arch}`
  if (!machine.filesystems.includes('\toverlay\n') && !machine.modules.includes('/overlay.ko'))
    return 'the lab needs the overlay file system in this kernel'
  return null
}

/**
 * Builds what is missing; nothing but a look at the cache when all is there.
 * @throws Error with the builder's last lines when a root cannot be built
 */
export async function buildRoots(progress: Progress = () => {}): Promise<Roots> {
  const cache = cacheFolder()
  mkdirSync(cache, { recursive: true })
  const base = join(cache, `base-${digest('debian-root.sh')}`)
  const fromRecipe = async (name: keyof typeof recipes): Promise<string> => {
    const recipe: Recipe = recipes[name]
    const folder = join(cache, `${name}-${digest('debian-root.sh', JSON.stringify(recipe))}`)
    if (isThere(folder)) return folder
    await build([join(deploy, 'debian-root.sh'), base], cache, progress)
    const { packages, later = [], finish = '' } = recipe
    const wanted = ['--packages', packages.join(' '), '--later-packages', later.join(' '), '--finish', finish]
    await build([join(deploy, 'debian-root.sh'), folder, '--base', base, ...wanted], cache, progress)
    return folder
  }
  const site = await fromRecipe('site')
  const lammps = await fromRecipe('lammps')

  const packaged = join(checkout, 'node_modules/.bin/node')
  const node = existsSync(packaged) ? packaged : process.execPath
  const version = execFileSync(node, ['--version'], { encoding: 'utf8' })
  const ofOurs = async (name: 'pilot' | 'relay'): Promise<string> => {
    const file = name === 'pilot' ? 'indraft-pilot.mjs' : 'indraft.mjs'
    const program = readFileSync(join(checkout, 'dist', file))
    const built = join(cache, `${name}-${digest('debian-root.sh', 'build-without-registry.sh', version)}`)
    const folder = `${built}-${digest(program)}`
    if (isThere(folder)) return folder
    if (!isThere(built)) {
      await build([join(deploy, 'debian-root.sh'), base], cache, progress)
      await build(
        [join(deploy, 'build-without-registry.sh'), name, built, '--base', base, '--node', node],
        cache,
        progress,
      )
    }
    // With the program of now: the same files by hard links, but for that one.
    const making = `${folder}.making-${process.pid}`
    rmSync(making, { recursive: true, force: true })
    await build(['cp', '-al', built, making], cache, progress)
    const place = join(making, 'opt/indraft', file)
    rmSync(place)
    writeFileSync(place, program, { mode: 0o755 })
    if (existsSync(folder)) rmSync(making, { recursive: true })
    else renameSync(making, folder)
    return folder
  }
  const pilot = await ofOurs('pilot')
  const relay = await ofOurs('relay')

  const busyboxRoot = await fromRecipe('busybox')
  const busybox = `${busyboxRoot}.sif`
  if (!isThere(busybox)) await packSif(site, join(busyboxRoot, 'image'), busybox, cache, progress)

  const byDefinition = async (name: 'pilot' | 'relay'): Promise<string> => {
    const post = definitionSection(name, 'post')
    const folder = join(cache, `${name}-by-definition-${digest('debian-root.sh', post, version)}`)
    if (isThere(folder)) return folder
    await build([join(deploy, 'debian-root.sh'), base], cache, progress)
    const wanted = ['--base', base, '--put', `${node} /usr/local/bin/node`, '--finish', post]
    // A definition throws its downloads away; those that others keep are not to go with them.
    const own = ['--cache', join(cache, 'packages-by-definition')]
    await build([join(deploy, 'debian-root.sh'), folder, ...wanted, ...own], cache, progress)
    return folder
  }
  const pilotByDefinition = await byDefinition('pilot')
  const relayByDefinition = await byDefinition('relay')
  return { site, lammps, pilot, relay, busybox, pilotByDefinition, relayByDefinition }
}

/** Whether it is in the cache, where it is now used. */
function isThere(path: string): boolean {
  if (!existsSync(path)) return false
  const now = new Date()
  utimesSync(path, now, now)
  return true
}

const DAY_MS = 86_400_000
/** What the lab makes in its cache: what a second makes anew, or an interrupted run left, goes sooner. */
const MADE = [
  { names: /^(pilot|relay)-[0-9a-f]{12}-[0-9a-f]{12}(\.making-\d+)?$|^sif-\w{6}$|\.removing$/, keepMs: DAY_MS },
  {
    names: /^(base|site|lammps|busybox|(pilot|relay)(-by-definition)?)-[0-9a-f]{12}(\.sif|\.building)?$/,
    keepMs: 30 * DAY_MS,
  },
] as const

/** Removes of that what nothing has used for so long. */
export function removeUnused(cache: string, nowMs = Date.now()): void {
  for (const name of readdirSync(cache)) {
    const made = MADE.find(({ names }) => names.test(name))
    const path = join(cache, name)
    const changedMs = statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? nowMs
    if (!made || nowMs - changedMs < made.keepMs) continue
    // Never half there under its name.
    const going = name.endsWith('.removing') ? path : `${path}.removing`
    if (going !== path) renameSync(path, going)
    rmSync(going, { recursive: true, force: true })
  }
}

/** One section of an Apptainer definition, as it stands. */
export function definitionSection(name: 'pilot' | 'relay', section: string): string {
  const text = readFileSync(join(deploy, `${name}.def`), 'utf8')
  const found = new RegExp(`^%${section}\\n(.*?)(?=^%|$(?![\\s\\S]))`, 'ms').exec(text)?.[1]
  if (found === undefined) throw new Error(`lab: ${name}.def has no section %${section}`)
  return found
}

/** One SIF file of an image folder, packed as an ordinary user by the Apptainer of the site's own root. */
async function packSif(site: string, image: string, sif: string, cache: string, progress: Progress): Promise<void> {
  const work = mkdtempSync(join(cache, 'sif-'))
  try {
    mkdirSync(join(work, 'out'))
    mkdirSync(join(work, 'stage'))
    chmodSync(join(work, 'out'), 0o777)
    const asUser = ['setpriv', '--reuid', String(alice.uid), '--regid', String(alice.uid), '--clear-groups']
    const namespaces = ['--mount', '--uts', '--net', '--ipc', '--pid', '--fork', '--kill-child']
    const pack = [
      'env',
      'HOME=/tmp',
      'APPTAINER_MESSAGELEVEL=warning',
      'apptainer',
      'build',
      '/out/image.sif',
      '/image',
    ]
    await build(
      ['unshare', ...namespaces, join(import.meta.dirname, 'host.sh'), 'sif', site, ...asUser, ...pack],
      cache,
      progress,
      { LAB_STAGE: join(work, 'stage'), LAB_BINDS: `${image} /image ro\n${join(work, 'out')} /out rw` },
    )
    renameSync(join(work, 'out/image.sif'), sif)
    progress(`${sif} is ready`)
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}

/** The first 12 digits over the builders' own text and what else makes the result what it is. */
function digest(...parts: readonly (string | Buffer)[]): string {
  const hash = createHash('sha256').update(process.arch)
  for (const part of parts) {
    hash.update('\0').update(typeof part === 'string' && part.endsWith('.sh') ? readFileSync(join(deploy, part)) : part)
  }
  return hash.digest('hex').slice(0, 12)
}

function build(
  argv: readonly string[],
  cache: string,
  progress: Progress,
  env: Record<string, string> = {},
): Promise<void> {
  const [program = '', ...args] = argv
  const own = program.startsWith(deploy) && !args.includes('--cache') ? ['--cache', join(cache, 'packages')] : []
  return new Promise((done, fail) => {
    const child = spawn(program, [...args, ...own], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...env },
    })
    let tail = ''
    let partial = ''
    const take = (text: string) => {
      tail = (tail + text).slice(-4000)
      const lines = (partial + text).split('\n')
      partial = lines.pop() ?? ''
      for (const line of lines) progress(line)
    }
    child.stdout.setEncoding('utf8').on('data', take)
    child.stderr.setEncoding('utf8').on('data', take)
    child.on('error', fail)
    child.on('close', (code, signal) => {
      if (code === 0) return done()
      fail(new Error(`lab: ${program} ended with ${signal ?? code}:\n${tail}`))
    })
  })
}

if (import.meta.main) {
  const reason = whyNoLab()
  if (reason) {
    console.error(`lab: ${reason}`)
    process.exit(77)
  }
  console.log(JSON.stringify(await buildRoots((line) => console.error(line)), null, 2))
}
