/**
 * Takes in what central granted: into the buffer and the journal, and only then may it be confirmed. What cannot be read
 * fails task by task, so that its owner hears why.
 */
import type { Clock } from '../shared/clock.ts'
import { isIndraftError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import type { Message } from '../shared/protocol/messages.ts'
import { indices, parseRanges } from '../shared/ranges.ts'
import type { Buffer, RefusedGrant } from './buffer.ts'
import type { Cancels } from './cancels.ts'
import type { Journal } from './journal.ts'
import type { Outgoing } from './outgoing.ts'
import { endedHere } from './results.ts'

const FULL_DISK_PAUSE_MS = 500

export interface ReceivingOptions {
  buffer: Buffer
  journal: Journal
  outgoing: Outgoing
  cancels: Cancels
  clock: Clock
  log: Log
  /** The relay's name at its site. */
  holder: string
}

export class Receiving {
  readonly #options: ReceivingOptions

  constructor(options: ReceivingOptions) {
    this.#options = options
  }

  /** Changes memory, and queues the same for the journal: see kept(). */
  take({ grants, templates }: Message<'grants'>, site: string): void {
    const { buffer, cancels, log } = this.#options
    const refused = buffer.add(grants, templates)
    for (const one of refused) this.#onUnreadable(one, site)
    const unreadable = new Set(refused.map(({ grant }) => grant))
    for (const grant of grants) {
      if (unreadable.has(grant)) continue
      const { campaign, step, bundle, fences, tasks } = grant.lease
      log.info({ campaign, step, bundle, fence: fences[0], tasks }, 'lease.received')
    }
    buffer.giveBack((lease) => cancels.isCampaignCancelled(lease.campaign))
  }

  /**
   * Resolves when the grants are in the journal, however long its disk is full.
   * @param confirmMs after this long without a confirmation central takes them back
   */
  async kept({ grants }: Message<'grants'>, confirmMs: number, stop: AbortSignal): Promise<void> {
    const { buffer, journal, clock } = this.#options
    const givenUpAtMs = clock.monotonicMs() + confirmMs / 2
    while (!stop.aborted) {
      try {
        return await journal.committed()
      } catch (error) {
        if (!isIndraftError(error, 'store.full')) throw error
        if (clock.monotonicMs() > givenUpAtMs) {
          // Central takes back what is not confirmed in time, so nothing of it may be started here.
          const bundles = new Set(grants.map(({ lease }) => lease.bundle))
          buffer.dropAbove((lease) => bundles.has(lease.bundle))
        }
        await clock.sleep(FULL_DISK_PAUSE_MS, stop)
      }
    }
  }

  /** A template that only did not come is sent with the next grant. */
  #onUnreadable({ grant, why }: RefusedGrant, site: string): void {
    const { outgoing, holder, log } = this.#options
    const { tasks, ...lease } = grant.lease
    log.error({ ...grant.lease, detail: why?.message ?? 'the template did not come' }, 'lease.unreadable')
    if (!why) return
    let indicesOf: number[]
    try {
      indicesOf = [...indices(parseRanges(tasks))]
    } catch {
      // Not even which tasks: central finds them missing from the next inventory.
      return
    }
    const detail = `this site's relay cannot read the work: ${why.message}`
    for (const index of indicesOf) {
      const result = endedHere({ ...lease, index }, 'campaign.invalid', detail, { site, pilot: holder })
      if (!outgoing.knows(result)) outgoing.add(result)
    }
  }
}
