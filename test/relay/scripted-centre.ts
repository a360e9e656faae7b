/** A centre that grants what a test tells it to and remembers what it is told; no rules of its own. */
import type { Dispatcher } from '../../shared/dispatcher.ts'
import { IndraftError } from '../../shared/errors.ts'
import type { Grant, LeasePart, Message, Order, ReplyTo, Result, Verdict } from '../../shared/protocol/messages.ts'
import type { Needs, Signed } from '../../shared/protocol/work.ts'
import { digestOf } from '../../shared/signing.ts'
import { timingsFor } from '../../shared/timings.ts'
import { sampleBundle, sampleNeeds, sampleTemplate, testSigner } from '../sample-messages.ts'

export interface WorkOptions {
  bundle?: string
  tasks?: string
  campaign?: string
  fence?: number
  needs?: Partial<Needs>
  avoidNodes?: string[]
  estimateMs?: number | null
  leaseMs?: number
  capability?: string
}

export class ScriptedCentre implements Dispatcher {
  /** Granted with the next pull that offers anything. */
  readonly work: { grant: Grant; template: Signed }[] = []
  readonly orders: Order[] = []
  readonly hellos: Message<'hello'>[] = []
  readonly pulls: Message<'pull'>[] = []
  readonly beats: Message<'beat'>[] = []
  readonly results: Result[] = []
  readonly returned: LeasePart[] = []
  /** Reports that came, lost ones too. */
  reports = 0
  verdict: Verdict['verdict'] = 'accepted'
  /** Results of these tasks have no verdict. */
  isNotJudged = (_index: number) => false
  session = 'centre-1'
  sequence = 0
  /** Every message is lost while this is set. */
  isCut = false
  #wake: (() => void)[] = []

  give(options: WorkOptions = {}): LeasePart {
    const { bundle = 'b1', tasks = '0-3', campaign = 'c1', fence = 1000, avoidNodes = [], estimateMs = null } = options
    const step = 'sim'
    const needs = { ...sampleNeeds, denySites: [], walltimeMs: 60_000, ...options.needs }
    const template = testSigner.template({ ...sampleTemplate, campaign, step, needs, inputs: [], outputs: [] })
    const digest = digestOf(template.bytes)
    const lease: LeasePart = { bundle, campaign, step, fences: [fence], tasks }
    const signed = testSigner.bundle({
      ...sampleBundle,
      bundle,
      campaign,
      step,
      tasks,
      template: digest,
      manifests: {},
    })
    const grant: Grant = {
      bundle: signed,
      lease,
      template: digest,
      leaseMs: options.leaseMs ?? 7_200_000,
      tries: {},
      avoidNodes,
      estimateMs,
      capability: options.capability ?? null,
    }
    this.work.push({ grant, template })
    for (const wake of this.#wake.splice(0)) wake()
    return lease
  }

  /** The session with the relay is over. */
  forgetSession(name: string): void {
    this.session = name
    this.sequence = 0
    for (const wake of this.#wake.splice(0)) wake()
  }

  async onHello(_peer: unknown, hello: Message<'hello'>): Promise<ReplyTo<'hello'>> {
    await this.#cut()
    this.hellos.push(hello)
    return {
      session: this.session,
      sequence: this.sequence,
      site: 'ALPHA',
      mark: this.#mark(),
      timings: { ...timingsFor('relay', 0.01), pullWaitMs: 100 },
      inventory: 'digest',
      keys: testSigner.keys,
      filesUrl: null,
    }
  }

  async onPull(_peer: unknown, pull: Message<'pull'>): Promise<ReplyTo<'pull'>> {
    await this.#cut()
    this.#known(pull.session)
    this.pulls.push(pull)
    this.returned.push(...pull.returned)
    if (this.work.length === 0 && pull.waitMs > 0) {
      await new Promise<void>((resolve) => {
        this.#wake.push(resolve)
        setTimeout(resolve, Math.min(pull.waitMs, 50))
      })
    }
    await this.#cut()
    this.#known(pull.session)
    this.sequence = pull.sequence
    const given = pull.offer.length > 0 ? this.work.splice(0) : []
    return {
      sequence: pull.sequence,
      mark: this.#mark(),
      grants: given.map(({ grant }) => grant),
      templates: given.map(({ template }) => template),
      verdicts: [],
      reason: given.length > 0 ? null : 'noWork',
      askAgainMs: 10,
    }
  }

  async onReport(_peer: unknown, report: Message<'report'>): Promise<ReplyTo<'report'>> {
    this.reports++
    await this.#cut()
    this.#known(report.session)
    this.results.push(...report.results)
    const judged = report.results.filter(({ index }) => !this.isNotJudged(index))
    const verdicts = judged.map(({ campaign, step, index, fences }) => ({
      campaign,
      step,
      index,
      fences,
      verdict: this.verdict,
    }))
    return { mark: this.#mark(), verdicts }
  }

  async onBeat(_peer: unknown, beat: Message<'beat'>): Promise<ReplyTo<'beat'>> {
    await this.#cut()
    this.#known(beat.session)
    this.beats.push(beat)
    return { mark: this.#mark(), orders: this.orders.splice(0) }
  }

  async onInventory(): Promise<ReplyTo<'inventory'>> {
    return { mark: this.#mark(), orders: [] }
  }

  async onBye(): Promise<ReplyTo<'bye'>> {
    return { mark: this.#mark() }
  }

  async #cut(): Promise<void> {
    if (this.isCut) throw new IndraftError('dispatcher.busy')
  }

  #known(session: string): void {
    if (session !== this.session) throw new IndraftError('session.unknown')
  }

  #mark() {
    return { epoch: 'e1', sequence: 0 }
  }
}
