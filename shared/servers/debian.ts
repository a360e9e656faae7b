/**
 * Fetches a server's packages from the machine's own Debian or Ubuntu mirror and unpacks them into a private folder:
 * apt with lists, cache and sources of its own, then dpkg -x. Nothing of the system is changed and no root is needed.
 *
 * What always holds: the final folder appears by one rename, complete or not at all, so that fetches side by side and
 * a fetch cut short do no harm. Called by locate.ts only.
 */
import { execFile } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { cacheEntry, compareVersions, type ServerName } from './locate.ts'

const run = promisify(execFile)
const UPDATE_TIMEOUT_MS = 180_000
const ABANDONED_AFTER_MS = 3_600_000

/** Per distribution: newer suites whose nats-server runs on older systems (a static Go program), parts, keyring. */
const DISTRIBUTIONS = {
  debian: {
    newerSuites: ['trixie', 'sid'],
    components: 'main',
    keyrings: ['/usr/share/keyrings/debian-archive-keyring.gpg', '/usr/share/keyrings/debian-archive-keyring.pgp'],
  },
  ubuntu: {
    newerSuites: ['noble', 'questing', 'resolute'],
    components: 'main universe',
    keyrings: ['/usr/share/keyrings/ubuntu-archive-keyring.gpg'],
  },
} as const

/** Libraries that every system of the suite has; fetched only where they are missing. */
const BASE_LIBRARIES = /^(libc6|libgcc-s1|libstdc\+\+6|libsystemd0|libssl\d.*)$/

interface Release {
  id: keyof typeof DISTRIBUTIONS
  codename: string
}

/** Also libraries that tests preload. */
export type PackageName = ServerName | 'libfaketime'

/** @returns why nothing could be fetched, or undefined when the cache has it now */
export async function fetchServer(
  name: PackageName,
  minimum: string,
  cacheDir: string,
  say: (line: string) => void,
): Promise<string | undefined> {
  removeAbandoned(cacheDir)
  const release = readRelease()
  if (!release) return 'it is not installed, and only Debian and Ubuntu packages can be fetched without root'
  const mirrors = await findMirrors(release)
  if (mirrors.length === 0) return `it is not installed, and no ${release.id} mirror is configured for apt here`
  const failures: string[] = []
  for (const suite of await suitesFor(name, minimum, release)) {
    for (const mirror of mirrors) {
      say(`fetching ${name} of ${release.id} ${suite} from ${mirror} (once; kept in ${cacheDir})`)
      const startMs = performance.now()
      const failure = await fetchFrom(name, minimum, { mirror, suite, release, cacheDir })
      if (failure === undefined) {
        say(`fetched ${name} in ${((performance.now() - startMs) / 1000).toFixed(1)} s`)
        return undefined
      }
      say(`${name} of ${suite}: ${failure}`)
      failures.push(`${suite}: ${failure}`)
    }
  }
  return `it is not installed, and fetching it failed (${failures.join('; ')})`
}

interface Source {
  mirror: string
  suite: string
  release: Release
  cacheDir: string
}

async function fetchFrom(name: PackageName, minimum: string, source: Source): Promise<string | undefined> {
  const work = mkdtempSync(join(source.cacheDir, '.fetch-'))
  try {
    const apt = makeApt(work, source)
    // Its exit status also speaks about hooks of the system that an ordinary user cannot run: what counts is whether
    // the package is known afterwards.
    const update = await attempt('apt-get', [...apt, '-qq', 'update'], work)
    const version = candidateVersion((await attempt('apt-cache', [...apt, 'policy', name], work)).text)
    if (!version) return `not found there (${lastLine(update.text) || 'no package of that name'})`
    if (compareVersions(version.replace(/^\d+:/, ''), minimum) < 0) return `${version} is too old`
    const packages = [name, ...(await neededPackages(name, apt, work))]
    const debs = join(work, 'debs')
    mkdirSync(debs)
    const download = await attempt('apt-get', [...apt, '-qq', 'download', ...packages], debs)
    const files = readdirSync(debs).filter((file) => file.endsWith('.deb'))
    if (files.length < packages.length) return `download failed (${lastLine(download.text)})`
    const root = join(work, 'root')
    mkdirSync(root)
    for (const file of files) {
      const unpack = await attempt('dpkg-deb', ['-x', join(debs, file), root], work)
      if (!unpack.ok) return `unpacking ${file} failed (${lastLine(unpack.text)})`
    }
    const final = join(source.cacheDir, cacheEntry(name, version))
    try {
      renameSync(root, final)
    } catch (error) {
      // Somebody else fetched the same version meanwhile: theirs is as good.
      if (!existsSync(final)) throw error
    }
    return undefined
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}

/** Options that keep apt within `work`. Proxies and the like of the system's apt.conf stay in force. */
function makeApt(work: string, { mirror, suite, release }: Source): string[] {
  for (const folder of ['lists/partial', 'cache/archives/partial']) mkdirSync(join(work, folder), { recursive: true })
  const { components, keyrings } = DISTRIBUTIONS[release.id]
  const keyring = keyrings.find((path) => existsSync(path))
  const signedBy = keyring ? `[signed-by=${keyring}] ` : ''
  writeFileSync(join(work, 'sources.list'), `deb ${signedBy}${mirror} ${suite} ${components}\n`)
  const settings = {
    'Dir::State::Lists': join(work, 'lists'),
    'Dir::Cache': join(work, 'cache'),
    'Dir::Etc::sourcelist': join(work, 'sources.list'),
    'Dir::Etc::sourceparts': '/dev/null',
    'Dir::Etc::preferencesparts': '/dev/null',
    'Debug::NoLocking': '1',
    'APT::Sandbox::User': '',
    'Acquire::Languages': 'none',
    'Acquire::Retries': '2',
  }
  return Object.entries(settings).flatMap(([key, value]) => ['-o', `${key}=${value}`])
}

/** The libraries and parts that redis-server depends on; nats-server is one static program. */
async function neededPackages(name: PackageName, apt: string[], cwd: string): Promise<string[]> {
  if (name !== 'redis-server') return []
  const beside = ['redis-tools']
  const depends = await attempt('apt-cache', [...apt, 'depends', '--important', name, ...beside], cwd)
  const named = [...depends.text.matchAll(/^\s+\|?(?:Pre)?Depends: ([\w.+-]+)/gm)].map((match) => match[1]!)
  const libraries = [...new Set(named)].filter((depend) => /^(lib|lua-)/.test(depend))
  const wanted: string[] = []
  for (const library of libraries) {
    if (!BASE_LIBRARIES.test(library) || !(await isInstalled(library, cwd))) wanted.push(library)
  }
  return [...beside, ...wanted]
}

async function isInstalled(name: string, cwd: string): Promise<boolean> {
  return (await attempt('dpkg-query', ['-s', name], cwd)).text.includes('Status: install ok installed')
}

/**
 * The machine's own suite first, unless its own lists say that its version is too old; then, for the static
 * nats-server, newer suites.
 */
async function suitesFor(name: PackageName, minimum: string, release: Release): Promise<string[]> {
  const known = candidateVersion((await attempt('apt-cache', ['policy', name], '/')).text)
  const ownIsTooOld = known !== undefined && compareVersions(known.replace(/^\d+:/, ''), minimum) < 0
  const newer = name === 'nats-server' ? DISTRIBUTIONS[release.id].newerSuites : []
  return [...new Set([...(ownIsTooOld && newer.length > 0 ? [] : [release.codename]), ...newer])]
}

function candidateVersion(policy: string): string | undefined {
  const version = /^\s+Candidate: (\S+)/m.exec(policy)?.[1]
  return version === '(none)' ? undefined : version
}

function readRelease(): Release | undefined {
  let text: string
  try {
    text = readFileSync('/etc/os-release', 'utf8')
  } catch {
    return undefined
  }
  const value = (key: string) => new RegExp(`^${key}="?([^"\\n]*)"?$`, 'm').exec(text)?.[1]
  const id = (['debian', 'ubuntu'] as const).find((known) => known === value('ID'))
  const codename = value('VERSION_CODENAME')
  return id && codename && existsSync('/usr/bin/apt-get') ? { id, codename } : undefined
}

/** Repository addresses that apt uses for this release: by its own word, or from its source files. */
async function findMirrors(release: Release): Promise<string[]> {
  const targets = (await attempt('apt-get', ['indextargets', '--format', '$(RELEASE) $(REPO_URI)'], '/')).text
  const lines = targets.split('\n').map((line) => line.trim().split(' '))
  const known = lines.filter(([suite]) => suite === release.codename).map(([, uri]) => uri!)
  return [...new Set(known.length > 0 ? known : mirrorsInSources(release))]
}

/** For systems whose package lists were removed (container images): apt then names no targets. */
function mirrorsInSources(release: Release): string[] {
  const folder = '/etc/apt/sources.list.d'
  const files = [
    '/etc/apt/sources.list',
    ...(existsSync(folder) ? readdirSync(folder).map((f) => join(folder, f)) : []),
  ]
  const found: string[] = []
  for (const file of files.filter((path) => existsSync(path) && statSync(path).isFile())) {
    const text = readFileSync(file, 'utf8').replace(/^\s*#.*$/gm, '')
    if (file.endsWith('.sources')) {
      for (const stanza of text.split(/\n\s*\n/)) {
        const suites = /^Suites:(.*)$/im.exec(stanza)?.[1]?.trim().split(/\s+/) ?? []
        if (suites.includes(release.codename))
          found.push(...(/^URIs:(.*)$/im.exec(stanza)?.[1]?.trim().split(/\s+/) ?? []))
      }
    } else {
      for (const [, uri, suite] of text.matchAll(/^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)/gm)) {
        if (suite === release.codename) found.push(uri!)
      }
    }
  }
  return found
}

/** Fetches that were killed leave their work folder behind. */
function removeAbandoned(cacheDir: string): void {
  for (const entry of readdirSync(cacheDir)) {
    const path = join(cacheDir, entry)
    if (entry.startsWith('.fetch-') && Date.now() - statSync(path).mtimeMs > ABANDONED_AFTER_MS) {
      rmSync(path, { recursive: true, force: true })
    }
  }
}

async function attempt(command: string, args: string[], cwd: string): Promise<{ ok: boolean; text: string }> {
  try {
    const { stdout, stderr } = await run(command, args, { cwd, timeout: UPDATE_TIMEOUT_MS, maxBuffer: 64 * 2 ** 20 })
    return { ok: true, text: `${stdout}\n${stderr}` }
  } catch (error) {
    const { stdout = '', stderr = '', message } = error as Error & { stdout?: string; stderr?: string }
    return { ok: false, text: `${stdout}\n${stderr || message}` }
  }
}

function lastLine(text: string): string {
  const lines = text.split('\n').map((line) => line.trim())
  return (lines.findLast((line) => /^E:/.test(line)) ?? lines.findLast(Boolean) ?? '').slice(0, 200)
}
