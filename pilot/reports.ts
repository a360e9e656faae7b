/**
 * Hands results from the outbox to the dispatcher, in batches that fit a message, until each is acknowledged. Never
 * waits for anything but its own answers, and nothing waits for it.
 *
 * What always holds: a result that no dispatcher takes holds up no other, and its pilot goes on. Where the refusal is of
 * the pilot, and not of a message, nothing is reported any more; the results stay on disk.
 */
import { Bell } from '../shared/bell.ts'
import type { Clock } from '../shared/clock.ts'
import type { IndraftError } from '../shared/errors.ts'
import { failpoint } from '../shared/failpoint.ts'
import type { Holder } from '../shared/holder.ts'
import type { Log } from '../shared/log.ts'
import { insteadOf, isOfTheMessage } from '../shared/no-result.ts'
import type { Result } from '../shared/protocol/messages.ts'
import type { Outbox } from './outbox.ts'
import type { Work } from './work.ts'

const REPORT_MOST = 64
/** Of a report before it is packed: the message may have 48 kB. */
const REPORT_BYTES = 36 * 1024
const PAUSE_MS = 500

export interface ReportsOptions {
  holder: Holder
  outbox: Outbox
  work: Work
  clock: Clock
  log: Log
  stopped: AbortSignal
  /** Whether a failed request may be made again; waits where that helps. */
  isPassing: (error: unknown) => Promise<boolean>
}

export class Reports {
  readonly #options: ReportsOptions
  readonly #changes: Bell
  #isRefused = false

  constructor(options: ReportsOptions) {
    this.#options = options
    this.#changes = new Bell(options.clock)
  }

  /** There may be something to report. */
  wake(): void {
    this.#changes.ring()
  }

  /** The dispatcher takes no more results. */
  get isRefused(): boolean {
    return this.#isRefused
  }

  /** Until the pilot stops. @throws IndraftError what the dispatcher refused for good */
  async run(): Promise<void> {
    const { outbox, holder, work, clock, stopped, isPassing } = this.#options
    let most = REPORT_MOST
    while (!stopped.aborted) {
      const results = outbox.batch(most, REPORT_BYTES)
      if (results.length === 0) {
        await this.#changes.next()
        continue
      }
      try {
        const { verdicts } = await holder.report(results)
        failpoint('report.answered')
        work.settle(verdicts)
        most = REPORT_MOST
        if (verdicts.length < results.length) await clock.sleep(PAUSE_MS, stopped)
      } catch (error) {
        if (await isPassing(error)) continue
        if (!isOfTheMessage(error)) {
          this.#isRefused = true
          throw error
        }
        if (results.length > 1) most = Math.ceil(results.length / 2)
        else await this.#replace(results[0]!, error)
      }
    }
  }

  /** Where what goes in its place is not taken either it is set aside, and the dispatcher finds the attempt missing. */
  async #replace(result: Result, error: IndraftError): Promise<void> {
    const { outbox, work, log } = this.#options
    log.error({ err: error, ...result, outputs: result.outputs.length }, 'result.notTaken')
    if (!outbox.tellInstead(insteadOf(result, error))) {
      await work.setAside(result)
    }
  }
}
