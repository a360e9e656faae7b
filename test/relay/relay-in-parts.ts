/**
 * A relay without servers: journal, dispatcher and upstream over memory links, for tests that need to see inside or to
 * lose messages on purpose. What is left out is what only carries: nats-server, HTTPS.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Buffer } from '../../edge-relay/buffer.ts'
import { Cache } from '../../edge-relay/cache.ts'
import { Cancels } from '../../edge-relay/cancels.ts'
import { RelayDispatcher } from '../../edge-relay/dispatch.ts'
import { Journal } from '../../edge-relay/journal.ts'
import { Outgoing } from '../../edge-relay/outgoing.ts'
import { Publications } from '../../edge-relay/publications.ts'
import { Sessions } from '../../edge-relay/sessions.ts'
import { Uploads } from '../../edge-relay/uploads.ts'
import { Upstream } from '../../edge-relay/upstream.ts'
import type { Clock } from '../../shared/clock.ts'
import { frameHandler } from '../../shared/dispatcher.ts'
import { AttemptFiles } from '../../shared/files/attempt-files.ts'
import { FileClient } from '../../shared/files/client.ts'
import type { FrameHandler, Link } from '../../shared/link.ts'
import { silentLog } from '../../shared/log.ts'

export interface RelayInParts {
  folder: string
  journal: Journal
  buffer: Buffer
  sessions: Sessions
  outgoing: Outgoing
  cancels: Cancels
  dispatcher: RelayDispatcher
  upstream: Upstream
  handler: FrameHandler
  /** As a crash: nothing is flushed, said or given back; the folder stays. */
  crash(): Promise<void>
  /** crash(), and the folder goes. */
  close(): Promise<void>
}

export interface PartsOptions {
  clock: Clock
  /** Towards central. */
  link: Link
  site?: string
  aheadMs?: number
  /** Of an earlier one, to go on with its journal. */
  folder?: string
  /** Where central serves files. */
  centralUrl?: string
  centralToken?: string
}

export async function relayInParts(options: PartsOptions): Promise<RelayInParts> {
  const { clock, link, site = 'ALPHA', aheadMs = 7_200_000 } = options
  const folder = options.folder ?? mkdtempSync(join(tmpdir(), 'indraft-relay-'))
  const log = silentLog
  const journal = Journal.open(join(folder, 'journal.sqlite'), log, (error) => {
    throw error
  })
  const kept = journal.read()
  const buffer = new Buffer(journal, clock, kept)
  const sessions = new Sessions(journal, clock, kept.sessions)
  const outgoing = new Outgoing(journal, kept.results)
  const cancels = new Cancels(journal, buffer, kept.pending)
  const publications = new Publications(journal, log, kept.pending)
  const client = new FileClient({ ca: null, token: options.centralToken ?? null })
  const uploads = new Uploads({
    outbox: new AttemptFiles(join(folder, 'outbox')),
    cache: await Cache.open(join(folder, 'cache'), 1_000_000, log),
    client,
    centralUrl: options.centralUrl ?? 'http://127.0.0.1:1',
    capabilityOf: (attempt) => buffer.capabilities.ofAttempt(attempt),
    journal,
    outgoing,
    log,
  })
  const dispatcher: RelayDispatcher = new RelayDispatcher({
    site,
    journal,
    buffer,
    sessions,
    outgoing,
    cancels,
    replies: kept.replies,
    log,
    clock,
    timeScale: 1,
    keys: {},
    filesUrl: () => null,
    capabilityKey: new Uint8Array(32),
    leaseLeftMs: (leaseMs) => upstream.leaseLeftMs(leaseMs),
    isDraining: () => upstream.isDraining,
    events: { onDemand: () => upstream.demand(), onStarted: (part) => upstream.noteStarted(part) },
  })
  const upstream = new Upstream({
    link,
    clock,
    log,
    holder: 'relay',
    software: 'relay-in-parts',
    journal,
    buffer,
    sessions,
    outgoing,
    cancels,
    uploads,
    publications,
    aheadMs,
    dispatcher: () => dispatcher,
    counters: () => ({}),
    gauges: () => ({}),
    onSettled: (result) => void uploads.release(result),
  })
  uploads.start(kept.pending)
  upstream.start()
  let isOver = false
  const crash = async () => {
    if (isOver) return
    isOver = true
    dispatcher.stop()
    await uploads.stop()
    await upstream.stop(0, false)
    await publications.stop()
    await client.close()
    journal.close()
  }
  return {
    folder,
    journal,
    buffer,
    sessions,
    outgoing,
    cancels,
    dispatcher,
    upstream,
    handler: frameHandler(dispatcher, log),
    crash,
    async close() {
      await crash()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

/** Real time; the condition is about what happens by itself. @throws when it takes ten seconds */
export async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  for (let waited = 0; waited < 10_000; waited += 2) {
    if (await condition()) return
    await new Promise((resolve) => setTimeout(resolve, 2))
  }
  throw new Error(`never happened: ${what}`)
}
