/**
 * Connections to Redis or Valkey, and what their failures mean to who asked. Connections come back by themselves; a
 * first connection that fails is the starter's error. What is asked while Redis is away fails soon, so that holders and
 * people are told to come again instead of being kept waiting.
 */
import { Redis } from 'ioredis'
import { IndraftError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'

const LONGEST_RECONNECT_MS = 500
/** Longer than the longest script and than a slow disk's fsync. */
const COMMAND_TIMEOUT_MS = 10_000
const RETRY_AFTER_MS = 1000

/** `hasty`: for whoever answers somebody; `patient`: for what waits in the background, and repeats by itself. */
export type Temper = 'hasty' | 'patient'

const TEMPERS = {
  hasty: { maxRetriesPerRequest: 1, commandTimeout: COMMAND_TIMEOUT_MS },
  patient: { maxRetriesPerRequest: null },
} satisfies Record<Temper, object>

/** `redis://`, `rediss://` or `unix:///path`. Connects at its first command. */
export function makeRedis(url: string, log: Log, temper: Temper = 'hasty'): Redis {
  const redis = new Redis(url.replace(/^unix:\/\//, ''), {
    ...TEMPERS[temper],
    lazyConnect: true,
    retryStrategy: (times: number) => Math.min(50 * times, LONGEST_RECONNECT_MS),
  })
  redis.on('error', (error: Error) => log.warn({ err: error }, 'redis.connectionFailed'))
  return redis
}

/** @throws Error where nobody answers */
export async function connectRedis(url: string, log: Log): Promise<Redis> {
  const redis = makeRedis(url, log)
  try {
    await redis.connect()
    await redis.ping()
    return redis
  } catch (cause) {
    redis.disconnect()
    const place = url.replace(/:\/\/[^@/]*@/, '://')
    throw new Error(`Redis at ${place} does not answer: ${cause instanceof Error ? cause.message : cause}`, { cause })
  }
}

/** What Redis has to be set to so that it keeps what it acknowledged. */
const DURABLE = { appendonly: 'yes', appendfsync: 'always', 'maxmemory-policy': 'noeviction' }

/** Settings under which acknowledged writes may go, `<name> <value>`. @returns null where it does not tell (some hosted ones) */
export async function weakSettings(redis: Redis): Promise<{ found: string; expected: string }[] | null> {
  const weak: { found: string; expected: string }[] = []
  for (const [name, expected] of Object.entries(DURABLE)) {
    let found: string | undefined
    try {
      // One at a time: Redis 6.2 takes no more.
      found = ((await redis.config('GET', name)) as string[])[1]
    } catch (error) {
      if (storeRefusal(error)) throw error
      return null
    }
    if (found !== expected) weak.push({ found: `${name} ${found}`, expected: `${name} ${expected}` })
  }
  return weak
}

/** The first word of Redis's own refusals that pass, and what they say. */
const REFUSALS: Record<string, string> = {
  LOADING: 'is still loading its data',
  READONLY: 'is a replica and takes no writes',
  MISCONF: 'cannot write to its disk and takes no writes',
  NOREPLICAS: 'has too few replicas and takes no writes',
  MASTERDOWN: 'has lost its master',
  CLUSTERDOWN: 'is a cluster that is not whole',
  TRYAGAIN: 'is moving keys',
  BUSY: 'is busy with a script',
}
const GONE = /^(Connection is closed|Command timed out|Command aborted|Stream isn't writeable|connect |read ECONN)/

/** What is answered where Redis does not answer, refuses writes or is full; undefined for any other error: a bug. */
export function storeRefusal(error: unknown): IndraftError | undefined {
  if (!(error instanceof Error) || error instanceof IndraftError) return undefined
  const word = error.message.split(' ', 1)[0]!
  if (word === 'OOM') {
    return new IndraftError('store.full', 'the store is full and takes no writes', {
      retryAfterMs: 10_000,
      cause: error,
    })
  }
  const why = Object.hasOwn(REFUSALS, word) ? REFUSALS[word] : isGone(error) ? 'does not answer' : undefined
  if (why === undefined) return undefined
  return new IndraftError('dispatcher.busy', `the store ${why}: ask again`, {
    retryAfterMs: RETRY_AFTER_MS,
    cause: error,
  })
}

function isGone(error: Error): boolean {
  return error.name === 'MaxRetriesPerRequestError' || GONE.test(error.message)
}
