/**
 * How attempts and sub-leases end: by a result that a pilot hands in, given back, or without their pilot. What was not
 * started waits in the buffer again, unless central wants it ended or another attempt of it succeeded; what was started
 * is reported as lost, because only central may decide to run it again and charge the try. Changes memory and journal;
 * who answers waits for the commit.
 */
import type { Log } from '../shared/log.ts'
import type { LeasePart, Result, Verdict } from '../shared/protocol/messages.ts'
import { formatRanges, indices, intersectRanges, parseRanges, rangesOf, type Span } from '../shared/ranges.ts'
import type { Buffer } from './buffer.ts'
import type { Cancels } from './cancels.ts'
import { judge } from './judging.ts'
import { OWN_HOP, type SubLease, subLeasePart } from './lease.ts'
import type { Outgoing } from './outgoing.ts'
import type { Publications } from './publications.ts'
import { endedHere } from './results.ts'
import type { Session, Sessions } from './sessions.ts'

export interface EndingsOptions {
  site: string
  buffer: Buffer
  sessions: Sessions
  outgoing: Outgoing
  cancels: Cancels
  publications: Publications
  log: Log
  onVerdict: (verdict: Verdict['verdict'], end: Result['end']) => void
}

export class Endings {
  readonly #options: EndingsOptions

  constructor(options: EndingsOptions) {
    this.#options = options
  }

  /** Takes a result in, and tells what became of it. A success is never turned away. */
  accept(result: Result, session: Session | null): Verdict {
    const { campaign, step, index, fences, end, reason } = result
    const verdict = judge(this.#options, result)
    this.#options.log.info(
      {
        campaign,
        task: `${campaign}/${step}/${index}`,
        attempt: fences.join('.'),
        pilot: session?.holder ?? result.pilot,
        end,
        reason,
        verdict,
      },
      end === 'done' ? 'task.finished' : 'task.failed',
    )
    this.#options.onVerdict(verdict, end)
    return { campaign, step, index, fences, verdict }
  }

  /** A pilot gives back what it has not started. What is not its own is not believed. */
  takeReturned(session: Session, returned: LeasePart): void {
    const { buffer } = this.#options
    const own = returned.fences[OWN_HOP]
    const part = own === undefined ? undefined : buffer.subLease(own)
    if (part?.session !== session.session) return
    this.#takeBack(part, parseRanges(returned.tasks))
  }

  /** Only what is still to be started here may be given out again, under a fence that no order names. */
  #takeBack(part: SubLease, tasks: readonly Span[]): void {
    const { buffer, outgoing, cancels } = this.#options
    const { campaign, step, fences } = subLeasePart(part)
    const own = [...indices(intersectRanges(tasks, part.tasks))]
    const won = own.filter((index) => outgoing.isWonByOther({ campaign, step, index, fences }))
    buffer.takeBack(part, tasks, rangesOf(won), cancels.unwantedOf(part))
  }

  /** A sub-lease ends without its holder. */
  release(part: SubLease, why: string, session = this.#options.sessions.get(part.session)): void {
    const { site, buffer, log } = this.#options
    buffer.expectLate(part.lease)
    const started = [...indices(session?.state === 'lost' ? buffer.blame(part) : part.started)]
    log.info(
      { bundle: part.lease.bundle, fence: part.fence, tasks: formatRanges(part.tasks), started: started.length },
      'lease.expired',
    )
    const where = { site, node: session?.facts.node ?? 'unknown', pilot: session?.holder ?? 'unknown' }
    const lease = subLeasePart(part)
    for (const index of started) this.accept(endedHere({ ...lease, index }, 'node.lost', why, where), null)
    this.#takeBack(part, part.tasks)
  }
}
