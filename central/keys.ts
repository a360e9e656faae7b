/** The centre's own secrets, each in a file of mode 0600 that is made at the first start and never changes by itself. */
import { createPrivateKey, type KeyObject, randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { writePrivatelyOnce } from '../shared/servers/private-file.ts'
import { makeSigningKey } from '../shared/signing.ts'

/** Ed25519: what is to run is signed with it. */
export function readSigningKey(path: string): KeyObject {
  writePrivatelyOnce(path, () => makeSigningKey().export({ type: 'pkcs8', format: 'pem' }) as string)
  return createPrivateKey(readFileSync(path, 'utf8'))
}

/** HMAC key of the file capabilities that go with leases. A new one closes the files of every lease given before. */
export function readCapabilityKey(path: string): Buffer {
  writePrivatelyOnce(path, () => randomBytes(32).toString('base64'))
  return Buffer.from(readFileSync(path, 'utf8'), 'base64')
}
