/**
 * Ed25519 signatures over work. The centre packs a body once, signs those bytes, and the same bytes travel to the
 * pilot: nobody re-encodes in order to verify. The signature covers a prefix that names the kind, so that a template
 * can never be shown as a bundle.
 */
import { createHash, createPublicKey, generateKeyPairSync, type KeyObject, sign, verify } from 'node:crypto'
import { IndraftError } from './errors.ts'
import type { Digest } from './ids.ts'
import { check, pack, unpack } from './protocol/codec.ts'
import {
  type BundleBody,
  bundleBodySchema,
  type Signed,
  type TemplateBody,
  templateBodySchema,
} from './protocol/work.ts'

type Kind = 'template' | 'bundle'

/** The bytes under the signature: a fixed prefix, the kind, then the body's bytes as they travel. */
function signedBytes(kind: Kind, bytes: Uint8Array): Buffer {
  return Buffer.concat([Buffer.from(`indraft.v1.${kind}\0`), bytes])
}

/** Name of a public key: the first 16 hexadecimal digits of the SHA-256 of its SPKI encoding. */
export function keyName(publicKey: KeyObject): string {
  return createHash('sha256')
    .update(publicKey.export({ type: 'spki', format: 'der' }))
    .digest('hex')
    .slice(0, 16)
}

export function makeSigningKey(): KeyObject {
  return generateKeyPairSync('ed25519').privateKey
}

/** SPKI, base64: the form in which welcome carries it. */
export function publicKeyText(privateKey: KeyObject): string {
  return createPublicKey(privateKey).export({ type: 'spki', format: 'der' }).toString('base64')
}

function readPublicKey(name: string, text: string): KeyObject {
  let key: KeyObject
  try {
    key = createPublicKey({ key: Buffer.from(text, 'base64'), type: 'spki', format: 'der' })
  } catch (cause) {
    throw new IndraftError('signature.invalid', `key ${name} cannot be read`, { cause })
  }
  if (key.asymmetricKeyType !== 'ed25519') throw new IndraftError('signature.invalid', `key ${name} is not Ed25519`)
  return key
}

/**
 * Public keys by name, from a welcome. A key whose name does not fit its bytes is refused.
 * @throws IndraftError signature.invalid
 */
export function importKeys(keys: Record<string, string>): Map<string, KeyObject> {
  const imported = new Map<string, KeyObject>()
  for (const [name, text] of Object.entries(keys)) {
    const key = readPublicKey(name, text)
    if (keyName(key) !== name) throw new IndraftError('signature.invalid', `key ${name} is not what its name says`)
    imported.set(name, key)
  }
  return imported
}

export function digestOf(bytes: Uint8Array): Digest {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}` as Digest
}

export interface Signer {
  template(body: TemplateBody): Signed
  bundle(body: BundleBody): Signed
  /** Name and text of the public key, for welcome. */
  readonly keys: Record<string, string>
}

export function makeSigner(privateKey: KeyObject): Signer {
  const name = keyName(createPublicKey(privateKey))
  const signWork = (kind: Kind, body: TemplateBody | BundleBody): Signed => {
    const bytes = pack(body)
    return { bytes, signature: sign(null, signedBytes(kind, bytes), privateKey), key: name }
  }
  return {
    template: (body) => signWork('template', body),
    bundle: (body) => signWork('bundle', body),
    keys: { [name]: publicKeyText(privateKey) },
  }
}

function verifiedBody(kind: Kind, signed: Signed, keys: ReadonlyMap<string, KeyObject>): unknown {
  const key = keys.get(signed.key)
  if (!key || !verify(null, signedBytes(kind, signed.bytes), key, signed.signature)) {
    throw new IndraftError('signature.invalid')
  }
  return unpack(signed.bytes)
}

/** @throws IndraftError signature.invalid | message.* */
export function verifyTemplate(signed: Signed, keys: ReadonlyMap<string, KeyObject>): TemplateBody {
  return check(templateBodySchema, verifiedBody('template', signed, keys), 'template')
}

/** @throws IndraftError signature.invalid | signature.expired | message.* */
export function verifyBundle(signed: Signed, keys: ReadonlyMap<string, KeyObject>, wallMs: number): BundleBody {
  const body = check(bundleBodySchema, verifiedBody('bundle', signed, keys), 'bundle')
  if (wallMs > body.expiresAtMs) throw new IndraftError('signature.expired')
  return body
}

/** Reads a bundle or template without verifying it: for relays, which route work but do not run it. */
export function readBundle(signed: Signed): BundleBody {
  return check(bundleBodySchema, unpack(signed.bytes), 'bundle')
}
export function readTemplate(signed: Signed): TemplateBody {
  return check(templateBodySchema, unpack(signed.bytes), 'template')
}
