/**
 * Finds a server program: by explicit path, then on PATH, then in the private cache, and last by fetching it into that
 * cache (debian.ts). What is returned has been run once with --version. Never needs root, never installs anything into
 * the system. Any program may use it; it says what it does through `say`.
 */
import { execFile } from 'node:child_process'
import { accessSync, constants, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { IndraftError } from '../errors.ts'
import { searchFolders, serverCacheFolder, serverEnvironment } from './config.ts'
import { fetchServer } from './debian.ts'

const run = promisify(execFile)

export type ServerName = 'redis-server' | 'nats-server'

export interface Server {
  path: string
  /** To be added to the environment it is started with (its libraries, when fetched). */
  env: Readonly<Record<string, string>>
  version: string
  how: 'given' | 'on the path' | 'cached' | 'fetched'
}

export interface LocateOptions {
  /** A path that a person gave: it has to work, nothing else is tried. */
  explicit?: string | null | undefined
  cacheDir?: string | undefined
  /** false looks only at what is here. Default true. */
  fetch?: boolean | undefined
  /** Folders searched instead of PATH and its usual companions. */
  folders?: readonly string[] | undefined
  /** Gets one line per thing done or passed over. */
  say?: ((line: string) => void) | undefined
}

/** What is too old to be used, and the names a server goes by. Valkey speaks Redis' protocol and scripts. */
export const SERVERS = {
  'redis-server': { minimum: '6.2.0', names: ['redis-server', 'valkey-server'] },
  'nats-server': { minimum: '2.10.0', names: ['nats-server'] },
} as const satisfies Record<ServerName, { minimum: string; names: readonly string[] }>

/** @throws IndraftError server.missing with the commands that would mend it */
export async function locateServer(name: ServerName, options: LocateOptions = {}): Promise<Server> {
  const say = options.say ?? (() => {})
  if (options.explicit) {
    const found = await tryServer(name, options.explicit, {})
    if (typeof found === 'string') throw new IndraftError('server.missing', `${options.explicit}: ${found}`)
    return { ...found, how: 'given' }
  }
  for (const folder of options.folders ?? searchFolders()) {
    for (const program of SERVERS[name].names) {
      const path = join(folder, program)
      if (!isExecutable(path)) continue
      const found = await tryServer(name, path, {})
      if (typeof found !== 'string') return { ...found, how: 'on the path' }
      say(`${path} is passed over: ${found}`)
    }
  }
  const cacheDir = options.cacheDir ?? serverCacheFolder()
  const cached = await fromCache(name, cacheDir, say)
  if (cached) return cached
  const writable = usableCache(cacheDir, options.cacheDir === undefined)
  if (writable !== cacheDir) {
    say(`${cacheDir} cannot be written: using ${writable}`)
    const there = await fromCache(name, writable, say)
    if (there) return there
  }
  if (options.fetch === false) throw new IndraftError('server.missing', advice(name, 'it is not installed'))
  const why = await fetchServer(name, SERVERS[name].minimum, writable, say)
  const fetched = await fromCache(name, writable, say)
  if (!fetched) throw new IndraftError('server.missing', advice(name, why ?? 'what was fetched does not run'))
  return { ...fetched, how: 'fetched' }
}

/** Runs `--version`. Returns what is wrong as text. */
async function tryServer(
  name: ServerName,
  path: string,
  env: Record<string, string>,
): Promise<Omit<Server, 'how'> | string> {
  let shown: string
  try {
    shown = (await run(path, ['--version'], { env: serverEnvironment(env), timeout: 10_000 })).stdout
  } catch (error) {
    return `it does not run (${String((error as Error).message)
      .split('\n')
      .slice(0, 3)
      .join(' ')
      .trim()})`
  }
  const version = /v=?(\d+\.\d+\.\d+)/.exec(shown)?.[1]
  if (!version) return 'its version cannot be read'
  const { minimum } = SERVERS[name]
  if (compareVersions(version, minimum) < 0) return `${version} is too old, ${minimum} or newer is needed`
  return { path, env, version }
}

/** The newest cached one that runs; broken ones are thrown away so that they are fetched again. */
async function fromCache(name: ServerName, cacheDir: string, say: (line: string) => void): Promise<Server | null> {
  let folders: string[]
  try {
    folders = readdirSync(cacheDir).filter((entry) => entry.startsWith(cacheEntry(name, '')))
  } catch {
    return null
  }
  folders.sort(compareVersions).reverse()
  for (const folder of folders.map((entry) => join(cacheDir, entry))) {
    const found = await tryServer(name, ...placesIn(folder, name))
    if (typeof found !== 'string') return { ...found, how: 'cached' }
    say(`${folder} is thrown away: ${found}`)
    rmSync(folder, { recursive: true, force: true })
  }
  return null
}

/** Where a Debian package keeps the program, and the libraries that were unpacked beside it. */
function placesIn(folder: string, name: ServerName): [path: string, env: Record<string, string>] {
  const path = [join(folder, 'usr/bin', name), join(folder, 'usr/sbin', name)].find(isExecutable)
  const libraries: string[] = []
  for (const base of [join(folder, 'usr/lib'), join(folder, 'lib')]) {
    try {
      const triplets = readdirSync(base, { withFileTypes: true }).filter((entry) => /-linux-gnu/.test(entry.name))
      libraries.push(...triplets.map((entry) => join(base, entry.name)))
    } catch {
      // Not every package has libraries.
    }
  }
  return [
    path ?? join(folder, 'usr/bin', name),
    libraries.length > 0 ? { LD_LIBRARY_PATH: libraries.join(':') } : ({} as Record<string, string>),
  ]
}

/**
 * The cache, or where it cannot be written (no home folder) a folder of this user's own in the temporary folder.
 * A folder of that name that somebody else made is refused: programs are going to be run from it.
 */
export function usableCache(cacheDir: string, mayMove: boolean): string {
  const candidates = mayMove ? [cacheDir, join(tmpdir(), `indraft-servers-${process.getuid?.() ?? 0}`)] : [cacheDir]
  for (const folder of candidates) {
    try {
      mkdirSync(folder, { recursive: true, mode: 0o700 })
      accessSync(folder, constants.W_OK)
      const { uid, mode } = statSync(folder)
      if (uid === process.getuid?.() && (mode & 0o022) === 0) return folder
    } catch {
      // The next one.
    }
  }
  throw new IndraftError('server.missing', `no folder to keep servers in: ${candidates.join(' and ')} cannot be used`)
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return statSync(path).isFile()
  } catch {
    return false
  }
}

/** Folder name in the cache. A home folder may be shared by machines of two architectures. */
export function cacheEntry(name: string, version: string): string {
  return `${name}-${process.arch}-${version.replace(/^\d+:/, '').replace(/[^\w.+~-]/g, '_')}`
}

/** Compares the first `major.minor.patch` found in each. */
export function compareVersions(a: string, b: string): number {
  const [left, right] = [a, b].map((text) => (/\d+(\.\d+)+/.exec(text)?.[0] ?? '0').split('.').map(Number))
  for (let i = 0; i < 3; i++) {
    const difference = (left![i] ?? 0) - (right![i] ?? 0)
    if (difference !== 0) return Math.sign(difference)
  }
  return 0
}

function advice(name: ServerName, why: string): string {
  const { minimum } = SERVERS[name]
  const conda =
    name === 'redis-server' ? 'conda install -c conda-forge redis-server' : 'conda install -c conda-forge nats-server'
  const rhel = name === 'redis-server' ? 'dnf install redis' : 'dnf install nats-server   (with EPEL)'
  const suse = name === 'redis-server' ? 'zypper install redis' : 'zypper install nats-server'
  return [
    `${name} ${minimum} or newer is needed: ${why}. Install it by one of`,
    `  Debian, Ubuntu   apt install ${name}`,
    `  RHEL, Alma       ${rhel}`,
    `  SUSE             ${suse}`,
    `  without root     ${conda}`,
    `or name one that you have: --${name} /path/to/${name}`,
  ].join('\n')
}
