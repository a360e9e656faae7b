/**
 * The sites that may take work, in Redis: labels, outage, declared shapes, whether they get work. Also their one-time
 * join tokens and the credentials that those were exchanged for, of whose secrets only hashes are kept. What a site is
 * doing now is the store's to know; that what is over opens nothing is credentials.ts's to see to.
 */
import type { Redis } from 'ioredis'
import { z } from 'zod'
import { IndraftError } from '../../shared/errors.ts'
import { nodeFactsSchema } from '../../shared/protocol/messages.ts'
import { makeToken, tokenHash } from '../people.ts'

const SITES = 'indraft:sites'
const FILE_TOKENS = 'indraft:site-file-tokens'
const CREDENTIALS = 'indraft:site-credentials'
/** How often a site's join tokens were taken back. */
const GENERATIONS = 'indraft:site-generations'
const joinKey = (token: string) => `indraft:join:${tokenHash(token)}`

/** Part of NATS subjects, inbox names and paths: no dots, no wildcards. */
export const siteNameSchema = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$/, 'expected letters, digits, - and _, at most 63, as in CSC-LUMI')
  // Replies to central and to a relay's pilots go to inboxes of these names.
  .refine((name) => !['central', 'pilot'].includes(name), 'central and pilot are taken')

/** Without defaults: a setting that a request leaves out is to stay as it is. */
export const siteSettingsSchema = z.object({
  labels: z.record(z.string().regex(/^[A-Za-z0-9._-]{1,63}$/), z.string().max(200)),
  /** How long the link may be cut before the site's work goes to others, milliseconds; null: the usual two hours. */
  outageMs: z.number().int().min(1000).nullable(),
  /** Largest node shapes, for "would this fit anywhere" before the first pilot was seen. */
  shapes: z.array(nodeFactsSchema.omit({ node: true, timeLeftMs: true, labels: true })).max(64),
  /** Pilots speak to the centre without a relay. */
  direct: z.boolean(),
})
export type SiteSettings = z.infer<typeof siteSettingsSchema>

const UNSAID: SiteSettings = { labels: {}, outageMs: null, shapes: [], direct: false }

export const siteStateSchema = z.enum(['enabled', 'draining', 'disabled'])

export const siteSchema = siteSettingsSchema.extend({
  name: siteNameSchema,
  state: siteStateSchema,
  addedAtMs: z.number().int(),
  /** Of sites that were added before there were any. */
  shapes: siteSettingsSchema.shape.shapes.default([]),
})
export type Site = z.infer<typeof siteSchema>

/** What one join gave. */
const credentialSchema = z.object({
  site: z.string(),
  /** Hash of its file token. */
  tokenHash: z.string(),
  madeAtMs: z.number().int(),
  /** Opens nothing any more from then on; null: no end. */
  endsAtMs: z.number().int().nullable(),
})
/** `user` is its public key at the centre's NATS. */
export type SiteCredential = z.infer<typeof credentialSchema> & { user: string }

const joinTokenSchema = z.object({
  site: z.string(),
  /** For how long after the join earlier credentials open anything; null: they are not touched. */
  keepOldMs: z.number().nullable(),
  /** The site's when it was made; none in those of before. */
  generation: z.number().default(0),
})
type JoinToken = z.infer<typeof joinTokenSchema>

export interface SiteRegistry {
  /** Adds a site, or changes the settings given of one that is there. */
  put(name: string, settings: Partial<SiteSettings>): Promise<Site>
  /** Null where there is no such site. */
  setState(name: string, state: Site['state']): Promise<Site | null>
  get(name: string): Promise<Site | null>
  list(): Promise<Site[]>
  /**
   * @param validMs how long it can be used, once
   * @param keepOldMs it replaces the site's credentials of before: those end so long after it was used
   */
  makeJoinToken(name: string, validMs: number, keepOldMs?: number): Promise<string>
  /** Of a site's join tokens none that was made before opens anything any more. */
  endJoinTokens(name: string): Promise<void>
  /** The site of a join token, which is used up by this. @throws IndraftError join.invalid | site.disabled */
  redeemJoinToken(token: string): Promise<{ site: Site } & Pick<JoinToken, 'keepOldMs' | 'generation'>>
  /**
   * Notes the credential of a NATS user. @returns its file token, which opens the centre's files for this site
   * @throws IndraftError join.invalid where the join tokens of this generation were taken back meanwhile
   */
  addCredential(name: string, user: string, generation: number): Promise<string>
  /** Gives an end to all credentials of a site that have none, but that of `except`. @returns how many */
  endCredentials(name: string, endsAtMs: number, except: string | null): Promise<number>
  credentials(): Promise<SiteCredential[]>
  /** What it says opens nothing any more; it stays listed, because its NATS user has to stay known. */
  takeFileToken(credential: SiteCredential): Promise<void>
  siteOfFileToken(token: string): Promise<string | null>
}

export function openSiteRegistry(redis: Redis): SiteRegistry {
  const get = async (name: string): Promise<Site | null> => {
    const found = await redis.hget(SITES, name)
    return found === null ? null : siteSchema.parse(JSON.parse(found))
  }
  const credentials = async (): Promise<SiteCredential[]> => {
    const all = Object.entries(await redis.hgetall(CREDENTIALS))
    return all.map(([user, text]) => ({ user, ...credentialSchema.parse(JSON.parse(text)) }))
  }
  const generationOf = async (name: string) => Number((await redis.hget(GENERATIONS, name)) ?? 0)
  return {
    get,
    async put(name, settings) {
      const existing = (await get(name)) ?? { ...UNSAID, state: 'enabled', addedAtMs: Date.now() }
      const given = Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined))
      const site = siteSchema.parse({ ...existing, ...given, name })
      await redis.hset(SITES, name, JSON.stringify(site))
      return site
    },
    async setState(name, state) {
      const existing = await get(name)
      if (!existing) return null
      const site = { ...existing, state }
      await redis.hset(SITES, name, JSON.stringify(site))
      return site
    },
    async list() {
      const all = Object.values(await redis.hgetall(SITES)).map((text) => siteSchema.parse(JSON.parse(text)))
      return all.sort((a, b) => (a.name < b.name ? -1 : 1))
    },
    async makeJoinToken(name, validMs, keepOldMs) {
      const token = makeToken('join')
      const what: JoinToken = { site: name, keepOldMs: keepOldMs ?? null, generation: await generationOf(name) }
      await redis.set(joinKey(token), JSON.stringify(what), 'PX', Math.max(1, Math.round(validMs)))
      return token
    },
    async endJoinTokens(name) {
      await redis.hincrby(GENERATIONS, name, 1)
    },
    async redeemJoinToken(token) {
      const found = await redis.getdel(joinKey(token))
      if (found === null) throw new IndraftError('join.invalid')
      const { site: name, keepOldMs, generation } = joinTokenSchema.parse(JSON.parse(found))
      const site = await get(name)
      if (!site || generation !== (await generationOf(name))) throw new IndraftError('join.invalid')
      if (site.state === 'disabled') throw new IndraftError('site.disabled')
      return { site, keepOldMs, generation }
    },
    async addCredential(name, user, generation) {
      const token = makeToken('files')
      const credential = { site: name, tokenHash: tokenHash(token), madeAtMs: Date.now(), endsAtMs: null }
      // Listed first: one that opens something is never unknown.
      const done = await redis
        .multi()
        .hset(CREDENTIALS, user, JSON.stringify(credential))
        .hset(FILE_TOKENS, credential.tokenHash, name)
        .hget(GENERATIONS, name)
        .exec()
      const now = Number(done?.[2]?.[1] ?? 0)
      if (now === generation) return token
      // Whoever took the tokens back may have ended the site's credentials before this one was listed.
      await redis.hset(CREDENTIALS, user, JSON.stringify({ ...credential, endsAtMs: Date.now() }))
      throw new IndraftError('join.invalid')
    },
    credentials,
    async endCredentials(name, endsAtMs, except) {
      const open = (await credentials()).filter(
        ({ site, user, endsAtMs: end }) => site === name && user !== except && (end === null || end > endsAtMs),
      )
      for (const { user, ...credential } of open) {
        await redis.hset(CREDENTIALS, user, JSON.stringify({ ...credential, endsAtMs }))
      }
      return open.length
    },
    async takeFileToken({ tokenHash: hash }) {
      await redis.hdel(FILE_TOKENS, hash)
    },
    siteOfFileToken: (token) => redis.hget(FILE_TOKENS, tokenHash(token)),
  }
}
