/**
 * Finds libfaketime, which tests preload into a process to step its clock: installed, or in the private cache that servers
 * are fetched into, or fetched there now. Never needs root. For tests; no program of ours uses it.
 */
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { serverCacheFolder } from './config.ts'
import { fetchServer } from './debian.ts'
import { cacheEntry, usableCache } from './locate.ts'

const NAME = 'libfaketime'
const TRIPLET = { x64: 'x86_64-linux-gnu', arm64: 'aarch64-linux-gnu' } as const
/** The one for programs with several threads. */
const LIBRARY = 'faketime/libfaketimeMT.so.1'

/** @returns its path; null where it cannot be had, which `say` is told */
export async function locateFaketime(say: (line: string) => void = () => {}): Promise<string | null> {
  const triplet = TRIPLET[process.arch as keyof typeof TRIPLET]
  if (!triplet) return null
  const inRoot = (root: string) => join(root, 'usr/lib', triplet, LIBRARY)
  if (existsSync(inRoot('/'))) return inRoot('/')
  const cache = usableCache(serverCacheFolder(), true)
  const cached = () =>
    readdirSync(cache)
      .filter((entry) => entry.startsWith(cacheEntry(NAME, '')))
      .map((entry) => inRoot(join(cache, entry)))
      .find((path) => existsSync(path))
  const found = cached()
  if (found) return found
  const why = await fetchServer(NAME, '0', cache, say)
  if (why) say(`no ${NAME}: ${why}`)
  return cached() ?? null
}
