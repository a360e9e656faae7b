/**
 * Makes up, at the start and whenever a result cannot be read any more, for what a journal lost: a task that central waits for here, but that is neither in the
 * buffer nor at a pilot nor among the results, would be waited for as long as the relay lives. It is reported as lost
 * by the site, so that central runs it again at nobody's charge; should its pilot report it all the same, that wins.
 */
import { attemptPath } from '../shared/ids.ts'
import type { Log } from '../shared/log.ts'
import { formatRanges, rangesOf } from '../shared/ranges.ts'
import type { Buffer } from './buffer.ts'
import type { Journal } from './journal.ts'
import type { Lease } from './lease.ts'
import { leaseTaskOf, type Outgoing } from './outgoing.ts'
import { endedHere } from './results.ts'

export interface MissingParts {
  journal: Journal
  buffer: Buffer
  outgoing: Outgoing
  site: string
  holder: string
  log: Log
}

export function reportMissing({ journal, buffer, outgoing, site, holder, log }: MissingParts): void {
  const known = new Set([...outgoing.attempts].map(leaseTaskOf))
  const isOnItsWay = (lease: Lease, index: number) => known.has(leaseTaskOf(attemptPath({ ...lease, index })))
  for (const { lease, tasks } of buffer.missing(isOnItsWay)) {
    const { bundle, campaign, step, fences } = lease
    journal.noteLoss()
    log.error({ campaign, step, bundle, tasks: formatRanges(rangesOf(tasks)) }, 'journal.tasksMissing')
    for (const index of tasks) {
      const attempt = { campaign, step, index, bundle, fences: [...fences] }
      outgoing.add(endedHere(attempt, 'node.lost', "the relay's journal lost it", { site, pilot: holder }))
    }
  }
}
