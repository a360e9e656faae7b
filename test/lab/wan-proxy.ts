/**
 * The wide-area link of the lab: a TCP proxy, a program of its own on one of the lab's hosts, that can be slow, narrow, cut
 * or half-open. Told what to be by one JSON object a line on standard input, each answered by the state and the
 * counters as one line on standard output; it ends when its standard input does.
 *
 * - open: passes everything on, `delayMs` later (one way; a round trip takes twice that), at most `bytesPerSecond` in each
 *   direction over all connections.
 * - half-open: connections stand and new ones are accepted, and nothing arrives, as when packets vanish. What was
 *   sent in the meantime arrives when the link opens again, as TCP would send it again.
 * - cut: connections are reset and new ones refused.
 */
import { once } from 'node:events'
import { createServer, type Server, Socket } from 'node:net'
import process from 'node:process'
import { createInterface } from 'node:readline'
import type { Centre, Host } from './centre.ts'
import { inside } from './centre.ts'

export interface Link {
  mode: 'open' | 'half-open' | 'cut'
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
  readonly #waiting: Parcel[] = []
  #waitingBytes = 0
  #timer: NodeJS.Timeout | undefined

  constructor(proxy: WanProxy, from: Socket, to: Socket, count: (bytes: number) => void) {
    this.#proxy = proxy
    this.#from = from
    this.#to = to
    this.#count = count
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
    while (this.#waiting.length > 0 && this.#proxy.link.mode === 'open' && !this.#to.writableNeedDrain) {
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
  readonly #target: { host: string; port: number }
  readonly #host: string
  readonly #server: Server
  readonly #connections = new Map<Socket, { far: Socket; lanes: Lane[] }>()
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

  constructor(host: string, target: { host: string; port: number }) {
    this.#host = host
    this.#target = target
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
      for (const near of [...this.#connections.keys()]) this.#drop(near)
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
    for (const near of [...this.#connections.keys()]) this.#drop(near)
  }

  waitForBandwidthMs(direction: unknown): number {
    return (this.#busyUntilMs.get(direction) ?? 0) - performance.now()
  }

  spendBandwidth(direction: unknown, bytes: number): void {
    if (this.link.bytesPerSecond === null) return
    const from = Math.max(performance.now(), this.#busyUntilMs.get(direction) ?? 0)
    this.#busyUntilMs.set(direction, from + (bytes / this.link.bytesPerSecond) * 1000)
  }

  #accept(near: Socket): void {
    this.#accepted++
    const far = new Socket({ allowHalfOpen: true })
    far.connect(this.#target)
    near.setNoDelay(true)
    far.setNoDelay(true)
    const lanes = [new Lane(this, near, far, this.#up), new Lane(this, far, near, this.#down)]
    this.#connections.set(near, { far, lanes })
    for (const socket of [near, far]) {
      socket.on('error', () => this.#drop(near))
    }
    const closed = () => {
      if (near.destroyed && far.destroyed) this.#connections.delete(near)
    }
    near.on('close', closed)
    far.on('close', closed)
  }

  #drop(near: Socket): void {
    const connection = this.#connections.get(near)
    this.#connections.delete(near)
    for (const socket of [near, connection?.far]) if (socket && !socket.destroyed) socket.resetAndDestroy()
  }
}

/** A link running on a host of the lab. */
export interface RunningLink {
  port: number
  set(change: Partial<Link>): Promise<LinkState>
  state(): Promise<LinkState>
  stop(): Promise<unknown>
}

/**
 * Starts a link on a host: it listens at `host:port` there and leads to `target` as seen from there.
 * @param listen as `10.78.0.1:0`; port 0 for a free one
 * @param target as `127.0.0.1:4222`
 */
export async function startLink(centre: Centre, on: Host, listen: string, target: string): Promise<RunningLink> {
  const program = `${inside.checkout}/test/lab/wan-proxy.ts`
  const daemon = centre.spawn(on, `link-${target.replace(':', '-')}`, ['node', program, listen, target])
  const first = await daemon.waitFor(/^(\{.*\})\n/m)
  const tell = async (change: Partial<Link>): Promise<LinkState> => {
    const from = daemon.output.length
    daemon.stdin.write(`${JSON.stringify(change)}\n`)
    return JSON.parse((await daemon.waitFor(/^(\{.*\})\n/m, 10_000, from))[1]!) as LinkState
  }
  return {
    port: (JSON.parse(first[1]!) as LinkState).port,
    set: tell,
    state: () => tell({}),
    stop: () => daemon.stop(),
  }
}

if (import.meta.main) {
  const [listen = '127.0.0.1:0', target = ''] = process.argv.slice(2)
  const split = (address: string) => {
    const [host = '', port = ''] = address.split(':')
    return { host, port: Number(port) }
  }
  const at = split(listen)
  const proxy = new WanProxy(at.host, split(target))
  await proxy.listen(at.port)
  console.log(JSON.stringify(proxy.state()))
  for await (const line of createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await proxy.set(JSON.parse(line) as Partial<Link>)))
  }
  proxy.close()
}
