/**
 * What makes a relay the same relay after a restart: its secrets and its ports, in one private file beside the journal.
 * Apart from the journal, so that a damaged journal does not lock out the pilots that run.
 */
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { IndraftError } from '../shared/errors.ts'
import { writePrivately } from '../shared/servers/private-file.ts'

const identitySchema = z.object({
  /** Unlike that of any other relay of the site. One that was made before relays had names of their own is "relay". */
  name: z.string().default('relay'),
  relayPassword: z.string(),
  pilotPassword: z.string(),
  filesToken: z.string(),
  /** Signs file capabilities; base64url. */
  capabilityKey: z.string(),
  ports: z.object({ nats: z.number(), files: z.number(), metrics: z.number() }),
})
export type Identity = z.infer<typeof identitySchema>

export function openIdentity(state: string): Identity {
  mkdirSync(state, { recursive: true, mode: 0o700 })
  const path = join(state, 'identity.json')
  if (existsSync(path)) return identitySchema.parse(JSON.parse(readFileSync(path, 'utf8')))
  const identity: Identity = {
    name: `${hostname().split('.')[0]}-${randomBytes(2).toString('hex')}`,
    ...newSecrets(),
    capabilityKey: randomBytes(32).toString('base64url'),
    ports: { nats: 0, files: 0, metrics: 0 },
  }
  writePrivately(path, JSON.stringify(identity))
  return identity
}

/** What lets pilots in. Not the key of capabilities: those that running payloads hold open only their own attempts' files. */
function newSecrets(): Pick<Identity, 'relayPassword' | 'pilotPassword' | 'filesToken'> {
  const secret = () => randomBytes(24).toString('hex')
  return { relayPassword: secret(), pilotPassword: secret(), filesToken: secret() }
}

/**
 * New secrets, in force when the relay of this folder is started the next time: from then on the old pilot.json opens
 * nothing. Living pilots follow the new one; see pilot/access.ts.
 * @throws IndraftError request.notFound where no relay ever ran in the folder
 */
export function rotateSecrets(state: string): void {
  if (!existsSync(join(state, 'identity.json'))) {
    throw new IndraftError('request.notFound', `no relay has run in ${state}: expected identity.json there`)
  }
  writePrivately(join(state, 'identity.json'), JSON.stringify({ ...openIdentity(state), ...newSecrets() }))
}

export function keepPorts(state: string, identity: Identity, ports: Identity['ports']): void {
  identity.ports = ports
  writePrivately(join(state, 'identity.json'), JSON.stringify(identity))
}

/**
 * Listens on the configured port; where none is configured on the kept one, or on any when somebody else has that now.
 */
export async function withPort<T>(configured: number, kept: number, open: (port: number) => Promise<T>): Promise<T> {
  if (configured !== 0) return await open(configured)
  try {
    return await open(kept)
  } catch (error) {
    if (kept === 0 || (error as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw error
    return await open(0)
  }
}
