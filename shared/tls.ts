/**
 * Certificates of our own making, for one machine or one site that has none: an authority whose key never leaves its
 * folder, and server certificates signed by it. ECDSA P-256 through WebCrypto. Sites with certificates of their own
 * configure those instead and never come here.
 */
// x509 builds on an injection container that needs this loaded before it.
import 'reflect-metadata'
import type { webcrypto } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import { isIP } from 'node:net'
import { hostname } from 'node:os'
import { join } from 'node:path'
import * as x509 from '@peculiar/x509'
import { writePrivately } from './servers/private-file.ts'

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const
const DAY_MS = 86_400_000
const AUTHORITY_DAYS = 3650
const CERTIFICATE_DAYS = 397
/** A certificate that ends sooner than this is made anew. */
const RENEW_BEFORE_DAYS = 30
/** Certificates begin a little in the past, for clocks that lag. */
const BACKDATE_MS = DAY_MS

export interface Authority {
  /** PEM, given to those who shall trust it. */
  ca: string
  key: webcrypto.CryptoKey
  certificate: x509.X509Certificate
}

/** PEM of a certificate (with nothing after it) and its private key. */
export interface CertifiedKey {
  cert: string
  key: string
}

/** The authority kept in `dir` (ca.pem, ca-key.pem, mode 0600), made when there is none or it is about to expire. */
export async function makeAuthority(dir: string, name = `Indraft ${hostname()}`): Promise<Authority> {
  mkdirSync(dir, { recursive: true, mode: 0o700 })
  const certPath = join(dir, 'ca.pem')
  const keyPath = join(dir, 'ca-key.pem')
  if (existsSync(certPath) && existsSync(keyPath)) {
    const certificate = new x509.X509Certificate(readFileSync(certPath, 'utf8'))
    if (!endsSoon(certificate)) {
      return { ca: pem(certificate), key: await importKey(readFileSync(keyPath, 'utf8')), certificate }
    }
  }
  const keys = await makeKeys()
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    name: `CN=${escapeName(name)}`,
    serialNumber: serialNumber(),
    ...validity(AUTHORITY_DAYS),
    signingAlgorithm: ALGORITHM,
    keys,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  })
  // The key first: a certificate without its key would be taken for an authority.
  writePrivately(keyPath, await exportKey(keys.privateKey))
  writePrivately(certPath, pem(certificate))
  return { ca: pem(certificate), key: keys.privateKey, certificate }
}

/** @param hosts names and addresses that clients will use */
export async function issueCertificate(
  authority: Authority,
  { commonName, hosts }: { commonName: string; hosts: readonly string[] },
): Promise<CertifiedKey> {
  const keys = await makeKeys()
  const certificate = await x509.X509CertificateGenerator.create({
    subject: `CN=${escapeName(commonName)}`,
    issuer: authority.certificate.subject,
    serialNumber: serialNumber(),
    ...validity(CERTIFICATE_DAYS),
    signingAlgorithm: ALGORITHM,
    publicKey: keys.publicKey,
    signingKey: authority.key,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
      new x509.SubjectAlternativeNameExtension(
        hosts.map((host) => ({ type: isIP(host) ? ('ip' as const) : ('dns' as const), value: host })),
      ),
      await x509.AuthorityKeyIdentifierExtension.create(authority.certificate),
    ],
  })
  return { cert: pem(certificate), key: await exportKey(keys.privateKey) }
}

/**
 * The certificate kept in `dir` as `<name>.pem` and `<name>-key.pem`; issued when there is none, when it is about to
 * expire, when it was signed by another authority, or when a host is missing from it.
 */
export async function keptCertificate(
  authority: Authority,
  dir: string,
  name: string,
  hosts: readonly string[],
): Promise<CertifiedKey & { certPath: string; keyPath: string }> {
  mkdirSync(dir, { recursive: true, mode: 0o700 })
  const certPath = join(dir, `${name}.pem`)
  const keyPath = join(dir, `${name}-key.pem`)
  if (existsSync(certPath) && existsSync(keyPath)) {
    const kept = { cert: readFileSync(certPath, 'utf8'), key: readFileSync(keyPath, 'utf8'), certPath, keyPath }
    if (await isStillGood(authority, kept.cert, hosts)) return kept
  }
  const issued = await issueCertificate(authority, { commonName: name, hosts })
  writePrivately(keyPath, issued.key)
  writePrivately(certPath, issued.cert)
  return { ...issued, certPath, keyPath }
}

async function isStillGood(authority: Authority, cert: string, hosts: readonly string[]): Promise<boolean> {
  const certificate = new x509.X509Certificate(cert)
  const names = certificate.getExtension(x509.SubjectAlternativeNameExtension)?.names.items ?? []
  const covered = new Set(names.map(({ value }) => value))
  if (endsSoon(certificate) || !hosts.every((host) => covered.has(host))) return false
  return certificate.verify({ publicKey: authority.certificate, signatureOnly: true })
}

function endsSoon(certificate: x509.X509Certificate): boolean {
  return certificate.notAfter.getTime() - Date.now() < RENEW_BEFORE_DAYS * DAY_MS
}

function validity(days: number): { notBefore: Date; notAfter: Date } {
  return { notBefore: new Date(Date.now() - BACKDATE_MS), notAfter: new Date(Date.now() + days * DAY_MS) }
}

/** 127 random bits: positive, and never the same twice. */
function serialNumber(): string {
  const bytes = Buffer.from(crypto.getRandomValues(new Uint8Array(16)))
  bytes[0]! &= 0x7f
  return bytes.toString('hex')
}

function makeKeys(): Promise<webcrypto.CryptoKeyPair> {
  return crypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify'])
}

function pem(certificate: x509.X509Certificate): string {
  return `${certificate.toString('pem')}\n`
}

async function exportKey(key: webcrypto.CryptoKey): Promise<string> {
  return `${x509.PemConverter.encode(await crypto.subtle.exportKey('pkcs8', key), 'PRIVATE KEY')}\n`
}

function importKey(text: string): Promise<webcrypto.CryptoKey> {
  return crypto.subtle.importKey('pkcs8', x509.PemConverter.decodeFirst(text), ALGORITHM, true, ['sign'])
}

/** Characters that separate the parts of a distinguished name become spaces. */
function escapeName(name: string): string {
  return name.replace(/[,=+<>#;"\\]/g, ' ').slice(0, 64)
}
