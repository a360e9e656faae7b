/**
 * The mark of the store: its epoch, and a sequence that rises with every acknowledged write. A holder that shows a
 * higher sequence of the same epoch proves that acknowledged writes were lost: granting stops until a person lifts it.
 * Also here: whether the store is nearly full.
 */
import { randomBytes } from 'node:crypto'
import type { Redis } from 'ioredis'
import type { Clock } from '../../shared/clock.ts'
import type { Log } from '../../shared/log.ts'
import type { StoreMark } from '../../shared/protocol/messages.ts'
import { GLOBAL } from './keys.ts'

const FULL_SHARE = 0.8
const MEMORY_CHECK_MS = 500

export class Mark {
  readonly #redis: Redis
  readonly #clock: Clock
  readonly #log: Log
  #memory = { atMs: Number.NEGATIVE_INFINITY, full: false }

  constructor(redis: Redis, clock: Clock, log: Log) {
    this.#redis = redis
    this.#clock = clock
    this.#log = log
  }

  /** Compares what a holder has seen with what the store knows; says whether granting is stopped. */
  async check(seen: StoreMark | null): Promise<{ mark: StoreMark; halted: boolean }> {
    const [epoch, sequence, halted] = await this.#redis.hmget(GLOBAL.mark, 'epoch', 'sequence', 'halted')
    const mark = { epoch: epoch ?? (await this.#newEpoch()), sequence: Number(sequence ?? 0) }
    if (seen?.epoch === mark.epoch && seen.sequence > mark.sequence) {
      this.#log.error({ seen: seen.sequence, known: mark.sequence, epoch: mark.epoch }, 'store.writesLost')
      await this.#redis.hset(GLOBAL.mark, 'halted', `a holder has seen ${seen.sequence}, known is ${mark.sequence}`)
      return { mark, halted: true }
    }
    return { mark, halted: Boolean(halted) }
  }

  /** After the writes and before their acknowledgement: Redis keeps the order, so who has this mark has the writes. */
  async advance(): Promise<StoreMark> {
    const sequence = await this.#redis.hincrby(GLOBAL.mark, 'sequence', 1)
    const epoch = (await this.#redis.hget(GLOBAL.mark, 'epoch')) ?? (await this.#newEpoch())
    return { epoch, sequence }
  }

  async liftHalt(): Promise<void> {
    await this.#redis.hdel(GLOBAL.mark, 'halted')
  }

  async #newEpoch(): Promise<string> {
    const made = `e${randomBytes(8).toString('hex')}`
    await this.#redis.hsetnx(GLOBAL.mark, 'epoch', made)
    return (await this.#redis.hget(GLOBAL.mark, 'epoch')) ?? made
  }

  /** Over 80 % of maxmemory; never, where Redis has no limit. */
  async isFull(): Promise<boolean> {
    const now = this.#clock.monotonicMs()
    if (now - this.#memory.atMs > MEMORY_CHECK_MS) {
      const info = await this.#redis.info('memory')
      const read = (name: string) => Number(new RegExp(`^${name}:(\\d+)`, 'm').exec(info)?.[1] ?? 0)
      const limit = read('maxmemory')
      this.#memory = { atMs: now, full: limit > 0 && read('used_memory') > limit * FULL_SHARE }
    }
    return this.#memory.full
  }
}
