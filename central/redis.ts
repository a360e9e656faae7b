/** Connections to Redis or Valkey. They come back by themselves; a first connection that fails is the starter's error. */
import { Redis } from 'ioredis'
import type { Log } from '../shared/log.ts'

/** `redis://`, `rediss://` or `unix:///path`. */
export function makeRedis(url: string, log: Log): Redis {
  const redis = new Redis(url.replace(/^unix:\/\//, ''), { lazyConnect: true })
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
