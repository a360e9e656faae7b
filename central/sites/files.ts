/**
 * What sites may do with the files at the centre. The site's token says who asks; an attempt's files are opened by the
 * capability of a lease besides, whether a relay asks or a pilot of a direct site: writing under that lease alone,
 * reading in its campaign. Blobs open with the token: their names are digests, which nobody guesses. Where the bytes
 * lie is AttemptFiles' and the blob store's.
 */
import { IndraftError } from '../../shared/errors.ts'
import { type AttemptFiles, storedFile } from '../../shared/files/attempt-files.ts'
import { coversAttempt, coversBelow, verifyCapability } from '../../shared/files/capability.ts'
import type { FileRequest, FileService } from '../../shared/files/server.ts'
import type { BlobStore } from '../blobs.ts'
import type { Site, SiteRegistry } from './registry.ts'

export interface SiteFilesParts {
  sites: SiteRegistry
  blobs: BlobStore
  attempts: AttemptFiles
  /** HMAC key of the capabilities that the centre gives with its leases. */
  capabilityKey: Uint8Array
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
      if (wanted.kind === 'attempt') checkCapability(wanted, site, capability)
    },
    findBlob: (digest) => storedFile(blobs.path(`sha256:${digest}`)),
    findAttemptFile: (attempt, path) => attempts.find(attempt, path),
    putAttemptFile: (attempt, path, content, checksum) => attempts.put(attempt, path, content, checksum),
  }

  /** Writing needs the lease's own attempts (a relay's have its fence after the lease's); reading, its campaign. */
  function checkCapability(wanted: FileRequest & { kind: 'attempt' }, site: Site, text: string | null): void {
    if (text === null) throw new IndraftError('capability.invalid')
    const capability = verifyCapability(capabilityKey, text, Date.now())
    const covers = site.direct ? coversAttempt : coversBelow
    const covered =
      wanted.verb === 'get' ? capability.campaign === wanted.attempt.campaign : covers(capability, wanted.attempt)
    if (!covered || capability.site !== site.name) throw new IndraftError('capability.invalid')
  }
}
