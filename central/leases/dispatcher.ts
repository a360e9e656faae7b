/**
 * Central as a dispatcher: what each message of a holder does, in order. What is decided is matching's, how it is
 * stored the scripts'; here is only who is asked when. Every handler persists before it answers.
 */
import type { Clock } from '../../shared/clock.ts'
import type { Dispatcher } from '../../shared/dispatcher.ts'
import { IndraftError, isIndraftError } from '../../shared/errors.ts'
import type { Peer } from '../../shared/link.ts'
import type { Log } from '../../shared/log.ts'
import type { Grant, Message, ReplyTo, Verdict } from '../../shared/protocol/messages.ts'
import type { Signed } from '../../shared/protocol/work.ts'
import { timingsFor } from '../../shared/timings.ts'
import { storeRefusal } from '../redis.ts'
import type { Beats } from './beats.ts'
import { findDemand } from './demand.ts'
import { type Envelopes, type GrantedLease, leasePart } from './envelope.ts'
import type { Granting } from './granting.ts'
import { groupBase } from './keys.ts'
import type { Leases } from './leases.ts'
import type { Mark } from './mark.ts'
import type { MatchIndex } from './match-index.ts'
import type { SiteInfo, StoreOptions } from './options.ts'
import type { Results } from './results.ts'
import type { Session, Sessions } from './sessions.ts'
import type { Unreadable } from './unreadable.ts'
import type { Turn, Waiting } from './waiting.ts'

const REPLY_BYTES = 40 * 1024
const VERDICT_BYTES = 110
/** What a holder that found nothing is told to wait before it asks again, unless its pull already waited. */
const ASK_AGAIN_MS = 1000

/** Reasons why a holder that could work has none. */
const UNFED = new Set<ReplyTo<'pull'>['reason']>(['noWork', 'nothingFits', 'limits'])

export interface DispatcherParts {
  options: StoreOptions
  mark: Mark
  sessions: Sessions
  leases: Leases
  results: Results
  granting: Granting
  envelopes: Envelopes
  unreadable: Unreadable
  waiting: Waiting
  beats: Beats
  index: MatchIndex
}

type Granted = { leases: GrantedLease[]; reason: ReplyTo<'pull'>['reason'] }

export class CentralDispatcher implements Dispatcher {
  readonly #parts: DispatcherParts
  readonly #clock: Clock
  readonly #log: Log

  constructor(parts: DispatcherParts) {
    this.#parts = parts
    this.#clock = parts.options.clock
    this.#log = parts.options.log
  }

  async onHello(peer: Peer, hello: Message<'hello'>): Promise<ReplyTo<'hello'>> {
    const { options, sessions, leases, mark } = this.#parts
    const info = await this.#site(peer)
    await mark.check(hello.seen, peer.site)
    const timings = this.#timings(hello.role, info)
    const welcomed = await sessions.hello(peer.site, hello, timings.lostAfterMs)
    if (welcomed.buried !== null) {
      const groups = (await sessions.end(peer.site, welcomed.buried, 'dead')) ?? []
      await leases.bury(peer.site, welcomed.buried, groups.map(groupBase), 'node.lost')
    }
    this.#log.info(
      { site: peer.site, holder: hello.holder, session: welcomed.session, software: hello.software },
      `${hello.role}.greeted`,
    )
    return {
      session: welcomed.session,
      sequence: welcomed.sequence,
      site: peer.site,
      mark: await mark.advance(),
      timings,
      inventory: hello.role === 'relay' ? 'digest' : 'list',
      keys: options.signer.keys,
      filesUrl: options.filesUrl(),
    }
  }

  /** @throws IndraftError site.unknown | site.disabled */
  async #site(peer: Peer): Promise<SiteInfo> {
    const info = await this.#parts.options.siteOf(peer.site)
    if (!info) throw new IndraftError('site.unknown', `${peer.site} is not registered`)
    if (info.state === 'disabled') throw new IndraftError('site.disabled')
    return info
  }

  #timings(role: 'pilot' | 'relay', info: SiteInfo) {
    return timingsFor(role, this.#parts.options.timeScale, info.outageMs)
  }

  /** Results first, then what is given back, then confirmation; only then new work. */
  async onPull(peer: Peer, pull: Message<'pull'>): Promise<ReplyTo<'pull'>> {
    const { results, leases, sessions, granting, waiting, mark } = this.#parts
    const [info, { halted }, session] = await Promise.all([
      this.#site(peer),
      mark.check(pull.seen, peer.site),
      sessions.touch(peer.site, pull.session, { sequence: pull.sequence }),
    ])
    return waiting.only(pull.session, async (turn) => {
      if (pull.sequence === session.sequence || !turn.isFirst) {
        const kept = await sessions.keptReply(peer.site, session.id, pull.sequence)
        if (kept) return { ...kept, grants: await granting.stillHeld(session, kept.grants) }
      }
      const verdicts = await results.judge(peer.site, pull.finished)
      await leases.giveBack(peer.site, pull.returned)
      await this.#confirm(peer, session, pull.processed, pull.sequence)
      const brings = pull.finished.length + pull.returned.length > 0
      if (halted && !brings) throw new IndraftError('dispatcher.halted', undefined, { retryAfterMs: 10_000 })
      const stop = halted ? 'halted' : session.state === 'draining' ? 'draining' : null
      const waitMs = brings ? 0 : Math.min(pull.waitMs, this.#timings(session.role, info).pullWaitMs)
      const granted: Granted =
        stop !== null
          ? { leases: [], reason: stop }
          : await this.#findWork(peer, session, pull, verdicts.length, waitMs, turn)
      return this.#reply(peer, session, pull, granted, verdicts, info)
    })
  }

  /** What was granted under this sequence before, or new work; waits for it up to `waitMs`. */
  async #findWork(
    peer: Peer,
    session: Session,
    pull: Message<'pull'>,
    verdicts: number,
    waitMs: number,
    turn: Turn,
  ): Promise<Granted> {
    const { granting, options } = this.#parts
    if (pull.sequence === session.sequence) {
      const repeated = await granting.repeat(peer.site, session, pull.sequence)
      if (repeated.length > 0) {
        this.#log.info({ site: peer.site, session: session.id, sequence: pull.sequence }, 'grant.repeated')
        return { leases: repeated, reason: null }
      }
    }
    const deadlineMs = this.#clock.monotonicMs() + waitMs
    for (;;) {
      const startMs = performance.now()
      // Each time: it may have been told to drain while this pull waited.
      const info = await this.#site(peer)
      if (info.state !== 'enabled') return { leases: [], reason: 'draining' }
      const granted = await granting.grant({
        site: peer.site,
        labels: info.labels,
        session,
        sequence: pull.sequence,
        offer: pull.offer,
        confirmMs: this.#timings(session.role, info).confirmMs,
        bytes: REPLY_BYTES - VERDICT_BYTES * verdicts,
        knows: pull.knows,
      })
      options.events?.onMatched?.(performance.now() - startMs)
      const leftMs = deadlineMs - this.#clock.monotonicMs()
      if (granted.leases.length > 0 || leftMs <= 0 || pull.offer.length === 0) return granted
      await turn.next(leftMs)
    }
  }

  async #reply(
    peer: Peer,
    session: Session,
    pull: Message<'pull'>,
    granted: Granted,
    verdicts: Verdict[],
    info: SiteInfo,
  ): Promise<ReplyTo<'pull'>> {
    const { leases, sessions } = this.#parts
    const { leaseMs } = this.#timings(session.role, info)
    for (let carried = granted.leases; ; ) {
      const reply = await this.#build(peer, pull, { ...granted, leases: carried }, verdicts, leaseMs)
      const isFed = reply.grants.length > 0
      try {
        if (isFed || verdicts.length > 0) await sessions.keepReply(peer.site, session.id, reply)
      } catch (error) {
        if (!isIndraftError(error, 'message.tooLarge') || carried.length === 0) throw error
        // What no reply carries nobody confirms: it would be held for a minute, and in the end be charged to its tasks.
        const rest = carried.slice(Math.floor(carried.length / 2))
        carried = carried.slice(0, -rest.length)
        await leases.giveBack(peer.site, rest.map(leasePart))
        continue
      }
      if (pull.offer.length > 0 && (isFed || UNFED.has(reply.reason))) {
        await sessions.noteFed(peer.site, session.id, isFed, pull.offer)
      }
      return reply
    }
  }

  async #build(
    peer: Peer,
    pull: Message<'pull'>,
    granted: Granted,
    verdicts: Verdict[],
    leaseMs: number,
  ): Promise<ReplyTo<'pull'>> {
    const { envelopes, leases, mark, options, unreadable } = this.#parts
    const grants: Grant[] = []
    const templates = new Map<string, Signed>()
    const undelivered: GrantedLease[] = []
    for (const lease of granted.leases) {
      const carried = await envelopes.grant(peer.site, lease, leaseMs, pull.knows).catch((error: unknown) => {
        if (storeRefusal(error)) throw error
        unreadable.note('grant', lease, error)
        return null
      })
      if (carried) grants.push(carried.grant)
      else undelivered.push(lease)
      if (carried?.template) templates.set(carried.grant.template, carried.template)
    }
    // The holder confirms all that was granted up to this sequence, also what its reply does not carry.
    if (undelivered.length > 0) await leases.giveBack(peer.site, undelivered.map(leasePart))
    return {
      sequence: pull.sequence,
      mark: await mark.advance(),
      grants,
      templates: [...templates.values()],
      verdicts,
      reason: grants.length > 0 ? null : (granted.reason ?? 'noWork'),
      askAgainMs: grants.length > 0 ? 0 : Math.round(ASK_AGAIN_MS * Math.min(1, options.timeScale)),
    }
  }

  async #confirm(peer: Peer, session: Session, processed: number, opened: number | null): Promise<void> {
    const isNews = processed > session.processed || (opened !== null && opened - 1 > processed)
    if (!isNews || session.groups.length === 0) return
    await this.#parts.leases.confirm(session.groups.map(groupBase), session.id, processed, opened)
    if (processed > session.processed) await this.#parts.sessions.setProcessed(peer.site, session.id, processed)
  }

  async onReport(peer: Peer, report: Message<'report'>): Promise<ReplyTo<'report'>> {
    await this.#site(peer)
    // What a holder knew would be forgotten with this answer's mark.
    await this.#parts.mark.check(report.seen ?? null, peer.site)
    await this.#parts.sessions.touch(peer.site, report.session)
    const verdicts = await this.#parts.results.judge(peer.site, report.results)
    return { mark: await this.#parts.mark.advance(), verdicts }
  }

  async onBeat(peer: Peer, beat: Message<'beat'>): Promise<ReplyTo<'beat'>> {
    const { sessions, leases, mark, beats } = this.#parts
    const { state } = await this.#site(peer)
    const { halted, mark: current } = await mark.check(beat.seen, peer.site)
    const session = await sessions.touch(peer.site, beat.session, {
      orders: true,
      fields: {
        gauges: JSON.stringify(beat.gauges),
        counters: JSON.stringify(beat.counters),
        state: beat.draining ? 'draining' : 'active',
      },
    })
    await this.#confirm(peer, session, beat.processed, null)
    await leases.start(peer.site, beat.started)
    await sessions.notePilots(peer.site, session.holder, beat.pilots, this.#clock.wallMs())
    const is = { halted: halted !== null, isDraining: state !== 'enabled' }
    const orders = await beats.orders(peer.site, session, beat, is)
    const wrote = beat.started.length > 0 || beat.processed > session.processed
    return { mark: wrote ? await mark.advance() : current, orders }
  }

  async onInventory(peer: Peer, inventory: Message<'inventory'>): Promise<ReplyTo<'inventory'>> {
    await this.#site(peer)
    const session = await this.#parts.sessions.touch(peer.site, inventory.session)
    await this.#parts.beats.onInventory(peer.site, session, inventory)
    return { mark: await this.#parts.mark.advance(), orders: [] }
  }

  async onBye(peer: Peer, bye: Message<'bye'>): Promise<ReplyTo<'bye'>> {
    const { leases, sessions, mark } = this.#parts
    await this.#site(peer)
    await leases.giveBack(peer.site, bye.returned)
    const groups = await sessions.end(peer.site, bye.session, 'left', { fields: { code: String(bye.code) } })
    if (groups) await leases.bury(peer.site, bye.session, groups.map(groupBase), 'node.ending')
    this.#log.info({ site: peer.site, session: bye.session, code: bye.code, reason: bye.reason }, 'pilot.left')
    return { mark: await mark.advance() }
  }

  async onDemand(peer: Peer, demand: Message<'demand'>): Promise<ReplyTo<'demand'>> {
    const { options, index } = this.#parts
    const info = await options.siteOf(peer.site)
    const site = info?.state === 'enabled' ? { name: peer.site, labels: info.labels } : null
    const nowMs = this.#clock.wallMs()
    return { ...(await findDemand(index, site, demand, nowMs)), nowMs }
  }
}
