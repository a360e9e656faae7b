/**
 * What becomes of a result that a pilot hands in: judged by the relay's own fence alone. What the relay cannot judge
 * (the lease is gone, or was never here) goes up unjudged. What it can, goes up once: central knows only its own fence,
 * so of several attempts that this relay made under one lease it must hear of the one that counts. A success is never
 * turned away. Changes memory and journal; who answers waits for the commit.
 */
import { attemptPath } from '../shared/ids.ts'
import type { Result, Verdict } from '../shared/protocol/messages.ts'
import type { Buffer } from './buffer.ts'
import type { Cancels } from './cancels.ts'
import { OWN_HOP } from './lease.ts'
import type { Outgoing } from './outgoing.ts'
import type { Publications } from './publications.ts'

export interface JudgeParts {
  buffer: Buffer
  outgoing: Outgoing
  cancels: Cancels
  publications: Publications
}

export function judge({ buffer, outgoing, cancels, publications }: JudgeParts, result: Result): Verdict['verdict'] {
  if (!isSafeName(result.campaign) || !isSafeName(result.step)) return 'refused'
  const own = result.fences[OWN_HOP]
  const part = own === undefined ? undefined : buffer.subLease(own)
  const isOurs = part !== undefined && buffer.covers(part, result)
  if (isOurs) buffer.endTask(part, result.index)
  if (outgoing.knows(result)) return 'duplicate'
  if (outgoing.isWonByOther(result)) {
    // Central never hears of it, so nobody else tidies up after it.
    publications.onVerdict(result, 'stale')
    return 'duplicate'
  }
  if (isOurs) {
    if (result.end === 'done') buffer.steps.observe(result)
    outgoing.add(result)
    return 'accepted'
  }
  // Its pilot was thought lost, and that still waits to go up: the lease is open, and this attempt is none of its past.
  if (outgoing.isWaiting(attemptPath(result))) {
    outgoing.add(result)
    return 'accepted'
  }
  const lease = buffer.leaseOf(result)
  if (!lease) {
    outgoing.add(result)
    return 'stale'
  }
  // The task waits here or runs under a newer fence: a late failure changes nothing about that.
  if (!buffer.wasGiven(lease, result)) return 'refused'
  if (result.end === 'failed') return 'stale'
  outgoing.add(result)
  const { campaign, step, index } = result
  for (const newer of buffer.supersede(lease, index)) {
    const fences = [...newer.lease.fences, newer.fence]
    cancels.add({ kind: 'attempt.cancel', attempt: { campaign, step, index, bundle: lease.bundle, fences } })
  }
  return 'accepted'
}

function isSafeName(name: string): boolean {
  return /^[A-Za-z0-9._-]+$/.test(name) && name !== '.' && name !== '..'
}
