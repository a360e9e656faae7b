/**
 * Puts the store together: Redis, scripts, dispatcher and the work about work. The composition root (central/main.ts)
 * and the tests call openStore; nobody else makes these parts.
 */

import type { Clock } from '../../shared/clock.ts'
import type { Dispatcher } from '../../shared/dispatcher.ts'
import type { Log } from '../../shared/log.ts'
import type { LeasePart } from '../../shared/protocol/messages.ts'
import type { Signer } from '../../shared/signing.ts'
import type { BlobStore } from '../blobs.ts'
import type { CampaignStore } from '../campaigns/model.ts'

/** What the registry of sites says about one. */
export interface SiteInfo {
  labels: Record<string, string>
  disabled: boolean
  /** How long the site's link may be cut before its work goes to others, milliseconds; undefined: the usual. */
  outageMs?: number | undefined
}

/** For metrics; called after the fact is durable. */
export interface StoreEvents {
  onVerdict?(verdict: 'accepted' | 'duplicate' | 'stale' | 'refused', end: 'done' | 'failed', group: string): void
  onGranted?(group: string, bundles: number, tasks: number): void
  onExpired?(group: string, tasks: number): void
  onMatched?(durationMs: number): void
}

export interface StoreOptions {
  /** Redis URL. */
  redis: string
  blobs: BlobStore
  signer: Signer
  clock: Clock
  log: Log
  /** Shortens every interval; 1 in production. */
  timeScale: number
  /** `<state>/outputs`: holds `attempt/` and `published/`. */
  outputsDir: string
  /** Null where the site is not registered. */
  siteOf(site: string): Promise<SiteInfo | null>
  /** Every registered site, for the view of shapes. */
  siteNames(): Promise<string[]>
  /** For welcome; null until the file service listens or where only a shared file system is used. */
  filesUrl(): string | null
  /** Opens the files of a pilot's lease at the centre; absent where pilots never come directly. */
  capabilityFor?(lease: LeasePart, expiresAtMs: number): string
  events?: StoreEvents
}

export interface OpenStore {
  store: CampaignStore
  dispatcher: Dispatcher
  /** The background work: BullMQ worker and scheduler. Several processes may run it side by side. */
  work: { start(): Promise<void>; stop(): Promise<void> }
  /** Resolves while Redis answers. @throws where it does not */
  ping(): Promise<void>
  /** After the store lost writes: what an administrator calls when the inventories were looked at. */
  liftHalt(): Promise<void>
  close(): Promise<void>
}

export async function openStore(_options: StoreOptions): Promise<OpenStore> {
  throw new Error('not built yet')
}
