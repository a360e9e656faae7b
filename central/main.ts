/**
 * Central, put together: Redis, store, dispatcher over NATS, API with files, metrics. Starts in the order in which the
 * parts need each other, stops in the other. Replicas of it may run side by side on the same Redis and NATS.
 */
import { mkdirSync, readFileSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import type { Redis } from 'ioredis'
import { systemClock } from '../shared/clock.ts'
import { shownConfig } from '../shared/config.ts'
import { frameHandler } from '../shared/dispatcher.ts'
import { enableFailpoints } from '../shared/failpoint.ts'
import { AttemptFiles } from '../shared/files/attempt-files.ts'
import { makeCapability } from '../shared/files/capability.ts'
import { fileHandler } from '../shared/files/server.ts'
import { connectNats, serveNats, watchUp } from '../shared/link-nats.ts'
import type { Log } from '../shared/log.ts'
import { listenForMetrics } from '../shared/metrics-listener.ts'
import { makeSigner } from '../shared/signing.ts'
import { timingsFor } from '../shared/timings.ts'
import { banHandlers } from './api/bans.ts'
import { campaignHandlers } from './api/campaigns.ts'
import { outputHandlers } from './api/outputs.ts'
import { buildServer } from './api/server.ts'
import { siteHandlers } from './api/sites.ts'
import { openBans } from './bans.ts'
import { folderBlobs } from './blobs.ts'
import { CENTRAL_SETTINGS, type CentralConfig, centralPaths } from './config.ts'
import { readCapabilityKey, readSigningKey } from './keys.ts'
import { GLOBAL } from './leases/keys.ts'
import { openStore } from './leases/open.ts'
import type { SiteShapes } from './matching/nearest.ts'
import { makeMetrics } from './metrics.ts'
import { ALL_GROUPS, ensureAdminToken, openPeople } from './people.ts'
import { connectRedis, storeRefusal, weakSettings } from './redis.ts'
import { watchCredentials } from './sites/credentials.ts'
import { siteFiles } from './sites/files.ts'
import type { JoinFacts } from './sites/join.ts'
import { prepareNatsAccount } from './sites/nats-account.ts'
import { openSiteRegistry, type SiteRegistry } from './sites/registry.ts'
import { notingShapes, openSeenShapes, type SeenShapes } from './sites/shapes.ts'
import type { StoreCondition } from './store-metrics.ts'

export interface RunningCentral {
  apiUrl: string
  metricsUrl: string
  stop(): Promise<void>
}

const NATS_INBOX = '_INBOX_central'
/** Half-written files of another replica on the same folder are left to it. */
const INCOMING_KEPT_MS = 3600_000

export async function startCentral(config: CentralConfig, log: Log): Promise<RunningCentral> {
  enableFailpoints(config.failpoints)
  log.info({ config: shownConfig(CENTRAL_SETTINGS, config) }, 'central.starting')
  const paths = centralPaths(config)
  for (const folder of [paths.state, paths.outputs, paths.blobs]) mkdirSync(folder, { recursive: true, mode: 0o700 })
  /** What to end, in the order it was begun. */
  const begun: (() => Promise<unknown>)[] = []
  const endAll = async () => {
    for (const end of begun.reverse().splice(0)) {
      await end().catch((error: unknown) => log.error({ err: error }, 'central.stopFailed'))
    }
  }
  try {
    const redis = await connectRedis(config.redis, log)
    begun.push(async () => redis.disconnect())
    const weak = await weakSettings(redis)
    if (weak === null) log.warn('redis.settingsUnknown')
    else if (weak.length > 0) log.error({ weak }, 'redis.notDurable')
    await ensureAdminToken(redis, paths.adminToken)
    const people = openPeople(redis)
    const sites = openSiteRegistry(redis)
    const seen = openSeenShapes(redis)
    const signer = makeSigner(readSigningKey(paths.signingKey))
    const capabilityKey = readCapabilityKey(paths.capabilityKey)
    const blobs = folderBlobs(paths.blobs)
    const attempts = new AttemptFiles(paths.outputs)
    await attempts.clearIncoming(INCOMING_KEPT_MS)
    const metrics = makeMetrics(log)
    let apiUrl = ''
    const publicUrl = () => config.publicUrl?.replace(/\/$/, '') ?? apiUrl

    let hears = () => false
    const opened = await openStore({
      redis: config.redis,
      blobs,
      signer,
      clock: systemClock,
      log,
      timeScale: config.timeScale,
      markKey: capabilityKey,
      replicas: config.redisReplicas,
      outputsDir: paths.outputs,
      siteOf: async (name) => {
        const site = await sites.get(name)
        return (
          site && {
            labels: site.labels,
            state: site.state,
            outageMs: site.outageMs ?? undefined,
            shapes: site.shapes,
          }
        )
      },
      siteNames: async () => (await sites.list()).map(({ name }) => name),
      filesUrl: () => publicUrl() || null,
      capabilityFor: (site, { campaign, step, fences, tasks }, expiresAtMs) =>
        makeCapability(capabilityKey, { campaign, step, fences, site, tasks, expiresAtMs }),
      events: metrics.storeEvents,
      hears: () => hears(),
    })
    begun.push(() => opened.close())
    const { store, dispatcher, work } = opened

    const { centralCreds } = await prepareNatsAccount(paths.natsAccount)
    const nats = await connectNats({
      url: config.nats,
      name: 'central',
      creds: centralCreds,
      ca: readOptional(config.natsCa),
      inboxPrefix: NATS_INBOX,
    })
    begun.push(() => nats.close())
    const isUp = watchUp(nats)
    hears = isUp
    const ready = async () => {
      await opened.ping()
      if (!isUp()) throw new Error('there is no connection to NATS')
      await nats.flush()
    }

    const ended = watchCredentials({
      ...{ sites, clock: systemClock, log, nats, natsAccount: paths.natsAccount },
      ...{ natsUrl: config.nats, natsCa: readOptional(config.natsCa) },
    })
    begun.push(() => ended.stop())

    const join: JoinFacts = {
      natsAccount: paths.natsAccount,
      natsUrl: config.natsPublicUrl ?? config.nats,
      natsCa: readOptional(config.natsCa) ?? null,
      filesUrl: publicUrl,
      filesCa: readOptional(config.tlsCa) ?? null,
      keys: signer.keys,
    }
    const api = await buildServer({
      people,
      log,
      tls:
        config.tlsCert === null
          ? null
          : { cert: readFileSync(config.tlsCert, 'utf8'), key: readFileSync(config.tlsKey!, 'utf8') },
      files: fileHandler(
        siteFiles({ sites, blobs, attempts, capabilityKey, wasLeased: opened.wasLeased, named: opened.named }),
        log,
      ),
      ready,
      onRefused: metrics.onApiRefused,
      handlers: {
        ...campaignHandlers({ store, log, siteShapes: () => knownShapes(seen, sites), issuer: publicUrl }),
        ...banHandlers(
          openBans({
            redis,
            campaigns: () => store.list([ALL_GROUPS]),
            cancel: (id) => store.setDesired(id, 'cancelled'),
            log,
            nowMs: () => systemClock.wallMs(),
          }),
        ),
        ...outputHandlers({ store, attempts, logRetryMs: timingsFor('relay', config.timeScale).beatMs }),
        ...siteHandlers({
          store,
          people,
          sites,
          join,
          joinValidMs: config.joinValid,
          endCredentials: () => ended.enforce(),
          publicUrl,
          liftHalt: () => opened.liftHalt(),
        }),
      },
    })
    begun.push(() => api.close())
    await api.listen({ host: config.host, port: config.apiPort })
    const { port } = api.server.address() as AddressInfo
    apiUrl = `${config.tlsCert === null ? 'http' : 'https'}://${config.host.includes(':') ? `[${config.host}]` : config.host}:${port}`

    // Only now: a relay that is welcomed is told where files are.
    const noting = notingShapes(dispatcher, seen, (error) => log.warn({ err: error }, 'site.shapesUnkept'))
    metrics.watch(
      store,
      () => readCondition(redis),
      async () => (await sites.list()).map(({ name }) => name),
    )
    const link = serveNats(nats, frameHandler(noting, log, metrics.dispatcherEvents, storeRefusal), log, undefined, {
      onDropped: (site) => metrics.dispatcherEvents.onRefused('auth.forbidden', { site }),
    })
    begun.push(() => link.close())
    begun.push(() => work.stop())
    await work.start()
    const watched = {
      metrics: () => metrics.text(),
      contentType: metrics.registry.contentType,
      troubles: () => [],
      notReady: () =>
        ready().then(
          () => null,
          (error: Error) => error.message,
        ),
      onRefused: metrics.onApiRefused,
    }
    const listener = await listenForMetrics(watched, { host: config.metricsHost, port: config.metricsPort })
    begun.push(() => listener.close())

    log.info({ apiUrl, metricsUrl: listener.url, nats: config.nats }, 'central.ready')
    let stopping: Promise<void> | undefined
    return {
      apiUrl,
      metricsUrl: listener.url,
      stop() {
        stopping ??= endAll().then(() => log.info('central.stopped'))
        return stopping
      },
    }
  } catch (error) {
    await endAll()
    throw error
  }
}

/** Shapes seen and declared, of sites that may take work. */
async function knownShapes(seen: SeenShapes, sites: SiteRegistry): Promise<SiteShapes[]> {
  const offered = await seen.all()
  const open = (await sites.list()).filter((site) => site.state !== 'disabled')
  return open.map(({ name, labels, shapes }) => ({
    site: name,
    labels,
    shapes: [...shapes, ...(offered.get(name) ?? [])],
  }))
}

async function readCondition(redis: Redis): Promise<StoreCondition> {
  const [sequence, halted] = await redis.hmget(GLOBAL.mark, 'sequence', 'halted')
  return { sequence: Number(sequence ?? 0), halted: Boolean(halted) }
}

function readOptional(path: string | null): string | undefined {
  return path === null ? undefined : readFileSync(path, 'utf8')
}
