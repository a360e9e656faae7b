/**
 * A holder for the conformance suite that says exactly what a scenario tells it to, through the real codec, and
 * remembers what it was granted. It does nothing by itself: no repeats, no confirmations, no beats.
 */
import { heldDigest } from '../../shared/held.ts'
import type { Link } from '../../shared/link.ts'
import { noResult } from '../../shared/no-result.ts'
import { decode, encode } from '../../shared/protocol/codec.ts'
import type {
  LeasePart,
  Message,
  MessageType,
  NodeFacts,
  OfferEntry,
  ReplyTo,
  RequestType,
  Result,
  Verdict,
} from '../../shared/protocol/messages.ts'
import { formatRanges, indices, parseRanges, rangesOf } from '../../shared/ranges.ts'

export interface Answer {
  type: MessageType
  body: unknown
}

export const NODE: NodeFacts = {
  node: 'n1',
  cores: 4,
  memoryBytes: 8 * 2 ** 30,
  scratchBytes: 2 ** 30,
  gpus: 0,
  gpuMemoryBytes: 0,
  arch: 'x86_64',
  runtimes: ['host'],
  network: 'outgoing',
  timeLeftMs: null,
  labels: {},
}

export const taskName = (task: { campaign: string; step: string; index: number }) =>
  `${task.campaign}/${task.step}/${task.index}`

const keyOf = (lease: { bundle: string; fences: number[] }) => `${lease.bundle}#${lease.fences.join('.')}`

/** `campaign/step/index` of every task of a lease. */
export function tasksOf(lease: LeasePart): string[] {
  return [...indices(parseRanges(lease.tasks))].map((index) => taskName({ ...lease, index }))
}

export function resultOf(lease: LeasePart, index: number, change: Partial<Result> = {}): Result {
  return {
    campaign: lease.campaign,
    step: lease.step,
    index,
    bundle: lease.bundle,
    fences: lease.fences,
    ...noResult({ site: 'ALPHA', node: NODE.node, pilot: 'simulated' }),
    end: 'done',
    reason: null,
    exitCode: 0,
    wallMs: 5,
    cpuMs: 5,
    maxRssBytes: 1000,
    ...change,
  }
}
export const failedWith = (reason: NonNullable<Result['reason']>): Partial<Result> => ({
  end: 'failed',
  reason,
  exitCode: reason === 'payload.exit' ? 1 : null,
  tail: 'it failed',
})

export function resultsOf(lease: LeasePart, change: Partial<Result> = {}): Result[] {
  return [...indices(parseRanges(lease.tasks))].map((index) => resultOf(lease, index, change))
}

export class SimulatedHolder {
  readonly name: string
  readonly link: Link
  readonly role: 'pilot' | 'relay'
  incarnation = 'i1'
  session = ''
  sequence = 0
  processed = 0
  timings!: Message<'welcome'>['timings']
  #inventory: Message<'welcome'>['inventory'] = 'list'
  /** Leases granted but not yet confirmed, and those held, with the tasks that are left. */
  #granted: LeasePart[] = []
  readonly #held = new Map<string, { lease: LeasePart; left: Set<number> }>()

  constructor(link: Link, role: 'pilot' | 'relay', name: string) {
    this.link = link
    this.role = role
    this.name = name
  }

  /** Sends and decodes; a refusal is an answer like any other. */
  async ask<T extends RequestType>(type: T, body: Message<T>, timeoutMs = 60_000): Promise<Answer> {
    return decode(await this.link.request(encode(type, body), timeoutMs))
  }

  /** As ask, for answers that must not be a refusal. */
  async #mustAsk<T extends RequestType>(type: T, body: Message<T>): Promise<ReplyTo<T>> {
    const answer = await this.ask(type, body)
    if (answer.type === 'refused') throw new Error(`${type} was refused: ${JSON.stringify(answer.body)}`)
    return answer.body as ReplyTo<T>
  }

  helloBody(): Message<'hello'> {
    const node = { ...NODE, node: `node-of-${this.name}` }
    return {
      role: this.role,
      holder: this.name,
      incarnation: this.incarnation,
      software: 'simulated/1',
      nodes: [node],
      seen: null,
    }
  }

  async hello(): Promise<Message<'welcome'>> {
    const welcome = await this.#mustAsk('hello', this.helloBody())
    if (welcome.session !== this.session) this.processed = welcome.sequence
    if (welcome.session !== this.session) this.forgetAll()
    this.session = welcome.session
    this.#inventory = welcome.inventory
    this.sequence = welcome.sequence
    this.timings = welcome.timings
    return welcome
  }

  offer(cores: number): OfferEntry[] {
    const { node: _node, timeLeftMs: _time, labels: _labels, ...shape } = NODE
    if (cores === 0) return []
    return [{ shape: { ...shape, cores }, count: 1, timeLeftMs: null, aheadMs: 0, node: `node-of-${this.name}` }]
  }

  pullBody(change: Partial<Message<'pull'>> = {}, cores = NODE.cores): Message<'pull'> {
    return {
      session: this.session,
      sequence: this.sequence + 1,
      processed: this.processed,
      seen: null,
      offer: this.offer(cores),
      finished: [],
      returned: [],
      waitMs: 0,
      knows: [],
      ...change,
    }
  }

  /** The next pull; counts up the sequence, confirms nothing by itself. */
  async pull(change: Partial<Message<'pull'>> = {}, cores = NODE.cores): Promise<ReplyTo<'pull'>> {
    const body = this.pullBody(change, cores)
    this.sequence = Math.max(this.sequence, body.sequence)
    const reply = await this.#mustAsk('pull', body)
    this.#drop(body.finished)
    for (const part of body.returned) this.#give(part)
    this.#granted.push(...reply.grants.map((grant) => grant.lease))
    return reply
  }

  /** Everything granted so far is in hand. */
  confirm(): void {
    this.processed = this.sequence
    for (const lease of this.#granted) {
      this.#held.set(keyOf(lease), { lease, left: new Set(indices(parseRanges(lease.tasks))) })
    }
    this.#granted = []
  }

  /** As one that lost its memory. */
  forgetAll(): void {
    this.#granted = []
    this.#held.clear()
  }

  /** What is held and not finished, as leases. */
  held(): LeasePart[] {
    return [...this.#held.values()].map(({ lease, left }) => ({ ...lease, tasks: formatRanges(rangesOf(left)) }))
  }

  #drop(results: readonly Result[]): void {
    for (const result of results) {
      const held = this.#held.get(keyOf(result))
      held?.left.delete(result.index)
      if (held?.left.size === 0) this.#held.delete(keyOf(result))
    }
  }

  #give(part: LeasePart): void {
    this.#drop(resultsOf(part))
  }

  #heldForBeat(): Message<'beat'>['held'] {
    const leases = this.held()
    if (this.#inventory === 'list') {
      return leases.map(({ bundle, campaign, step, fences }) => ({ bundle, campaign, step, fences }))
    }
    return {
      count: leases.length,
      digest: heldDigest(leases.map((lease) => ({ bundle: lease.bundle, fence: lease.fences.at(-1)! }))),
    }
  }

  /** Pulls until nothing more is granted, waiting a little each time: a relay has to ask above for what it gives. */
  async takeAll(cores = 1000): Promise<LeasePart[]> {
    const leases: LeasePart[] = []
    for (let empty = 0; empty < 3; ) {
      const reply = await this.pull({ waitMs: this.timings.confirmMs / 40 }, cores)
      this.confirm()
      empty = reply.grants.length === 0 ? empty + 1 : 0
      leases.push(...reply.grants.map((grant) => grant.lease))
    }
    await this.beat()
    return leases
  }

  async report(results: Result[]): Promise<Verdict['verdict'][]> {
    const { verdicts } = await this.#mustAsk('report', { session: this.session, results })
    this.#drop(results)
    return verdicts.map((one) => one.verdict)
  }

  beatBody(change: Partial<Message<'beat'>> = {}): Message<'beat'> {
    return {
      session: this.session,
      processed: this.processed,
      seen: null,
      incarnation: this.incarnation,
      draining: false,
      started: [],
      held: this.#heldForBeat(),
      counters: {},
      gauges: {},
      pilots: [],
      usage: [],
      ...change,
    }
  }

  beat(change: Partial<Message<'beat'>> = {}): Promise<ReplyTo<'beat'>> {
    return this.#mustAsk('beat', this.beatBody(change))
  }

  inventory(leases: LeasePart[]): Promise<ReplyTo<'inventory'>> {
    return this.#mustAsk('inventory', {
      session: this.session,
      processed: this.processed,
      part: 0,
      parts: 1,
      leases,
    })
  }

  bye(returned: LeasePart[] = []): Promise<ReplyTo<'bye'>> {
    return this.#mustAsk('bye', { session: this.session, code: 200, reason: 'enough', returned })
  }
}

/** The code of a refusal, or the type of any other answer. */
export function codeOf(answer: Answer): string {
  return answer.type === 'refused' ? (answer.body as Message<'refused'>).code : answer.type
}
