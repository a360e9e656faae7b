/**
 * What goes wrong at sites, made on purpose: images that cannot be run, and nodes that lack what containers need. A node
 * is changed for the centre's whole life, so a test takes a node for it that nobody else uses.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type Centre, type Host, inside } from './centre.ts'

/**
 * Each is a path as edge and nodes see it, made below a folder of the shared file system; `missing` is not there.
 * - truncated, damaged: a SIF file cut in half, and one whose file system is overwritten in parts
 * - notAnImage, empty: a file that is none, and one of no bytes
 * - unreadable: a good SIF that only root may read
 * - otherArchitecture, otherArchitectureFolder: a SIF that says so, and an unpacked image whose /bin/sh is so
 */
export type BadImages = Record<
  | 'truncated'
  | 'damaged'
  | 'notAnImage'
  | 'empty'
  | 'unreadable'
  | 'otherArchitecture'
  | 'otherArchitectureFolder'
  | 'missing',
  string
>

export function makeBadImages(centre: Centre, folder = 'bad-images'): BadImages {
  const place = join(centre.shared, folder)
  mkdirSync(place, { recursive: true, mode: 0o755 })
  const sif = readFileSync(centre.roots.busybox)
  const put = (name: string, content: Uint8Array, mode = 0o644) => {
    writeFileSync(join(place, name), content, { mode })
    return `${inside.shared}/${folder}/${name}`
  }
  const other = process.arch === 'x64' ? { sif: '04', elf: 0xb7 } : { sif: '02', elf: 0x3e }
  const shell = readFileSync(join(centre.roots.site, 'usr/bin/busybox'))
  shell[18] = other.elf
  for (const name of ['bin', 'dev', 'etc', 'home', 'proc', 'root', 'sys', 'tmp', 'var/tmp', 'work']) {
    mkdirSync(join(place, 'other-folder', name), { recursive: true })
  }
  put('other-folder/bin/sh', shell, 0o755)
  return {
    truncated: put('truncated.sif', sif.subarray(0, sif.length >> 1)),
    damaged: put('damaged.sif', Buffer.from(sif).fill(0xa5, 45_056, 300_000)),
    notAnImage: put('text.sif', Buffer.from('not an image')),
    empty: put('empty.sif', Buffer.alloc(0)),
    unreadable: put('unreadable.sif', sif, 0o600),
    otherArchitecture: put('other.sif', asArchitecture(sif, other.sif)),
    otherArchitectureFolder: `${inside.shared}/${folder}/other-folder`,
    missing: `${inside.shared}/${folder}/missing.sif`,
  }
}

/** A SIF's architecture stands in its header and, which is what Apptainer looks at, beside its file system. */
function asArchitecture(sif: Buffer, code: string): Buffer {
  const changed = Buffer.from(sif)
  const own = changed.toString('latin1', 45, 47)
  const descriptorsEnd = 32_176
  for (let at = 45; at < descriptorsEnd; at++) {
    if (changed.toString('latin1', at, at + 3) === `${own}\0`) changed.write(code, at, 'latin1')
  }
  return changed
}

/** A command that runs the given one, as the user it runs as, where no user namespace can be made. */
export function withoutUserNamespaces(argv: readonly string[]): string[] {
  const script = 'echo 0 >/proc/sys/user/max_user_namespaces; exec setpriv --ambient-caps -all --inh-caps -all -- "$@"'
  // The limit is that of a user namespace of its own: the machine's stays as it is.
  return ['unshare', '--user', '--map-current-user', '--keep-caps', 'sh', '-c', script, 'sh', ...argv]
}

/** From now on ordinary users of this node cannot mount by FUSE. */
export async function denyFuse(centre: Centre, node: Host): Promise<void> {
  await centre.check(node, ['chmod', '600', '/dev/fuse'])
}

/** From now on this node has no such programs. */
export async function removePrograms(centre: Centre, node: Host, ...names: string[]): Promise<void> {
  await centre.check(node, ['sh', '-c', 'for name; do rm -f "$(command -v "$name")"; done', 'sh', ...names])
}

/** A file system of this size, for everybody, and with so many files at most (0 is any); a full scratch is a small one. */
export async function mountSmall(
  centre: Centre,
  node: Host,
  path: string,
  sizeBytes: number,
  files = 0,
): Promise<void> {
  const options = `size=${sizeBytes},nr_inodes=${files},mode=1777`
  await centre.check(node, ['mkdir', '-p', path])
  await centre.check(node, ['mount', '-t', 'tmpfs', '-o', options, 'small', path])
}
