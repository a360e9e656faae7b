/**
 * The mark of the store: its epoch, and a sequence that rises with every acknowledged write. A holder that shows a
 * higher sequence than its epoch ever had proves that acknowledged writes were lost: granting stops until a person
 * lifts it. Marks carry a proof, so that no holder can show one that it was not given (shared/store-mark.ts). Also here:
 * whether the store is nearly full.
 *
 * An epoch ends whenever Redis starts anew, and the store remembers where it ended. Without that the sequence would
 * soon rise past what was lost, and a holder that speaks late could prove nothing. A start is noticed by the script
 * itself: Redis forgets scripts when it ends, so the first message after a start finds none. An emptied store counts as one.
 */
import { createHash, randomBytes } from 'node:crypto'
import type { Redis } from 'ioredis'
import type { Clock } from '../../shared/clock.ts'
import { IndraftError } from '../../shared/errors.ts'
import type { Log } from '../../shared/log.ts'
import type { StoreMark } from '../../shared/protocol/messages.ts'
import { isProven, proveMark } from '../../shared/store-mark.ts'
import { GLOBAL } from './keys.ts'

const FULL_SHARE = 0.8
const MEMORY_CHECK_MS = 500
const REPLICA_WAIT_MS = 2000

/**
 * ARGV: by how much the sequence rises (0: look only), then what a holder has seen: epoch and sequence, or ''. The part
 * of an epoch before its dot names the store; what another store has said proves nothing here.
 */
const LOOK = `
local name = KEYS[1]
local stored = redis.call('HMGET', name, 'epoch', 'sequence', 'halted')
local epoch, sequence, halted = stored[1], tonumber(stored[2] or 0), stored[3] or ''
if not epoch then return redis.error_reply('NOSCRIPT an empty store') end
local isNews = 0
if ARGV[2] ~= '' and string.match(ARGV[2], '^[^.]*') == string.match(epoch, '^[^.]*') then
  local seen = tonumber(ARGV[3])
  local known = ARGV[2] == epoch and sequence or tonumber(redis.call('HGET', name, 'ended:' .. ARGV[2]) or -1)
  if seen > known then
    isNews = 1
    halted = 'a holder has seen write ' .. ARGV[3] .. ' of epoch ' .. ARGV[2] .. ', known are ' .. math.max(known, 0)
    redis.call('HSET', name, 'halted', halted)
  end
end
if ARGV[1] ~= '0' then sequence = redis.call('HINCRBY', name, 'sequence', ARGV[1]) end
return { epoch, sequence, halted, isNews }`
const LOOK_SHA = createHash('sha1').update(LOOK).digest('hex')

/** ARGV: random text. Ends the epoch, begins the next; nobody is dead for what we could not hear meanwhile. */
const BEGIN = `
local name = KEYS[1]
local epoch = redis.call('HGET', name, 'epoch')
local begun = epoch and (string.match(epoch, '^[^.]*') .. '.' .. ARGV[1]) or ('e' .. ARGV[1])
if epoch then redis.call('HSET', name, 'ended:' .. epoch, redis.call('HGET', name, 'sequence') or '0') end
local t = redis.call('TIME')
redis.call('HSET', name, 'epoch', begun, 'graceMs', string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000)))
return begun`

export class Mark {
  readonly #redis: Redis
  readonly #clock: Clock
  readonly #log: Log
  readonly #replicas: number
  readonly #key: Uint8Array
  #memory = { atMs: Number.NEGATIVE_INFINITY, full: false }

  /** @param key proves marks; the same in every process of the centre */
  constructor(redis: Redis, clock: Clock, log: Log, key: Uint8Array, replicas = 0) {
    this.#key = key
    this.#replicas = replicas
    this.#redis = redis
    this.#clock = clock
    this.#log = log
  }

  /**
   * Compares what a holder of the site has seen with what the store knows; `halted` says in words why granting is
   * stopped. What a site made up itself stops nobody; a holder of before marks had proofs proves nothing.
   */
  async check(seen: StoreMark | null, site: string | null): Promise<{ mark: StoreMark; halted: string | null }> {
    const isBelieved = seen !== null && isProven(this.#key, seen)
    if (seen?.proof !== undefined && !isBelieved) this.#log.warn({ site, seen }, 'store.markUnproven')
    const { mark, halted, isNews } = await this.#look(0, isBelieved ? seen : null)
    if (isNews) this.#log.error({ site, seen, mark, halted }, 'store.writesLost')
    return { mark, halted: halted || null }
  }

  /** After the writes and before their acknowledgement: Redis keeps the order, so who has this mark has the writes. */
  async advance(): Promise<StoreMark> {
    const { mark } = await this.#look(1, null)
    if (this.#replicas > 0) await this.#awaitReplicas()
    return mark
  }

  /**
   * Also waits for every earlier write of this connection, which all parts of the store share.
   * @throws IndraftError dispatcher.busy where too few replicas have them: they are done here and may yet be lost
   */
  async #awaitReplicas(): Promise<void> {
    const onDisk = async () => ((await this.#redis.call('WAITAOF', 0, this.#replicas, REPLICA_WAIT_MS)) as number[])[1]!
    const received = () => this.#redis.wait(this.#replicas, REPLICA_WAIT_MS)
    const reached = await onDisk().catch((error: Error) => {
      if (!/unknown command/i.test(error.message)) throw error
      return received() // before Redis 7.2
    })
    if (reached >= this.#replicas) return
    const message = `${reached} of ${this.#replicas} replicas of the store have what was written: ask again`
    throw new IndraftError('dispatcher.busy', message, { retryAfterMs: 1000 })
  }

  async #look(rise: 0 | 1, seen: StoreMark | null) {
    const args = [GLOBAL.mark, String(rise), seen?.epoch ?? '', String(seen?.sequence ?? '')] as const
    for (;;) {
      try {
        const answer = await this.#redis.evalsha(LOOK_SHA, 1, ...args)
        const [epoch, sequence, halted, isNews] = answer as [string, number, string, number]
        return { mark: proveMark(this.#key, { epoch, sequence }), halted, isNews: isNews === 1 }
      } catch (error) {
        if (!(error instanceof Error && error.message.startsWith('NOSCRIPT'))) throw error
        await this.#begin()
      }
    }
  }

  /** Several processes may do this at once: each then ends an epoch, and none that was shown to anybody is forgotten. */
  async #begin(): Promise<void> {
    const epoch = await this.#redis.eval(BEGIN, 1, GLOBAL.mark, randomBytes(8).toString('hex'))
    // IMPORTANT: only now, so that no message is answered in the old epoch (test/central/rollback.test.ts).
    await this.#redis.script('LOAD', LOOK)
    this.#log.info({ epoch }, 'store.epochBegun')
  }

  /** A person looked: what was seen of this store until now proves nothing any more. */
  async liftHalt(): Promise<void> {
    const fields = await this.#redis.hkeys(GLOBAL.mark)
    const ended = fields.filter((field) => field.startsWith('ended:'))
    const epoch = `e${randomBytes(8).toString('hex')}`
    await this.#redis
      .multi()
      .hset(GLOBAL.mark, 'epoch', epoch)
      .hdel(GLOBAL.mark, 'halted', ...ended)
      .exec()
    this.#log.warn({ epoch }, 'store.haltLifted')
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
