/**
 * The site's own rules, enforced at the node against everybody, the centre included: for whom, in which images, and
 * from which folders this pilot works. What it refuses ends as policy.refused.
 */
import { realpath } from 'node:fs/promises'
import { posix } from 'node:path'
import { IndraftError } from '../shared/errors.ts'
import { reachesNoMore } from '../shared/fit.ts'
import { promisedDigest } from '../shared/image-name.ts'
import type { TemplateBody } from '../shared/protocol/work.ts'

export interface SitePolicy {
  /** Group paths; those below one are included. Empty allows all. */
  allowGroups: readonly string[]
  /**
   * A folder, an address or a registry with all below it, one image, or `sha256:<hex>` for one content from any address
   * or registry, which is held to it; never a path. Empty allows all; `host` is ruled by hostRuntime alone.
   */
  allowImages: readonly string[]
  hostRuntime: boolean
  /** The most that payloads may reach outside the site. */
  network: TemplateBody['needs']['network']
  /** People whom this site does not serve; see banned.ts. Nobody where not given. */
  isBanned?: (subject: string) => boolean
  /**
   * Absolute folders for file: URLs. Empty allows all that the account can where hostRuntime does so too, and none where
   * only containers run: a file in the account's home, read or written, would be a way out of any container.
   */
  sharedFolders: readonly string[]
  /** What the site and its pilots keep, wherever it lies: STOP and ban file, traces, end records, images, scratch. */
  kept?: readonly string[]
}

/** @throws IndraftError policy.refused */
export function enforcePolicy(
  policy: SitePolicy,
  template: Pick<TemplateBody, 'group' | 'image'> & {
    subject?: string
    needs: Pick<TemplateBody['needs'], 'network'>
  },
): void {
  const refuse = (why: string) => {
    throw new IndraftError('policy.refused', why)
  }
  if (template.subject !== undefined && policy.isBanned?.(template.subject)) {
    refuse('the subject is banned at this site')
  }
  if (policy.allowGroups.length > 0 && !policy.allowGroups.some((group) => isWithin(template.group, group))) {
    refuse(`group ${template.group} may not run here`)
  }
  const { network } = template.needs
  if (!reachesNoMore(network, policy.network)) refuse(`network ${network}: payloads have ${policy.network} here`)
  if (template.image === 'host') {
    if (!policy.hostRuntime) refuse('nothing may run here without a container image')
  } else if (policy.allowImages.length > 0 && !policy.allowImages.some((one) => isAllowedImage(template.image, one))) {
    refuse(`image ${template.image.slice(0, 200)} may not run here`)
  }
}

/** What an image's name says is brought into one form first: a path with dots, or an address with a user, is no way out. */
function isAllowedImage(image: string, allowed: string): boolean {
  if (/^sha256:[0-9a-f]{64}$/.test(allowed)) return promisedDigest(image) === allowed
  const plain = plainName(image)
  const top = plainName(allowed) ?? allowed
  if (plain === null) return false
  if (plain === top || top.endsWith('/')) return plain.startsWith(top)
  // Whole names only: /images is not /images-of-others, registry/sim is not registry/simulate.
  return plain.startsWith(top) && /^[/@:#?]/.test(plain.slice(top.length))
}

function plainName(image: string): string | null {
  const path = image.startsWith('file:///') ? image.slice('file://'.length) : image
  if (path.startsWith('/')) return posix.normalize(path)
  if (!/^https?:/i.test(path)) return path.includes('/../') ? null : path
  const url = URL.parse(path)
  return url && !url.username && !url.password ? url.href : null
}

/**
 * Whether the file or folder that an image leads to may be one: not where the kernel shows processes and devices, not
 * one that holds the pilot's own files or lies among them.
 * @param path absolute; one that is not there passes, whoever opens it says so
 * @param own as in enforceFolder
 * @throws IndraftError policy.refused
 */
export async function enforceImagePath(path: string, own: readonly string[]): Promise<void> {
  const real = await realpath(path).catch(() => null)
  if (real === null) return
  const refuse = (why: string) => {
    throw new IndraftError('policy.refused', `image ${path.slice(0, 200)}: ${why}`)
  }
  if (['/proc', '/sys', '/dev'].some((folder) => isWithin(real, folder))) refuse('devices and processes are no images')
  const owned = await Promise.all(own.map((one) => realpath(one).catch(() => one)))
  if (owned.some((one) => isWithin(one, real) || isWithin(real, one))) refuse("the pilot's own files are in it")
}

/**
 * Whether a file on a shared file system may be read or written for a payload.
 * @param path resolved: no symbolic links, no dots
 * @param own the pilot's folders and credential, which no payload may name as an input; as places() gives them
 * @throws IndraftError policy.refused
 */
export function enforceFolder(policy: SitePolicy, path: string, own: readonly string[]): void {
  if ([...own, ...(policy.kept ?? [])].some((folder) => isWithin(path, folder))) {
    throw new IndraftError('policy.refused', 'the file belongs to the pilot')
  }
  if (policy.sharedFolders.length === 0 && !policy.hostRuntime) {
    throw new IndraftError(
      'policy.refused',
      'only containers run here, and no folder is named for files (sharedFolders)',
    )
  }
  if (policy.sharedFolders.length > 0 && !policy.sharedFolders.some((folder) => isWithin(path, folder))) {
    throw new IndraftError('policy.refused', `${path} is outside the folders that this site shares`)
  }
}

/** As enforceFolder, for what is to be written: also not where the site takes images from. @throws IndraftError policy.refused */
export async function enforceWrite(policy: SitePolicy, path: string, own: readonly string[]): Promise<void> {
  enforceFolder(policy, path, own)
  if ((await unwritable(policy)).some((folder) => isWithin(path, folder))) {
    throw new IndraftError('policy.refused', `${path} would be an image that this site allows`)
  }
}

/** What no payload may write: what the site and its pilots keep, and where the site takes images from. */
export async function unwritable(policy: Pick<SitePolicy, 'kept' | 'allowImages'>): Promise<string[]> {
  const images = policy.allowImages.map((one) => plainName(one)).filter((one) => one?.startsWith('/'))
  return [...(policy.kept ?? []), ...(await places(images as string[]))]
}

/** Paths as they are named and as they really are, also of what is not there yet: the real one of what is above it. */
export async function places(paths: readonly string[]): Promise<string[]> {
  const real = async (path: string): Promise<string> => {
    const above = posix.dirname(path)
    return await realpath(path).catch(async () =>
      above === path ? path : posix.join(await real(above), posix.basename(path)),
    )
  }
  const named = paths.map((path) => posix.resolve(path))
  return [...new Set([...named, ...(await Promise.all(named.map(real)))])]
}

export function isWithin(path: string, folder: string): boolean {
  const top = folder.replace(/\/+$/, '')
  return path === top || path.startsWith(`${top}/`)
}
