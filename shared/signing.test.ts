import { createPublicKey, generateKeyPairSync } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { sampleBundle, sampleTemplate } from '../test/sample-messages.ts'
import { IndraftError } from './errors.ts'
import { pack } from './protocol/codec.ts'
import type { Signed } from './protocol/work.ts'
import {
  digestOf,
  importKeys,
  keyName,
  makeSigner,
  makeSigningKey,
  readBundle,
  readTemplate,
  verifyBundle,
  verifyTemplate,
} from './signing.ts'

const signer = makeSigner(makeSigningKey())
const keys = importKeys(signer.keys)
const signedBundle = signer.bundle(sampleBundle)
const signedTemplate = signer.template(sampleTemplate)
const beforeMs = sampleBundle.expiresAtMs - 1

function codeOf(act: () => unknown): string {
  try {
    act()
  } catch (error) {
    if (error instanceof IndraftError) return error.code
    throw error
  }
  return 'verified'
}
/** The same with one byte changed. */
function flipped(bytes: Uint8Array, at: number): Uint8Array<ArrayBuffer> {
  const copy = Uint8Array.from(bytes)
  copy[at]! ^= 1
  return copy
}

describe('signing - work as signed', () => {
  it('is verified and read', () => {
    expect(verifyBundle(signedBundle, keys, beforeMs)).toEqual(sampleBundle)
    expect(verifyTemplate(signedTemplate, keys)).toEqual(sampleTemplate)
    expect(readBundle(signedBundle)).toEqual(sampleBundle)
    expect(readTemplate(signedTemplate)).toEqual(sampleTemplate)
  })

  it('the bundle names the template by the digest of the bytes that travel', () => {
    expect(digestOf(signedTemplate.bytes)).toMatch(/^sha256:[0-9a-f]{64}$/)
    expect(digestOf(flipped(signedTemplate.bytes, 0))).not.toBe(digestOf(signedTemplate.bytes))
  })
})

describe('signing - changed on the way', () => {
  it('any byte of the work', () => {
    for (let at = 0; at < signedBundle.bytes.length; at++) {
      const signed = { ...signedBundle, bytes: flipped(signedBundle.bytes, at) }
      expect([at, codeOf(() => verifyBundle(signed, keys, beforeMs))]).toEqual([at, 'signature.invalid'])
    }
  })

  it('any byte of the signature', () => {
    for (let at = 0; at < signedBundle.signature.length; at++) {
      const signed = { ...signedBundle, signature: flipped(signedBundle.signature, at) }
      expect([at, codeOf(() => verifyBundle(signed, keys, beforeMs))]).toEqual([at, 'signature.invalid'])
    }
  })

  it.each<[string, Partial<Signed>]>([
    ['no signature', { signature: new Uint8Array() }],
    ['a signature too short', { signature: signedBundle.signature.subarray(1) }],
    ['a signature too long', { signature: Buffer.concat([signedBundle.signature, Buffer.of(0)]) }],
    ['the work cut short', { bytes: signedBundle.bytes.subarray(0, -1) }],
    ['more work', { bytes: Buffer.concat([signedBundle.bytes, Buffer.of(0)]) }],
    ['another key`s name', { key: '0123456789abcdef' }],
    ['no key', { key: '' }],
    ['a key named like a method', { key: '__proto__' }],
  ])('%s', (_title, change) => {
    expect(codeOf(() => verifyBundle({ ...signedBundle, ...change }, keys, beforeMs))).toBe('signature.invalid')
  })

  it('signed by somebody else under the centre`s key name', () => {
    const other = makeSigner(makeSigningKey())
    const forged = { ...other.bundle(sampleBundle), key: signedBundle.key }
    expect(codeOf(() => verifyBundle(forged, keys, beforeMs))).toBe('signature.invalid')
  })

  it('a template is never accepted as a bundle, nor a bundle as a template', () => {
    expect(codeOf(() => verifyBundle(signedTemplate, keys, beforeMs))).toBe('signature.invalid')
    expect(codeOf(() => verifyTemplate(signedBundle, keys))).toBe('signature.invalid')
    const disguised = signer.template(sampleBundle as never)
    expect(codeOf(() => verifyBundle(disguised, keys, beforeMs))).toBe('signature.invalid')
    expect(codeOf(() => verifyTemplate(disguised, keys))).toBe('message.invalid')
  })
})

describe('signing - expiry', () => {
  it.each([
    [beforeMs, 'verified'],
    [sampleBundle.expiresAtMs, 'verified'],
    [sampleBundle.expiresAtMs + 1, 'signature.expired'],
  ])('at %d', (wallMs, code) => {
    expect(codeOf(() => verifyBundle(signedBundle, keys, wallMs))).toBe(code)
  })

  it('an expired and forged bundle is called forged', () => {
    const signed = { ...signedBundle, bytes: pack({ ...sampleBundle, expiresAtMs: 0 }) }
    expect(codeOf(() => verifyBundle(signed, keys, beforeMs))).toBe('signature.invalid')
  })
})

describe('signing - keys', () => {
  it('are named by what they are', () => {
    const key = makeSigningKey()
    const name = keyName(createPublicKey(key))
    expect(name).toMatch(/^[0-9a-f]{16}$/)
    expect([...importKeys(makeSigner(key).keys).keys()]).toEqual([name])
  })

  it.each<[string, () => Record<string, string>]>([
    ['a key under another name', () => ({ '0123456789abcdef': Object.values(signer.keys)[0]! })],
    ['text that is no key', () => ({ '0123456789abcdef': 'bm8ga2V5' })],
    ['nothing', () => ({ '0123456789abcdef': '' })],
    [
      'a key of another kind',
      () => {
        const { publicKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' })
        return { [keyName(publicKey)]: publicKey.export({ type: 'spki', format: 'der' }).toString('base64') }
      },
    ],
  ])('%s is refused', (_title, given) => {
    expect(codeOf(() => importKeys(given()))).toBe('signature.invalid')
  })
})
