/**
 * Sessions of holders, kept under their site. A session is live by its messages; ended ones stay listed until all
 * their leases are ended, so that whoever sweeps next goes on where a dead helper stopped.
 */
import { randomBytes } from 'node:crypto'
import { IndraftError, isIndraftError } from '../../shared/errors.ts'
import { type Shape, shapeOf } from '../../shared/fit.ts'
import { decode, encode } from '../../shared/protocol/codec.ts'
import type { Message, NodeFacts, OfferEntry, Order, PilotSummary, ReplyTo } from '../../shared/protocol/messages.ts'
import type { HolderView, PilotView } from '../campaigns/model.ts'
import { GLOBAL, siteBase } from './keys.ts'
import { mapOf, type Scripts } from './scripts.ts'

const REPLY_KEPT_SECONDS = 24 * 3600
/** Pilots that left or were lost, or whose relay was, are shown for so long. */
const PILOT_KEPT_MS = 7 * 24 * 3600_000

export interface Session {
  id: string
  /** The last pull's sequence before this message. */
  sequence: number
  processed: number
  role: 'pilot' | 'relay'
  holder: string
  state: 'active' | 'draining'
  /** Groups in which it has, or had, leases. */
  groups: string[]
  orders: Order[]
}

export interface SessionRecord {
  id: string
  site: string
  holder: string
  role: 'pilot' | 'relay'
  state: 'active' | 'draining' | 'dead' | 'left'
  software: string
  helloMs: number
  seenMs: number
  lostAfterMs: number
  nodes: NodeFacts[]
  gauges: Record<string, number>
  counters: Record<string, number>
  /** Since when its pulls found nothing, ms by Redis time; null where the last one did. And what it offered last. */
  unfedSinceMs: number | null
  unfedOffer: OfferEntry[]
}

interface Touched extends Omit<Session, 'id' | 'orders'> {
  outcome: number
  orders: string[]
}

export class Sessions {
  readonly #scripts: Scripts

  constructor(scripts: Scripts) {
    this.#scripts = scripts
  }

  async hello(site: string, hello: Message<'hello'>, lostAfterMs: number) {
    await this.#scripts.redis.sadd(GLOBAL.seenSites, site)
    const answer = await this.#scripts.run<{ outcome: number; session: string; sequence: number; buried?: string }>(
      'session-hello',
      siteBase(site),
      {
        site,
        session: `s${randomBytes(9).toString('base64url')}`,
        holder: hello.holder,
        role: hello.role,
        incarnation: hello.incarnation,
        software: hello.software,
        nodes: JSON.stringify(hello.nodes),
        lostAfterMs,
      },
    )
    return { session: answer.session, sequence: answer.sequence, buried: answer.buried ?? null }
  }

  /**
   * The session behind a message, marked as alive.
   * @throws IndraftError session.unknown | session.sequence
   */
  async touch(
    site: string,
    id: string,
    more: { sequence?: number; fields?: Record<string, string>; groups?: string[]; orders?: boolean } = {},
  ): Promise<Session> {
    const answer = await this.#scripts.run<Touched>('session-touch', siteBase(site), { session: id, ...more })
    if (answer.outcome === 2) throw new IndraftError('session.unknown')
    if (answer.outcome === 3) throw new IndraftError('session.sequence', `${more.sequence} after ${answer.sequence}`)
    return { ...answer, id, orders: answer.orders.map((text) => JSON.parse(text) as Order) }
  }

  async setProcessed(site: string, id: string, processed: number): Promise<void> {
    await this.#scripts.redis.hset(`${siteBase(site)}:session:${id}`, 'processed', processed)
  }

  /** Says that a session is over; the groups where it may hold leases, or null where it lives. */
  async end(
    site: string,
    id: string,
    state: 'dead' | 'left',
    more: { before?: number; fields?: Record<string, string> } = {},
  ): Promise<string[] | null> {
    const answer = await this.#scripts.run<{ outcome: number; groups?: string[] }>('session-end', siteBase(site), {
      session: id,
      state,
      ...more,
    })
    return answer.outcome === 1 ? (answer.groups ?? []) : null
  }

  /** All leases of an ended session are ended. */
  async forget(site: string, id: string): Promise<void> {
    await this.#scripts.run('session-end', siteBase(site), { session: id, forget: true })
  }

  /** Keeps an answered pull's reply until the next one: a repeat is given the same. */
  async keepReply(site: string, id: string, reply: ReplyTo<'pull'>): Promise<void> {
    const name = `${siteBase(site)}:reply:${id}`
    await this.#scripts.redis.set(name, Buffer.from(encode('grants', reply)), 'EX', REPLY_KEPT_SECONDS)
  }

  /** Whether its last pull found work; for the witness of starvation. */
  async noteFed(site: string, id: string, isFed: boolean, offer: readonly OfferEntry[]): Promise<void> {
    const { redis } = this.#scripts
    const name = `${siteBase(site)}:session:${id}`
    if (isFed) return void (await redis.hdel(name, 'unfedMs', 'unfedOffer'))
    const [seconds] = await redis.time()
    await redis
      .multi()
      .hsetnx(name, 'unfedMs', Number(seconds) * 1000)
      .hset(name, 'unfedOffer', JSON.stringify(offer))
      .exec()
  }

  /** The kept reply of exactly this sequence, or null. */
  async keptReply(site: string, id: string, sequence: number): Promise<ReplyTo<'pull'> | null> {
    const frame = await this.#scripts.redis.getBuffer(`${siteBase(site)}:reply:${id}`)
    const reply = frame && readReply(frame)
    return reply?.sequence === sequence ? reply : null
  }

  /** Hands an order out with the session's next beats; three times, because a reply may be lost. */
  async order(site: string, id: string, order: Order): Promise<void> {
    const name = `${siteBase(site)}:orders:${id}`
    await this.#scripts.redis.multi().zadd(name, 'NX', 0, JSON.stringify(order)).expire(name, 86_400).exec()
  }

  /** Sessions that are live, or over but still listed. */
  async listed(): Promise<SessionRecord[]> {
    const records: SessionRecord[] = []
    for (const site of await this.#scripts.redis.smembers(GLOBAL.seenSites)) {
      const ids = await this.#scripts.redis.smembers(`${siteBase(site)}:sessions`)
      records.push(...(await this.#records(site, ids)))
    }
    return records
  }

  async #records(site: string, ids: string[]): Promise<SessionRecord[]> {
    const pipeline = this.#scripts.redis.pipeline()
    for (const id of ids) pipeline.hgetall(`${siteBase(site)}:session:${id}`)
    const answers = (await pipeline.exec()) ?? []
    return answers.flatMap(([, value], i) => {
      const fields = value as Record<string, string>
      return fields?.state ? [recordOf(ids[i]!, fields)] : []
    })
  }

  /** The last session of every holder. */
  async holders(): Promise<HolderView[]> {
    const views: HolderView[] = []
    for (const site of await this.#scripts.redis.smembers(GLOBAL.seenSites)) {
      const ids = await this.#scripts.redis.hvals(`${siteBase(site)}:holders`)
      for (const record of await this.#records(site, ids)) {
        const { id, site, holder, role, software, gauges, counters, seenMs, state } = record
        const about = { site, holder, role, software, gauges, counters, session: id, lastSeenMs: seenMs }
        views.push({ ...about, state: state === 'dead' ? 'lost' : state })
      }
    }
    return views
  }

  /** Keeps what a relay says about its pilots. */
  async notePilots(site: string, relay: string, pilots: PilotSummary[], wallMs: number): Promise<void> {
    if (pilots.length === 0) return
    const entries = pilots.flatMap((pilot) => [pilot.pilot, JSON.stringify({ ...pilot, relay, lastSeenMs: wallMs })])
    await this.#scripts.redis.hset(`${siteBase(site)}:pilots`, ...entries)
  }

  async pilots(wallMs: number): Promise<PilotView[]> {
    const views: PilotView[] = []
    for (const site of await this.#scripts.redis.smembers(GLOBAL.seenSites)) {
      const holders = new Map<string, SessionRecord>()
      const ids = await this.#scripts.redis.hvals(`${siteBase(site)}:holders`)
      for (const record of await this.#records(site, ids)) holders.set(record.holder, record)
      const behind = mapOf(await this.#scripts.redis.hgetall(`${siteBase(site)}:pilots`))
      for (const text of Object.values(behind)) {
        const pilot = JSON.parse(text) as PilotBehind
        views.push({ ...pilot, site, lastSeenMs: lastSeenOf(pilot, holders.get(pilot.relay)) })
      }
      for (const record of holders.values()) if (record.role === 'pilot') views.push(directPilot(record, wallMs))
    }
    return views
  }

  /** Drops holders whose session's record is gone, and pilots that were last there long ago; nothing else needs them. */
  async prune(nowMs: number): Promise<void> {
    for (const site of await this.#scripts.redis.smembers(GLOBAL.seenSites)) {
      const listed = Object.entries(await this.#scripts.redis.hgetall(`${siteBase(site)}:holders`))
      const records = await this.#records(
        site,
        listed.map(([, session]) => session),
      )
      const known = new Set(records.map(({ id }) => id))
      const holders = listed.flatMap(([holder, session]) => (known.has(session) ? [] : [{ holder, session }]))
      const relays = new Map(records.map((record) => [record.holder, record]))
      const behind = Object.entries(await this.#scripts.redis.hgetall(`${siteBase(site)}:pilots`))
      const pilots = behind.flatMap(([pilot, about]) => {
        const it = JSON.parse(about) as PilotBehind
        return nowMs - lastSeenOf(it, relays.get(it.relay)) > PILOT_KEPT_MS ? [{ pilot, about }] : []
      })
      // In parts, so that no script holds Redis for long.
      for (let first = 0; first < Math.max(holders.length, pilots.length); first += 1000) {
        const part = <T>(list: T[]) => list.slice(first, first + 1000)
        await this.#scripts.run('session-prune', siteBase(site), { holders: part(holders), pilots: part(pilots) })
      }
    }
  }

  /** Node shapes of live sessions per site. */
  async shapes(): Promise<Map<string, Shape[]>> {
    const shapes = new Map<string, Shape[]>()
    for (const record of await this.listed()) {
      const list = shapes.get(record.site) ?? []
      for (const node of record.nodes) {
        const shape = shapeOf(node)
        if (!list.some((known) => JSON.stringify(known) === JSON.stringify(shape))) list.push(shape)
      }
      shapes.set(record.site, list)
    }
    return shapes
  }
}

/** A pilot as its relay told of it last. */
type PilotBehind = PilotView & { relay: string }

/** A relay tells of changes only: what it does not mention is as it was while the relay speaks. */
function lastSeenOf(pilot: PilotBehind, relay: SessionRecord | undefined): number {
  const isThere = pilot.state === 'active' || pilot.state === 'draining'
  return isThere ? Math.max(pilot.lastSeenMs, relay?.seenMs ?? 0) : pilot.lastSeenMs
}

/** Null where another release kept it in a form that is not read here: its leases are found and granted again. */
function readReply(frame: Uint8Array): ReplyTo<'pull'> | null {
  try {
    return decode(frame).body as ReplyTo<'pull'>
  } catch (error) {
    if (isIndraftError(error)) return null
    throw error
  }
}

function recordOf(id: string, fields: Record<string, string>): SessionRecord {
  return {
    id,
    site: fields.site ?? '',
    holder: fields.holder ?? '',
    role: fields.role === 'relay' ? 'relay' : 'pilot',
    state: fields.state as SessionRecord['state'],
    software: fields.software ?? '',
    helloMs: Number(fields.helloMs),
    seenMs: Number(fields.seenMs),
    lostAfterMs: Number(fields.lostAfterMs),
    nodes: JSON.parse(fields.nodes ?? '[]') as NodeFacts[],
    gauges: JSON.parse(fields.gauges ?? '{}') as Record<string, number>,
    counters: JSON.parse(fields.counters ?? '{}') as Record<string, number>,
    unfedSinceMs: fields.unfedMs === undefined ? null : Number(fields.unfedMs),
    unfedOffer: JSON.parse(fields.unfedOffer ?? '[]') as OfferEntry[],
  }
}

/** A pilot that speaks to the centre itself, as its session shows it. */
function directPilot(record: SessionRecord, wallMs: number): PilotView {
  const node = record.nodes[0]
  return {
    pilot: record.holder,
    node: node?.node ?? 'unknown',
    state: record.state === 'dead' ? 'lost' : record.state,
    cores: node?.cores ?? 0,
    coresBusy: Math.round(record.gauges.coresBusy ?? 0),
    running: Math.round(record.gauges.running ?? 0),
    upMs: Math.max(0, wallMs - record.helloMs),
    code: null,
    site: record.site,
    relay: null,
    lastSeenMs: record.seenMs,
  }
}
