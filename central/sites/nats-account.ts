/**
 * The centre's NATS identities: one operator, one account, and in that account a signing key for sites. Made once in a
 * folder and the same ever after. A site's credential is a user JWT signed by that key, with the site's subjects in it:
 * the server itself holds a site to them. (A scoped key's template cannot say `_INBOX_<site>`: it replaces whole tokens
 * of a subject only.)
 *
 * Callers: whoever writes central's nats-server configuration, central's main.ts (its own credential) and join.ts
 * (a site's). The folder holds seeds: mode 0700, file 0600.
 */
import { chmod, link, mkdir, readFile, unlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import {
  createAccount,
  createOperator,
  createUser,
  encodeAccount,
  encodeOperator,
  encodeUser,
  fmtCreds,
  fromSeed,
  type KeyPair,
} from '@nats-io/jwt'
import { z } from 'zod'
import { siteInboxPrefix, siteSubject } from '../../shared/link-nats.ts'

const FILE = 'nats-account.json'
/** A frame is at most 48 kB; the server cuts off what cannot be one. */
const MAX_PAYLOAD_BYTES = 64 * 1024
const UNLIMITED = -1
const SYSTEM_INBOX = '_INBOX_central'

const accountFileSchema = z.object({
  operatorJwt: z.string(),
  systemKey: z.string(),
  systemJwt: z.string(),
  accountKey: z.string(),
  accountJwt: z.string(),
  siteSigningSeed: z.string(),
  centralCreds: z.string(),
  /** Kept for a later change of the account (a revocation, another limit); nothing reads them in daily work. */
  operatorSeed: z.string(),
  accountSeed: z.string(),
})
type AccountFile = z.infer<typeof accountFileSchema>

export interface NatsAccount {
  /** Lines for nats-server's configuration: operator, system account, resolver with both accounts. */
  configText: string
  /** Credentials file content for central itself. */
  centralCreds: string
}

/** Makes the identities on the first call, reads them on later ones. Two at once agree on one. */
export async function prepareNatsAccount(dir: string): Promise<NatsAccount> {
  const file = (await readAccountFile(dir)) ?? (await makeAccountFile(dir))
  const { operatorJwt, systemKey, systemJwt, accountKey, accountJwt, centralCreds } = file
  const configText = [
    `operator: ${operatorJwt}`,
    `system_account: ${systemKey}`,
    'resolver: MEMORY',
    'resolver_preload: {',
    `  ${systemKey}: ${systemJwt}`,
    `  ${accountKey}: ${accountJwt}`,
    '}',
    '',
  ].join('\n')
  return { configText, centralCreds }
}

/**
 * A site's credentials file content: publishes `indraft.site.<site>`, hears `_INBOX_<site>.>`, nothing else. Costs
 * some 80 ms of processor (nkeys signs in JavaScript), so it is made per site and never per pilot.
 * @throws Error where prepareNatsAccount was never called for this folder
 */
export async function mintSiteCreds(dir: string, site: string): Promise<string> {
  const file = await readAccountFile(dir)
  if (!file) throw new Error(`no ${FILE} in ${dir}: prepareNatsAccount makes it`)
  const user = createUser()
  const signingKey = fromSeed(new TextEncoder().encode(file.siteSigningSeed))
  const jwt = await encodeUser(site, user, signingKey, {
    issuer_account: file.accountKey,
    pub: { allow: [siteSubject(site)], deny: [] },
    sub: { allow: [`${siteInboxPrefix(site)}.>`], deny: [] },
    payload: MAX_PAYLOAD_BYTES,
    subs: 64,
    data: UNLIMITED,
    allowed_connection_types: ['STANDARD', 'WEBSOCKET'],
  })
  return new TextDecoder().decode(fmtCreds(jwt, user))
}

async function readAccountFile(dir: string): Promise<AccountFile | undefined> {
  try {
    return accountFileSchema.parse(JSON.parse(await readFile(join(dir, FILE), 'utf8')))
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw new Error(`${join(dir, FILE)} cannot be read as the centre's NATS identities`, { cause })
  }
}

async function makeAccountFile(dir: string): Promise<AccountFile> {
  await mkdir(dir, { recursive: true, mode: 0o700 })
  const path = join(dir, FILE)
  const temporary = `${path}.${process.pid}.${Math.random().toString(36).slice(2)}`
  await writeFile(temporary, `${JSON.stringify(await makeIdentities(), null, 2)}\n`, { mode: 0o600, flush: true })
  await chmod(temporary, 0o600)
  try {
    // link() fails where the file exists: who comes second takes the first one's identities.
    await link(temporary, path)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw cause
  } finally {
    await unlink(temporary)
  }
  return (await readAccountFile(dir))!
}

async function makeIdentities(): Promise<AccountFile> {
  const [operator, system, account, siteSigning] = [createOperator(), createAccount(), createAccount(), createAccount()]
  const limits = { conn: UNLIMITED, leaf: 0, imports: 0, exports: 0, data: UNLIMITED, payload: 1024 * 1024 }
  const accountJwt = await encodeAccount(
    'indraft',
    account,
    {
      limits: { ...limits, subs: UNLIMITED, wildcards: true },
      signing_keys: [publicKey(siteSigning)],
    },
    { signer: operator },
  )
  const systemJwt = await encodeAccount(
    'system',
    system,
    { limits: { ...limits, subs: UNLIMITED, wildcards: true } },
    { signer: operator },
  )
  const central = createUser()
  const centralJwt = await encodeUser('central', central, account, {
    // Replies go to inboxes of every site, so central may publish anywhere; it hears only what is meant for it.
    pub: { allow: ['>'], deny: [] },
    sub: { allow: [siteSubject('*'), `${SYSTEM_INBOX}.>`], deny: [] },
    payload: MAX_PAYLOAD_BYTES,
    subs: UNLIMITED,
    data: UNLIMITED,
  })
  return {
    operatorJwt: await encodeOperator('indraft', operator, { system_account: publicKey(system) }),
    systemKey: publicKey(system),
    systemJwt,
    accountKey: publicKey(account),
    accountJwt,
    siteSigningSeed: seed(siteSigning),
    centralCreds: new TextDecoder().decode(fmtCreds(centralJwt, central)),
    operatorSeed: seed(operator),
    accountSeed: seed(account),
  }
}

function publicKey(pair: KeyPair): string {
  return pair.getPublicKey()
}

function seed(pair: KeyPair): string {
  return new TextDecoder().decode(pair.getSeed())
}
