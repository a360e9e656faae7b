/**
 * `indraft-pilot doctor --edge`: the machine that has the relay, or the ticks of `indraft-pilot start`, or both. Starts
 * nothing, changes nothing, and asks Slurm one question (squeue).
 */
import { readFile, stat } from 'node:fs/promises'
import { request as plainRequest } from 'node:http'
import { request } from 'node:https'
import { join } from 'node:path'
import { execa } from 'execa'
import { type RelayCredential, readRelayCredential } from '../../shared/credentials.ts'
import { diskOf, fsyncsPerSecond } from '../../shared/disk.ts'
import { IndraftError } from '../../shared/errors.ts'
import { connectNats, natsLink } from '../../shared/link-nats.ts'
import { decode, encode } from '../../shared/protocol/codec.ts'
import type { Message } from '../../shared/protocol/messages.ts'
import { formatBytes, formatDuration } from '../../shared/quantity.ts'
import { locateServer } from '../../shared/servers/locate.ts'
import { foldersOf } from '../start/files.ts'
import { readSiteFile, type SiteFile } from '../start/site-file.ts'
import { bad, type Check, good, warn, wordsOf } from './check.ts'
import { checkPilotCredential, DRAINED, RELAY_ADVICE, unreachable } from './connection.ts'
import { checkClock, checkFolder, checkSecret, findProgram, isThere } from './files.ts'

/** The relay takes no more work below its diskReserve, 256 MiB; images want more. */
const LEAST_FREE_BYTES = 2e9
/** What a disk that waits for its platters does. */
const SLOW_FSYNCS_PER_SECOND = 100
/** Ticks are meant to come once a minute; scrontab and timers may lag. */
const TICK_LATE_MS = 15 * 60_000
const PATIENCE_MS = 10_000

export async function examineEdge(options: { site?: string; relayState?: string }, path: string): Promise<Check[]> {
  return [
    ...(options.relayState === undefined ? [] : await examineRelay(options.relayState)),
    ...(options.site === undefined ? [] : await examineTicks(options.site, path)),
  ]
}

async function examineRelay(state: string): Promise<Check[]> {
  const checks: Check[] = []
  try {
    const { kind, type, freeBytes } = diskOf(state)
    const found = `${state}: ${type ?? 'disk'}, ${formatBytes(freeBytes)} free`
    const name = "relay's folder"
    const local = 'a folder on a local disk of this machine: the journal in it is what makes results survive'
    if (kind === 'network') checks.push(bad(name, found, local))
    else if (kind === 'memory') checks.push(warn(name, found, `${local}; in memory they are gone with a reboot`))
    else if (freeBytes < LEAST_FREE_BYTES)
      checks.push(warn(name, found, 'make room: below --disk-reserve no new work is taken'))
    else checks.push(good(name, found))
    const { mode } = await stat(state)
    if ((mode & 0o077) !== 0)
      checks.push(bad('folder is ours alone', `mode ${(mode & 0o777).toString(8)}`, `chmod 700 ${state}`))
    const rate = fsyncsPerSecond(state)
    const slow = 'results wait for the disk: an SSD, or one with power-loss protection, helps'
    const said = `${rate} small durable writes a second`
    checks.push(rate < SLOW_FSYNCS_PER_SECOND ? warn("relay's disk", said, slow) : good("relay's disk", said))
  } catch (error) {
    return [bad("relay's folder", wordsOf(error), 'indraft relay join makes it; run this as the account of the relay')]
  }
  checks.push(await checkNatsServer(), await checkRelayRuns(state), ...(await checkCentre(join(state, 'relay.json'))))
  const pilots = join(state, 'pilot.json')
  if (!(await isThere(pilots))) {
    checks.push(warn('credential', `${pilots} is not there yet`, 'the relay writes it when it starts'))
    return checks
  }
  return [...checks, ...(await checkPilotCredential(pilots, SMALL_SHAPE))]
}

/** For the question what would fit, where no kind of node is known. */
const SMALL_SHAPE: Parameters<typeof checkPilotCredential>[1] = {
  cores: 1,
  memoryBytes: 2 ** 30,
  scratchBytes: 2 ** 30,
  gpus: 0,
  gpuMemoryBytes: 0,
  arch: 'x86_64',
  runtimes: ['host', 'container'],
  network: 'none',
}

const QUESTION = { shape: SMALL_SHAPE, count: 1, timeLeftMs: 3_600_000, aheadMs: 0, node: null }

async function checkNatsServer(): Promise<Check> {
  try {
    const { version, path } = await locateServer('nats-server', { fetch: false })
    return good('nats-server', `${version} (${path})`)
  } catch (error) {
    const found = wordsOf(error).split('. ')[0]!
    return warn(
      'nats-server',
      found,
      'the relay tries to fetch one at its start; or install 2.10 or newer: --nats-server PATH',
    )
  }
}

async function checkRelayRuns(state: string): Promise<Check> {
  const name = 'relay runs'
  const advice = `indraft relay run --state ${state}; cron or systemd keep it alive (deploy/)`
  const pid = Number(await readFile(join(state, 'relay.pid'), 'utf8').catch(() => ''))
  if (!pid) return warn(name, 'no', advice)
  return (await isThere(`/proc/${pid}`))
    ? good(name, `process ${pid}`)
    : warn(name, `no: process ${pid}, which had this folder, is gone`, advice)
}

/** The two addresses of the centre that a relay opens connections to. */
async function checkCentre(path: string): Promise<Check[]> {
  let credential: ReturnType<typeof readRelayCredential>
  try {
    credential = readRelayCredential(path)
  } catch (error) {
    return [bad("relay's credential", wordsOf(error), 'indraft relay join, with a token from the people at the centre')]
  }
  const { site, nats, files } = credential
  const checks = [await checkSecret("relay's credential", path, `site ${site}`)]
  const tls = nats.url.startsWith('tls://') ? ', its certificate is the one expected' : ''
  try {
    const connecting = connectNats(
      {
        url: nats.url,
        name: 'indraft-pilot doctor',
        creds: nats.creds,
        ca: nats.ca ?? undefined,
        inboxPrefix: `_INBOX_${site}`,
      },
      false,
    )
    const link = natsLink(await within(connecting), site)
    try {
      // Whether it hears this site, and not only that it lets it in.
      const reply = decode(await link.request(encode('demand', { offer: [QUESTION] }), PATIENCE_MS))
      if (reply.type === 'refused') throw new IndraftError((reply.body as Message<'refused'>).code)
      checks.push(good('centre, control', `${nats.url}${tls}`))
      if ((reply.body as Message<'demanded'>).reason === 'draining') checks.push(DRAINED)
    } finally {
      await link.close()
    }
  } catch (error) {
    checks.push(unreachable('centre, control', nats.url, error, RELAY_ADVICE))
  }
  try {
    const startMs = performance.now()
    const { date, refusal } = await askFiles(files)
    if (refusal !== null) throw new IndraftError(refusal)
    checks.push(good('centre, files', `${files.url} in ${Math.round(performance.now() - startMs)} ms`))
    if (date !== null) checks.push(checkClock('clock against the centre', date - Date.now()))
  } catch (error) {
    checks.push(unreachable('centre, files', files.url, error, RELAY_ADVICE))
  }
  return checks
}

/** @throws IndraftError link.timeout */
async function within<T extends { close(): Promise<void> }>(connecting: Promise<T>): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>()
  const timer = setTimeout(() => reject(Object.assign(new Error('no answer'), { code: 'link.timeout' })), PATIENCE_MS)
  try {
    return await Promise.race([connecting, promise])
  } catch (error) {
    connecting.then((late) => late.close()).catch(() => {})
    throw error
  } finally {
    clearTimeout(timer)
  }
}

/** No file has this content; whoever may not ask hears that instead. */
const NO_BLOB = `/files/blob/${'0'.repeat(64)}`
const REFUSALS = ['auth.invalid', 'site.disabled'] as const

/** What the server there thinks the time is, to the second (null where it does not say), and whether it refuses us. */
function askFiles({ url, token, ca }: RelayCredential['files']) {
  return new Promise<{ date: number | null; refusal: (typeof REFUSALS)[number] | null }>((resolve, reject) => {
    const headers = { authorization: `Bearer ${token}` }
    const secure = url.startsWith('https:')
    const options = { headers, timeout: PATIENCE_MS, ...(secure && ca !== null ? { ca } : {}), agent: false as const }
    const asked = (secure ? request : plainRequest)(new URL(NO_BLOB, url), options)
    asked.on('timeout', () => asked.destroy(Object.assign(new Error('no answer'), { code: 'ETIMEDOUT' })))
    asked.on('error', reject)
    asked.on('response', (response) => {
      const atMs = Date.parse(response.headers.date ?? '')
      let text = ''
      response.setEncoding('utf8')
      response.on('data', (part: string) => {
        text = (text + part).slice(0, 2000)
      })
      response.on('end', () => {
        const refusal = REFUSALS.find((code) => text.includes(`"${code}"`)) ?? null
        resolve({ date: Number.isNaN(atMs) ? null : atMs, refusal })
      })
    })
    asked.end()
  })
}

async function examineTicks(file: string, path: string): Promise<Check[]> {
  let site: SiteFile
  try {
    site = readSiteFile(file)
  } catch (error) {
    return [bad('site file', wordsOf(error), 'deploy/slurm/site.yaml explains every setting')]
  }
  const checks: Check[] = [good('site file', `${file}: kinds ${Object.keys(site.kinds).join(', ')}`)]
  checks.push(...(await checkFolder("ticks' folder", site.folder, site.starter === 'slurm')))
  const { state, stopFile } = foldersOf(site)
  if (await isThere(stopFile)) {
    const advice = `indraft-pilot stop --site ${file} --resume`
    checks.push(warn('STOP', `${stopFile} is there: nothing starts, pilots leave`, advice))
  }
  checks.push(await checkTicks(state), ...checkAccounts(site))
  if (site.starter === 'slurm') checks.push(...(await checkSlurm(path)))
  const program = site.command[0]!
  const isFound = program.startsWith('/') ? await isThere(program) : (await findProgram(program, path)) !== null
  if (!isFound) {
    const advice = 'command in the site file: a path that the nodes see'
    const found = `${program} is not found on this machine`
    checks.push(
      site.starter === 'local'
        ? bad('command', found, 'command in the site file: the path of indraft-pilot')
        : warn('command', `${found}; is it on the nodes?`, advice),
    )
  }
  const kind = Object.values(site.kinds)[0]!
  const { memory, scratch, gpuMemory, ...rest } = kind.shape
  const shape = { ...rest, memoryBytes: memory, scratchBytes: scratch, gpuMemoryBytes: gpuMemory }
  return [...checks, ...(await checkPilotCredential(site.credential, shape))]
}

async function checkTicks(state: string): Promise<Check> {
  const name = 'ticks'
  const facts = await stat(state).catch(() => null)
  if (!facts) return warn(name, 'none yet', 'indraft-pilot start --site FILE, from cron, scrontab or a timer (deploy/)')
  const agoMs = Math.max(0, Date.now() - facts.mtimeMs)
  const found = `the last one ${formatDuration(Math.round(agoMs / 1000) * 1000)} ago`
  return agoMs < TICK_LATE_MS ? good(name, found) : warn(name, found, 'does cron, scrontab or the timer still call it?')
}

function checkAccounts({ accounts }: SiteFile): Check[] {
  return Object.entries(accounts).flatMap(([name, { until }]) =>
    until === null || until > Date.now()
      ? []
      : [warn('accounts', `${name} ended ${new Date(until).toISOString()}`, 'until in the site file, or take it out')],
  )
}

/** Versions are the programs' own business; the one question is whether the controller answers this account. */
async function checkSlurm(path: string): Promise<Check[]> {
  const programs = ['sbatch', 'squeue', 'scancel']
  const found = await Promise.all(programs.map((program) => findProgram(program, path)))
  const missing = programs.filter((_, i) => found[i] === null)
  if (missing.length > 0) {
    return [
      bad(
        'Slurm',
        `not on PATH: ${missing.join(', ')}`,
        'cron has a short PATH: set it in the crontab; or module load slurm',
      ),
    ]
  }
  const asked = await execa('squeue', ['--me', '-h', '-o', '%i'], {
    timeout: 30_000,
    reject: false,
    env: { PATH: path },
  })
  if (asked.exitCode === 0) {
    return [good('Slurm', `squeue answers; ${asked.stdout.split('\n').filter(Boolean).length} jobs of this account`)]
  }
  const said = (asked.stderr || asked.shortMessage || '').split('\n')[0]!.slice(0, 200)
  return [bad('Slurm', `squeue: ${said}`, 'may this account use Slurm from this machine?')]
}
