/**
 * What was acknowledged, at both hops, as those say to whom it was said: a pilot logs what its relay has taken from it, a
 * relay what central has. Read from their logs while they run.
 */
import { FileTail } from './ledger.ts'
import type { World } from './world.ts'

export interface Ack {
  /** Who acknowledged. */
  hop: 'relay' | 'central'
  site: string
  /** Of the pilot; null at the hop to central. */
  node: string | null
  attempt: string
  verdict: string
  /** Of what was acknowledged; said at the hop to central only. */
  end: 'done' | 'failed' | null
  /** By this process' clock, when it was read. */
  atMs: number
}

export class Acks {
  readonly all: Ack[] = []
  readonly #tails: { tail: FileTail; hop: Ack['hop']; site: string; node: string | null }[] = []
  onAck: (ack: Ack) => void = () => {}

  constructor(world: World) {
    for (const { name: site, nodes } of world.sites.values()) {
      for (const relay of world
        .names()
        .filter((name) => name === `relay-${site}` || name.startsWith(`relay-${site}-`))) {
        this.#tails.push({ tail: new FileTail(world.logOf(relay)), hop: 'central', site, node: null })
      }
      for (const node of nodes) {
        this.#tails.push({ tail: new FileTail(world.logOf(`pilot-${node}`)), hop: 'relay', site, node })
      }
    }
  }

  read(): void {
    const atMs = performance.now()
    for (const { tail, hop, site, node } of this.#tails) {
      for (const line of tail.lines()) {
        if (!line.includes('"result.acknowledged"')) continue
        const { attempt, verdict, end = null } = JSON.parse(line) as Pick<Ack, 'attempt' | 'verdict'> & Partial<Ack>
        const ack: Ack = { hop, site, node, attempt, verdict, end, atMs }
        this.all.push(ack)
        this.onAck(ack)
      }
    }
  }
}
