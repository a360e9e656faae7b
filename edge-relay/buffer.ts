/**
 * The work a relay holds: leases from central, and the parts of them that pilots hold (sub-leases). Every change is
 * made here, in memory and in the journal alike; who asks and who answers is elsewhere.
 *
 * What always holds, per lease: `open` is what central still waits for; `free`, `back`, the sub-leases' tasks and the
 * tasks of results on their way up are disjoint parts of it. A task is in at most one live sub-lease. A sub-lease's
 * fence is in the journal before anybody hears of it.
 */
import type { Clock } from '../shared/clock.ts'
import { IndraftError } from '../shared/errors.ts'
import { pack } from '../shared/protocol/codec.ts'
import type { Grant, LeasePart, Result } from '../shared/protocol/messages.ts'
import type { Signed } from '../shared/protocol/work.ts'
import {
  containsIndex,
  countRanges,
  formatRanges,
  indices,
  intersectRanges,
  parseRanges,
  rangesOf,
  type Span,
  subtractRanges,
  uniteRanges,
} from '../shared/ranges.ts'
import { readBundle } from '../shared/signing.ts'
import { Capabilities } from './capabilities.ts'
import type { Journal, JournalContent, LeaseRow } from './journal.ts'
import { type Lease, leaseKey, leasePart, leaseRow, newLease, OWN_HOP, type SubLease, subLeaseRow } from './lease.ts'
import { asRefusal, Steps, templateName } from './steps.ts'

export interface RefusedGrant {
  grant: Grant
  why: IndraftError | null
}

export class Buffer {
  /** Of the leases here, and of those that may still have results to come. */
  readonly capabilities: Capabilities
  /** Templates and run times. */
  readonly steps: Steps
  readonly #journal: Journal
  readonly #clock: Clock
  readonly #leases = new Map<string, Lease>()
  readonly #subLeases = new Map<number, SubLease>()
  readonly #bySession = new Map<string, Set<SubLease>>()
  #lastFence: number
  #lastArrival = 0
  /** There may be something to give out that was not there before. */
  onFreed: () => void = () => {}
  /** There is something to give back to central. */
  onBack: () => void = () => {}

  constructor(journal: Journal, clock: Clock, kept: JournalContent) {
    this.#journal = journal
    this.#clock = clock
    this.steps = new Steps(journal, clock, kept.templates)
    this.capabilities = new Capabilities(journal, kept)
    this.#lastFence = journal.meta<number>('lastFence') ?? 0
    for (const one of kept.leases) this.#takeUp(one.row, one.grant)
    for (const row of kept.past) {
      const lease = this.#leases.get(leaseKey(row.bundle, row.above))
      const tasks = readRanges(row.tasks)
      if (lease && tasks) lease.past.set(row.fence, tasks)
    }
    for (const row of kept.subLeases) {
      const lease = this.#leases.get(leaseKey(row.bundle, row.above))
      const [tasks, started] = [readRanges(row.tasks), readRanges(row.started)]
      // Without its lease a result under it goes up unjudged, which is all there is to do for it.
      if (!lease || !tasks || !started) journal.dropSubLease(row.fence)
      else this.#index({ ...row, lease, tasks, started, grantedAtMs: clock.monotonicMs() })
    }
  }

  /** A lease of before the start. One that cannot be read starves none of the others: central takes it back. */
  #takeUp(row: LeaseRow, grant: Grant): void {
    try {
      const lease = this.#readLease(grant, row.arrival)
      if (!lease) throw new IndraftError('message.invalid', `the template ${grant.template} is not here`)
      lease.gone = row.gone
      for (const part of ['free', 'back', 'open'] as const) lease[part] = parseRanges(row[part])
      this.#leases.set(leaseKey(row.bundle, row.fence), lease)
      this.#lastArrival = Math.max(this.#lastArrival, row.arrival)
    } catch (error) {
      this.#journal.setAside('lease', leaseKey(row.bundle, row.fence), pack([row, grant]), error)
      this.#journal.dropLease(row.bundle, row.fence)
      // Pilots may have parts of it, with results to come.
      this.capabilities.expectLate(grant.lease, this.#clock.wallMs())
      this.capabilities.release(grant.lease)
    }
  }

  /**
   * Takes in what central granted, each grant judged by itself: one that cannot be read starves none of the others.
   * @returns what was not accepted, and why; null where only the template is not here
   */
  add(grants: readonly Grant[], templates: readonly Signed[]): RefusedGrant[] {
    const unreadable = this.steps.take(templates)
    const refused: RefusedGrant[] = []
    for (const grant of grants) {
      if (this.#leases.has(leaseKey(grant.lease.bundle, grant.lease.fences[0]!))) continue
      let lease: Lease | undefined
      try {
        lease = this.#readLease(grant, ++this.#lastArrival)
      } catch (error) {
        refused.push({ grant, why: asRefusal(error) })
        continue
      }
      if (!lease) {
        refused.push({ grant, why: unreadable.get(templateName(grant.template)) ?? null })
        continue
      }
      this.#leases.set(leaseKey(lease.bundle, lease.fences[0]!), lease)
      this.#journal.putBundle(lease.bundle, lease.fences[0]!, grant)
      this.capabilities.hold(grant)
      this.#save(lease)
    }
    this.onFreed()
    return refused
  }

  #readLease(grant: Grant, arrival: number): Lease | undefined {
    const body = readBundle(grant.bundle)
    const template = this.steps.template(templateName(grant.template))
    if (!template) return undefined
    const lease = newLease(grant, body, template, arrival)
    if (grant.estimateMs !== null) this.steps.expect(grant.lease, grant.estimateMs)
    return lease
  }

  /** The template of a lease that is here. */
  template(lease: Lease): { name: string; template: Signed } {
    const name = templateName(lease.grant.template)
    return { name, template: this.steps.template(name)! }
  }

  /** Every lease, oldest first. */
  leases(): Iterable<Lease> {
    return this.#leases.values()
  }

  subLeases(): Iterable<SubLease> {
    return this.#subLeases.values()
  }

  ofSession(session: string): SubLease[] {
    return [...(this.#bySession.get(session) ?? [])]
  }

  subLease(fence: number): SubLease | undefined {
    return this.#subLeases.get(fence)
  }

  /** Gives tasks of a lease's buffer to a session, provisionally, under a new fence. */
  grant(lease: Lease, tasks: Span[], session: string, sequence: number): SubLease {
    this.#lastFence = Math.max(this.#lastFence + 1, Math.floor(this.#clock.wallMs() * 1000))
    this.#journal.setMeta('lastFence', this.#lastFence)
    const part: SubLease = {
      fence: this.#lastFence,
      lease,
      session,
      sequence,
      confirmed: false,
      tasks,
      started: [],
      grantedAtMs: this.#clock.monotonicMs(),
    }
    lease.free = subtractRanges(lease.free, tasks)
    this.#index(part)
    this.#saveSub(part)
    this.#save(lease)
    return part
  }

  confirm(part: SubLease): void {
    if (part.confirmed) return
    part.confirmed = true
    this.#saveSub(part)
  }

  start(part: SubLease, tasks: readonly Span[]): Span[] {
    const fresh = subtractRanges(intersectRanges(tasks, part.tasks), part.started)
    if (fresh.length > 0) {
      part.started = uniteRanges(part.started, fresh)
      this.#saveSub(part)
    }
    return fresh
  }

  /**
   * Tasks of a sub-lease go back into the buffer: those that central still waits for, of a lease that is not gone.
   * @param won their results are here: central waits for those
   * @param unwanted nobody is to start them: they are given back to central
   */
  takeBack(part: SubLease, tasks: readonly Span[], won: readonly Span[], unwanted: readonly Span[]): void {
    const lease = part.lease
    const kept = intersectRanges(tasks, part.tasks)
    if (kept.length === 0) return
    const past = uniteRanges(lease.past.get(part.fence) ?? [], kept)
    lease.past.set(part.fence, past)
    const { bundle, fences } = lease
    this.#journal.putPast({ fence: part.fence, bundle, above: fences[0]!, tasks: formatRanges(past) })
    this.#shrink(part, kept)
    if (lease.gone) lease.open = subtractRanges(lease.open, kept)
    else {
      const left = subtractRanges(intersectRanges(kept, lease.open), won)
      lease.free = uniteRanges(lease.free, subtractRanges(left, unwanted))
      lease.back = uniteRanges(lease.back, intersectRanges(left, unwanted))
    }
    this.#save(lease)
    this.onFreed()
    if (lease.back.length > 0) this.onBack()
  }

  /**
   * The pilot got lost. Tasks it had not started may still be what killed it within its first beat: the second time
   * such a task loses its pilot it counts as started. @returns tasks that are not to be given out again
   */
  blame(part: SubLease): Span[] {
    const { lease, tasks, started } = part
    const blamed = uniteRanges(started, intersectRanges(lease.suspect, tasks))
    lease.suspect = uniteRanges(lease.suspect, tasks)
    return blamed
  }

  /** A task of a sub-lease ended; it stays open until central has the result. */
  endTask(part: SubLease, index: number): void {
    this.#shrink(part, [[index, index]])
    // Central may have had another attempt's result before.
    if (part.lease.open.length === 0) this.#save(part.lease)
  }

  /** Whether this sub-lease still covers the attempt. */
  covers(part: SubLease, result: Pick<Result, 'bundle' | 'campaign' | 'step' | 'index'>): boolean {
    const { lease, tasks } = part
    return (
      lease.bundle === result.bundle &&
      lease.campaign === result.campaign &&
      lease.step === result.step &&
      containsIndex(tasks, result.index)
    )
  }

  /** The lease that an attempt was part of, while central waits for that task. */
  leaseOf(result: Pick<Result, 'bundle' | 'campaign' | 'step' | 'index' | 'fences'>): Lease | undefined {
    const lease = this.#leases.get(leaseKey(result.bundle, result.fences[0]!))
    const isSame = lease?.campaign === result.campaign && lease.step === result.step
    return isSame && containsIndex(lease.open, result.index) ? lease : undefined
  }

  /** Whether the attempt's sub-lease was given here and ended without a result; believed where the journal lost rows. */
  wasGiven(lease: Lease, result: Pick<Result, 'index' | 'fences'>): boolean {
    if (this.#journal.hasLost) return true
    return containsIndex(lease.past.get(result.fences[OWN_HOP] ?? 0) ?? [], result.index)
  }

  /** A success came late: its task is not started again. @returns sub-leases under which it runs by now */
  supersede(lease: Lease, index: number): SubLease[] {
    lease.free = subtractRanges(lease.free, [[index, index]])
    this.#save(lease)
    return [...this.#subLeases.values()].filter((part) => part.lease === lease && containsIndex(part.tasks, index))
  }

  /** Central has this attempt's result. */
  settle(result: Pick<Result, 'bundle' | 'index' | 'fences'>): void {
    const lease = this.#leases.get(leaseKey(result.bundle, result.fences[0]!))
    if (!lease) return
    const span: Span = [result.index, result.index]
    lease.open = subtractRanges(lease.open, [span])
    lease.free = subtractRanges(lease.free, [span])
    lease.back = subtractRanges(lease.back, [span])
    this.#save(lease)
  }

  /** All that waits in the buffer of these leases is to be given back to central. */
  giveBack(which: (lease: Lease) => boolean): void {
    let isAny = false
    for (const lease of this.#leases.values()) {
      if (lease.free.length === 0 || !which(lease)) continue
      lease.back = uniteRanges(lease.back, lease.free)
      lease.free = []
      this.#save(lease)
      isAny = true
    }
    if (isAny) this.onBack()
  }

  /** One task is not to be started here: what waits of it goes back. */
  giveBackTask(attempt: Pick<Result, 'bundle' | 'index' | 'fences'>): void {
    const lease = this.#leases.get(leaseKey(attempt.bundle, attempt.fences[0]!))
    if (!lease || !containsIndex(lease.free, attempt.index)) return
    lease.free = subtractRanges(lease.free, [[attempt.index, attempt.index]])
    lease.back = uniteRanges(lease.back, [[attempt.index, attempt.index]])
    this.#save(lease)
    this.onBack()
  }

  /** What is to be given back, at most `limit` parts. */
  returns(limit: number): LeasePart[] {
    const parts: LeasePart[] = []
    for (const lease of this.#leases.values()) {
      if (lease.back.length === 0 || lease.gone) continue
      parts.push(leasePart(lease, lease.back))
      if (parts.length === limit) break
    }
    return parts
  }

  returned(parts: readonly LeasePart[]): void {
    for (const part of parts) {
      const lease = this.#leases.get(leaseKey(part.bundle, part.fences[0]!))
      if (!lease) continue
      const tasks = parseRanges(part.tasks)
      lease.back = subtractRanges(lease.back, tasks)
      lease.open = subtractRanges(lease.open, tasks)
      this.#save(lease)
    }
  }

  /** The session these leases were granted in is over at central: what waits is not theirs to start any more. */
  dropAbove(which: (lease: Lease) => boolean = () => true): void {
    for (const lease of [...this.#leases.values()]) {
      if (lease.gone || !which(lease)) continue
      lease.gone = true
      lease.open = subtractRanges(subtractRanges(lease.open, lease.free), lease.back)
      lease.free = []
      lease.back = []
      this.#save(lease)
    }
  }

  counts(): { leases: number; free: number; held: number; running: number } {
    const counts = { leases: 0, free: 0, held: 0, running: 0 }
    for (const lease of this.#leases.values()) {
      counts.leases++
      counts.free += countRanges(lease.free)
    }
    for (const part of this.#subLeases.values()) {
      counts.held += countRanges(part.tasks)
      counts.running += countRanges(part.started)
    }
    return counts
  }

  /** The pilot of a part of this lease is gone, and may come back with results when the lease is long over. */
  expectLate(lease: Lease): void {
    this.capabilities.expectLate(lease, this.#clock.wallMs())
  }

  /** Drops what no lease has named for a while, and what opens results too late to come. */
  forgetUnused(): void {
    this.capabilities.forgetOld(this.#clock.wallMs())
    this.steps.forgetUnused([...this.#leases.values()])
  }

  /**
   * Tasks that central waits for although they are nowhere here: neither in the buffer nor at a pilot nor `elsewhere`.
   * There are none unless the journal lost rows. Those of leases that are gone are simply forgotten.
   * @param elsewhere whether the result of a task is on its way up
   */
  missing(elsewhere: (lease: Lease, index: number) => boolean): { lease: Lease; tasks: number[] }[] {
    return [...this.#leases.values()].flatMap((lease) => {
      const held = [...this.#subLeases.values()].filter((part) => part.lease === lease).map((part) => part.tasks)
      const rest = [lease.free, lease.back, ...held].reduce<Span[]>(subtractRanges, lease.open)
      const tasks = [...indices(rest)].filter((index) => !elsewhere(lease, index))
      if (tasks.length === 0) return []
      if (!lease.gone) return [{ lease, tasks }]
      lease.open = subtractRanges(lease.open, rangesOf(tasks))
      this.#save(lease)
      return []
    })
  }

  #index(part: SubLease): void {
    this.#subLeases.set(part.fence, part)
    const siblings = this.#bySession.get(part.session) ?? new Set()
    this.#bySession.set(part.session, siblings.add(part))
  }

  #shrink(part: SubLease, tasks: readonly Span[]): void {
    part.tasks = subtractRanges(part.tasks, tasks)
    part.started = subtractRanges(part.started, tasks)
    if (part.tasks.length > 0) {
      this.#saveSub(part)
      return
    }
    this.#subLeases.delete(part.fence)
    const siblings = this.#bySession.get(part.session)
    siblings?.delete(part)
    if (siblings?.size === 0) this.#bySession.delete(part.session)
    this.#journal.dropSubLease(part.fence)
    // The last sub-lease of a lease that is gone takes it along.
    if (part.lease.gone) this.#save(part.lease)
  }

  /** A lease stays while central waits for any of it, or a pilot holds any of it. */
  #save(lease: Lease): void {
    const fence = lease.fences[0]!
    const isHeld = () => [...this.#subLeases.values()].some((part) => part.lease === lease)
    if (lease.open.length === 0 && !isHeld()) {
      this.#leases.delete(leaseKey(lease.bundle, fence))
      this.#journal.dropLease(lease.bundle, fence)
      this.capabilities.release(lease)
      return
    }
    this.#journal.putLease(leaseRow(lease))
  }

  #saveSub(part: SubLease): void {
    this.#journal.putSubLease(subLeaseRow(part))
  }
}

function readRanges(text: string): Span[] | null {
  try {
    return parseRanges(text)
  } catch {
    return null
  }
}
