/** For tests: a captured tree put back into a folder, and captured outputs as text. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

export function captured(name: string): string {
  return readFileSync(join(import.meta.dirname, name), 'utf8')
}

/** @returns content of /proc/self/cgroup that belongs to the tree */
export function restoreTree(name: string, folder: string): string {
  const membership: string[] = []
  for (const line of captured(name).split('\n')) {
    const member = /^# membership (.*)$/.exec(line)
    const [, path, content] = /^([^#\s]\S*) = (.*)$/.exec(line) ?? []
    if (member) membership.push(`${member[1]}\n`)
    if (path === undefined) continue
    mkdirSync(dirname(join(folder, path)), { recursive: true })
    writeFileSync(join(folder, path), `${content}\n`)
  }
  return membership.join('')
}
