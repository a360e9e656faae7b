/** Central in this process, on a Redis and a nats-server of its own, in a folder of its own; all end together. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Client, makeClient } from '../../central/api/client.ts'
import { type CentralConfig, loadCentralConfig } from '../../central/config.ts'
import { type RunningCentral, startCentral } from '../../central/main.ts'
import { prepareNatsAccount } from '../../central/sites/nats-account.ts'
import { silentLog } from '../../shared/log.ts'
import { startNats } from '../../shared/servers/nats.ts'
import { startRedis } from '../../shared/servers/redis.ts'

export interface CentralLab {
  central: RunningCentral
  config: CentralConfig
  natsUrl: string
  redisUrl: string
  /** Resolves when the Redis of now has ended. */
  redisExited(): Promise<unknown>
  /** In its folder, at its port. */
  startRedisAgain(): Promise<void>
  adminToken: string
  /** As the administrator. */
  admin: Client
  /** As whoever has this token; null: without one. */
  as(token: string | null): Client
  /** A person of these groups. */
  person(subject: string, groups: string[], role?: 'read' | 'submit'): Promise<Client>
  /** Stops central and starts it again on the same state. */
  restart(): Promise<void>
  /** SIGKILL to the nats-server; @returns what starts it again at the same address */
  killNats(): Promise<() => Promise<void>>
  stop(): Promise<void>
}

/** @param places folders elsewhere, as on a file system that is to fill up */
export async function startCentralLab(
  settings: Record<string, unknown> = {},
  places: { state?: string; redis?: string } = {},
): Promise<CentralLab> {
  const folder = mkdtempSync(join(tmpdir(), 'indraft-central-'))
  const ends: (() => Promise<unknown>)[] = [async () => rmSync(folder, { recursive: true, force: true })]
  const stopAll = async () => {
    for (const end of ends.reverse().splice(0)) await end()
  }
  try {
    const { state = join(folder, 'central'), redis: redisDir = join(folder, 'redis') } = places
    const account = await prepareNatsAccount(join(state, 'nats-account'))
    let redis = await startRedis({ dir: redisDir })
    ends.push(() => redis.stop())
    const natsOptions = { dir: join(folder, 'nats'), configText: account.configText }
    let nats = await startNats(natsOptions)
    ends.push(() => nats.stop())
    const args = { state, redis: redis.url, nats: nats.url, apiPort: 0, metricsPort: 0 }
    const config = loadCentralConfig({ env: {}, args: { ...args, timeScale: 0.1, ...settings } })
    let central = await startCentral(config, silentLog)
    ends.push(() => central.stop())
    const adminToken = readFileSync(join(state, 'admin.token'), 'utf8').trim()
    const clients: Client[] = []
    ends.push(() => Promise.all(clients.map((client) => client.close())))
    const as = (token: string | null): Client => {
      const client = makeClient({ url: central.apiUrl, token, ca: null })
      clients.push(client)
      return client
    }
    let admin = as(adminToken)
    return {
      get central() {
        return central
      },
      get admin() {
        return admin
      },
      config,
      natsUrl: nats.url,
      async killNats() {
        const { port } = nats
        process.kill(nats.pid, 'SIGKILL')
        await nats.exited
        return async () => {
          nats = await startNats({ ...natsOptions, port })
        }
      },
      redisUrl: redis.url,
      redisExited: () => redis.exited,
      async startRedisAgain() {
        redis = await startRedis({ dir: redisDir, port: redis.port })
      },
      adminToken,
      as,
      async person(subject, groups, role = 'submit') {
        return as((await admin.call('addToken', { body: { subject, groups, roles: [role] } })).token)
      },
      async restart() {
        await central.stop()
        central = await startCentral(config, silentLog)
        admin = as(adminToken)
      },
      stop: stopAll,
    }
  } catch (error) {
    await stopAll()
    throw error
  }
}
