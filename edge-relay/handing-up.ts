/**
 * Hands results up to central, in batches that fit a message, and carries out what central says to each: it leaves the
 * journal, its lease loses the task, its files get their names. What central did not judge goes again.
 */
import type { Clock } from '../shared/clock.ts'
import type { IndraftError } from '../shared/errors.ts'
import { failpoint } from '../shared/failpoint.ts'
import type { Holder } from '../shared/holder.ts'
import { attemptPath } from '../shared/ids.ts'
import type { Log } from '../shared/log.ts'
import { insteadOf, isOfTheMessage } from '../shared/no-result.ts'
import type { Message, Result, Verdict } from '../shared/protocol/messages.ts'
import type { Buffer } from './buffer.ts'
import type { Journal } from './journal.ts'
import type { Outgoing } from './outgoing.ts'
import type { Publications } from './publications.ts'

const MOST_RESULTS = 256
const NOT_JUDGED_PAUSE_MS = 1000

export interface HandingUpOptions {
  holder: Holder
  outgoing: Outgoing
  buffer: Buffer
  publications: Publications
  journal: Journal
  clock: Clock
  log: Log
  stop: AbortSignal
  /** Central answered. */
  onAnswer: () => void
  /** Central has this result, and judged it so. */
  onSettled: (result: Result, verdict: Verdict['verdict']) => void
}

export class HandingUp {
  readonly #options: HandingUpOptions

  constructor(options: HandingUpOptions) {
    this.#options = options
  }

  /** One batch. @returns false where nothing is ready to go @throws IndraftError where central refuses it */
  async next(): Promise<boolean> {
    const batch = this.#options.outgoing.batch(MOST_RESULTS)
    if (batch.length === 0) return false
    failpoint('results.acknowledged')
    await this.#report(batch)
    return true
  }

  async #report(results: Result[]): Promise<void> {
    const { holder, journal, clock, log, stop, onAnswer } = this.#options
    let reply: Message<'reported'>
    try {
      reply = await holder.report(results)
    } catch (error) {
      if (!isOfTheMessage(error)) throw error
      if (results.length === 1) return await this.#tellInstead(results[0]!, error)
      const half = Math.ceil(results.length / 2)
      await this.#report(results.slice(0, half))
      await this.#report(results.slice(half))
      return
    }
    onAnswer()
    failpoint('verdict.received')
    const verdicts = new Map(reply.verdicts.map((verdict) => [attemptPath(verdict), verdict.verdict]))
    for (const result of results) {
      const verdict = verdicts.get(attemptPath(result))
      if (verdict) this.#settle(result, verdict)
      else this.#options.outgoing.postpone(result)
    }
    if (verdicts.size === 0) {
      log.error({ results: results.length }, 'upstream.resultsNotJudged')
      await clock.sleep(NOT_JUDGED_PAUSE_MS, stop)
    }
    await journal.committed()
  }

  /** One result that no message can carry, or that central does not understand, holds up no other. */
  async #tellInstead(result: Result, error: IndraftError): Promise<void> {
    const { outgoing, publications, clock, log, stop } = this.#options
    log.error({ err: error, attempt: attemptPath(result), outputs: result.outputs.length }, 'result.notTaken')
    if (outgoing.replace(result, insteadOf(result, error))) {
      publications.onVerdict(result, 'stale')
      return
    }
    outgoing.postpone(result)
    await clock.sleep(NOT_JUDGED_PAUSE_MS, stop)
  }

  #settle(result: Result, verdict: Verdict['verdict']): void {
    const { outgoing, buffer, publications, log, onSettled } = this.#options
    log.info({ attempt: attemptPath(result), end: result.end, verdict }, 'result.acknowledged')
    publications.onVerdict(result, verdict)
    outgoing.settle(result)
    buffer.settle(result)
    onSettled(result, verdict)
  }
}
