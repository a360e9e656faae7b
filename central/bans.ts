/**
 * People whom nobody is to serve any more. A ban cancels their campaigns, so that what runs ends with the next beat of
 * whoever holds it, refuses their tokens, and keeps what is theirs from matching; a lift lets them submit anew.
 *
 * What always holds: the ban is durable before anything is cancelled, and matching looks at it, so that what is submitted in
 * between is never granted. Banning again does what a process that died half-way left undone.
 */
import type { Redis } from 'ioredis'
import { z } from 'zod'
import { IndraftError } from '../shared/errors.ts'
import { isCampaignOver } from '../shared/lifecycle.ts'
import type { Log } from '../shared/log.ts'
import type { CampaignView } from './campaigns/model.ts'

/** Hash: subject -> {reason, by, atMs}. */
export const BANS = 'indraft:bans'

export const banSchema = z.object({
  subject: z.string().min(1).max(200),
  reason: z.string().max(500),
  by: z.string(),
  atMs: z.number(),
})
export type Ban = z.infer<typeof banSchema>

export interface Bans {
  /** @returns campaigns that were cancelled. @throws IndraftError request.invalid for the caller's own subject */
  ban(subject: string, reason: string, by: string): Promise<{ cancelled: string[] }>
  /** @returns whether there was a ban. What was cancelled stays cancelled. */
  lift(subject: string, by: string): Promise<boolean>
  list(): Promise<Ban[]>
}

export interface BansParts {
  redis: Redis
  /** Of every group. */
  campaigns: () => Promise<Pick<CampaignView, 'id' | 'subject' | 'state'>[]>
  /** Repeating is harmless. */
  cancel: (id: CampaignView['id']) => Promise<unknown>
  log: Log
  nowMs: () => number
}

export function openBans({ redis, campaigns, cancel, log, nowMs }: BansParts): Bans {
  return {
    async ban(subject, reason, by) {
      if (subject === by) throw new IndraftError('request.invalid', 'nobody bans themselves', { path: 'subject' })
      const ban: Ban = { subject, reason, by, atMs: nowMs() }
      await redis.hset(BANS, subject, JSON.stringify(ban))
      log.warn({ ...ban }, 'subject.banned')
      const cancelled: string[] = []
      for (const campaign of await campaigns()) {
        if (campaign.subject !== subject || isCampaignOver(campaign.state)) continue
        await cancel(campaign.id)
        cancelled.push(campaign.id)
      }
      return { cancelled }
    },
    async lift(subject, by) {
      const wasBanned = (await redis.hdel(BANS, subject)) === 1
      if (wasBanned) log.warn({ subject, by }, 'subject.unbanned')
      return wasBanned
    },
    async list() {
      const all = Object.values(await redis.hgetall(BANS)).map((text) => banSchema.parse(JSON.parse(text)))
      return all.sort((a, b) => a.atMs - b.atMs)
    },
  }
}

/** Why this person is not served; null where there is no ban. */
export async function banOf(redis: Redis, subject: string): Promise<Ban | null> {
  const text = await redis.hget(BANS, subject)
  return text === null ? null : banSchema.parse(JSON.parse(text))
}
