/**
 * A relay without servers: journal, dispatcher and upstream over memory links, for tests that need to see inside or to
 * lose messages on purpose. What is left out is what only carries: nats-server, HTTPS.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Core, type CoreEvents, openCore } from '../../edge-relay/core.ts'
import type { Clock } from '../../shared/clock.ts'
import { frameHandler } from '../../shared/dispatcher.ts'
import type { FrameHandler, Link } from '../../shared/link.ts'
import { type Log, silentLog } from '../../shared/log.ts'

/** Of until(): far above what anything takes, and below the limit of a test, which would not say what never happened. */
const PATIENCE_MS = 90_000

export interface RelayInParts extends Core {
  folder: string
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
  diskReserveBytes?: number
  cacheBytes?: number
  events?: CoreEvents
  name?: string
  log?: Log
}

export async function relayInParts(options: PartsOptions): Promise<RelayInParts> {
  const { clock, link, site = 'ALPHA', aheadMs = 7_200_000, log = silentLog } = options
  const folder = options.folder ?? mkdtempSync(join(tmpdir(), 'indraft-relay-'))
  const core = await openCore({
    state: folder,
    site,
    name: options.name ?? 'relay',
    software: 'relay-in-parts',
    clock,
    log,
    link,
    centralFiles: { url: options.centralUrl ?? 'http://127.0.0.1:1', token: options.centralToken ?? null, ca: null },
    keys: {},
    filesUrl: () => null,
    capabilityKey: new Uint8Array(32),
    aheadMs,
    timeScale: 1,
    cacheBytes: options.cacheBytes ?? 1_000_000,
    diskReserveBytes: options.diskReserveBytes ?? 0,
    events: options.events ?? {},
  })
  await core.start()
  return {
    ...core,
    folder,
    handler: frameHandler(core.dispatcher, log),
    crash: core.close,
    async close() {
      await core.close()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

/**
 * Real time; the condition is about what happens by itself. @returns what the condition returned, once that is something
 * @throws when it takes more than PATIENCE_MS; the condition is looked at once more then
 */
export async function until<T>(what: string, condition: () => T | Promise<T>): Promise<NonNullable<T>> {
  const endsAtMs = performance.now() + PATIENCE_MS
  for (;;) {
    const isLast = performance.now() > endsAtMs
    const found = await condition()
    if (found) return found
    if (isLast) throw new Error(`never happened: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 2))
  }
}
