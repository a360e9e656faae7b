/**
 * `indraft doctor`: what this machine has of what Indraft needs, and what to do about the rest. Changes nothing, starts
 * nothing that stays, and needs no central.
 */
import { execFile } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { freemem, totalmem } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { Command } from 'commander'
import { diskOf, fsyncsPerSecond, nearestExisting } from '../../shared/disk.ts'
import { formatBytes } from '../../shared/quantity.ts'
import { searchFolders } from '../../shared/servers/config.ts'
import { locateServer, type ServerName } from '../../shared/servers/locate.ts'
import { freePort } from '../../shared/servers/process.ts'
import { loadUpConfig } from './up/config.ts'

const run = promisify(execFile)

export interface Check {
  name: string
  state: 'ok' | 'warn' | 'fail'
  found: string
  /** What to do about it; null where nothing has to be done. */
  advice: string | null
}

/** What a disk that waits for its platters does. */
const SLOW_FSYNCS_PER_SECOND = 100
const LEAST_FREE_BYTES = 1e9
const LEAST_MEMORY_BYTES = 1e9
const CLOCK_STEP_LIMIT_S = 60

export async function examine(options: { home: string; redisServer: string | null; natsServer: string | null }) {
  const folder = nearestExisting(options.home)
  return [
    nodeVersion(),
    ...(await Promise.all([server('redis-server', options.redisServer), server('nats-server', options.natsServer)])),
    await loopback(),
    fileSystem(folder),
    fsyncRate(folder),
    memory(),
    await apptainer(),
    await userNamespaces(),
    await clock(),
  ]
}

function check(name: string, state: Check['state'], found: string, advice: string | null = null): Check {
  return { name, state, found, advice }
}

function nodeVersion(): Check {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  const isNew = major > 22 || (major === 22 && minor >= 18)
  return check(
    'node',
    isNew ? 'ok' : 'fail',
    `${process.version} (${process.execPath})`,
    isNew ? null : 'run "npm ci": it brings a newer Node along',
  )
}

async function server(name: ServerName, explicit: string | null): Promise<Check> {
  try {
    const { version, path, how } = await locateServer(name, { explicit, fetch: false })
    return check(name, 'ok', `${version}, ${how}: ${path}`)
  } catch (error) {
    const canFetch = existsSync('/usr/bin/apt-get')
    const [first, ...rest] = (error as Error).message.split('\n')
    if (canFetch && explicit === null) {
      return check(name, 'warn', 'not installed', '"indraft up" fetches it without root; or install it yourself')
    }
    return check(name, 'fail', first!, rest.join('\n') || null)
  }
}

async function loopback(): Promise<Check> {
  try {
    const port = await freePort()
    return check('ports', 'ok', `free ones can be had on 127.0.0.1 (${port})`)
  } catch (error) {
    return check('ports', 'fail', `127.0.0.1: ${(error as Error).message}`, 'the loopback interface has to be up')
  }
}

function fileSystem(folder: string): Check {
  const { kind, type, freeBytes } = diskOf(folder)
  const free = `${formatBytes(freeBytes)} free`
  if (kind === 'network') {
    const advice = 'keep state on a local disk: --home /local/path'
    return check('state folder', 'warn', `${folder} is on ${type}, ${free}`, advice)
  }
  if (kind === 'memory') {
    const advice = 'it is gone after a reboot: --home on a disk'
    return check('state folder', 'warn', `${folder} is on ${type}, ${free}`, advice)
  }
  const isShort = freeBytes < LEAST_FREE_BYTES
  return check('state folder', isShort ? 'warn' : 'ok', `${folder}, ${free}`, isShort ? 'make room there' : null)
}

function fsyncRate(folder: string): Check {
  try {
    const rate = fsyncsPerSecond(folder)
    const isSlow = rate < SLOW_FSYNCS_PER_SECOND
    const advice = isSlow ? 'results wait for the disk: one with power-loss protection, or an SSD, helps' : null
    return check('disk', isSlow ? 'warn' : 'ok', `${rate} fsyncs a second in ${folder}`, advice)
  } catch (error) {
    return check('disk', 'fail', (error as Error).message, 'give a folder that can be written: --home')
  }
}

function memory(): Check {
  const isShort = totalmem() < LEAST_MEMORY_BYTES
  const found = `${formatBytes(totalmem())}, ${formatBytes(freemem())} free`
  return check('memory', isShort ? 'warn' : 'ok', found, isShort ? 'start fewer pilots' : null)
}

async function apptainer(): Promise<Check> {
  for (const name of ['apptainer', 'singularity']) {
    const path = searchFolders()
      .map((folder) => join(folder, name))
      .find((candidate) => existsSync(candidate))
    if (!path) continue
    try {
      return check('apptainer', 'ok', `${(await run(path, ['--version'])).stdout.trim()} (${path})`)
    } catch (error) {
      return check(
        'apptainer',
        'warn',
        `${path} does not run: ${(error as Error).message.split('\n')[0]}`,
        'mend it, or remove it',
      )
    }
  }
  const advice = 'only tasks with "image: host" run here; install apptainer for containers'
  return check('apptainer', 'warn', 'not installed', advice)
}

/** Apptainer without setuid needs them. */
async function userNamespaces(): Promise<Check> {
  try {
    await run('unshare', ['--user', '--map-root-user', 'true'])
    return check('user namespaces', 'ok', process.getuid?.() === 0 ? 'can be made (by root)' : 'can be made')
  } catch (error) {
    const reason = (error as { stderr?: string }).stderr?.trim().split('\n')[0] || 'not allowed'
    const limit = readNumber('/proc/sys/user/max_user_namespaces')
    const advice =
      limit === 0
        ? 'sysctl user.max_user_namespaces=15000 (as root), or a setuid apptainer'
        : 'ask your system administrator, or use a setuid apptainer'
    return check('user namespaces', 'warn', reason, advice)
  }
}

/** Durations are what the protocol carries, so a wrong clock does harm only to signatures and to people. */
async function clock(): Promise<Check> {
  const now = new Date()
  const built = new Date('2026-01-01T00:00:00Z')
  if (now < built)
    return check('time', 'fail', now.toISOString(), 'set the clock: signatures would look as if from the future')
  try {
    const { stdout } = await run('timedatectl', ['show', '--property=NTPSynchronized', '--value'])
    const isSynchronised = stdout.trim() === 'yes'
    const advice = isSynchronised
      ? null
      : `keep it within ${CLOCK_STEP_LIMIT_S} s of true time (chrony, systemd-timesyncd)`
    return check(
      'time',
      isSynchronised ? 'ok' : 'warn',
      `${now.toISOString()}${isSynchronised ? '' : ', not synchronised'}`,
      advice,
    )
  } catch {
    return check('time', 'ok', `${now.toISOString()} (whether it is synchronised cannot be told here)`)
  }
}

function readNumber(path: string): number | undefined {
  try {
    return Number(readFileSync(path, 'utf8'))
  } catch {
    return undefined
  }
}

export function registerDoctor(program: Command): void {
  program
    .command('doctor')
    .description('check what this machine has of what Indraft needs')
    .option('--home <folder>', 'folder whose disk is examined (default: ~/.indraft)')
    .option('--redis-server <path>', 'a redis-server to examine')
    .option('--nats-server <path>', 'a nats-server to examine')
    .option('--json', 'print JSON')
    .addHelpText('after', '\nExamples:\n  indraft doctor\n  indraft doctor --home /scratch/me/indraft --json')
    .action(async (options: Record<string, unknown>, command: Command) => {
      const { json, ...settings } = { ...command.parent?.opts(), ...options } as Record<string, unknown>
      const { home, redisServer, natsServer } = settings
      const checks = await examine(loadUpConfig({ home, redisServer, natsServer }))
      if (json) console.log(JSON.stringify(checks, null, 2))
      else for (const line of checks.flatMap(shown)) console.log(line)
      process.exitCode = checks.some(({ state }) => state === 'fail') ? 1 : 0
    })
}

function shown({ name, state, found, advice }: Check): string[] {
  const head = `${state.padEnd(4)}  ${name.padEnd(16)} ${found}`
  return advice === null ? [head] : [head, ...advice.split('\n').map((line) => `${' '.repeat(23)}${line}`)]
}
