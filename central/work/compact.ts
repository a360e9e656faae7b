/**
 * Moves winning results of 256 consecutive tasks that are all over into one compressed block of the blob store, and
 * drops them from Redis once the block is safe. A block that gained winners later (tasks retried by a person) is
 * written anew with them.
 */
import { promisify } from 'node:util'
import { deflateRaw } from 'node:zlib'
import { failpoint } from '../../shared/failpoint.ts'
import { ENDED_TASK_STATES } from '../../shared/lifecycle.ts'
import { pack, unpack } from '../../shared/protocol/codec.ts'
import type { Result } from '../../shared/protocol/messages.ts'
import type { BlobStore } from '../blobs.ts'
import type { Plans } from '../leases/plans.ts'
import { stateAt } from '../leases/read.ts'
import { BLOCK_TASKS, type Results } from '../leases/results.ts'
import type { Scripts } from '../leases/scripts.ts'

const compress = promisify(deflateRaw)
const isOver = new Set<string>(ENDED_TASK_STATES)

export class Compactor {
  readonly #scripts: Scripts
  readonly #plans: Plans
  readonly #results: Results
  readonly #blobs: BlobStore

  constructor(scripts: Scripts, plans: Plans, results: Results, blobs: BlobStore) {
    this.#scripts = scripts
    this.#plans = plans
    this.#results = results
    this.#blobs = blobs
  }

  /** Compacts every whole block that is over, and the last one where the step is. */
  async compact(campaign: string, stepName: string): Promise<number> {
    const known = await this.#plans.step(campaign, stepName)
    if (!known) return 0
    const { base, step } = known
    let compacted = 0
    const waiting = new Set<number>()
    for (const index of await this.#scripts.redis.hkeys(`${base}:results:${campaign}:${stepName}`)) {
      waiting.add(Math.floor(Number(index) / BLOCK_TASKS))
    }
    for (const block of waiting) {
      const first = block * BLOCK_TASKS
      const size = Math.min(BLOCK_TASKS, step.size - first)
      const states = await this.#scripts.redis.getrangeBuffer(
        `${base}:state:${campaign}:${stepName}`,
        first / 2,
        (first + BLOCK_TASKS) / 2 - 1,
      )
      const over = Array.from({ length: size }, (_, i) => stateAt(states, i)).every((state) => isOver.has(state))
      if (over && (await this.#compactBlock(base, campaign, stepName, block, size))) compacted++
    }
    return compacted
  }

  async #compactBlock(base: string, campaign: string, step: string, block: number, size: number): Promise<boolean> {
    const { redis } = this.#scripts
    const first = block * BLOCK_TASKS
    const names = Array.from({ length: size }, (_, i) => String(first + i))
    const [packed, previous] = await Promise.all([
      redis.hmgetBuffer(`${base}:results:${campaign}:${step}`, ...names),
      redis.hget(`${base}:blocks:${campaign}:${step}`, String(block)),
    ])
    const results: Record<string, Result> = previous ? await this.#results.readBlock(previous) : {}
    const indices: number[] = []
    for (const [i, bytes] of packed.entries()) {
      if (!bytes) continue
      results[names[i]!] = unpack(bytes) as Result
      indices.push(first + i)
    }
    if (indices.length === 0) return false
    const digest = await this.#blobs.put(await compress(pack(results)))
    failpoint('block.written')
    const answer = await this.#scripts.run('compact', base, {
      campaign,
      step,
      block,
      digest,
      previous: previous ?? '',
      indices,
    })
    return answer.outcome === 1
  }
}
