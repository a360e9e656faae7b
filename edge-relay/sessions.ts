/**
 * The pilots a relay knows, one session each: who they are, whether they live, what they said last. Liveness is by the
 * relay's own monotonic clock; after the relay's start every session it remembers counts as just heard of, because the
 * relay's own absence is no evidence of anybody's death.
 *
 * Knows nothing of work: dispatch.ts ends a session here first and then takes its work back.
 */
import { randomUUID } from 'node:crypto'
import { carriedIn, PILOT_TOTALS } from '../shared/carried-metrics.ts'
import type { Clock } from '../shared/clock.ts'
import { mustNextState, type PilotState, pilotTable } from '../shared/lifecycle.ts'
import { firstFitting } from '../shared/protocol/fitting.ts'
import type { LeasePart, Message, NodeFacts, OfferEntry, PilotSummary } from '../shared/protocol/messages.ts'
import type { Journal, SessionRow } from './journal.ts'

export interface Session extends SessionRow {
  /** Monotonic. */
  heardAtMs: number
  /** Its last offer, less what was granted since; null before the first pull. */
  offer: OfferEntry | null
  /** A pull is waiting for work. */
  isWaiting: boolean
  running: number
  coresBusy: number
  /** Leases missing from its last held-list, by fence: missing twice they are taken back. */
  missing: Set<number>
  /** Parts of an inventory that have come. */
  inventory: { processed: number; parts: number; byPart: Map<number, LeasePart[]> } | null
}

/** Ended sessions are kept for central's pilot list this long. */
const KEEP_ENDED_MS = 3_600_000
/** Of a beat. */
const MOST_CHANGES = 200

export class Sessions {
  readonly #journal: Journal
  readonly #clock: Clock
  readonly #byId = new Map<string, Session>()
  /** Changed since central was told last. */
  readonly #changed = new Set<string>()
  /** Totals of sessions that are over. */
  readonly #past: Record<string, number>
  onChanged: () => void = () => {}

  constructor(journal: Journal, clock: Clock, kept: readonly SessionRow[]) {
    this.#journal = journal
    this.#clock = clock
    this.#past = carriedIn(PILOT_TOTALS, journal.meta<Record<string, number>>('pastCounters') ?? {})
    for (const row of kept) {
      this.#byId.set(row.session, this.#live(row))
      this.#changed.add(row.session)
    }
  }

  #live(row: SessionRow): Session {
    const heardAtMs = this.#clock.monotonicMs()
    return {
      ...row,
      heardAtMs,
      offer: null,
      isWaiting: false,
      running: 0,
      coresBusy: 0,
      missing: new Set(),
      inventory: null,
    }
  }

  /** @returns the session where it may still ask for work */
  find(session: string): Session | undefined {
    const found = this.#byId.get(session)
    return found && isLive(found) ? found : undefined
  }

  /** Any session, also one that is over. */
  get(session: string): Session | undefined {
    return this.#byId.get(session)
  }

  live(): Session[] {
    return [...this.#byId.values()].filter(isLive)
  }

  ofHolder(holder: string): Session | undefined {
    return this.live().find((session) => session.holder === holder)
  }

  /** Opens a session. Whoever had this name before must have been ended. */
  open(hello: Message<'hello'>, facts: NodeFacts): Session {
    const row: SessionRow = {
      session: randomUUID(),
      holder: hello.holder,
      incarnation: hello.incarnation,
      software: hello.software,
      facts,
      state: 'active',
      sequence: 0,
      processed: 0,
      code: null,
      sinceMs: this.#clock.wallMs(),
      counters: this.#takeOver(hello),
    }
    const session = this.#live(row)
    this.#byId.set(row.session, session)
    this.save(session)
    return session
  }

  /** Counters run on over sessions of one incarnation: they move, so that they count once. */
  #takeOver(hello: Message<'hello'>): Record<string, number> {
    for (const old of this.#byId.values()) {
      if (old.holder !== hello.holder || old.incarnation !== hello.incarnation) continue
      const { counters } = old
      old.counters = {}
      this.#journal.putSession(rowOf(old))
      return counters
    }
    return {}
  }

  heard(session: Session, facts?: NodeFacts): void {
    session.heardAtMs = this.#clock.monotonicMs()
    if (facts) session.facts = facts
  }

  /** The one place where a pilot's state changes. */
  move(session: Session, event: 'pilot.draining' | 'pilot.left' | 'pilot.lost', code: number | null = null): void {
    session.state = mustNextState(pilotTable, session.state, event) as PilotState
    session.code = code
    session.isWaiting = false
    if (!isLive(session)) {
      session.running = 0
      session.coresBusy = 0
      session.heardAtMs = this.#clock.monotonicMs()
    }
    this.save(session)
  }

  save(session: Session): void {
    this.#journal.putSession(rowOf(session))
    this.touch(session)
  }

  /** Central is to hear of this session with the next beat. */
  touch(session: Session): void {
    this.#changed.add(session.session)
    this.onChanged()
  }

  /** Nobody could be heard: silence so far is nobody's. */
  excuse(): void {
    for (const session of this.live()) session.heardAtMs = this.#clock.monotonicMs()
  }

  silentFor(session: Session): number {
    return this.#clock.monotonicMs() - session.heardAtMs
  }

  /** Forgets sessions that were over long ago; their totals stay. */
  forgetOld(): void {
    for (const session of this.#byId.values()) {
      if (isLive(session) || this.silentFor(session) < KEEP_ENDED_MS || this.#changed.has(session.session)) continue
      addTotals(this.#past, session.counters)
      this.#journal.setMeta('pastCounters', this.#past)
      this.#journal.dropSession(session.session)
      this.#byId.delete(session.session)
    }
  }

  /** Totals of all pilots of this journal's incarnation. */
  counters(): Record<string, number> {
    const sum = { ...this.#past }
    for (const { counters } of this.#byId.values()) addTotals(sum, counters)
    return sum
  }

  countByState(): Record<PilotState, number> {
    const counts = { active: 0, draining: 0, lost: 0, left: 0 }
    for (const { state } of this.#byId.values()) counts[state]++
    return counts
  }

  /** Pilots that changed since the last call, as a beat carries them; untold() puts them back when central did not hear. */
  takeChanges(mostBytes: number): { names: string[]; pilots: PilotSummary[] } {
    const changed = [...this.#changed].slice(0, MOST_CHANGES).flatMap((name) => {
      const session = this.#byId.get(name)
      if (!session) this.#changed.delete(name)
      return session ? [{ name, pilot: this.#summary(session) }] : []
    })
    const told = firstFitting(changed, mostBytes)
    for (const { name } of told) this.#changed.delete(name)
    return { names: told.map(({ name }) => name), pilots: told.map(({ pilot }) => pilot) }
  }

  untold(names: readonly string[]): void {
    for (const name of names) this.#changed.add(name)
  }

  tellAll(): void {
    for (const name of this.#byId.keys()) this.#changed.add(name)
  }

  #summary(session: Session): PilotSummary {
    return {
      pilot: session.holder,
      node: session.facts.node,
      state: session.state,
      cores: session.facts.cores,
      coresBusy: session.coresBusy,
      running: session.running,
      upMs: Math.max(0, this.#clock.wallMs() - session.sinceMs),
      code: session.code,
    }
  }
}

/** Nothing that one pilot says makes the sum no number any more, or longer than a beat. */
function addTotals(sum: Record<string, number>, counters: Readonly<Record<string, number>>): void {
  for (const [name, value] of Object.entries(carriedIn(PILOT_TOTALS, counters))) {
    sum[name] = Math.min((sum[name] ?? 0) + value, Number.MAX_SAFE_INTEGER)
  }
}

export function isLive(session: SessionRow): boolean {
  return session.state === 'active' || session.state === 'draining'
}

function rowOf(session: Session): SessionRow {
  const { holder, incarnation, software, facts, state, sequence, processed, code, sinceMs, counters } = session
  return {
    session: session.session,
    holder,
    incarnation,
    software,
    facts,
    state,
    sequence,
    processed,
    code,
    sinceMs,
    counters,
  }
}
