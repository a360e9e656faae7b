/**
 * What sites may do with the files at the centre: a relay shows its site's file token and may store outputs of attempts
 * and read blobs and outputs of any campaign that exists; pilots of a direct site show, besides, the capability of
 * their lease. Where the bytes lie is AttemptFiles' and the blob store's.
 */
import { IndraftError } from '../../shared/errors.ts'
import { type AttemptFiles, storedFile } from '../../shared/files/attempt-files.ts'
import { coversAttempt, verifyCapability } from '../../shared/files/capability.ts'
import type { FileRequest, FileService } from '../../shared/files/server.ts'
import type { BlobStore } from '../blobs.ts'
import type { SiteRegistry } from './registry.ts'

export interface SiteFilesParts {
  sites: SiteRegistry
  blobs: BlobStore
  attempts: AttemptFiles
  /** HMAC key of capabilities that the centre gives to pilots of direct sites. */
  capabilityKey: Uint8Array
  campaignExists(id: string): Promise<boolean>
}

export function siteFiles(parts: SiteFilesParts): FileService {
  const { sites, blobs, attempts, capabilityKey } = parts
  return {
    async authorize(wanted, token, capability) {
      if (token === null) throw new IndraftError('auth.missing')
      const name = await sites.siteOfFileToken(token)
      const site = name === null ? null : await sites.get(name)
      if (!site) throw new IndraftError('auth.invalid')
      if (site.disabled) throw new IndraftError('site.disabled')
      if (wanted.kind !== 'attempt') return
      if (site.direct) return checkCapability(wanted, capability)
      if (!(await parts.campaignExists(wanted.attempt.campaign))) throw new IndraftError('auth.forbidden')
    },
    findBlob: (digest) => storedFile(blobs.path(`sha256:${digest}`)),
    findAttemptFile: (attempt, path) => attempts.find(attempt, path),
    putAttemptFile: (attempt, path, content, checksum) => attempts.put(attempt, path, content, checksum),
  }

  /** Writing needs exactly the lease's attempts; reading, any attempt of its campaign. */
  function checkCapability(wanted: FileRequest & { kind: 'attempt' }, text: string | null): void {
    if (text === null) throw new IndraftError('capability.invalid')
    const capability = verifyCapability(capabilityKey, text, Date.now())
    const covered =
      wanted.verb === 'get'
        ? capability.campaign === wanted.attempt.campaign
        : coversAttempt(capability, wanted.attempt)
    if (!covered) throw new IndraftError('capability.invalid')
  }
}
