/**
 * Whom this site does not serve, by its own word: a list in its settings, and a file that an administrator may write at any
 * time, without a dispatcher and without a restart. The file has a subject a line; what follows # is a remark.
 *
 * What always holds: a file that cannot be read for the moment lifts nothing; one that is removed lifts all it said.
 */
import { readFile, stat } from 'node:fs/promises'
import type { Log } from '../shared/log.ts'

const MOST_BYTES = 2 ** 20

export class Banned {
  readonly #always: ReadonlySet<string>
  readonly #path: string
  readonly #log: Log
  #file: ReadonlySet<string> = new Set()
  #version = ''

  constructor(always: readonly string[], path: string, log: Log) {
    this.#always = new Set(always)
    this.#path = path
    this.#log = log
  }

  has(subject: string): boolean {
    return this.#always.has(subject) || this.#file.has(subject)
  }

  /** Looks whether the file changed. @returns whether it bans others than before */
  async refresh(): Promise<boolean> {
    try {
      const facts = await stat(this.#path)
      const version = `${facts.ino} ${facts.mtimeMs} ${facts.size}`
      if (version === this.#version) return false
      if (facts.size > MOST_BYTES) throw new Error(`larger than ${MOST_BYTES} bytes`)
      return this.#take(parse(await readFile(this.#path, 'utf8')), version)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return this.#take(new Set(), '')
      this.#log.error({ err: error, path: this.#path }, 'banFile.unreadable')
      return false
    }
  }

  #take(subjects: ReadonlySet<string>, version: string): boolean {
    this.#version = version
    const isNews = subjects.size !== this.#file.size || [...subjects].some((subject) => !this.#file.has(subject))
    this.#file = subjects
    if (isNews) this.#log.warn({ path: this.#path, subjects: [...subjects].slice(0, 20) }, 'site.banned')
    return isNews
  }
}

function parse(text: string): Set<string> {
  const lines = text.split('\n').map((line) => line.replace(/(^|\s)#.*$/, '').trim())
  return new Set(lines.filter((line) => line !== ''))
}
