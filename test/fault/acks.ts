/**
 * What was acknowledged, at both hops, as those say to whom it was said: a pilot logs what its relay has taken from it, a
 * relay what central has. Read from their logs while they run.
 */
import { basename, dirname } from 'node:path'
import { FileTail } from './ledger.ts'
import type { World } from './world.ts'

export interface Ack {
  /** Who acknowledged. */
  hop: 'relay' | 'central'
  site: string
  /** That acknowledged it, or that was told so. */
  relay: string
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
  readonly #tails: { tail: FileTail; hop: Ack['hop']; site: string; relay: string; node: string | null }[] = []
  onAck: (ack: Ack) => void = () => {}

  constructor(world: World) {
    for (const { name: relay, site } of world.relays.values()) {
      this.#tails.push({ tail: new FileTail(world.logOf(`relay-${relay}`)), hop: 'central', site, relay, node: null })
    }
    for (const [node, site] of world.nodes) {
      this.#tails.push({ tail: new FileTail(world.logOf(`pilot-${node}`)), hop: 'relay', site, relay: '', node })
    }
  }

  read(): void {
    const atMs = performance.now()
    for (const at of this.#tails) {
      const { tail, hop, site, node } = at
      for (const line of tail.lines()) {
        // A program that crashes prints its own source.
        if (!line.startsWith('{')) continue
        if (line.includes('"pilot.started"'))
          at.relay = relayOf((JSON.parse(line) as { credential: string }).credential)
        if (!line.includes('"result.acknowledged"')) continue
        const { attempt, verdict, end = null } = JSON.parse(line) as Pick<Ack, 'attempt' | 'verdict'> & Partial<Ack>
        const ack: Ack = { hop, site, relay: at.relay, node, attempt, verdict, end, atMs }
        this.all.push(ack)
        this.onAck(ack)
      }
    }
  }
}

/** Whose folder a pilot's credential lies in (world.ts). */
function relayOf(credential: string): string {
  return basename(dirname(credential))
}
