/** What a pilot says of itself with each beat; every list bounded, so that a beat always fits a message. */
import { heldDigest } from '../shared/held.ts'
import type { Message, NodeFacts } from '../shared/protocol/messages.ts'
import type { Lease, Leases } from './leases.ts'
import type { Outbox } from './outbox.ts'
import type { Work } from './work.ts'

export type BeatBody = Omit<Message<'beat'>, 'session' | 'processed' | 'seen' | 'incarnation'>

export const MOST_STARTED = 256
/**
 * IMPORTANT: a list is whole or not sent, as what it lacks is taken back (beat.test.ts). By a digest a dispatcher that
 * wanted a list takes nothing back; one that compares it asks for an inventory.
 */
const MOST_HELD = 512
const MOST_USAGE = 128

export interface BeatFacts {
  welcome: Message<'welcome'>
  facts: NodeFacts
  isDraining: boolean
  /** No more than MOST_STARTED. */
  started: ReadonlyMap<Lease, readonly number[]>
  leases: Leases
  outbox: Outbox
  work: Work
  upMs: number
  suspended: { times: number; ms: number }
}

export function beatBody({ welcome, facts, started, leases, outbox, work, ...rest }: BeatFacts): BeatBody {
  const held = [...leases.held].filter((lease) => lease.session === welcome.session)
  const { taking } = work
  let coresBusy = 0
  for (const attempt of taking) coresBusy += attempt.work.template.needs.cores
  return {
    draining: rest.isDraining,
    started: [...started].map(([lease, tasks]) => ({ ...lease.part(tasks), node: facts.node })),
    held: welcome.inventory === 'digest' || held.length > MOST_HELD ? digestOf(held) : held.map(nameOf),
    counters: {
      ...work.counters,
      suspended: rest.suspended.times,
      suspended_ms: Math.round(rest.suspended.ms),
    },
    gauges: {
      cores: facts.cores,
      coresBusy,
      running: taking.length,
      waiting: leases.unstarted,
      undelivered: outbox.size,
      undeliveredBytes: outbox.bytes,
      diskRefuses: outbox.trouble === null ? 0 : 1,
      slotsClosed: work.slotsClosed,
      upMs: Math.round(rest.upMs),
      rssBytes: process.memoryUsage.rss(),
    },
    pilots: [],
    usage: taking.slice(0, MOST_USAGE).flatMap(({ work: { ref }, elapsedMs, usage }) =>
      usage
        ? [
            {
              attempt: ref,
              wallMs: Math.round(elapsedMs),
              cpuMs: Math.round(usage.cpuMs),
              rssBytes: Math.round(usage.rssBytes),
            },
          ]
        : [],
    ),
  }
}

function digestOf(held: readonly Lease[]): { count: number; digest: string } {
  const names = held.map(({ grant }) => ({ bundle: grant.lease.bundle, fence: grant.lease.fences.at(-1)! }))
  return { count: held.length, digest: heldDigest(names) }
}

function nameOf({ grant: { lease } }: Lease) {
  return { bundle: lease.bundle, campaign: lease.campaign, step: lease.step, fences: lease.fences }
}
