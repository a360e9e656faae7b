/** Names computed from content: campaign ids, plan digests, match classes. The same content gives the same name. */
import { createHash } from 'node:crypto'
import type { CampaignId, Digest } from '../../shared/ids.ts'
import type { Needs } from '../../shared/protocol/work.ts'

/** RFC 4648, lower case: no digits that look like letters. */
const BASE32 = 'abcdefghijklmnopqrstuvwxyz234567'

/** `c` and ten base-32 digits (50 bits) of SHA-256 over group and name. */
export function campaignIdOf(group: string, name: string): CampaignId {
  const hash = createHash('sha256').update(`${group}\n${name}`).digest()
  let bits = hash.readBigUInt64BE()
  let id = ''
  for (let i = 0; i < 10; i++) {
    id += BASE32[Number(bits & 31n)]
    bits >>= 5n
  }
  return `c${id}` as CampaignId
}

/**
 * JSON with sorted keys, so that equal values have equal bytes. A list that is there many times (a table of many steps)
 * is written once.
 */
export function canonicalJson(value: unknown, lists = new Map<unknown, string>()): string {
  if (Array.isArray(value)) {
    const text = lists.get(value) ?? `[${value.map((item) => canonicalJson(item, lists)).join(',')}]`
    lists.set(value, text)
    return text
  }
  if (typeof value === 'object' && value !== null) {
    const entries = Object.entries(value).filter(([, item]) => item !== undefined)
    entries.sort(([a], [b]) => (a < b ? -1 : 1))
    return `{${entries.map(([key, item]) => `${JSON.stringify(key)}:${canonicalJson(item, lists)}`).join(',')}}`
  }
  return JSON.stringify(value)
}

export function digestOfValue(value: unknown): Digest {
  return `sha256:${createHash('sha256').update(canonicalJson(value)).digest('hex')}` as Digest
}

/** Needs with every list sorted and without repeats: equal needs are written equally. */
export function canonicalNeeds(needs: Needs): Needs {
  const sorted = (list: readonly string[]) => [...new Set(list)].sort()
  return {
    ...needs,
    arch: sorted(needs.arch),
    allowSites: sorted(needs.allowSites),
    denySites: sorted(needs.denySites),
    ...(needs.software ? { software: sorted(needs.software) } : {}),
  }
}

/** First 12 hexadecimal digits of the digest over the canonical needs. */
export function matchClassOf(needs: Needs): string {
  return digestOfValue(canonicalNeeds(needs)).slice('sha256:'.length, 'sha256:'.length + 12)
}
