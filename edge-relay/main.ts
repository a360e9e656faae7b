/**
 * The relay put together: its core (core.ts) in the middle; below, a nats-server and a file server for pilots; above,
 * one connection to central. Reads top to bottom as a start does. Nothing listens beyond loopback unless `host`
 * says so.
 */
import { hostname } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '../shared/clock.ts'
import { writeCredential } from '../shared/credentials.ts'
import { frameHandler } from '../shared/dispatcher.ts'
import { IndraftError } from '../shared/errors.ts'
import { enableFailpoints } from '../shared/failpoint.ts'
import { attemptPath } from '../shared/ids.ts'
import { connectNats, serveNats } from '../shared/link-nats.ts'
import type { Log } from '../shared/log.ts'
import { listenForMetrics, type Watched } from '../shared/metrics-listener.ts'
import { freePort } from '../shared/servers/process.ts'
import { timingsFor } from '../shared/timings.ts'
import { keptCertificate, makeAuthority } from '../shared/tls.ts'
import { VERSION } from '../shared/version.ts'
import { centralLink } from './central-link.ts'
import type { RelayConfig } from './config.ts'
import { openCore } from './core.ts'
import { KeptCredential } from './credential.ts'
import { serveFiles } from './files.ts'
import { keepPorts, openIdentity, withPort } from './identity.ts'
import { watchLifetime } from './lifetime.ts'
import { RelayMetrics } from './metrics.ts'
import { keepNats, PILOT_INBOX, PILOT_USER, RELAY_USER } from './nats.ts'
import { Outside } from './outside.ts'
import { lockState } from './state-lock.ts'
import { sweepRegularly } from './sweeping.ts'

export const RELAY_SOFTWARE = `indraft-relay ${VERSION}`
/** Results get this long to go up when the relay stops; what does not stays in the journal. */
const FLUSH_MS = 3_000
const TIDY_EVERY_MS = 3_600_000
/** Files of an attempt whose result never came. */
const ORPHAN_AFTER_MS = 86_400_000

export interface RunningRelay {
  /** Unlike that of any other relay of the site. */
  name: string
  natsUrl: string
  filesUrl: string
  metricsUrl: string
  /** Path of pilot.json. */
  pilotCredential: string
  /** Resolves, never rejects, when the relay cannot go on (its disk failed): the process is to end and start again. */
  failed: Promise<Error>
  /** Resolves when the relay has ended by itself: drained, or as `once` and `for` say. */
  finished: Promise<void>
  /**
   * Takes nothing more, gives back what no pilot has, lets pilots finish and leave, hands everything up, says bye and
   * ends. Goes on after a restart in between. Asked twice it waits for nobody.
   */
  drain(): Promise<void>
  /** A mere stop keeps leases for the next start; with `drain` they are given back and the relay says bye. */
  stop(how?: { drain?: boolean }): Promise<void>
}

/** Resolves when pilots can be served, whether or not central can be reached. @throws IndraftError | Error */
export async function startRelay(config: RelayConfig, log: Log): Promise<RunningRelay> {
  enableFailpoints(config.failpoints)
  const clock = systemClock
  const state = config.state
  const lock = lockState(state)
  const failed = Promise.withResolvers<Error>()
  const finished = Promise.withResolvers<void>()
  const closers: (() => Promise<unknown> | unknown)[] = []
  const closeAll = async () => {
    for (const close of closers.splice(0).reverse()) await close()
  }
  closers.push(() => lock.release())
  try {
    await checkAddress(config.host)
    const kept = new KeptCredential(config.credential ?? join(state, 'relay.json'), clock, log)
    closers.push(() => kept.stop())
    const credential = kept.now
    const { site } = credential
    const identity = openIdentity(state)
    const ownName = config.name ?? identity.name
    let filesUrl: string | null = null
    let isReady = false
    const capabilityKey = Buffer.from(identity.capabilityKey, 'base64url')
    const metrics = new RelayMetrics()
    const link = centralLink(() => kept.now, ownName, clock, log)
    closers.push(() => link.close())
    const core = await openCore({
      state,
      site,
      name: ownName,
      software: RELAY_SOFTWARE,
      clock,
      log,
      link,
      centralFiles: { ...credential.files, token: () => kept.now.files.token },
      keys: credential.keys,
      filesUrl: () => filesUrl,
      capabilityKey,
      aheadMs: config.ahead ?? 0,
      timeScale: config.timeScale,
      cacheBytes: config.diskLimit ?? Number.POSITIVE_INFINITY,
      diskReserveBytes: config.diskReserve ?? 0,
      events: {
        onFailed: (error) => failed.resolve(error),
        onVerdict: (verdict, end) => metrics.count.indraft_relay_results_total.inc({ verdict, end }),
        onGranted: (tasks) => metrics.count.indraft_relay_tasks_granted_total.inc(tasks),
        onPilotLost: () => metrics.count.indraft_relay_pilots_lost_total.inc(),
        onUploaded: (bytes) => metrics.count.indraft_relay_uploaded_bytes_total.inc(bytes),
        onRefusedByCentral: (code) => metrics.count.indraft_relay_upstream_refused_total.inc({ code }),
        onSettled: (verdict) => metrics.count.indraft_relay_results_settled_total.inc({ verdict }),
      },
    })
    closers.push(() => core.close())
    const { buffer, sessions, outgoing, uploads, outbox, cache, dispatcher, upstream, disk } = core
    const { fetchFrom, fetchTime } = config
    const outside = new Outside({ fetchFrom, fetchTimeMs: fetchTime ?? 0, room: disk, clock, log })
    closers.push(() => outside.close())

    // Below.
    const name = config.advertise ?? (config.host === '0.0.0.0' || config.host === '::' ? hostname() : config.host)
    const hosts = [...new Set([name, config.host, hostname(), 'localhost', '127.0.0.1'])].filter(
      (host) => !isWildcard(host),
    )
    const authority = await makeAuthority(join(state, 'tls'), `Indraft relay ${site}`)
    const tls = await keptCertificate(authority, join(state, 'tls'), 'server', hosts)
    const nats = await keepNats({
      dir: state,
      site,
      natsServer: config.natsServer,
      host: config.host,
      port: config.natsPort,
      tls,
      relayPassword: identity.relayPassword,
      pilotPassword: identity.pilotPassword,
      clock,
      log,
      onRestarted: () => metrics.count.indraft_relay_nats_restarts_total.inc(),
    })
    closers.push(() => nats.stop())
    const files = await withPort(config.filesPort, identity.ports.files, (port) =>
      serveFiles({
        outbox,
        cache,
        client: core.toCentral,
        centralUrl: credential.files.url,
        capabilityOf: (campaign) => buffer.capabilities.ofCampaign(campaign),
        outside,
        token: identity.filesToken,
        capabilityKey,
        clock,
        log,
        fileLimitBytes: config.fileLimit ?? Number.POSITIVE_INFINITY,
        tls,
        host: config.host,
        port,
        room: disk,
        onServed: (kind, verb, bytes) => metrics.count.indraft_relay_file_bytes_total.inc({ kind, verb }, bytes),
        onRefused: (code) => metrics.count.indraft_relay_messages_refused_total.inc({ code }),
      }),
    )
    closers.push(() => files.close())
    filesUrl = `https://${bracketed(name)}:${files.port}`

    await core.start()

    const connection = await connectNats({
      url: `tls://127.0.0.1:${nats.port}`.replace(
        '127.0.0.1',
        isWildcard(config.host) ? '127.0.0.1' : bracketed(config.host),
      ),
      name: `${ownName}@${site}`,
      user: RELAY_USER,
      password: identity.relayPassword,
      ca: authority.ca,
    })
    closers.push(() => connection.close())
    const handler = frameHandler(dispatcher, log, {
      onRefused: (code) => metrics.count.indraft_relay_messages_refused_total.inc({ code }),
    })
    const server = serveNats(connection, handler, log, site, {
      inboxPrefixOf: () => PILOT_INBOX,
      onDropped: () => metrics.count.indraft_relay_messages_refused_total.inc({ code: 'auth.forbidden' }),
    })
    const timings = timingsFor('pilot', config.timeScale)
    const outageMs = timingsFor('relay', config.timeScale).lostAfterMs
    const stopSweeping = sweepRegularly({ dispatcher, clock, timings, outageMs, hears: () => nats.isUp() })
    const tidy = setInterval(
      () => tidyOutbox().catch((error) => log.warn({ err: error }, 'outbox.tidyFailed')),
      TIDY_EVERY_MS,
    )
    tidy.unref()
    const figures = {
      gauges: core.gauges,
      pilotCounters: () => sessions.counters(),
      pilotsByState: () => sessions.countByState(),
    }
    const watched: Watched = {
      metrics: () => metrics.text(figures),
      contentType: metrics.contentType,
      troubles: () => [
        ...(nats.isUp() ? [] : ['the nats-server is down']),
        ...(disk.isFull ? ['disk full'] : []),
        ...(upstream.isContested ? ['another relay of this name works at this site: give each its own --name'] : []),
      ],
      notReady: async () => (isReady && nats.isUp() ? null : 'starting'),
      onRefused: (code) => metrics.count.indraft_relay_messages_refused_total.inc({ code }),
    }
    // Always on loopback.
    const metricsServer = await withPort(config.metricsPort, identity.ports.metrics, (port) =>
      listenForMetrics(watched, { host: '127.0.0.1', port }),
    )
    closers.push(() => metricsServer.close())

    keepPorts(state, identity, { nats: nats.port, files: files.port, metrics: metricsServer.port })
    const natsUrl = `tls://${bracketed(name)}:${nats.port}`
    const pilotCredential = join(state, 'pilot.json')
    writeCredential(pilotCredential, {
      kind: 'pilot',
      site,
      nats: {
        url: natsUrl,
        user: PILOT_USER,
        password: identity.pilotPassword,
        creds: null,
        ca: authority.ca,
        inboxPrefix: PILOT_INBOX,
      },
      files: { token: identity.filesToken, ca: authority.ca },
      keys: credential.keys,
    })
    isReady = true
    const metricsUrl = metricsServer.url
    log.info({ site, relay: ownName, natsUrl, filesUrl, metricsUrl, pilotCredential }, 'relay.ready')

    let isStopping = false
    async function tidyOutbox(): Promise<void> {
      const expected = new Set(outgoing.attempts)
      for (const { attempt, ageMs } of await outbox.attempts()) {
        const isHeld = buffer.subLease(attempt.fences[1] ?? 0) !== undefined
        if (ageMs < ORPHAN_AFTER_MS || isHeld || expected.has(attemptPath({ ...attempt, fences: [...attempt.fences] })))
          continue
        await uploads.release(attempt)
      }
    }

    const stop = async (how: { drain?: boolean } = {}) => {
      if (isStopping) return
      isStopping = true
      stopSweeping()
      clearInterval(tidy)
      dispatcher.stop()
      await server.close()
      await upstream.stop(FLUSH_MS, how.drain ?? false)
      await closeAll()
      log.info('relay.stopped')
      finished.resolve()
    }
    const lifetime = watchLifetime({
      core,
      clock,
      once: config.once,
      forMs: config.for,
      idleMs: 3 * timings.beatMs,
      end: (drained) => {
        if (drained) upstream.resume()
        return stop({ drain: drained })
      },
    })
    closers.push(() => lifetime.stop())

    return {
      name: ownName,
      natsUrl,
      filesUrl,
      metricsUrl,
      pilotCredential,
      failed: failed.promise,
      finished: finished.promise,
      async drain() {
        if (upstream.isDrainedHere) lifetime.hurry()
        upstream.drain()
        await finished.promise
      },
      stop,
    }
  } catch (error) {
    await closeAll()
    throw error
  }
}

/** Said at once and in words: a server that cannot listen would only be seen not to come. @throws IndraftError request.invalid */
async function checkAddress(host: string): Promise<void> {
  await freePort(host).catch((cause: Error) => {
    const what = 'expected an address of this machine that nodes reach (`hostname -I` lists them)'
    throw new IndraftError('request.invalid', `host ${host}: ${what}: ${cause.message}`, { cause, path: 'host' })
  })
}

function isWildcard(host: string): boolean {
  return host === '0.0.0.0' || host === '::'
}

function bracketed(host: string): string {
  return host.includes(':') ? `[${host}]` : host
}
