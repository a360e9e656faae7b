/** What the store is given by who opens it, and what it tells them of. Types alone: every part of the store may know them. */
import type { Clock } from '../../shared/clock.ts'
import type { Shape } from '../../shared/fit.ts'
import type { Log } from '../../shared/log.ts'
import type { LeasePart } from '../../shared/protocol/messages.ts'
import type { Signer } from '../../shared/signing.ts'
import type { BlobStore } from '../blobs.ts'

/** Whether it gets work: draining, nothing new; disabled, it is not heard at all, and what it had goes to others. */
export type SiteState = 'enabled' | 'draining' | 'disabled'

/** What the registry of sites says about one. */
export interface SiteInfo {
  labels: Record<string, string>
  state: SiteState
  /** How long the site's link may be cut before its work goes to others, milliseconds; undefined: the usual. */
  outageMs?: number | undefined
  /** Node shapes that the site declared. */
  shapes?: Shape[] | undefined
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
  /** Whether holders can be heard now; always, unless said. */
  hears?: () => boolean
  /** Proves marks of the store to ourselves; not kept in Redis, and the same in every process of the centre. */
  markKey: Uint8Array
  /** Replicas of Redis that must have a write on disk before it is acknowledged; none unless said. */
  replicas?: number
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
  /** Opens the files of a site's lease at the centre; absent where the centre serves no files. */
  capabilityFor?(site: string, lease: Omit<LeasePart, 'bundle'>, expiresAtMs: number): string
  events?: StoreEvents
}
