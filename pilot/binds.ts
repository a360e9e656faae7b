/**
 * Which of the folders that a site gives to all containers (`binds`) they may have. A pilot starts no container at all
 * where one of them would show payloads the pilot's own files, or let them write what the site and its pilots keep: an
 * image that was checked, a trace, a STOP file.
 */
import { access, constants, readFile, realpath, stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { isWithin, places } from './policy.ts'

export interface RefusedBind {
  bind: string
  /** The file or folder that it must not hold, or lie in. */
  holds: string
  why: (typeof WHY)[keyof typeof WHY]
}

export interface Guarded {
  /** The pilot's folders and credential: no bind may show them. */
  own: readonly string[]
  /** What payloads may not write through any bind; see unwritable in policy.ts. */
  kept: readonly string[]
}

const WHY = {
  seen: 'payloads would see it',
  written: 'payloads could write it: add :ro',
  mounted: 'payloads could write it: a file system mounted below the bind, where :ro does not reach',
} as const

/** The first that may not be, null where all may. @param binds as `src[:dst[:ro]]` */
export async function refusedBind(binds: readonly string[], guarded: Guarded): Promise<RefusedBind | null> {
  const own = await places(guarded.own)
  const kept = await places(guarded.kept)
  for (const bind of binds) {
    const [named = '', , mode] = bind.split(':')
    const source = await realpath(named).catch(() => named)
    const shown = own.find((path) => isWithin(path, source))
    if (shown !== undefined) return { bind, holds: shown, why: WHY.seen }
    const mounts = (await mountPoints()).filter((point) => point !== source && isWithin(point, source))
    for (const holds of kept.filter((path) => isWithin(path, source) || isWithin(source, path))) {
      const inside = isWithin(holds, source) ? await nearest(holds) : source
      if (!(await isReadOnly(inside))) {
        if (mode !== 'ro') return { bind, holds, why: WHY.written }
        if (mounts.some((point) => isWithin(inside, point))) return { bind, holds, why: WHY.mounted }
      }
      for (const point of mounts.filter((one) => one !== inside && isWithin(one, inside))) {
        if (!(await isReadOnly(point))) return { bind, holds, why: WHY.mounted }
      }
    }
  }
  return null
}

/** Of this process's file tree. Those below a bind stay as they are, whatever it says (test/lab/centre.test.ts). */
async function mountPoints(): Promise<string[]> {
  const lines = (await readFile('/proc/self/mountinfo', 'utf8').catch(() => '')).split('\n')
  const named = (text: string) =>
    text.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)))
  return lines.flatMap((line) => line.split(' ').slice(4, 5)).map(named)
}

/** The path, or what is there of those above it. */
async function nearest(path: string): Promise<string> {
  const isThere = await stat(path).then(
    () => true,
    () => false,
  )
  return isThere || path === dirname(path) ? path : await nearest(dirname(path))
}

/** On a file system that nobody writes here, such as CVMFS. */
async function isReadOnly(path: string): Promise<boolean> {
  return await access(path, constants.W_OK).then(
    () => false,
    (error: NodeJS.ErrnoException) => error.code === 'EROFS',
  )
}
