/**
 * What sites may do with the files at the centre. The site's token says who asks; an attempt's files are opened by the
 * capability of a lease besides, whether a relay asks or a pilot of a direct site: writing under that lease alone,
 * reading in its campaign. A relay that lost the capability of a lease which it lost too may still bring what came late
 * under it: the store knows that the task was there. What was accepted of a site is told to that site's token. Blobs open with the token: their names are digests, which nobody guesses. Where the bytes
 * lie is AttemptFiles' and the blob store's.
 */
import { IndraftError, isIndraftError } from '../../shared/errors.ts'
import type { AcceptedPage } from '../../shared/files/accepted.ts'
import { type AttemptFiles, storedFile } from '../../shared/files/attempt-files.ts'
import {
  type AttemptName,
  type Capability,
  coversAttempt,
  coversBelow,
  verifyCapability,
} from '../../shared/files/capability.ts'
import type { FileRequest, FileService } from '../../shared/files/server.ts'
import type { BlobStore } from '../blobs.ts'
import type { Site, SiteRegistry } from './registry.ts'

export interface SiteFilesParts {
  sites: SiteRegistry
  blobs: BlobStore
  attempts: AttemptFiles
  /** HMAC key of the capabilities that the centre gives with its leases. */
  capabilityKey: Uint8Array
  /** Whether a site had this task under this attempt's first fence, in a lease that is over. */
  wasLeased(site: string, attempt: AttemptName): Promise<boolean>
  /** A page of a site's accepted results whose outputs a relay names. */
  named(site: string, from: string | null): Promise<AcceptedPage>
}

export function siteFiles(parts: SiteFilesParts): FileService {
  const { sites, blobs, attempts, capabilityKey, wasLeased, named } = parts
  return {
    async authorize(wanted, token, capability) {
      if (token === null) throw new IndraftError('auth.missing')
      const name = await sites.siteOfFileToken(token)
      const site = name === null ? null : await sites.get(name)
      if (!site) throw new IndraftError('auth.invalid')
      if (site.state === 'disabled') throw new IndraftError('site.disabled')
      if (wanted.kind !== 'attempt' || isCovered(wanted, site, capability)) return
      if (site.direct || !(await wasLeased(site.name, wanted.attempt))) throw new IndraftError('capability.invalid')
    },
    async listAccepted(token, from) {
      const site = await sites.siteOfFileToken(token)
      if (site === null) throw new IndraftError('auth.invalid')
      return await named(site, from)
    },
    findBlob: (digest) => storedFile(blobs.path(`sha256:${digest}`)),
    findAttemptFile: (attempt, path) => attempts.find(attempt, path),
    putAttemptFile: (attempt, path, content, checksum) => attempts.put(attempt, path, content, checksum),
  }

  /** Writing needs the lease's own attempts (a relay's have its fence after the lease's); reading, its campaign. */
  function isCovered(wanted: FileRequest & { kind: 'attempt' }, site: Site, text: string | null): boolean {
    const capability = text === null ? null : verified(text)
    if (!capability) return false
    const covers = site.direct ? coversAttempt : coversBelow
    const covered =
      wanted.verb === 'get' ? capability.campaign === wanted.attempt.campaign : covers(capability, wanted.attempt)
    return covered && capability.site === site.name
  }

  function verified(text: string): Capability | null {
    try {
      return verifyCapability(capabilityKey, text, Date.now())
    } catch (error) {
      if (isIndraftError(error)) return null
      throw error
    }
  }
}
