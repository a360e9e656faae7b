/**
 * The forms of a step's `image`. Central refuses what is none of them; a pilot acts on them.
 *
 *   host                                  no container
 *   /images/lammps.sif, file:///images/x  a SIF file or an unpacked folder that the node sees
 *   https://host/x.sif#sha256:<64 hex>    fetched once by the site's relay; http as well, for the checksum holds it
 *   docker://host/name@sha256:<64 hex>    from a registry (oras: too), by the container runtime, where nodes reach one
 */
export type ImageName =
  | { kind: 'host' }
  | { kind: 'path'; path: string }
  | { kind: 'url'; url: string; sha256: string }
  | { kind: 'registry'; reference: string }

/** @returns the image, or what was expected, as a text */
export function parseImageName(text: string): ImageName | string {
  if (text === 'host') return { kind: 'host' }
  if (text.startsWith('/')) return { kind: 'path', path: text }
  if (text.startsWith('file:///')) return { kind: 'path', path: text.slice('file://'.length) }
  if (/^https?:/i.test(text)) {
    const [, url, sha256] = /^(https?:\/\/[^\s#]+)#sha256:([0-9a-f]{64})$/.exec(text) ?? []
    if (url !== undefined && sha256 !== undefined && URL.canParse(url)) return { kind: 'url', url, sha256 }
    return 'expected a checksum (https://.../x.sif#sha256:...): what an address leads to may change under a running campaign'
  }
  if (/^(docker|oras):\/\//.test(text)) {
    if (/@sha256:[0-9a-f]{64}$/.test(text)) return { kind: 'registry', reference: text }
    return 'expected a digest (docker://...@sha256:...): a tag may change under a running campaign'
  }
  return 'expected host, a path, https://.../x.sif#sha256:... or docker://...@sha256:...'
}

/** What the name promises of the content, `sha256:<hex>`; null where nobody holds it to that, as for a path, whatever its name. */
export function promisedDigest(text: string): string | null {
  const name = parseImageName(text)
  if (typeof name === 'string') return null
  if (name.kind === 'url') return `sha256:${name.sha256}`
  return name.kind === 'registry' ? name.reference.slice(name.reference.lastIndexOf('@') + 1) : null
}
