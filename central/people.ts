/**
 * Who may ask for what. A person or service shows a bearer token; Redis holds only the token's SHA-256, with the
 * subject, the groups and the roles that it stands for. The first start makes one administrator token in a file of
 * mode 0600 and registers the same one again whenever Redis has forgotten it.
 */
import { createHash, randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import type { Redis } from 'ioredis'
import { z } from 'zod'
import { IndraftError } from '../shared/errors.ts'
import { writePrivatelyOnce } from '../shared/servers/private-file.ts'
import { banOf } from './bans.ts'

const TOKENS = 'indraft:tokens'
/** Stands for every group. */
export const ALL_GROUPS = '*'

/** read sees, submit also changes campaigns of its groups, admin may do everything. */
export const ROLES = ['admin', 'submit', 'read'] as const
export type Role = (typeof ROLES)[number]

export const principalSchema = z.object({
  subject: z.string().min(1).max(200),
  groups: z.array(z.string().min(1).max(200)),
  roles: z.array(z.enum(ROLES)),
})
export type Principal = z.infer<typeof principalSchema>

export interface People {
  /** @throws IndraftError auth.missing | auth.invalid */
  identify(authorization: string | undefined): Promise<Principal>
  /** The token, shown once. */
  add(principal: Principal): Promise<string>
  /** Tokens by the first 12 digits of their hash, never the tokens themselves. */
  list(): Promise<(Principal & { id: string })[]>
  /** @returns whether there was one */
  remove(id: string): Promise<boolean>
}

export function tokenHash(token: string): string {
  return createHash('sha256').update(token).digest('hex')
}

/** 256 bits of chance behind a prefix that says what it is, so that a leaked one is recognised. */
export function makeToken(kind: 'person' | 'join' | 'files'): string {
  return `indraft-${kind}-${randomBytes(32).toString('base64url')}`
}

export function openPeople(redis: Redis): People {
  return {
    async identify(authorization) {
      if (authorization === undefined) throw new IndraftError('auth.missing')
      const token = /^Bearer (\S{1,500})$/i.exec(authorization)?.[1]
      if (token === undefined) throw new IndraftError('auth.invalid', 'Authorization: expected "Bearer TOKEN"')
      const found = await redis.hget(TOKENS, tokenHash(token))
      if (found === null) throw new IndraftError('auth.invalid')
      const principal = principalSchema.parse(JSON.parse(found))
      const ban = await banOf(redis, principal.subject)
      if (ban)
        throw new IndraftError('auth.forbidden', `${principal.subject} is banned${ban.reason && `: ${ban.reason}`}`)
      return principal
    },
    async add(principal) {
      const token = makeToken('person')
      await redis.hset(TOKENS, tokenHash(token), JSON.stringify(principalSchema.parse(principal)))
      return token
    },
    async list() {
      const all = await redis.hgetall(TOKENS)
      return Object.entries(all).map(([hash, text]) => ({
        id: hash.slice(0, 12),
        ...principalSchema.parse(JSON.parse(text)),
      }))
    },
    async remove(id) {
      const hashes = (await redis.hkeys(TOKENS)).filter((hash) => hash.startsWith(id))
      return hashes.length === 1 && (await redis.hdel(TOKENS, hashes[0]!)) === 1
    },
  }
}

/** The administrator's token from its file, made there when it is missing, known to Redis in any case. */
export async function ensureAdminToken(redis: Redis, path: string): Promise<string> {
  writePrivatelyOnce(path, () => `${makeToken('person')}\n`)
  const token = readToken(path)
  if (token === undefined) throw new Error(`${path} is empty: expected a token, or no file`)
  const admin: Principal = { subject: 'admin', groups: [ALL_GROUPS], roles: ['admin'] }
  await redis.hset(TOKENS, tokenHash(token), JSON.stringify(admin))
  return token
}

function readToken(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim() || undefined
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw cause
  }
}

const RANK = { read: 0, submit: 1, admin: 2 } as const satisfies Record<Role, number>

/** @throws IndraftError auth.forbidden */
export function requireRole(principal: Principal, role: Role): void {
  if (!principal.roles.some((held) => RANK[held] >= RANK[role])) {
    throw new IndraftError('auth.forbidden', `${principal.subject}: the role ${role} is needed`)
  }
}

export function isInGroup(principal: Principal, group: string): boolean {
  return principal.groups.includes(ALL_GROUPS) || principal.groups.includes(group)
}

/** @throws IndraftError auth.forbidden */
export function requireGroup(principal: Principal, group: string): void {
  if (!isInGroup(principal, group)) {
    const groups = principal.groups.join(', ') || 'none'
    throw new IndraftError('auth.forbidden', `${principal.subject} is not in ${group} (groups: ${groups})`, {
      path: 'group',
    })
  }
}
