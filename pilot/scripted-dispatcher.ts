/**
 * For tests only: a dispatcher that gives a pilot what a test wants and remembers everything it was told. The codec, the
 * signatures and what carries the messages are real.
 */
import type { Dispatcher } from '../shared/dispatcher.ts'
import { type ErrorCode, IndraftError } from '../shared/errors.ts'
import type { Grant, Message, Order, Result } from '../shared/protocol/messages.ts'
import type { BundleBody, Signed, TemplateBody } from '../shared/protocol/work.ts'
import { digestOf } from '../shared/signing.ts'
import { makeBundle, makeTemplate, type TestSite } from './testbench.ts'

/** For tests only. Gives what it was told to give, remembers what it was told. */
export class ScriptedDispatcher implements Dispatcher {
  readonly #site: TestSite
  readonly #timings: Message<'welcome'>['timings']
  bundles = 0
  /** Where files go instead of the site's own server. */
  filesUrl: string | null = null
  session = 's1'
  readonly hellos: Message<'hello'>[] = []
  readonly pulls: Message<'pull'>[] = []
  readonly beats: Message<'beat'>[] = []
  readonly byes: Message<'bye'>[] = []
  readonly results: Result[] = []
  readonly ready: { grants: Grant[]; templates: Signed[] }[] = []
  readonly orders: Order[] = []
  refuseHello: ErrorCode | null = null
  /** Reports and beats of these sessions are refused as unknown. */
  readonly dead = new Set<string>()
  /** A report with a success of such a task is refused as one that is not understood; or with any result of such a one. */
  readonly notUnderstood = new Set<number>()
  readonly neverUnderstood = new Set<number>()
  /** While true, no report is answered. */
  isDeaf = false
  #sequence = 0

  constructor(site: TestSite, timings: Message<'welcome'>['timings']) {
    this.#site = site
    this.#timings = timings
  }

  readonly mark = { epoch: 'e1', sequence: 1 }

  #mustKnow(session: string): void {
    if (this.dead.has(session)) throw new IndraftError('session.unknown')
  }

  async onHello(_peer: unknown, hello: Message<'hello'>): Promise<Message<'welcome'>> {
    if (this.refuseHello) throw new IndraftError(this.refuseHello)
    this.hellos.push(hello)
    return {
      session: this.session,
      sequence: 0,
      site: 'here',
      mark: this.mark,
      timings: this.#timings,
      inventory: 'list',
      keys: {},
      filesUrl: this.filesUrl ?? this.#site.filesUrl,
    }
  }

  async onPull(_peer: unknown, pull: Message<'pull'>): Promise<Message<'grants'>> {
    this.#mustKnow(pull.session)
    this.pulls.push(pull)
    this.#sequence = pull.sequence
    const endMs = Date.now() + pull.waitMs
    while (this.ready.length === 0 && Date.now() < endMs) await new Promise((resolve) => setTimeout(resolve, 5))
    const { grants = [], templates = [] } = pull.offer.length > 0 ? (this.ready.shift() ?? {}) : {}
    const reason = grants.length > 0 ? null : 'noWork'
    return { sequence: this.#sequence, mark: this.mark, grants, templates, verdicts: [], reason, askAgainMs: 20 }
  }

  async onReport(_peer: unknown, report: Message<'report'>): Promise<Message<'reported'>> {
    this.#mustKnow(report.session)
    while (this.isDeaf) await new Promise((resolve) => setTimeout(resolve, 10))
    const isStrange = ({ index, end }: Result) =>
      (end === 'done' && this.notUnderstood.has(index)) || this.neverUnderstood.has(index)
    if (report.results.some(isStrange))
      throw new IndraftError('message.invalid', 'results: something of a newer release')
    this.results.push(...report.results)
    const verdicts = report.results.map(({ campaign, step, index, fences }) => {
      return { campaign, step, index, fences, verdict: 'accepted' as const }
    })
    return { mark: this.mark, verdicts }
  }

  async onBeat(_peer: unknown, beat: Message<'beat'>): Promise<Message<'orders'>> {
    this.#mustKnow(beat.session)
    this.beats.push(beat)
    return { mark: this.mark, orders: this.orders.splice(0) }
  }

  async onInventory(): Promise<Message<'orders'>> {
    return { mark: this.mark, orders: [] }
  }

  async onBye(_peer: unknown, bye: Message<'bye'>): Promise<Message<'farewell'>> {
    this.byes.push(bye)
    return { mark: this.mark }
  }

  /** Signed work of its own, not given yet. */
  grantOf(
    template: Partial<TemplateBody>,
    tasks: string,
    bundle: Partial<BundleBody> = {},
    signer = this.#site.signer,
  ): { grant: Grant; template: Signed } {
    const name = `b${++this.bundles}`
    const signed = signer.template(makeTemplate(template))
    const digest = digestOf(signed.bytes)
    const grant: Grant = {
      bundle: signer.bundle(makeBundle({ bundle: name, template: digest, tasks, ...bundle })),
      lease: { bundle: name, campaign: 'c0000000001', step: 'sim', fences: [100 + this.bundles, 7], tasks },
      template: digest.slice(7, 23),
      leaseMs: this.#timings.leaseMs,
      tries: {},
      avoidNodes: [],
      estimateMs: null,
      capability: 'a capability',
    }
    return { grant, template: signed }
  }

  /** The next pull that offers room gets it. */
  give(...of: Parameters<ScriptedDispatcher['grantOf']>): Grant {
    const made = this.grantOf(...of)
    this.ready.push({ grants: [made.grant], templates: [made.template] })
    return made.grant
  }
}
