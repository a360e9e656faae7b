/**
 * A wide-area link for tests: a TCP proxy that can be slow, narrow, cut, half-open or deaf in one direction. Several
 * targets stand for a load balancer: connections go round, past those that refuse.
 *
 * - open: passes everything on, `delayMs` later (one way; a round trip takes twice that), at most `bytesPerSecond` in each
 *   direction over all connections.
 * - half-open: connections stand and new ones are accepted, and nothing arrives, as when packets vanish. What was
 *   sent in the meantime arrives when the link opens again, as TCP would send it again.
 * - one-way: as half-open, but what is sent towards the target still arrives; only answers do not.
 * - cut: connections are reset and new ones refused.
 */
import { once } from 'node:events'
import { createServer, type Server, Socket } from 'node:net'

export interface Link {
  mode: 'open' | 'half-open' | 'one-way' | 'cut'
  delayMs: number
  /** Null: as fast as it goes. */
  bytesPerSecond: number | null
}

export interface LinkState extends Link {
  /** Where it listens. */
  port: number
  /** Connections that stand now. */
  connections: number
  /** Ever accepted. */
  accepted: number
  /** From the side that connects to the target, and back; counted when passed on. */
  bytesUp: number
  bytesDown: number
}

/** Above this the sender is made to wait, as a full window would. */
const WINDOW_BYTES = 1 << 20

export interface Address {
  host: string
  port: number
}

interface Parcel {
  dueMs: number
  /** Null: the sender said that it sends no more. */
  bytes: Buffer | null
}

/** One direction of one connection: parcels in order, each passed on when it is due and the link is open. */
class Lane {
  readonly #from: Socket
  readonly #to: Socket
  readonly #proxy: WanProxy
  readonly #count: (bytes: number) => void
  readonly #isUp: boolean
  readonly #waiting: Parcel[] = []
  #waitingBytes = 0
  #timer: NodeJS.Timeout | undefined

  constructor(proxy: WanProxy, from: Socket, to: Socket, isUp: boolean, count: (bytes: number) => void) {
    this.#proxy = proxy
    this.#from = from
    this.#to = to
    this.#count = count
    this.#isUp = isUp
    from.on('data', (bytes: Buffer) => this.#take(bytes))
    from.on('end', () => this.#take(null))
    to.on('drain', () => this.pump())
    to.on('close', () => clearTimeout(this.#timer))
  }

  #take(bytes: Buffer | null): void {
    this.#waiting.push({ dueMs: performance.now() + this.#proxy.link.delayMs, bytes })
    this.#waitingBytes += bytes?.length ?? 0
    if (this.#waitingBytes > WINDOW_BYTES) this.#from.pause()
    this.pump()
  }

  /** Passes on what is due. Called whenever that may have changed. */
  pump(): void {
    clearTimeout(this.#timer)
    while (this.#waiting.length > 0 && this.#proxy.passes(this.#isUp) && !this.#to.writableNeedDrain) {
      const next = this.#waiting[0]!
      const waitMs = Math.max(next.dueMs - performance.now(), this.#proxy.waitForBandwidthMs(this.#count))
      if (waitMs > 0) {
        this.#timer = setTimeout(() => this.pump(), Math.ceil(waitMs))
        return
      }
      this.#waiting.shift()
      if (next.bytes === null) {
        this.#to.end()
        continue
      }
      // Small parcels, so that connections share the bandwidth.
      const now = this.#proxy.link.bytesPerSecond === null ? next.bytes : next.bytes.subarray(0, 4096)
      if (now.length < next.bytes.length)
        this.#waiting.unshift({ dueMs: next.dueMs, bytes: next.bytes.subarray(now.length) })
      this.#waitingBytes -= now.length
      this.#proxy.spendBandwidth(this.#count, now.length)
      this.#count(now.length)
      this.#to.write(now)
    }
    if (this.#waitingBytes <= WINDOW_BYTES / 2 && this.#from.isPaused()) this.#from.resume()
  }
}

export class WanProxy {
  link: Link = { mode: 'open', delayMs: 0, bytesPerSecond: null }
  readonly #targets: readonly Address[]
  #turn = 0
  readonly #host: string
  readonly #server: Server
  readonly #connections = new Map<Socket, { far: Socket | null; lanes: Lane[] }>()
  /** For each direction, when the link has passed on what was given to it. */
  readonly #busyUntilMs = new Map<unknown, number>()
  #port = 0
  #accepted = 0
  #bytesUp = 0
  #bytesDown = 0
  readonly #up = (bytes: number) => {
    this.#bytesUp += bytes
  }
  readonly #down = (bytes: number) => {
    this.#bytesDown += bytes
  }

  constructor(host: string, ...targets: Address[]) {
    this.#host = host
    this.#targets = targets
    this.#server = createServer({ allowHalfOpen: true }, (near) => this.#accept(near))
  }

  /** @param port 0 for a free one, which is then kept over cuts */
  async listen(port = this.#port): Promise<number> {
    this.#server.listen(port, this.#host)
    await once(this.#server, 'listening')
    this.#port = (this.#server.address() as { port: number }).port
    return this.#port
  }

  async set(change: Partial<Link>): Promise<LinkState> {
    this.link = { ...this.link, ...change }
    if (this.link.mode === 'cut') {
      if (this.#server.listening) this.#server.close()
      this.reset()
    } else if (!this.#server.listening) {
      await this.listen()
    }
    for (const { lanes } of this.#connections.values()) for (const lane of lanes) lane.pump()
    return this.state()
  }

  state(): LinkState {
    return {
      ...this.link,
      port: this.#port,
      connections: this.#connections.size,
      accepted: this.#accepted,
      bytesUp: this.#bytesUp,
      bytesDown: this.#bytesDown,
    }
  }

  close(): void {
    this.#server.close()
    this.reset()
  }

  waitForBandwidthMs(direction: unknown): number {
    return (this.#busyUntilMs.get(direction) ?? 0) - performance.now()
  }

  spendBandwidth(direction: unknown, bytes: number): void {
    if (this.link.bytesPerSecond === null) return
    const from = Math.max(performance.now(), this.#busyUntilMs.get(direction) ?? 0)
    this.#busyUntilMs.set(direction, from + (bytes / this.link.bytesPerSecond) * 1000)
  }

  passes(isUp: boolean): boolean {
    return this.link.mode === 'open' || (isUp && this.link.mode === 'one-way')
  }

  /** Ends every connection that stands now, so that what is on its way is lost; new ones are as before. */
  reset(): void {
    for (const near of [...this.#connections.keys()]) this.#drop(near)
  }

  #accept(near: Socket): void {
    this.#accepted++
    near.setNoDelay(true)
    near.on('error', () => this.#drop(near))
    this.#connections.set(near, { far: null, lanes: [] })
    this.#connect(near, this.#targets.length)
  }

  /** To the next target; to the one after it where nobody listens. Nothing is read before it stands. */
  #connect(near: Socket, tries: number): void {
    const far = new Socket({ allowHalfOpen: true })
    far.setNoDelay(true)
    far.once('connect', () => {
      if (!this.#connections.has(near)) return void far.resetAndDestroy()
      const lanes = [new Lane(this, near, far, true, this.#up), new Lane(this, far, near, false, this.#down)]
      this.#connections.set(near, { far, lanes })
      const closed = () => {
        if (near.destroyed && far.destroyed) this.#connections.delete(near)
      }
      near.on('close', closed)
      far.on('close', closed)
    })
    far.on('error', (error: NodeJS.ErrnoException) => {
      if (tries > 1 && error.code === 'ECONNREFUSED' && this.#connections.has(near)) this.#connect(near, tries - 1)
      else this.#drop(near)
    })
    far.connect(this.#targets[this.#turn++ % this.#targets.length]!)
  }

  #drop(near: Socket): void {
    const connection = this.#connections.get(near)
    this.#connections.delete(near)
    for (const socket of [near, connection?.far]) if (socket && !socket.destroyed) socket.resetAndDestroy()
  }
}
