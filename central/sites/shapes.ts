/**
 * The largest node shapes that each site has ever offered, for "would this fit anywhere". Learnt from what holders say
 * of themselves, kept in Redis across restarts; a shape that another one covers is forgotten. Advice for people only:
 * granting looks at the offer of the moment and never at this.
 */
import type { Redis } from 'ioredis'
import { z } from 'zod'
import type { Dispatcher } from '../../shared/dispatcher.ts'
import { type Shape, shapeOf } from '../../shared/fit.ts'
import { offerEntrySchema } from '../../shared/protocol/messages.ts'

const SHAPES = 'indraft:site-shapes'
const MOST = 16
const shapesSchema = z.array(offerEntrySchema.shape.shape)

export interface SeenShapes {
  saw(site: string, shapes: readonly Shape[]): Promise<void>
  all(): Promise<Map<string, Shape[]>>
}

export function openSeenShapes(redis: Redis): SeenShapes {
  /** What this process knows to be written, so that the usual pull costs nothing. */
  const written = new Map<string, Shape[]>()
  const read = (text: string | null): Shape[] => (text === null ? [] : shapesSchema.parse(JSON.parse(text)))
  return {
    async saw(site, shapes) {
      const known = written.get(site) ?? []
      const isNew = (shape: Shape) => shape.cores > 0 && !known.some((other) => covers(other, shape))
      if (!shapes.some(isNew)) return
      // Two replicas at once may lose one another's shape; the next pull brings it again.
      const merged = largest([...read(await redis.hget(SHAPES, site)), ...shapes])
      await redis.hset(SHAPES, site, JSON.stringify(merged))
      written.set(site, merged)
    },
    async all() {
      return new Map(Object.entries(await redis.hgetall(SHAPES)).map(([site, text]) => [site, read(text)]))
    },
  }
}

/** Those that no other one covers. */
export function largest(shapes: readonly Shape[]): Shape[] {
  const kept: Shape[] = []
  for (const shape of shapes) {
    if (shape.cores === 0 || kept.some((other) => covers(other, shape))) continue
    kept.splice(0, kept.length, ...kept.filter((other) => !covers(shape, other)), shape)
  }
  return kept.sort((a, b) => b.cores - a.cores).slice(0, MOST)
}

const NETWORK_RANK = { none: 0, proxy: 1, outgoing: 2 } as const

/** Whether whatever fits `small` fits `big`. */
export function covers(big: Shape, small: Shape): boolean {
  return (
    big.arch === small.arch &&
    big.cores >= small.cores &&
    big.memoryBytes >= small.memoryBytes &&
    big.scratchBytes >= small.scratchBytes &&
    big.gpus >= small.gpus &&
    big.gpuMemoryBytes >= small.gpuMemoryBytes &&
    NETWORK_RANK[big.network] >= NETWORK_RANK[small.network] &&
    small.runtimes.every((runtime) => big.runtimes.includes(runtime)) &&
    (small.software ?? []).every((one) => big.software?.includes(one))
  )
}

/** The same dispatcher, whose holders' shapes are noted. A note that fails is the caller's to log and harms nothing. */
export function notingShapes(dispatcher: Dispatcher, seen: SeenShapes, onFailed: (error: unknown) => void): Dispatcher {
  const note = (site: string, shapes: readonly Shape[]) => void seen.saw(site, shapes).catch(onFailed)
  return {
    onHello: async (peer, hello) => {
      const welcome = await dispatcher.onHello(peer, hello)
      note(peer.site, hello.nodes.map(shapeOf))
      return welcome
    },
    onPull: (peer, pull) => {
      note(
        peer.site,
        pull.offer.map(({ shape }) => shape),
      )
      return dispatcher.onPull(peer, pull)
    },
    onReport: (peer, report) => dispatcher.onReport(peer, report),
    onBeat: (peer, beat) => dispatcher.onBeat(peer, beat),
    onInventory: (peer, inventory) => dispatcher.onInventory(peer, inventory),
    onBye: (peer, bye) => dispatcher.onBye(peer, bye),
    ...(dispatcher.onDemand ? { onDemand: (peer, demand) => dispatcher.onDemand!(peer, demand) } : {}),
  }
}
