/**
 * Registers the one site of `indraft up` and gets its relay's credential, the way any site does: by a one-time join
 * token. Later starts keep the credential and only bring addresses up to date, which may have changed.
 */
import { existsSync } from 'node:fs'
import {
  type RelayCredential,
  readRelayCredential,
  relayCredentialSchema,
  writeCredential,
} from '../../../shared/credentials.ts'
import { isIndraftError } from '../../../shared/errors.ts'
import { type Client, makeClient } from '../../api/client.ts'

export interface LocalSite {
  apiUrl: string
  token: string
  ca: string
  site: string
  natsUrl: string
  credentialPath: string
}

export async function joinLocalSite(local: LocalSite): Promise<void> {
  const client = makeClient({ url: local.apiUrl, token: local.token, ca: local.ca })
  try {
    const kept = existsSync(local.credentialPath) ? readRelayCredential(local.credentialPath) : undefined
    const credential =
      kept?.site === local.site && (await isRegistered(client, local.site)) ? kept : await join(client, local.site)
    writeCredential(local.credentialPath, {
      ...credential,
      nats: { ...credential.nats, url: local.natsUrl, ca: local.ca },
      files: { ...credential.files, url: local.apiUrl, ca: local.ca },
    })
  } finally {
    await client.close()
  }
}

async function isRegistered(client: Client, site: string): Promise<boolean> {
  try {
    await client.call('showSite', { params: { site } })
    return true
  } catch (error) {
    if (isIndraftError(error, 'request.notFound', 'site.unknown')) return false
    throw error
  }
}

async function join(client: Client, name: string): Promise<RelayCredential> {
  const { joinToken } = await client.call('addSite', { body: { name } })
  const { credential } = await client.call('joinSite', { body: { token: joinToken } })
  return relayCredentialSchema.parse(credential)
}
