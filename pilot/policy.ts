/**
 * The site's own rules, enforced at the node against everybody, the centre included: for whom, in which images, and
 * from which folders this pilot works. Pure; what it refuses ends as policy.refused.
 */
import { IndraftError } from '../shared/errors.ts'
import type { TemplateBody } from '../shared/protocol/work.ts'

export interface SitePolicy {
  /** Group paths; those below one are included. Empty allows all. */
  allowGroups: readonly string[]
  /** Prefixes. Empty allows all; `host` is ruled by hostRuntime alone. */
  allowImages: readonly string[]
  hostRuntime: boolean
  /** Absolute folders for file: URLs. Empty allows all that the account can read. */
  sharedFolders: readonly string[]
}

/** @throws IndraftError policy.refused */
export function enforcePolicy(policy: SitePolicy, template: Pick<TemplateBody, 'group' | 'image'>): void {
  const refuse = (why: string) => {
    throw new IndraftError('policy.refused', why)
  }
  if (policy.allowGroups.length > 0 && !policy.allowGroups.some((group) => isWithin(template.group, group))) {
    refuse(`group ${template.group} may not run here`)
  }
  if (template.image === 'host') {
    if (!policy.hostRuntime) refuse('nothing may run here without a container image')
  } else if (policy.allowImages.length > 0 && !policy.allowImages.some((prefix) => template.image.startsWith(prefix))) {
    refuse(`image ${template.image} may not run here`)
  }
}

/**
 * Whether a file on a shared file system may be read or written for a payload.
 * @param path resolved: no symbolic links, no dots
 * @param own the pilot's folders and credential, which no payload may name as an input
 * @throws IndraftError policy.refused
 */
export function enforceFolder(policy: SitePolicy, path: string, own: readonly string[]): void {
  if (own.some((folder) => isWithin(path, folder))) {
    throw new IndraftError('policy.refused', 'the file belongs to the pilot')
  }
  if (policy.sharedFolders.length > 0 && !policy.sharedFolders.some((folder) => isWithin(path, folder))) {
    throw new IndraftError('policy.refused', `${path} is outside the folders that this site shares`)
  }
}

function isWithin(path: string, folder: string): boolean {
  const top = folder.replace(/\/+$/, '')
  return path === top || path.startsWith(`${top}/`)
}
