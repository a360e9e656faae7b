/**
 * What opens files at central: the capability that came with each lease. The relay only shows it; what it opens is
 * central's to say.
 *
 * What always holds: a lease in the journal has its capability there, in its grant. One that ends may have attempts
 * whose results are still to come, because their pilot was thought lost: `expectLate` keeps what opens those, in the
 * journal too, and nothing is written for leases that end well. Called by the buffer as leases come and go.
 */
import type { AttemptName } from '../shared/files/capability.ts'
import type { Grant } from '../shared/protocol/messages.ts'
import type { Journal, JournalContent } from './journal.ts'

/** After this a late result is worth nothing to anybody: central has long had the task done elsewhere. */
const LATE_FOR_MS = 30 * 24 * 3600_000
/** Some 50 MB of journal at most, however many pilots get lost; the oldest go first. */
const MOST_LATE = 100_000

type LeaseName = Pick<Grant['lease'], 'campaign' | 'step' | 'fences'>

interface Kept {
  capability: string
  campaign: string
  isHeld: boolean
  /** Wall clock, since when late results are expected; null: none are. */
  lateSinceMs: number | null
}

interface LateRow {
  capability: string
  campaign: string
  lateSinceMs: number
}

export class Capabilities {
  readonly #journal: Journal
  readonly #byLease = new Map<string, Kept>()
  readonly #byCampaign = new Map<string, Set<Kept>>()
  /** Names of leases with late results, oldest first. */
  readonly #late = new Set<string>()

  constructor(journal: Journal, kept: JournalContent) {
    this.#journal = journal
    const late = kept.pending.flatMap(({ kind, name, body }) =>
      kind === 'capability' ? [{ name, row: body as LateRow }] : [],
    )
    for (const { name, row } of late.sort((a, b) => a.row.lateSinceMs - b.row.lateSinceMs)) {
      this.#add(name, { ...row, isHeld: false })
      this.#late.add(name)
    }
    for (const { grant } of kept.leases) this.hold(grant)
  }

  /** How many are known. */
  get kept(): number {
    return this.#byLease.size
  }

  hold({ lease, capability }: Pick<Grant, 'lease' | 'capability'>): void {
    if (capability === null) return
    const name = nameOf(lease)
    const known = this.#byLease.get(name)
    if (known) known.isHeld = true
    else this.#add(name, { capability, campaign: lease.campaign, isHeld: true, lateSinceMs: null })
  }

  /** A part of the lease ended without its pilot, which may come back with results when the lease is over. */
  expectLate(lease: LeaseName, wallMs: number): void {
    const name = nameOf(lease)
    const known = this.#byLease.get(name)
    if (!known || known.lateSinceMs !== null) return
    known.lateSinceMs = wallMs
    this.#late.add(name)
    const row: LateRow = { capability: known.capability, campaign: known.campaign, lateSinceMs: wallMs }
    this.#journal.putPending('capability', name, row)
    for (const oldest of this.#late) {
      if (this.#late.size <= MOST_LATE) break
      this.#forgetLate(oldest)
    }
  }

  /** The lease is over. */
  release(lease: LeaseName): void {
    const name = nameOf(lease)
    const known = this.#byLease.get(name)
    if (!known) return
    known.isHeld = false
    if (known.lateSinceMs === null) this.#drop(name, known)
  }

  forgetOld(wallMs: number): void {
    for (const name of this.#late) {
      if (wallMs - this.#byLease.get(name)!.lateSinceMs! <= LATE_FOR_MS) return
      this.#forgetLate(name)
    }
  }

  /** Opens writing and reading of this attempt; null where the relay never had its lease, or has forgotten it. */
  ofAttempt(attempt: Pick<AttemptName, 'campaign' | 'step' | 'fences'>): string | null {
    return this.#byLease.get(nameOf(attempt))?.capability ?? null
  }

  /** Opens reading of any attempt of the campaign: the newest, as that is valid longest. */
  ofCampaign(campaign: string): string | null {
    let newest: Kept | undefined
    for (const one of this.#byCampaign.get(campaign) ?? []) newest = one
    return newest?.capability ?? null
  }

  #add(name: string, kept: Kept): void {
    this.#byLease.set(name, kept)
    const siblings = this.#byCampaign.get(kept.campaign) ?? new Set()
    this.#byCampaign.set(kept.campaign, siblings.add(kept))
  }

  #drop(name: string, kept: Kept): void {
    this.#byLease.delete(name)
    const siblings = this.#byCampaign.get(kept.campaign)
    siblings?.delete(kept)
    if (siblings?.size === 0) this.#byCampaign.delete(kept.campaign)
  }

  #forgetLate(name: string): void {
    this.#late.delete(name)
    this.#journal.dropPending('capability', name)
    const known = this.#byLease.get(name)!
    known.lateSinceMs = null
    if (!known.isHeld) this.#drop(name, known)
  }
}

/** A lease by central's own fence, which every attempt under it carries first. */
function nameOf({ campaign, step, fences }: Pick<AttemptName, 'campaign' | 'step' | 'fences'>): string {
  return `${campaign}/${step}/${fences[0]}`
}
