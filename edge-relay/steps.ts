/**
 * What the relay knows of steps rather than of leases: their signed templates, kept as long as a pilot's reply may need
 * them, and how long a task takes. Templates are in the journal; run times are learnt anew after a start. Changed by the
 * buffer as leases come and go.
 */
import type { Clock } from '../shared/clock.ts'
import { IndraftError } from '../shared/errors.ts'
import type { Result } from '../shared/protocol/messages.ts'
import type { Signed } from '../shared/protocol/work.ts'
import { digestOf, readTemplate } from '../shared/signing.ts'
import type { Journal } from './journal.ts'

/** Of the newest run time in the running mean of a step. */
const NEWEST_WEIGHT = 0.1
/** Run times of so many steps are remembered when nothing of them is held. */
const MOST_STEPS = 1000
/** Longer than any pull stays open: a pull that named a template as known may be answered without it. */
const TEMPLATE_KEPT_MS = 10 * 60_000

type StepName = Pick<Result, 'campaign' | 'step'>

/** First 16 digits of a template's digest, however it was written. */
export function templateName(digest: string): string {
  return digest.replace(/^sha256:/, '').slice(0, 16)
}

export function asRefusal(error: unknown): IndraftError {
  return error instanceof IndraftError ? error : new IndraftError('message.invalid', undefined, { cause: error })
}

export class Steps {
  readonly #journal: Journal
  readonly #clock: Clock
  readonly #templates: Map<string, Signed>
  readonly #unusedSinceMs = new Map<string, number>()
  /** What a task of a step is expected to take: as it went here; until one ended, as the last grant said. */
  readonly #estimates = new Map<string, number>()
  readonly #observed = new Map<string, number>()

  constructor(journal: Journal, clock: Clock, templates: Map<string, Signed>) {
    this.#journal = journal
    this.#clock = clock
    this.#templates = templates
  }

  /** @returns why, by name, for those that cannot be read */
  take(templates: readonly Signed[]): Map<string, IndraftError> {
    const unreadable = new Map<string, IndraftError>()
    for (const template of templates) {
      const name = templateName(digestOf(template.bytes))
      try {
        readTemplate(template)
      } catch (error) {
        unreadable.set(name, asRefusal(error))
        continue
      }
      this.#templates.set(name, template)
      this.#journal.putTemplate(name, template)
    }
    return unreadable
  }

  template(name: string): Signed | undefined {
    return this.#templates.get(name)
  }

  /** Of all templates here; those that came last are last. */
  templateNames(): string[] {
    return [...this.#templates.keys()]
  }

  /** What central expects a task of the step to take. */
  expect(step: StepName, ms: number): void {
    this.#estimates.set(nameOf(step), ms)
  }

  estimateMs(step: StepName): number | null {
    return this.#observed.get(nameOf(step)) ?? this.#estimates.get(nameOf(step)) ?? null
  }

  /** A task went well and took this long, transfers included. */
  observe(result: StepName & Pick<Result, 'wallMs' | 'stageInMs' | 'stageOutMs'>): void {
    const tookMs = result.wallMs + result.stageInMs + result.stageOutMs
    const before = this.#observed.get(nameOf(result))
    this.#observed.set(nameOf(result), before === undefined ? tookMs : before + (tookMs - before) * NEWEST_WEIGHT)
  }

  /** Drops templates that no lease has named for a while, and run times of steps long gone. */
  forgetUnused(leases: readonly (StepName & { grant: { template: string } })[]): void {
    const used = new Set(leases.map(({ grant }) => templateName(grant.template)))
    const nowMs = this.#clock.monotonicMs()
    for (const name of [...this.#templates.keys()]) {
      if (used.has(name)) {
        this.#unusedSinceMs.delete(name)
        continue
      }
      const sinceMs = this.#unusedSinceMs.get(name) ?? nowMs
      this.#unusedSinceMs.set(name, sinceMs)
      if (nowMs - sinceMs < TEMPLATE_KEPT_MS) continue
      this.#unusedSinceMs.delete(name)
      this.#templates.delete(name)
      this.#journal.dropTemplate(name)
    }
    const steps = new Set(leases.map(nameOf))
    for (const known of [this.#estimates, this.#observed]) {
      for (const step of known.keys()) if (!steps.has(step) && known.size > MOST_STEPS) known.delete(step)
    }
  }
}

function nameOf({ campaign, step }: StepName): string {
  return `${campaign}/${step}`
}
