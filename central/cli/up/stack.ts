/**
 * The whole of Indraft on one machine: redis, nats, central, a relay for one site, and its pilots, as child processes
 * in this order, each kept alive; ended in the opposite order. All state lies in one folder, and a second start on it
 * goes on where the first stopped, however that one ended. `indraft up`, the demo and whole-product tests use it.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { availableParallelism, totalmem } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { locateServer } from '../../../shared/servers/locate.ts'
import { startNats } from '../../../shared/servers/nats.ts'
import { writePrivately } from '../../../shared/servers/private-file.ts'
import { freePort, type RunningServer } from '../../../shared/servers/process.ts'
import { endRecorded } from '../../../shared/servers/record.ts'
import { startRedis } from '../../../shared/servers/redis.ts'
import { keptCertificate, makeAuthority } from '../../../shared/tls.ts'
import { prepareNatsAccount } from '../../sites/nats-account.ts'
import type { UpConfig } from './config.ts'
import { lockHome } from './home-lock.ts'
import { joinLocalSite } from './join.ts'
import { startProgram } from './program.ts'
import { type RunningPart, Service, type ServiceEvents } from './service.ts'

const HOST = '127.0.0.1'
const MEMORY_SHARE = 0.8
const PORT_TRIES = 4
const STOP_GRACE_MS = { pilot: 12_000, relay: 10_000, central: 10_000 }

export interface Stack {
  apiUrl: string
  /** Central's, without a path. */
  metricsUrl: string
  /** What the command reads: URL, token, authority. */
  clientPath: string
  token: string
  ca: string
  /** In the order of their start: redis, nats, central, relay, pilots. */
  services: readonly Service[]
  service(name: string): Service
  stop(): Promise<void>
}

export interface StackEvents extends ServiceEvents {
  say(line: string): void
}

/** @throws IndraftError server.missing | server.failed | request.invalid; what was started is ended again */
export async function startStack(config: UpConfig, events: StackEvents): Promise<Stack> {
  const home = resolve(config.home)
  const folder = join(home, 'up')
  const unlock = lockHome(folder)
  const services: Service[] = []
  const stop = async () => {
    // Pilots side by side, the rest one after the other: each may still need the one before it.
    const pilots = services.filter(({ name }) => isPilot(name, config.site))
    await Promise.all(pilots.map((service) => service.stop()))
    for (const service of services.toReversed()) await service.stop()
    unlock()
  }
  try {
    const facts = await startServices(config, home, folder, services, events)
    return {
      ...facts,
      services,
      service(name) {
        const found = services.find((service) => service.name === name)
        if (!found) throw new Error(`no service ${name}`)
        return found
      },
      stop,
    }
  } catch (error) {
    await stop()
    throw error
  }
}

/** Removes all state of a home, and ends what still runs on it. @throws IndraftError where an `up` runs there */
export async function clearState(home: string): Promise<void> {
  const folder = join(resolve(home), 'up')
  if (!existsSync(folder)) return
  const unlock = lockHome(folder)
  try {
    for (const entry of readdirSync(folder, { recursive: true, encoding: 'utf8' })) {
      if (entry.endsWith('.pid') && entry !== 'up.pid') await endRecorded(join(folder, entry))
    }
    for (const entry of readdirSync(folder)) {
      if (entry !== 'up.pid') rmSync(join(folder, entry), { recursive: true, force: true })
    }
  } finally {
    unlock()
  }
}

export function pilotName(site: string, number: number): string {
  return `${site}-${number}`
}

function isPilot(name: string, site: string): boolean {
  return name.startsWith(`${site}-`)
}

async function startServices(
  config: UpConfig,
  home: string,
  folder: string,
  services: Service[],
  events: StackEvents,
): Promise<Omit<Stack, 'services' | 'service' | 'stop'>> {
  const { say } = events
  const keep = (name: string, start: (stopping: AbortSignal) => Promise<RunningPart>) => {
    const service = new Service(name, start, events)
    services.push(service)
    return service
  }
  const state = (name: string) => {
    const path = join(folder, name)
    mkdirSync(path, { recursive: true, mode: 0o700 })
    return path
  }
  const runDir = state('run')
  const [redisServer, natsServer] = await Promise.all([
    locateServer('redis-server', { explicit: config.redisServer, say }),
    locateServer('nats-server', { explicit: config.natsServer, say }),
  ])
  const authority = await makeAuthority(state('tls'))
  const certificate = await keptCertificate(authority, state('tls'), 'centre', [HOST, 'localhost'])
  const caPath = join(state('tls'), 'ca.pem')

  // A port once taken is asked for again when the server has to be restarted: the others know it.
  let redisPort = 0
  let redisUrl = ''
  const redis = keep('redis', async () => {
    const server = await startRedis({ dir: state('redis'), ...redisServer, port: redisPort, say })
    redisPort = server.port
    redisUrl = server.url
    return serverPart(server)
  })
  const account = await prepareNatsAccount(join(state('central'), 'nats-account'))
  let natsPort = 0
  let natsUrl = ''
  const nats = keep('nats', async () => {
    const tls = { cert_file: certificate.certPath, key_file: certificate.keyPath }
    const configText = `${account.configText}\ntls ${JSON.stringify(tls)}`
    const server = await startNats({ dir: state('nats'), configText, ...natsServer, port: natsPort, tls: true, say })
    natsPort = server.port
    natsUrl = server.url
    return serverPart(server)
  })
  await Promise.all([redis.start(), nats.start()])

  const portsPath = join(folder, 'ports.json')
  let ports = await keptPorts(portsPath, config.apiPort)
  const launcher = (path: string) => fileURLToPath(new URL(`../../../${path}`, import.meta.url))
  const indraft = launcher('central/cli/indraft.mjs')
  const common = { INDRAFT_LOG_LEVEL: config.logLevel }
  let metricsUrl = ''
  const startCentral = async (stopping: AbortSignal) => {
    const started = await startProgram(
      {
        name: 'central',
        launcher: indraft,
        words: ['central', 'run'],
        runDir,
        env: {
          ...common,
          INDRAFT_STATE: state('central'),
          INDRAFT_REDIS: redisUrl,
          INDRAFT_NATS: natsUrl,
          INDRAFT_NATS_CA: caPath,
          INDRAFT_HOST: HOST,
          INDRAFT_API_PORT: String(ports.api),
          INDRAFT_METRICS_PORT: String(ports.metrics),
          INDRAFT_TLS_CERT: certificate.certPath,
          INDRAFT_TLS_KEY: certificate.keyPath,
          INDRAFT_TLS_CA: caPath,
          INDRAFT_TIME_SCALE: String(config.timeScale),
        },
        readyMessage: 'central.ready',
        address: (ready) => String(ready.apiUrl),
        stopGraceMs: STOP_GRACE_MS.central,
      },
      stopping,
    )
    metricsUrl = String(started.ready.metricsUrl)
    return started
  }
  await startOnFreePort(keep('central', startCentral), async () => {
    ports = await keptPorts(portsPath, config.apiPort)
  })
  const apiUrl = `https://${HOST}:${ports.api}`
  const token = readFileSync(join(state('central'), 'admin.token'), 'utf8').trim()
  const clientPath = join(home, 'client.json')
  writePrivately(clientPath, `${JSON.stringify({ url: apiUrl, token, ca: authority.ca }, null, 2)}\n`)

  const relayCredential = join(state('relay'), 'relay.json')
  await joinLocalSite({
    apiUrl,
    token,
    ca: authority.ca,
    site: config.site,
    natsUrl,
    credentialPath: relayCredential,
  })
  const relay = keep('relay', (stopping) =>
    startProgram(
      {
        name: 'relay',
        launcher: indraft,
        words: ['relay', 'run'],
        runDir,
        env: {
          ...common,
          INDRAFT_STATE: state('relay'),
          INDRAFT_CREDENTIAL: relayCredential,
          INDRAFT_NAME: 'relay',
          INDRAFT_NATS_SERVER: natsServer.path,
          INDRAFT_HOST: HOST,
          INDRAFT_TIME_SCALE: String(Math.min(1, config.timeScale)),
        },
        readyMessage: 'relay.ready',
        address: (ready) => String(ready.natsUrl ?? ''),
        stopGraceMs: STOP_GRACE_MS.relay,
      },
      stopping,
    ),
  )
  await relay.start()

  const count = config.pilots
  const cores = config.cores ?? Math.max(1, Math.floor(availableParallelism() / Math.max(1, count)))
  const memory = config.memory ?? Math.floor((totalmem() * MEMORY_SHARE) / Math.max(1, count))
  const pilots = Array.from({ length: count }, (_, i) => pilotName(config.site, i + 1)).map((name) =>
    keep(name, (stopping) =>
      startProgram(
        {
          name,
          launcher: launcher('pilot/indraft-pilot.mjs'),
          words: ['run'],
          runDir,
          env: {
            ...common,
            INDRAFT_CREDENTIAL: join(state('relay'), 'pilot.json'),
            INDRAFT_SCRATCH: state(join('pilots', name)),
            INDRAFT_NODE: name,
            INDRAFT_CORES: String(cores),
            INDRAFT_MEMORY: `${memory}B`,
            // They belong to this command and leave with it, not for want of work.
            INDRAFT_IDLE_BEFORE: '3650d',
            INDRAFT_IDLE_AFTER: '3650d',
            INDRAFT_GONE_AFTER: '3650d',
            INDRAFT_PAYLOAD_GRACE: '3s',
            INDRAFT_DRAIN_GRACE: '8s',
          },
          readyMessage: 'pilot.ready',
          address: () => `${cores} ${cores === 1 ? 'core' : 'cores'}`,
          stopGraceMs: STOP_GRACE_MS.pilot,
        },
        stopping,
      ),
    ),
  )
  await Promise.all(pilots.map((pilot) => pilot.start()))
  return { apiUrl, metricsUrl, clientPath, token, ca: authority.ca }
}

function serverPart(server: RunningServer): RunningPart {
  const { pid, port, logPath, exited } = server
  return {
    pid,
    address: `${HOST}:${port}`,
    logPath,
    exited,
    stop: () => server.stop(),
    kill: () => server.signal('SIGKILL'),
  }
}

/** Between choosing a port and listening on it another program may have taken it: then others are chosen. */
async function startOnFreePort(service: Service, chooseAgain: () => Promise<void>): Promise<void> {
  for (let tries = 1; ; tries++) {
    try {
      await service.start()
      return
    } catch (error) {
      if (tries === PORT_TRIES || !(error instanceof Error) || !error.message.includes('EADDRINUSE')) throw error
      await chooseAgain()
    }
  }
}

/** Ports that stay the same from one start to the next, as long as nobody else took them. */
async function keptPorts(path: string, wantedApi: number): Promise<{ api: number; metrics: number }> {
  const kept = existsSync(path)
    ? (JSON.parse(readFileSync(path, 'utf8')) as Partial<{ api: number; metrics: number }>)
    : {}
  const ports = {
    api: wantedApi || (await freePort(HOST, kept.api)),
    metrics: await freePort(HOST, kept.metrics),
  }
  writePrivately(path, `${JSON.stringify(ports)}\n`)
  return ports
}
