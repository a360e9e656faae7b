/**
 * What a site gets for its join token: one credential that opens its own subjects and files and nothing else. A site
 * with a relay gets relay.json; a direct one gets pilot.json, whose pilots speak to the centre themselves.
 */

import type { PilotCredential, RelayCredential } from '../../shared/credentials.ts'
import { siteInboxPrefix } from '../../shared/link-nats.ts'
import { mintSiteCreds } from './nats-account.ts'
import type { SiteRegistry } from './registry.ts'

export interface JoinFacts {
  /** Folder given to prepareNatsAccount. */
  natsAccount: string
  natsUrl: string
  natsCa: string | null
  /** `https://host:port`, without a path. */
  filesUrl(): string
  filesCa: string | null
  /** The centre's public keys by name. */
  keys: Record<string, string>
}

/** @throws IndraftError join.invalid | site.disabled */
export async function joinSite(
  registry: SiteRegistry,
  facts: JoinFacts,
  token: string,
): Promise<RelayCredential | PilotCredential> {
  const { site, keepOldMs, generation } = await registry.redeemJoinToken(token)
  const { creds, user } = await mintSiteCreds(facts.natsAccount, site.name)
  const fileToken = await registry.addCredential(site.name, user, generation)
  if (keepOldMs !== null) await registry.endCredentials(site.name, Date.now() + keepOldMs, user)
  const { keys, natsUrl, natsCa, filesCa } = facts
  if (site.direct) {
    const inboxPrefix = siteInboxPrefix(site.name)
    return {
      kind: 'pilot',
      site: site.name,
      nats: { url: natsUrl, user: null, password: null, creds, ca: natsCa, inboxPrefix },
      files: { token: fileToken, ca: filesCa },
      keys,
    }
  }
  return {
    kind: 'relay',
    site: site.name,
    nats: { url: natsUrl, creds, ca: natsCa },
    files: { url: facts.filesUrl(), token: fileToken, ca: filesCa },
    keys,
  }
}
