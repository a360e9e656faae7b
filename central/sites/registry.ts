/**
 * The sites that may take work, in Redis: labels, outage, declared shapes, whether disabled. Also their one-time join
 * tokens and file tokens, of which only hashes are kept. What a site is doing now is the store's to know.
 */
import type { Redis } from 'ioredis'
import { z } from 'zod'
import { IndraftError } from '../../shared/errors.ts'
import { nodeFactsSchema } from '../../shared/protocol/messages.ts'
import { makeToken, tokenHash } from '../people.ts'

const SITES = 'indraft:sites'
const FILE_TOKENS = 'indraft:site-file-tokens'
const joinKey = (token: string) => `indraft:join:${tokenHash(token)}`

/** Part of NATS subjects, inbox names and paths: no dots, no wildcards. */
export const siteNameSchema = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$/, 'expected letters, digits, - and _, at most 63, as in CSC-LUMI')
  // Replies to central and to a relay's pilots go to inboxes of these names.
  .refine((name) => !['central', 'pilot'].includes(name), 'central and pilot are taken')

export const siteSettingsSchema = z.object({
  labels: z.record(z.string().regex(/^[A-Za-z0-9._-]{1,63}$/), z.string().max(200)),
  /** How long the link may be cut before the site's work goes to others, milliseconds; null: the usual two hours. */
  outageMs: z.number().int().min(1000).nullable(),
  /** Largest node shapes, for "would this fit anywhere" before the first pilot was seen. */
  shapes: z
    .array(nodeFactsSchema.omit({ node: true, timeLeftMs: true, labels: true }))
    .max(64)
    .default([]),
  /** Pilots speak to the centre without a relay. */
  direct: z.boolean(),
})
export type SiteSettings = z.infer<typeof siteSettingsSchema>

const UNSAID: SiteSettings = { labels: {}, outageMs: null, shapes: [], direct: false }

export const siteSchema = siteSettingsSchema.extend({
  name: siteNameSchema,
  disabled: z.boolean(),
  addedAtMs: z.number().int(),
})
export type Site = z.infer<typeof siteSchema>

export interface SiteRegistry {
  /** Adds a site, or changes the settings given of one that is there. */
  put(name: string, settings: Partial<SiteSettings> & { disabled?: boolean }): Promise<Site>
  get(name: string): Promise<Site | null>
  list(): Promise<Site[]>
  /** @param validMs how long it can be used, once */
  makeJoinToken(name: string, validMs: number): Promise<string>
  /** The site of a join token, which is used up by this. @throws IndraftError join.invalid */
  redeemJoinToken(token: string): Promise<Site>
  /** Opens the centre's files for this site. */
  makeFileToken(name: string): Promise<string>
  siteOfFileToken(token: string): Promise<string | null>
}

export function openSiteRegistry(redis: Redis): SiteRegistry {
  const get = async (name: string): Promise<Site | null> => {
    const found = await redis.hget(SITES, name)
    return found === null ? null : siteSchema.parse(JSON.parse(found))
  }
  return {
    get,
    async put(name, settings) {
      const existing = (await get(name)) ?? { ...UNSAID, disabled: false, addedAtMs: Date.now() }
      const given = Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined))
      const site = siteSchema.parse({ ...existing, ...given, name })
      await redis.hset(SITES, name, JSON.stringify(site))
      return site
    },
    async list() {
      const all = Object.values(await redis.hgetall(SITES)).map((text) => siteSchema.parse(JSON.parse(text)))
      return all.sort((a, b) => (a.name < b.name ? -1 : 1))
    },
    async makeJoinToken(name, validMs) {
      const token = makeToken('join')
      await redis.set(joinKey(token), name, 'PX', Math.max(1, Math.round(validMs)))
      return token
    },
    async redeemJoinToken(token) {
      const name = await redis.getdel(joinKey(token))
      const site = name === null ? null : await get(name)
      if (!site) throw new IndraftError('join.invalid')
      if (site.disabled) throw new IndraftError('site.disabled')
      return site
    },
    async makeFileToken(name) {
      const token = makeToken('files')
      await redis.hset(FILE_TOKENS, tokenHash(token), name)
      return token
    },
    siteOfFileToken: (token) => redis.hget(FILE_TOKENS, tokenHash(token)),
  }
}
