/**
 * The centre's NATS identities: one operator, one account, and in that account a signing key for sites. Made once in a
 * folder and the same ever after. A site's credential is a user JWT signed by that key, with the site's subjects in it:
 * the server itself holds a site to them. (A scoped key's template cannot say `_INBOX_<site>`: it replaces whole tokens
 * of a subject only.)
 *
 * A site's user is shut out by a new form of the account's claims that names it; the claims are the operator's word, and
 * the system account's user brings them to the server (credentials.ts).
 *
 * Callers: whoever writes central's nats-server configuration, central's main.ts (its own credential), join.ts
 * (a site's) and credentials.ts. The folder holds seeds: mode 0700, file 0600.
 */
import { chmod, link, mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
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
const CENTRAL_INBOX = '_INBOX_central'
/** Of whoever tells the server new claims. */
export const SYSTEM_INBOX = '_INBOX_claims'

const accountFileSchema = z.object({
  operatorJwt: z.string(),
  systemKey: z.string(),
  systemJwt: z.string(),
  accountKey: z.string(),
  accountJwt: z.string(),
  siteSigningSeed: z.string(),
  centralCreds: z.string(),
  /** Of a user of the system account, who may tell the server new claims. Files of earlier builds have none. */
  systemCreds: z.string().optional(),
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
  let file = (await readAccountFile(dir)) ?? (await writeAccountFile(dir, await makeIdentities()))
  if (file.systemCreds === undefined) {
    file = await writeAccountFile(dir, { ...file, ...(await makeSystem(keyOf(file.operatorSeed))) }, true)
  }
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

async function knownAccountFile(dir: string): Promise<AccountFile> {
  const file = await readAccountFile(dir)
  if (!file) throw new Error(`no ${FILE} in ${dir}: prepareNatsAccount makes it`)
  return file
}

/** What the server has to be told so that these users, by public key, are shut out: subject, claims, and who tells it. */
export interface Revocation {
  subject: string
  claims: string
  creds: string
}

/**
 * @param users public key -> since when, milliseconds since 1970. Always all of them: who is not named may come again.
 * @throws Error where prepareNatsAccount was never called for this folder
 */
export async function revokeUsers(dir: string, users: ReadonlyMap<string, number>): Promise<Revocation> {
  const { accountKey, accountSeed, operatorSeed, siteSigningSeed, systemCreds } = await knownAccountFile(dir)
  const revocations = Object.fromEntries([...users].map(([user, atMs]) => [user, Math.ceil(atMs / 1000)]))
  const claims = await accountClaims(keyOf(accountSeed), keyOf(siteSigningSeed), keyOf(operatorSeed), revocations)
  return { subject: `$SYS.REQ.ACCOUNT.${accountKey}.CLAIMS.UPDATE`, claims, creds: systemCreds ?? '' }
}

/**
 * A site's credentials file content: publishes `indraft.site.<site>`, hears `_INBOX_<site>.>`, nothing else. Costs
 * some 80 ms of processor (nkeys signs in JavaScript), so it is made per site and never per pilot.
 * @returns also the user's public key, by which it can be shut out
 * @throws Error where prepareNatsAccount was never called for this folder
 */
export async function mintSiteCreds(dir: string, site: string): Promise<{ creds: string; user: string }> {
  const file = await knownAccountFile(dir)
  const user = createUser()
  const signingKey = keyOf(file.siteSigningSeed)
  const jwt = await encodeUser(site, user, signingKey, {
    issuer_account: file.accountKey,
    pub: { allow: [siteSubject(site)], deny: [] },
    sub: { allow: [`${siteInboxPrefix(site)}.>`], deny: [] },
    payload: MAX_PAYLOAD_BYTES,
    subs: 64,
    data: UNLIMITED,
    allowed_connection_types: ['STANDARD', 'WEBSOCKET'],
  })
  return { creds: credsOf(jwt, user), user: publicKey(user) }
}

async function readAccountFile(dir: string): Promise<AccountFile | undefined> {
  try {
    return accountFileSchema.parse(JSON.parse(await readFile(join(dir, FILE), 'utf8')))
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw new Error(`${join(dir, FILE)} cannot be read as the centre's NATS identities`, { cause })
  }
}

/** Keeps what is there, unless told to take its place. @returns what is there now */
async function writeAccountFile(dir: string, file: AccountFile, replaces = false): Promise<AccountFile> {
  await mkdir(dir, { recursive: true, mode: 0o700 })
  const path = join(dir, FILE)
  const temporary = `${path}.${process.pid}.${Math.random().toString(36).slice(2)}`
  await writeFile(temporary, `${JSON.stringify(file, null, 2)}\n`, { mode: 0o600, flush: true })
  await chmod(temporary, 0o600)
  try {
    // link() fails where the file exists: who comes second takes the first one's identities.
    await (replaces ? rename(temporary, path) : link(temporary, path))
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw cause
  } finally {
    await rm(temporary, { force: true })
  }
  return (await readAccountFile(dir))!
}

async function makeIdentities(): Promise<AccountFile> {
  const [operator, account, siteSigning] = [createOperator(), createAccount(), createAccount()]
  const accountJwt = await accountClaims(account, siteSigning, operator, {})
  const system = await makeSystem(operator)
  const central = createUser()
  const centralJwt = await encodeUser('central', central, account, {
    // Replies go to inboxes of every site, so central may publish anywhere; it hears only what is meant for it.
    pub: { allow: ['>'], deny: [] },
    sub: { allow: [siteSubject('*'), `${CENTRAL_INBOX}.>`], deny: [] },
    payload: MAX_PAYLOAD_BYTES,
    subs: UNLIMITED,
    data: UNLIMITED,
  })
  return {
    ...system,
    accountKey: publicKey(account),
    accountJwt,
    siteSigningSeed: seed(siteSigning),
    centralCreds: credsOf(centralJwt, central),
    operatorSeed: seed(operator),
    accountSeed: seed(account),
  }
}

const LIMITS = {
  ...{ conn: UNLIMITED, leaf: 0, imports: 0, exports: 0, data: UNLIMITED, payload: 1024 * 1024 },
  ...{ subs: UNLIMITED, wildcards: true },
}

function accountClaims(
  account: KeyPair,
  siteSigning: KeyPair,
  operator: KeyPair,
  revocations: Record<string, number>,
): Promise<string> {
  const claims = { limits: LIMITS, signing_keys: [publicKey(siteSigning)], revocations }
  return encodeAccount('indraft', account, claims, { signer: operator })
}

/** The operator's word that names a system account, and a user in that who may tell the server about accounts. */
async function makeSystem(operator: KeyPair) {
  const [system, user] = [createAccount(), createUser()]
  const userJwt = await encodeUser('indraft', user, system, {
    pub: { allow: ['$SYS.REQ.ACCOUNT.*.CLAIMS.UPDATE'], deny: [] },
    sub: { allow: [`${SYSTEM_INBOX}.>`], deny: [] },
    payload: UNLIMITED,
    subs: UNLIMITED,
    data: UNLIMITED,
  })
  return {
    operatorJwt: await encodeOperator('indraft', operator, { system_account: publicKey(system) }),
    systemKey: publicKey(system),
    systemJwt: await encodeAccount('system', system, { limits: LIMITS }, { signer: operator }),
    systemCreds: credsOf(userJwt, user),
  }
}

function credsOf(jwt: string, user: KeyPair): string {
  return new TextDecoder().decode(fmtCreds(jwt, user))
}

function keyOf(seed: string): KeyPair {
  return fromSeed(new TextEncoder().encode(seed))
}

function publicKey(pair: KeyPair): string {
  return pair.getPublicKey()
}

function seed(pair: KeyPair): string {
  return new TextDecoder().decode(pair.getSeed())
}
