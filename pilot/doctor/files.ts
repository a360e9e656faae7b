/** A doctor's questions about files and folders: who may read them, what they lie on, whether they can be written. */
import { constants } from 'node:fs'
import { access, open, readFile, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { diskOf } from '../../shared/disk.ts'
import { formatBytes, formatDuration } from '../../shared/quantity.ts'
import { bad, type Check, good, warn, wordsOf } from './check.ts'

/** Further apart than this and trace, logs and the end of signed work mean something else on each side. */
const CLOCKS_APART_MS = 60_000
const CLOCKS_FAR_APART_MS = 600_000

/** A file with secrets belongs to whoever runs this, and nobody else reads it. */
export async function checkSecret(name: string, path: string, what: string): Promise<Check> {
  const { uid, mode } = await stat(path)
  const own = process.getuid?.() ?? uid
  if (uid !== own && own !== 0) {
    const advice = `a copy of it by the account that runs this (install -m 600), and name that`
    return warn(name, `${what}; it belongs to user ${uid}, not ${own}`, advice)
  }
  const open = mode & 0o077
  if (open !== 0) {
    const found = `${what}; others may read or change it (mode ${(mode & 0o777).toString(8)})`
    return bad(name, found, `chmod 600 ${path}`)
  }
  return good(name, what)
}

/**
 * Written, made durable, renamed and read back, as end records are.
 * @param shared whether the other machines of the site have to see it too
 */
export async function checkFolder(name: string, folder: string, shared: boolean): Promise<Check[]> {
  const place = join(folder, `.indraft-doctor-${process.pid}`)
  try {
    const file = await open(`${place}.new`, 'wx', 0o600)
    try {
      await file.writeFile('indraft')
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(`${place}.new`, place)
    if ((await readFile(place, 'utf8')) !== 'indraft') throw new Error('what was written is not what is read')
    const { mtimeMs } = await stat(place)
    const { kind, type, freeBytes } = diskOf(folder)
    const found = `${folder}: can be written, ${formatBytes(freeBytes)} free${type ? ` (${type})` : ''}`
    if (!shared) return [good(name, found)]
    if (kind !== 'network') {
      const advice = 'right where there is one machine only; otherwise it has to be on the shared file system'
      return [warn(name, `${found}; it lies on this machine alone`, advice)]
    }
    return [good(name, found), checkClock(`clock against ${type}`, mtimeMs - Date.now())]
  } catch (error) {
    const advice = 'make it, for this account to write: mkdir -p, chmod 700; on a node it has to be there too'
    return [bad(name, `${folder}: ${wordsOf(error)}`, advice)]
  } finally {
    await rm(`${place}.new`, { force: true }).catch(() => {})
    await rm(place, { force: true }).catch(() => {})
  }
}

/**
 * @param aheadMs how far the other clock is ahead of ours
 * @param uncertainMs how much of that may be the time that asking took
 */
export function checkClock(name: string, aheadMs: number, uncertainMs = 0): Check {
  const apartMs = Math.max(0, Math.abs(aheadMs) - uncertainMs)
  const found =
    apartMs < 1000
      ? 'within a second'
      : `this machine is ${formatDuration(Math.round(apartMs / 1000) * 1000)} ${aheadMs > 0 ? 'behind' : 'ahead'}`
  if (apartMs < CLOCKS_APART_MS) return good(name, found)
  const advice = 'set the clock (chrony, ntpd): certificates, signed work and the trace go by it'
  return apartMs < CLOCKS_FAR_APART_MS ? warn(name, found, advice) : bad(name, found, advice)
}

export async function isThere(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  )
}

export async function findProgram(program: string, path: string): Promise<string | null> {
  for (const folder of path.split(':').filter((one) => one.startsWith('/'))) {
    const candidate = join(folder, program)
    const isProgram = await access(candidate, constants.X_OK).then(
      () => true,
      () => false,
    )
    if (isProgram) return candidate
  }
  return null
}
