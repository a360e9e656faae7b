/**
 * Where server programs are looked for and kept. The only place under shared/servers that reads the environment.
 */
import { homedir } from 'node:os'
import { delimiter, join } from 'node:path'

/** Folders that hold server programs on common systems but are often missing from an ordinary user's PATH. */
const ALSO_SEARCHED = ['/usr/sbin', '/usr/local/bin', '/usr/local/sbin', '/usr/bin']

/** PATH and the folders that servers are usually installed in, in order, without repeats. */
export function searchFolders(env: NodeJS.ProcessEnv = process.env): string[] {
  const fromPath = (env.PATH ?? '').split(delimiter).filter(Boolean)
  return [...new Set([...fromPath, ...ALSO_SEARCHED])]
}

/** The private cache for fetched servers: `$XDG_CACHE_HOME` or `~/.cache`, then `indraft/servers`. */
export function serverCacheFolder(env: NodeJS.ProcessEnv = process.env): string {
  return join(env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'indraft', 'servers')
}

/** The environment handed to a server: what it needs to find its libraries and nothing of ours. */
export function serverEnvironment(more: Readonly<Record<string, string>> = {}): NodeJS.ProcessEnv {
  const { PATH, HOME, TZ, LANG } = process.env
  return { PATH, HOME, TZ, LANG, ...more }
}
