/**
 * The relay without its servers: what it knows (journal, buffer, sessions, results), its dispatcher towards pilots and
 * its holder towards central, wired together over whatever links it is given. main.ts adds what carries: a nats-server,
 * HTTPS, metrics.
 */
import { join } from 'node:path'
import type { Clock } from '../shared/clock.ts'
import { AttemptFiles } from '../shared/files/attempt-files.ts'
import { FileClient } from '../shared/files/client.ts'
import { attemptPath } from '../shared/ids.ts'
import type { Link } from '../shared/link.ts'
import type { Log } from '../shared/log.ts'
import type { Result, Verdict } from '../shared/protocol/messages.ts'
import { Buffer } from './buffer.ts'
import { Cache } from './cache.ts'
import { Cancels } from './cancels.ts'
import { Disk } from './disk.ts'
import { RelayDispatcher } from './dispatch.ts'
import { Journal } from './journal.ts'
import { reportMissing } from './missing.ts'
import { Names } from './names.ts'
import { Outgoing } from './outgoing.ts'
import { Publications } from './publications.ts'
import { Sessions } from './sessions.ts'
import { Uploads } from './uploads.ts'
import { Upstream } from './upstream.ts'

export interface CoreOptions {
  /** The relay's folder. */
  state: string
  site: string
  /** The relay's own name at its site. */
  name: string
  software: string
  clock: Clock
  log: Log
  /** Towards central. Closed with the core. */
  link: Link
  /** Where central serves files. */
  centralFiles: { url: string; token: string | (() => string) | null; ca: string | null }
  keys: Record<string, string>
  filesUrl: () => string | null
  capabilityKey: Uint8Array
  aheadMs: number
  timeScale: number
  cacheBytes: number
  diskReserveBytes: number
  events?: CoreEvents
}

export interface CoreEvents {
  /** The disk failed for good: the process is to end and start again. */
  onFailed?: (error: Error) => void
  onVerdict?: (verdict: Verdict['verdict'], end: Result['end']) => void
  onGranted?: (tasks: number) => void
  onPilotLost?: () => void
  onUploaded?: (bytes: number) => void
  onRefusedByCentral?: (code: string) => void
  onSettled?: (verdict: string) => void
}

export type Core = Awaited<ReturnType<typeof openCore>>

/** Everything is read back and nothing runs: call start(). @throws where the journal cannot be used */
export async function openCore(options: CoreOptions) {
  const { state, site, name, clock, log, events = {} } = options
  const journal = Journal.open(join(state, 'journal.sqlite'), log, (error) => {
    log.error({ err: error }, 'journal.failed')
    events.onFailed?.(error as Error)
  })
  const kept = journal.read()
  const buffer = new Buffer(journal, clock, kept)
  const sessions = new Sessions(journal, clock, kept.sessions)
  const outgoing = new Outgoing(journal)
  const cancels = new Cancels(journal, buffer, kept.pending)
  const publications = new Publications(journal, clock, log, kept.pending)
  const { incarnation } = journal
  const found = { leases: kept.leases.length, sessions: kept.sessions.length, results: outgoing.waiting }
  log.info({ incarnation, ...found }, 'journal.read')
  const missing = { journal, buffer, outgoing, site, holder: name, log }
  reportMissing(missing)
  let isLookDue = false
  outgoing.onLost = () => {
    if (isLookDue) return
    isLookDue = true
    // Whoever reads is in the middle of something, and more may be lost.
    queueMicrotask(() => {
      isLookDue = false
      reportMissing(missing)
    })
  }

  const outbox = new AttemptFiles(join(state, 'outbox'))
  await outbox.clearIncoming()
  const cache = await Cache.open(join(state, 'cache'), options.cacheBytes, log)
  const toCentral = new FileClient({ ca: options.centralFiles.ca, token: options.centralFiles.token })
  const disk = new Disk({
    folder: state,
    reserveBytes: options.diskReserveBytes,
    isJournalFull: () => journal.isFull,
    makeRoom: (bytes) => cache.dropOldest(bytes),
    spareBytes: () => cache.bytes,
    log,
  })
  const uploads = new Uploads({
    outbox,
    cache,
    client: toCentral,
    centralUrl: options.centralFiles.url,
    capabilityOf: (attempt) => buffer.capabilities.ofAttempt(attempt),
    journal,
    outgoing,
    clock,
    log,
    onUploaded: (bytes) => events.onUploaded?.(bytes),
  })
  const names = new Names({
    ...{ journal, publications, client: toCentral, centralUrl: options.centralFiles.url },
    ...{ clock, timeScale: options.timeScale, log },
  })
  journal.onLoss = () => names.onLoss()
  const dispatcher: RelayDispatcher = new RelayDispatcher({
    site,
    journal,
    buffer,
    sessions,
    outgoing,
    cancels,
    publications,
    replies: kept.replies,
    log,
    clock,
    timeScale: options.timeScale,
    keys: options.keys,
    filesUrl: options.filesUrl,
    capabilityKey: options.capabilityKey,
    leaseLeftMs: (leaseMs) => upstream.leaseLeftMs(leaseMs),
    isDraining: () => upstream.isDraining,
    isDiskFull: () => disk.isFull,
    askCentre: (offer) => upstream.askDemand(offer),
    events: {
      onDemand: () => upstream.demand(),
      onStarted: (part) => upstream.noteStarted(part),
      onVerdict: (verdict, end) => events.onVerdict?.(verdict, end),
      onGranted: (tasks) => events.onGranted?.(tasks),
      onPilotLost: () => events.onPilotLost?.(),
    },
  })
  const upstream = new Upstream({
    link: options.link,
    clock,
    log,
    holder: name,
    software: options.software,
    journal,
    buffer,
    sessions,
    outgoing,
    cancels,
    uploads,
    publications,
    aheadMs: options.aheadMs,
    dispatcher: () => dispatcher,
    isDiskFull: () => disk.isFull,
    gauges,
    onRefused: (code) => events.onRefusedByCentral?.(code),
    onSettled: (result, verdict) => {
      events.onSettled?.(verdict)
      // Outputs of one thought lost are all that its late success has; where none comes, main.ts tidies them away.
      if (result.reason === 'node.lost' || outgoing.isWaiting(attemptPath(result))) return
      uploads
        .release(result)
        .catch((error) => log.warn({ err: error, task: attemptPath(result) }, 'output.releaseFailed'))
    },
  })
  buffer.onFreed = () => {
    dispatcher.wake()
    // Nobody is to have it any more: it goes back.
    if (upstream.isDraining) upstream.demand()
  }
  disk.onRoom = () => {
    dispatcher.wake()
    upstream.demand()
  }

  function gauges(): Record<string, number> {
    const counts = buffer.counts()
    const live = sessions.live()
    const sum = (read: (session: (typeof live)[number]) => number) => live.reduce((total, one) => total + read(one), 0)
    return {
      pilots: live.length,
      cores: sum((session) => session.facts.cores),
      coresBusy: sum((session) => session.coresBusy),
      running: sum((session) => session.running),
      bufferTasks: counts.free,
      bufferLeases: counts.leases,
      tasksHeld: counts.held,
      tasksRunning: counts.running,
      resultsWaiting: outgoing.waiting,
      uploadsWaiting: uploads.waiting,
      publicationsWaiting: publications.waiting,
      cacheBytes: cache.bytes,
      linkUp: upstream.isUp ? 1 : 0,
      diskFull: disk.isFull ? 1 : 0,
      diskFreeBytes: disk.freeBytes,
    }
  }

  let isClosed = false
  return {
    journal,
    buffer,
    sessions,
    outgoing,
    cancels,
    publications,
    uploads,
    dispatcher,
    upstream,
    disk,
    cache,
    outbox,
    toCentral,
    gauges,
    async start(): Promise<void> {
      await disk.start()
      uploads.start(kept.pending)
      publications.run()
      names.start()
      upstream.start()
    },
    /** Commits what is waiting and ends; upstream.stop() comes first where results are to go up or a bye is wanted. */
    async close(): Promise<void> {
      if (isClosed) return
      isClosed = true
      dispatcher.stop()
      await uploads.stop()
      await upstream.stop(0, false)
      await names.stop()
      await publications.stop()
      await disk.stop()
      await toCentral.close()
      journal.close()
    },
  }
}
