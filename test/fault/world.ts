/**
 * Everything that a fault run needs, as real processes: a Redis, a nats-server, two centrals, one relay or more for each
 * site, each behind wide-area links of its own, and pilots that a stand-in for the batch system starts again whenever they
 * end. Each part can be reached by name, to do something bad to it. All of it lies in one folder and ends with this process.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Client, makeClient, Unreachable } from '../../central/api/client.ts'
import { prepareNatsAccount } from '../../central/sites/nats-account.ts'
import { readRelayCredential, relayCredentialSchema, writeCredential } from '../../shared/credentials.ts'
import { isIndraftError } from '../../shared/errors.ts'
import { locateServer } from '../../shared/servers/locate.ts'
import { startNats } from '../../shared/servers/nats.ts'
import { freePort } from '../../shared/servers/process.ts'
import { startRedis } from '../../shared/servers/redis.ts'
import { keptCertificate, makeAuthority } from '../../shared/tls.ts'
import { type Address, WanProxy } from '../wan-link.ts'
import type { Clocks } from './clocks.ts'
import { Kept, type Life, spawnLogged } from './kept.ts'
import type { Programs } from './programs.ts'
import { type Edge, edgesOf, nameOf, type Relays, type Target } from './schedule.ts'

const HOST = '127.0.0.1'
const PATIENCE_MS = 120_000

export interface WorldOptions {
  folder: string
  programs: Programs
  /** Nodes by site. */
  sites: Record<string, string[]>
  relays?: Relays
  centrals: number
  timeScale: number
  /** How long a site's link may be cut before its work goes to others. */
  outageMs: number
  slots: number
  clocks: Clocks | null
  say: (line: string) => void
}

export interface Relay {
  name: string
  site: string
  /** Its state folder, of its own name. */
  state: string
  nats: WanProxy
  api: WanProxy
  /** Makes a new credential, as an administrator does for a relay whose disk is gone. */
  join(): Promise<void>
}

export interface World {
  folder: string
  adminToken: string
  relays: Map<string, Relay>
  /** The site of each node. */
  nodes: Map<string, string>
  /** The NATS of the centre, past the links. */
  natsUrl: string
  ca: string
  part(name: string): Kept
  names(): string[]
  /** What is killed or stopped to make a fault at a target; a payload is not a part. */
  pidOf(target: Exclude<Target, { part: 'payload' }>): number | undefined
  /** Logs of relays and pilots, by the part's name. */
  logOf(name: string): string
  /** How long that log is now. */
  logBytes(name: string): number
  /** Whether its log has a line with this message. */
  saidOf(name: string, message: string): boolean
  /** Folder in which moments of a program are armed; each relay has one, and the pilots of each site. */
  failpoints(program: 'central' | 'relay' | 'pilot', at: Edge): string
  /** Asks one central and then the other until one answers. */
  ask<T>(what: (client: Client) => Promise<T>): Promise<T>
  redisDir: string
  centralState: string
  stop(): Promise<void>
}

export async function startWorld(options: WorldOptions): Promise<World> {
  const { folder, programs, clocks, say } = options
  const place = (...names: string[]) => {
    const path = join(folder, ...names)
    mkdirSync(path, { recursive: true, mode: 0o700 })
    return path
  }
  const parts = new Map<string, Kept>()
  const ends: (() => Promise<unknown> | unknown)[] = []
  const stop = async () => {
    const ending = [...parts.values()]
    for (const group of ['pilot', 'relay', 'central', 'nats', 'redis']) {
      await Promise.all(ending.filter(({ name }) => name.startsWith(group)).map((part) => part.stop()))
    }
    for (const end of ends.reverse().splice(0)) await end()
  }
  const keep = async (
    name: string,
    start: () => Promise<Life> | Life,
    more: { restartMs?: number; graceMs?: number } = {},
  ) => {
    const part = new Kept({ name, start, say, ...more })
    parts.set(name, part)
    await part.start()
    return part
  }
  const logOf = (name: string) => join(folder, 'logs', `${name}.log`)
  const program = (name: string, path: string, words: string[], settings: Record<string, string>) =>
    spawnLogged(process.execPath, ['--disable-warning=ExperimentalWarning', path, ...words], logOf(name), {
      PATH: process.env.PATH,
      HOME: folder,
      NODE_COMPILE_CACHE: place('compiled'),
      ...clocks?.environment(name),
      ...Object.fromEntries(Object.entries(settings).map(([key, value]) => [`INDRAFT_${key}`, value])),
    })

  try {
    const [redisServer, natsServer] = await Promise.all([locateServer('redis-server'), locateServer('nats-server')])
    const authority = await makeAuthority(place('tls'))
    const certificate = await keptCertificate(authority, place('tls'), 'centre', [HOST, 'localhost'])
    const caPath = join(place('tls'), 'ca.pem')

    let redis = { url: '', port: 0 }
    await keep('redis', async () => {
      const env = redisServer.env
      const server = await startRedis({ dir: place('redis'), path: redisServer.path, env, port: redis.port })
      redis = server
      return server
    })
    const account = await prepareNatsAccount(join(place('central'), 'nats-account'))
    const tls = { cert_file: certificate.certPath, key_file: certificate.keyPath }
    const configText = `${account.configText}\ntls ${JSON.stringify(tls)}`
    let nats = { url: '', port: 0 }
    await keep('nats', async () => {
      const server = await startNats({ dir: place('nats'), configText, ...natsServer, port: nats.port, tls: true })
      nats = server
      return server
    })

    const apis: Address[] = []
    for (let number = 1; number <= options.centrals; number++) {
      const name = `central-${number}`
      const port = await freePort()
      apis.push({ host: HOST, port })
      const start = () =>
        program(name, programs.indraft, ['central', 'run'], {
          STATE: place('central'),
          REDIS: redis.url,
          NATS: nats.url,
          NATS_CA: caPath,
          HOST,
          API_PORT: String(port),
          METRICS_PORT: '0',
          TLS_CERT: certificate.certPath,
          TLS_KEY: certificate.keyPath,
          TLS_CA: caPath,
          TIME_SCALE: String(options.timeScale),
          FAILPOINTS: place('failpoints', 'central'),
          LOG_LEVEL: 'debug',
        })
      await keep(name, start)
      await until(`${name} is ready`, () => said(logOf(name), 'central.ready'))
    }
    const adminToken = readFileSync(join(folder, 'central', 'admin.token'), 'utf8').trim()
    const clients = apis.map(({ port }) =>
      makeClient({ url: `https://${HOST}:${port}`, token: adminToken, ca: authority.ca }),
    )
    ends.push(() => Promise.all(clients.map((client) => client.close())))
    let turn = 0
    const ask = async <T>(what: (client: Client) => Promise<T>): Promise<T> => {
      const deadline = performance.now() + PATIENCE_MS
      for (;;) {
        const client = clients[turn++ % clients.length]!
        const late = sleep(15_000).then(() => Promise.reject(new Unreachable('no answer in 15 s')))
        try {
          return await Promise.race([what(client), late])
        } catch (error) {
          late.catch(() => {})
          if (performance.now() > deadline || !isPassing(error)) throw error
          await sleep(300)
        }
      }
    }

    const relays = new Map<string, Relay>()
    for (const { site, relay: name } of edgesOf(options.sites, options.relays ?? {})) {
      const state = place('relay', name)
      const links = {
        nats: new WanProxy(HOST, { host: HOST, port: nats.port }),
        api: new WanProxy(HOST, ...apis),
      }
      const ports = { nats: await links.nats.listen(), api: await links.api.listen() }
      ends.push(() => {
        links.nats.close()
        links.api.close()
      })
      const join_ = async () => {
        await ask((client) => client.call('addSite', { body: { name: site, outageMs: options.outageMs } }))
        const { joinToken } = await ask((client) => client.call('addSite', { body: { name: site } }))
        const { credential } = await ask((client) => client.call('joinSite', { body: { token: joinToken } }))
        const known = relayCredentialSchema.parse(credential)
        mkdirSync(state, { recursive: true, mode: 0o700 })
        writeCredential(join(state, 'relay.json'), {
          ...known,
          nats: { ...known.nats, url: `tls://${HOST}:${ports.nats}`, ca: authority.ca },
          files: { ...known.files, url: `https://${HOST}:${ports.api}`, ca: authority.ca },
        })
        readRelayCredential(join(state, 'relay.json'))
      }
      await join_()
      relays.set(name, { name, site, state, ...links, join: join_ })
      const relay = `relay-${name}`
      const start = () =>
        program(relay, programs.indraft, ['relay', 'run'], {
          STATE: state,
          CREDENTIAL: join(state, 'relay.json'),
          NATS_SERVER: natsServer.path,
          HOST,
          AHEAD: '20s',
          DISK_RESERVE: '12MiB',
          TIME_SCALE: String(options.timeScale),
          FAILPOINTS: place('failpoints', relay),
          LOG_LEVEL: 'info',
        })
      await keep(relay, start)
      await until(`${relay} is ready`, () => said(logOf(relay), 'relay.ready'))
    }
    const nodes = new Map<string, string>()
    for (const [site, names] of Object.entries(options.sites)) {
      const known = [...relays.values()].filter((relay) => relay.site === site)
      for (const [place_, node] of names.entries()) {
        nodes.set(node, site)
        // Each relay is the preferred one of as many pilots.
        const first = place_ % known.length
        const credentials = [...known.slice(first), ...known.slice(0, first)].map(({ state }) =>
          join(state, 'pilot.json'),
        )
        const start = () =>
          program(`pilot-${node}`, programs.pilot, ['run'], {
            CREDENTIAL: credentials.join(','),
            SCRATCH: place('node', node),
            NODE: node,
            CORES: String(options.slots),
            MEMORY: '4GiB',
            IDLE_BEFORE: '30s',
            IDLE_AFTER: '15s',
            ...(known.length > 1
              ? { GONE_AFTER: '8s', STAGE_TIMEOUT: '10s' }
              : { GONE_AFTER: '25s', STAGE_TIMEOUT: '2min' }),
            AHEAD: '3s',
            PAYLOAD_GRACE: '1s',
            DRAIN_GRACE: '4s',
            CONTAINER_RUNTIME: 'none',
            FAILPOINTS: place('failpoints', `pilot-${site}`),
            LOG_LEVEL: 'debug',
          })
        await keep(`pilot-${node}`, start, { restartMs: 500, graceMs: 8000 })
      }
    }

    const natsPid = (relay: string): number | undefined => {
      const path = join(folder, 'relay', relay, 'nats', 'nats.pid')
      return existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as { pid: number }).pid : undefined
    }
    return {
      folder,
      adminToken,
      relays,
      nodes,
      natsUrl: nats.url,
      ca: authority.ca,
      part(name) {
        const part = parts.get(name)
        if (!part) throw new Error(`no part ${name}: ${[...parts.keys()].join(', ')}`)
        return part
      },
      names: () => [...parts.keys()],
      pidOf(target) {
        if (target.part === 'relay-nats') return natsPid(target.relay)
        if (target.part === 'pilot') return parts.get(`pilot-${target.node}`)?.pid
        return parts.get(nameOf(target))?.pid
      },
      logOf,
      logBytes: (name) => statSync(logOf(name)).size,
      saidOf: (name, message) => said(logOf(name), message),
      failpoints: (which, { site, relay }) =>
        place('failpoints', which === 'central' ? which : `${which}-${which === 'relay' ? relay : site}`),
      ask,
      redisDir: join(folder, 'redis'),
      centralState: join(folder, 'central'),
      stop,
    }
  } catch (error) {
    await stop()
    throw error
  }
}

/** What a user repeats: nobody there, or somebody who says that it is passing. */
function isPassing(error: unknown): boolean {
  return error instanceof Unreachable || isIndraftError(error, 'dispatcher.busy', 'internal.error')
}

function said(path: string, message: string): boolean {
  return existsSync(path) && readFileSync(path, 'utf8').includes(`"msg":"${message}"`)
}

/** @throws Error when it takes more than two minutes */
export async function until(
  what: string,
  probe: () => boolean | Promise<boolean>,
  patienceMs = PATIENCE_MS,
): Promise<void> {
  const deadline = performance.now() + patienceMs
  while (!(await probe())) {
    if (performance.now() > deadline) throw new Error(`did not happen in time: ${what}`)
    await sleep(100)
  }
}

/** The names in a folder, none where there is no such folder. */
export function listed(folder: string): string[] {
  return existsSync(folder) ? readdirSync(folder) : []
}
