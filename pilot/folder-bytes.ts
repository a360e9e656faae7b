/**
 * What folders that payloads write take on disk, counted beside a payload that runs: files come and go while it looks, and
 * a payload may mean to be counted short.
 */
import { lstat, opendir } from 'node:fs/promises'
import { join } from 'node:path'
import { unlockFolder } from './held.ts'

export const MEASURE_AT_MOST_MS = 3000
/** How it shows that somebody is kept out, by locks or by the length of the way. A disk that fails is none of these. */
const KEPT_OUT = ['EACCES', 'EPERM', 'ENAMETOOLONG']

/**
 * Bytes on disk below the folders: stops counting beyond `most`, and after `atMostMs`; then it is at least that. Where there
 * is a limit, a folder that its user locked is unlocked; one that keeps us out even so is more than any limit.
 */
export async function folderBytes(folders: readonly string[], most: number, atMostMs: number): Promise<number> {
  const endMs = performance.now() + atMostMs
  const open = [...folders]
  const unlocked = new Set<string>()
  let bytes = 0
  for (let folder = open.pop(); folder !== undefined; folder = open.pop()) {
    try {
      const found = await lookInto(folder, most - bytes, endMs)
      bytes += found.bytes
      open.push(...found.folders)
    } catch (error) {
      const isKeptOut = KEPT_OUT.includes((error as NodeJS.ErrnoException).code ?? '')
      // Else it was removed meanwhile.
      if (!isKeptOut || most === Number.POSITIVE_INFINITY) continue
      if (unlocked.has(folder)) return Number.POSITIVE_INFINITY
      unlocked.add(folder)
      await unlockFolder(folder).catch(() => {})
      open.push(folder)
    }
    if (bytes > most || performance.now() > endMs) return bytes
  }
  return bytes
}

/** @throws as opendir, and EACCES for a folder whose files cannot be looked at */
async function lookInto(folder: string, most: number, endMs: number): Promise<{ bytes: number; folders: string[] }> {
  const found = { bytes: 0, folders: [] as string[] }
  for await (const entry of await opendir(folder)) {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) found.folders.push(path)
    else found.bytes += await fileBytes(path)
    if (found.bytes > most || performance.now() > endMs) break
  }
  return found
}

/** Nothing for one that was removed meanwhile. */
async function fileBytes(path: string): Promise<number> {
  try {
    return (await lstat(path)).blocks * 512
  } catch (error) {
    if (KEPT_OUT.includes((error as NodeJS.ErrnoException).code ?? '')) throw error
    return 0
  }
}
