/**
 * The holder's side of the protocol: who takes work. A pilot and a relay both are holders; what they do with the work
 * is theirs, how it is asked for and accounted for is here. Knows no store and no socket.
 *
 * What always holds: at most one pull is outstanding; a pull whose reply was lost is repeated under its own sequence
 * until it is answered or the session is gone; a refused session is followed by a new hello before anything else.
 */
import type { Clock } from './clock.ts'
import { ERRORS, type ErrorCode, IndraftError } from './errors.ts'
import type { Link } from './link.ts'
import type { Log } from './log.ts'
import { decode, encode } from './protocol/codec.ts'
import {
  type Message,
  type NodeFacts,
  REPLY_OF,
  type ReplyTo,
  type RequestType,
  type StoreMark,
} from './protocol/messages.ts'
import { SPOKEN_VERSIONS } from './protocol/version.ts'

export interface HolderOptions {
  link: Link
  clock: Clock
  log: Log
  role: 'pilot' | 'relay'
  holder: string
  incarnation: string
  software: string
  nodes: () => NodeFacts[]
  /** Called after every welcome, before anything else is sent in the new session. */
  onWelcome?: (welcome: Message<'welcome'>, isNewSession: boolean) => void | Promise<void>
  requestTimeoutMs?: number
  /** Protocol versions, the oldest first; those of this build unless said. */
  spoken?: readonly number[]
  /** From a holder that kept its memory over a restart: the same session goes on, and only what was kept is confirmed. */
  resume?: HolderMemory | undefined
}

/** What a holder with a journal keeps, so that a restart does not confirm grants that it never journalled. */
export interface HolderMemory {
  session: string
  processed: number
  seen: StoreMark | null
}

const DEFAULT_TIMEOUT_MS = 10_000
const BACK_OFF_MS = { first: 200, longest: 10_000 }

type PullBody = Omit<Message<'pull'>, 'session' | 'sequence' | 'processed' | 'seen'>
type BeatBody = Omit<Message<'beat'>, 'session' | 'processed' | 'seen' | 'incarnation'>

export class Holder {
  readonly #options: HolderOptions
  #welcome: Message<'welcome'> | undefined
  #connecting: Promise<Message<'welcome'>> | undefined
  #sequence = 0
  #processed = 0
  #seen: StoreMark | null = null
  #renewedAtMs = Number.NEGATIVE_INFINITY
  #pulling = false
  #ordersIgnored = 0
  readonly #stop = new AbortController()
  /** Versions of the protocol, the oldest first; the one in use; whether a newer one was refused after its welcome. */
  readonly #spoken: readonly number[]
  #version: number
  #wasRefused = false

  constructor(options: HolderOptions) {
    this.#options = options
    this.#spoken = options.spoken ?? SPOKEN_VERSIONS
    this.#version = this.#spoken[0]!
    this.#processed = options.resume?.processed ?? 0
    this.#seen = options.resume?.seen ?? null
  }

  get welcome(): Message<'welcome'> | undefined {
    return this.#welcome
  }

  /** Monotonic time at which the last acknowledged message of this session was sent: leases count from here. */
  get renewedAtMs(): number {
    return this.#renewedAtMs
  }

  /** The highest store mark seen; kept with the rest of a holder's memory. */
  get seen(): StoreMark | null {
    return this.#seen
  }

  /** The last grants processed; beats and inventories speak about what was granted up to here. */
  get processed(): number {
    return this.#processed
  }

  /** Gives up every wait and request loop; nothing can be sent afterwards but bye. */
  stop(): void {
    this.#stop.abort()
  }

  /** What such nodes would be given now; asked once, without a session. @throws IndraftError where nobody answers */
  async demand(offer: Message<'demand'>['offer'], timeoutMs: number): Promise<ReplyTo<'demand'>> {
    return (await this.#once('demand', { offer }, timeoutMs)).reply
  }

  /**
   * Says hello until it is welcomed. Concurrent callers share one attempt.
   * @throws IndraftError with the dispatcher's code where repeating cannot help
   */
  connect(): Promise<Message<'welcome'>> {
    this.#connecting ??= this.#sayHello().finally(() => {
      this.#connecting = undefined
    })
    return this.#connecting
  }

  async #sayHello(): Promise<Message<'welcome'>> {
    const { role, holder, incarnation, software, nodes } = this.#options
    this.#version = this.#spoken[0]!
    // A dispatcher that spoke a newer version and does no more: one of its replicas is of the release before.
    const offered = this.#wasRefused ? this.#spoken.slice(0, 1) : this.#spoken
    const { reply, sentAtMs } = await this.#persist('hello', () => ({
      role,
      holder,
      incarnation,
      software,
      nodes: nodes(),
      seen: this.#seen,
      ...(offered.length > 1 ? { speaks: [...offered] } : {}),
    }))
    if (reply.version !== undefined && offered.includes(reply.version)) this.#version = reply.version
    const isNewSession = reply.session !== (this.#welcome?.session ?? this.#options.resume?.session)
    this.#welcome = reply
    this.#sequence = Math.max(isNewSession ? 0 : this.#sequence, reply.sequence)
    if (isNewSession) this.#processed = reply.sequence
    this.#renewedAtMs = sentAtMs
    this.#mark(reply.mark)
    await this.#options.onWelcome?.(reply, isNewSession)
    return reply
  }

  /**
   * Asks for work and hands in results. Resolves with the grants and the monotonic time from which their lease counts;
   * call processedGrants() once they are safe.
   * @throws IndraftError session.unknown after a new hello was welcomed: build the pull anew
   */
  async pull(body: PullBody): Promise<{ reply: ReplyTo<'pull'>; sentAtMs: number }> {
    if (this.#pulling) throw new Error('one pull at a time')
    this.#pulling = true
    try {
      const session = this.#session()
      const sequence = ++this.#sequence
      const timeoutMs = body.waitMs + (this.#options.requestTimeoutMs ?? DEFAULT_TIMEOUT_MS)
      const answer = await this.#persist(
        'pull',
        () => ({ ...body, session, sequence, processed: this.#processed, seen: this.#seen }),
        timeoutMs,
      )
      this.#mark(answer.reply.mark)
      this.#renewedAtMs = Math.max(this.#renewedAtMs, answer.sentAtMs)
      return answer
    } finally {
      this.#pulling = false
    }
  }

  /** The grants of this sequence are in hand (for a relay: in its journal); the next message confirms them. */
  processedGrants(sequence: number): void {
    this.#processed = Math.max(this.#processed, sequence)
  }

  /** Hands in results until the dispatcher has them. @throws IndraftError session.unknown as pull */
  async report(results: Message<'report'>['results']): Promise<ReplyTo<'report'>> {
    const { reply } = await this.#persist('report', () => ({
      session: this.#session(),
      results,
      seen: this.#seen,
    }))
    this.#mark(reply.mark)
    return reply
  }

  /** One beat, not repeated: the next one is due soon enough. @throws IndraftError link.* | session.unknown */
  async beat(body: BeatBody): Promise<ReplyTo<'beat'>> {
    const session = this.#session()
    const ignored = this.#ordersIgnored
    const counters = ignored > 0 ? { ...body.counters, ordersIgnored: ignored } : body.counters
    const { incarnation } = this.#options
    const { reply, sentAtMs } = await this.#once(
      'beat',
      { ...body, counters, session, processed: this.#processed, seen: this.#seen, incarnation },
      this.#beatTimeoutMs(),
    )
    this.#mark(reply.mark)
    this.#renewedAtMs = Math.max(this.#renewedAtMs, sentAtMs)
    this.#noteIgnored(reply)
    return reply
  }

  /** A lost beat is given up early enough for several more before the session counts as dead. */
  #beatTimeoutMs(): number {
    const lostAfterMs = this.#welcome?.timings.lostAfterMs ?? Number.POSITIVE_INFINITY
    return Math.min(this.#options.requestTimeoutMs ?? DEFAULT_TIMEOUT_MS, lostAfterMs / 4)
  }

  async inventory(body: Omit<Message<'inventory'>, 'session' | 'processed'>): Promise<ReplyTo<'inventory'>> {
    const session = this.#session()
    const { reply } = await this.#once('inventory', { ...body, session, processed: this.#processed })
    this.#noteIgnored(reply)
    return reply
  }

  /** A newer dispatcher may order what this release does not know; it sees so from the counter. */
  #noteIgnored({ ignored = 0 }: Message<'orders'>): void {
    if (ignored === 0) return
    this.#ordersIgnored += ignored
    this.#options.log.warn({ orders: ignored }, 'order.unknown')
  }

  /** Says bye, tries a few times, and never throws: who leaves must not be kept by a dead dispatcher. */
  async bye(body: Omit<Message<'bye'>, 'session'>, tries = 3, timeoutMs = 2000): Promise<boolean> {
    if (!this.#welcome) return false
    for (let attempt = 0; attempt < tries; attempt++) {
      try {
        await this.#exchange('bye', { ...body, session: this.#welcome.session }, timeoutMs)
        return true
      } catch (error) {
        this.#options.log.warn({ err: error, attempt }, 'session.byeFailed')
        if (error instanceof IndraftError && !ERRORS[error.code].retry) return false
      }
    }
    return false
  }

  #session(): string {
    if (!this.#welcome) throw new IndraftError('session.unknown', 'hello first')
    return this.#welcome.session
  }

  #mark(mark: StoreMark): void {
    if (this.#seen?.epoch !== mark.epoch || mark.sequence > this.#seen.sequence) this.#seen = mark
  }

  /** Repeats a request until it is answered or refused for good. Loses no repeat to a restarted dispatcher. */
  async #persist<T extends RequestType>(
    type: T,
    body: () => Message<T>,
    timeoutMs = this.#options.requestTimeoutMs ?? DEFAULT_TIMEOUT_MS,
  ): Promise<{ reply: ReplyTo<T>; sentAtMs: number }> {
    const { clock, log } = this.#options
    for (let delayMs = BACK_OFF_MS.first; ; delayMs = Math.min(delayMs * 2, BACK_OFF_MS.longest)) {
      if (this.#stop.signal.aborted) throw new IndraftError('link.closed')
      try {
        return await this.#once(type, body(), timeoutMs)
      } catch (error) {
        if (!(error instanceof IndraftError) || !isTransient(error.code)) throw error
        log.info({ code: error.code, type, delayMs }, 'session.requestRepeated')
        const waitMs = Math.max(error.retryAfterMs ?? 0, delayMs * (0.75 + Math.random() / 2))
        await clock.sleep(waitMs, this.#stop.signal)
      }
    }
  }

  async #once<T extends RequestType>(
    type: T,
    body: Message<T>,
    timeoutMs = this.#options.requestTimeoutMs ?? DEFAULT_TIMEOUT_MS,
  ): Promise<{ reply: ReplyTo<T>; sentAtMs: number }> {
    try {
      return await this.#exchange(type, body, timeoutMs)
    } catch (error) {
      if (error instanceof IndraftError && error.code === 'protocol.version' && this.#version !== this.#spoken[0]) {
        this.#options.log.warn({ type, version: this.#version }, 'session.versionRefused')
        this.#wasRefused = true
        await this.connect()
        throw new IndraftError('dispatcher.busy', 'answered by an older release: asked again in its version')
      }
      // Who said bye has no session, and wants none: its open pull is answered so.
      const isLeaving = this.#stop.signal.aborted
      if (type !== 'hello' && !isLeaving && error instanceof IndraftError && error.code === 'session.unknown') {
        this.#options.log.warn({ type }, 'session.lost')
        await this.connect()
      }
      throw error
    }
  }

  async #exchange<T extends RequestType>(
    type: T,
    body: Message<T>,
    timeoutMs: number,
  ): Promise<{ reply: ReplyTo<T>; sentAtMs: number }> {
    const frame = encode(type, body, this.#version)
    const sentAtMs = this.#options.clock.monotonicMs()
    const answer = decode(await this.#options.link.request(frame, timeoutMs), this.#spoken)
    if (answer.type === 'refused') {
      const { code, message, path, retryAfterMs } = answer.body as Message<'refused'>
      throw new IndraftError(code, message, {
        ...(path === undefined ? {} : { path }),
        ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
      })
    }
    if (answer.type !== REPLY_OF[type]) throw new IndraftError('message.unknown', `${answer.type} in reply to ${type}`)
    return { reply: answer.body as ReplyTo<T>, sentAtMs }
  }
}

/** Worth repeating under the same session. A lost session is not: it needs a new hello and a new message. */
function isTransient(code: ErrorCode): boolean {
  return ERRORS[code].retry && code !== 'session.unknown'
}
