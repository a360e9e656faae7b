/**
 * Ends sessions that fell silent, and grants that nobody confirmed. After our own silence (a restart of the centre or
 * of Redis, a time without NATS) nobody is declared dead for as long as their own lost-after: absence of evidence is
 * not death then. A process that cannot hear holders judges nobody, and what nobody could hear counts as our silence.
 */
import type { Log } from '../../shared/log.ts'
import { GRACE_AFTER_RESTART, timingsFor } from '../../shared/timings.ts'
import { GLOBAL, groupBase } from '../leases/keys.ts'
import type { Leases } from '../leases/leases.ts'
import type { SiteInfo } from '../leases/options.ts'
import type { Scripts } from '../leases/scripts.ts'
import type { SessionRecord, Sessions } from '../leases/sessions.ts'

/** Nobody listening for longer than this means that holders could not reach us, not scaled. */
const OWN_SILENCE_MS = 15_000
const PRUNE_EVERY_MS = 3600_000
/** A session's mark in its groups outlives any grant that could still be under way. */
const DEAD_KEPT_MS = 24 * 3600_000

export class Reaper {
  readonly #scripts: Scripts
  readonly #sessions: Sessions
  readonly #leases: Leases
  readonly #log: Log
  readonly #scale: number
  readonly #confirmMs: number
  readonly #siteOf: (site: string) => Promise<SiteInfo | null>
  readonly #hears: () => boolean
  /** When this process last did, by Redis time. */
  #prunedMs = 0

  constructor(
    scripts: Scripts,
    sessions: Sessions,
    leases: Leases,
    log: Log,
    scale: number,
    siteOf: (site: string) => Promise<SiteInfo | null>,
    hears: () => boolean = () => true,
  ) {
    this.#siteOf = siteOf
    this.#hears = hears
    this.#scripts = scripts
    this.#sessions = sessions
    this.#leases = leases
    this.#log = log
    this.#scale = scale
    this.#confirmMs = timingsFor('relay', scale).confirmMs
  }

  /** To be called all the time: says that holders are heard. Where nobody said so for long, that was our silence. */
  async listen(): Promise<void> {
    if (this.#hears()) await this.#noteHearing(await this.#nowMs())
  }

  async sweep(): Promise<void> {
    if (!this.#hears()) return
    const nowMs = await this.#nowMs()
    const graceMs = await this.#noteHearing(nowMs)
    const listed = await this.#sessions.listed()
    const shut = await this.#disabled(new Set(listed.map(({ site }) => site)))
    for (const session of listed) {
      const isLive = session.state === 'active' || session.state === 'draining'
      if (shut.has(session.site)) {
        await this.#expel(session)
        continue
      }
      const silentSinceMs = Math.max(session.seenMs, graceMs + (GRACE_AFTER_RESTART - 1) * session.lostAfterMs)
      if (isLive && nowMs - silentSinceMs <= session.lostAfterMs) continue
      const groups = await this.#sessions.end(session.site, session.id, 'dead', { before: nowMs - session.lostAfterMs })
      if (!groups) continue
      if (isLive) {
        this.#log.warn(
          { site: session.site, holder: session.holder, session: session.id, silentMs: nowMs - session.seenMs },
          `${session.role}.lost`,
        )
      }
      await this.#leases.bury(session.site, session.id, groups.map(groupBase), 'node.lost')
    }
    for (const group of await this.#scripts.redis.smembers(GLOBAL.groups)) {
      const base = groupBase(group)
      // While we could not be told, nobody could confirm either.
      const before = nowMs - graceMs > this.#confirmMs ? nowMs : 0
      for (const bundle of await this.#scripts.redis.zrangebyscore(`${base}:provisional`, '-inf', before)) {
        await this.#leases.expire(base, bundle, { provisional: true, reason: 'node.lost' })
      }
      await this.#forgetDead(base, nowMs)
    }
    if (nowMs - this.#prunedMs < PRUNE_EVERY_MS) return
    this.#prunedMs = nowMs
    await this.#sessions.prune(nowMs)
  }

  async #disabled(sites: ReadonlySet<string>): Promise<Set<string>> {
    const states = await Promise.all([...sites].map(async (site) => (await this.#siteOf(site))?.state))
    return new Set([...sites].filter((_, i) => states[i] === 'disabled'))
  }

  /** A disabled site is not heard any more: what it holds is others' at once, whatever it does meanwhile. */
  async #expel(session: SessionRecord): Promise<void> {
    const groups = await this.#sessions.end(session.site, session.id, 'dead')
    if (!groups) return
    const { site, holder, id } = session
    this.#log.warn({ site, holder, session: id, why: 'site.disabled' }, `${session.role}.lost`)
    await this.#leases.bury(site, id, groups.map(groupBase), 'node.lost')
  }

  async #nowMs(): Promise<number> {
    const [seconds, micros] = await this.#scripts.redis.time()
    return Number(seconds) * 1000 + Math.floor(Number(micros) / 1000)
  }

  /** Since when, at the earliest, silence counts: the end of our own last silence. */
  async #noteHearing(nowMs: number): Promise<number> {
    const [swept, grace] = await this.#scripts.redis.hmget(GLOBAL.mark, 'sweptMs', 'graceMs')
    const wasSilent = nowMs - Number(swept ?? 0) > OWN_SILENCE_MS * Math.max(this.#scale, 0.2)
    const since = wasSilent ? nowMs : Number(grace ?? 0)
    await this.#scripts.redis.hset(GLOBAL.mark, 'sweptMs', nowMs, 'graceMs', since)
    return since
  }

  async #forgetDead(base: string, nowMs: number): Promise<void> {
    for (const [session, sinceMs] of Object.entries(await this.#scripts.redis.hgetall(`${base}:dead`))) {
      if (nowMs - Number(sinceMs) > DEAD_KEPT_MS) await this.#scripts.redis.hdel(`${base}:dead`, session)
    }
  }
}
