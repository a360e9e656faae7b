/** A patch under this folder: which protection it switches off, and which tests have to notice. */
import { readdirSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'

export interface Named {
  file: string
  /** A part of its title. */
  title: string
}

export interface Mutant {
  name: string
  path: string
  protection: string
  tests: Named[]
}

/** @throws Error for a patch without its head */
export function readMutant(path: string): Mutant {
  const head = readFileSync(path, 'utf8').split(/^--- /m)[0]!
  const said = (key: string) => [...head.matchAll(new RegExp(`^${key}: (.+)$`, 'gm'))].map(([, words]) => words!.trim())
  const [protection] = said('Protection')
  const tests = said('Test').map((words): Named => {
    const [file, title] = words.split(' -t ')
    if (!file || !title) throw new Error(`${path}: expected "Test: FILE -t TITLE", found "${words}"`)
    return { file, title }
  })
  if (!protection || tests.length === 0) throw new Error(`${path}: expected lines Protection and Test before the patch`)
  return { name: basename(path, '.patch'), path, protection, tests }
}

export function allMutants(): Mutant[] {
  const patches = readdirSync(import.meta.dirname).filter((file) => file.endsWith('.patch'))
  return patches.sort().map((file) => readMutant(join(import.meta.dirname, file)))
}
