/**
 * The holder's side for tests of the store: shared/holder.ts over a memory link, with its leases in hand and results
 * made from them. It pulls when told to and remembers what it was granted.
 */
import { randomBytes } from 'node:crypto'
import { systemClock } from '../../shared/clock.ts'
import { type Dispatcher, frameHandler } from '../../shared/dispatcher.ts'
import { Holder } from '../../shared/holder.ts'
import { type FrameHandler, memoryLink } from '../../shared/link.ts'
import { silentLog } from '../../shared/log.ts'
import type { Grant, LeasePart, Message, NodeFacts, Result } from '../../shared/protocol/messages.ts'
import { formatRanges, indices, parseRanges, rangesOf } from '../../shared/ranges.ts'

const FACTS: NodeFacts = {
  node: 'n1',
  cores: 8,
  memoryBytes: 2 ** 34,
  scratchBytes: 2 ** 36,
  gpus: 0,
  gpuMemoryBytes: 0,
  arch: 'x86_64',
  runtimes: ['host', 'container'],
  network: 'outgoing',
  timeLeftMs: null,
  labels: {},
}

export interface TestHolderOptions {
  site?: string
  name?: string
  role?: 'pilot' | 'relay'
  facts?: Partial<NodeFacts>
  /** Stands between the holder and the dispatcher: for faults. */
  around?: (handler: FrameHandler) => FrameHandler
}

export class TestHolder {
  readonly holder: Holder
  readonly site: string
  readonly name: string
  readonly facts: NodeFacts
  /** Every lease granted, by bundle. */
  readonly leases = new Map<string, LeasePart>()
  grants: Grant[] = []

  constructor(dispatcher: Dispatcher, options: TestHolderOptions = {}) {
    this.site = options.site ?? 'ALPHA'
    this.name = options.name ?? 'p1'
    this.facts = { ...FACTS, node: `n-${this.name}`, ...options.facts }
    const handler = frameHandler(dispatcher, silentLog)
    this.holder = new Holder({
      link: memoryLink({ site: this.site }, options.around?.(handler) ?? handler),
      clock: systemClock,
      log: silentLog,
      role: options.role ?? 'pilot',
      holder: this.name,
      incarnation: randomBytes(4).toString('hex'),
      software: 'test 1',
      nodes: () => [this.facts],
      requestTimeoutMs: 30_000,
    })
  }

  async hello(): Promise<this> {
    await this.holder.connect()
    return this
  }

  /** Pulls with room for `tasks` one-core tasks; confirms what it was granted with its next message. */
  async pull(tasks: number, more: Partial<Message<'pull'>> = {}): Promise<Message<'grants'>> {
    const { node: _node, timeLeftMs: _left, labels: _labels, ...shape } = this.facts
    const entry = { shape: { ...shape, cores: tasks }, count: 1, timeLeftMs: null, aheadMs: 0, node: this.facts.node }
    const { reply } = await this.holder.pull({
      offer: tasks > 0 ? [entry] : [],
      finished: [],
      returned: [],
      waitMs: 0,
      knows: [],
      ...more,
    })
    this.grants = reply.grants
    for (const grant of reply.grants) this.leases.set(grant.lease.bundle, grant.lease)
    this.holder.processedGrants(reply.sequence)
    return reply
  }

  beat(more: Partial<Parameters<Holder['beat']>[0]> = {}): Promise<Message<'orders'>> {
    return this.holder.beat({
      draining: false,
      started: [],
      held: [...this.leases.values()],
      counters: {},
      gauges: {},
      pilots: [],
      usage: [],
      ...more,
    })
  }

  /** Says of every task in hand that it runs. */
  startAll(): Promise<Message<'orders'>> {
    return this.beat({ started: [...this.leases.values()] })
  }

  /** Takes the tasks of a lease out of hand as results. */
  results(lease: LeasePart, change: Partial<Result> = {}): Result[] {
    this.leases.delete(lease.bundle)
    return [...indices(parseRanges(lease.tasks))].map((index) => this.result(lease, index, change))
  }

  allResults(change: Partial<Result> = {}): Result[] {
    return [...this.leases.values()].flatMap((lease) => this.results(lease, change))
  }

  /** One task's result; the rest of its lease stays in hand. */
  result(lease: LeasePart, index: number, change: Partial<Result> = {}): Result {
    const rest = [...indices(parseRanges(lease.tasks))].filter((one) => one !== index)
    if (this.leases.has(lease.bundle)) {
      if (rest.length === 0) this.leases.delete(lease.bundle)
      else this.leases.set(lease.bundle, { ...lease, tasks: formatRanges(rangesOf(rest)) })
    }
    return {
      campaign: lease.campaign,
      step: lease.step,
      index,
      bundle: lease.bundle,
      fences: lease.fences,
      end: 'done',
      reason: null,
      detail: null,
      exitCode: 0,
      signal: null,
      site: this.site,
      node: this.facts.node,
      pilot: this.name,
      wallMs: 1000,
      cpuMs: 900,
      maxRssBytes: 1e6,
      stageInMs: 1,
      stageOutMs: 1,
      outputs: [],
      stdoutBytes: 0,
      stderrBytes: 0,
      tail: null,
      ...change,
    }
  }

  async verdicts(results: Result[]): Promise<string[]> {
    return (await this.holder.report(results)).verdicts.map((one) => one.verdict)
  }
}

export const EXIT_3: Partial<Result> = { end: 'failed', reason: 'payload.exit', exitCode: 3, tail: 'it failed' }
export const NODE_LOST: Partial<Result> = { end: 'failed', reason: 'node.fault', exitCode: null }
