/**
 * Final names on the shared file system. A pilot writes `<final>.attempt-<fences>`; when central has accepted the
 * attempt the relay gives the file its final name, and removes what other attempts left. In the journal until done; what
 * a destroyed journal forgot is asked for (names.ts).
 */
import { access, rename, unlink } from 'node:fs/promises'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { failpoint } from '../shared/failpoint.ts'
import type { AcceptedResult } from '../shared/files/accepted.ts'
import { syncFolder } from '../shared/files/durable.ts'
import { attemptPath } from '../shared/ids.ts'
import type { Log } from '../shared/log.ts'
import type { Result, Verdict } from '../shared/protocol/messages.ts'
import type { Journal, JournalContent } from './journal.ts'

interface Publication {
  from: string
  /** Null: this attempt did not win. */
  to: string | null
}

const AGAIN_AFTER_MS = 10_000

export class Publications {
  readonly #journal: Journal
  readonly #log: Log
  readonly #waiting = new Map<string, Publication>()
  #timer: NodeJS.Timeout | undefined
  #running: Promise<void> | undefined

  constructor(journal: Journal, log: Log, kept: JournalContent['pending']) {
    this.#journal = journal
    this.#log = log
    for (const { kind, name, body } of kept) if (kind === 'publication') this.#waiting.set(name, body as Publication)
  }

  get waiting(): number {
    return this.#waiting.size
  }

  /** Central has judged a result. `duplicate` means that it is the winner already. */
  onVerdict(result: Result, verdict: Verdict['verdict']): void {
    const won = result.end === 'done' && (verdict === 'accepted' || verdict === 'duplicate')
    for (const output of result.outputs) {
      const paths = publicationOf(result, output.url)
      if (!paths) continue
      const body: Publication = { from: paths.from, to: won ? paths.to : null }
      const name = `${attemptPath(result)}/${output.path}`
      this.#waiting.set(name, body)
      this.#journal.putPending('publication', name, body)
    }
    if (this.#waiting.size > 0) this.run()
  }

  /**
   * Central says that this won, to a journal that knows nothing of it. What lies under no attempt's name was named, moved
   * or deleted since, and is not waited for. @returns how many files are to be named
   */
  async onFound(result: AcceptedResult): Promise<number> {
    let found = 0
    for (const output of result.outputs) {
      const body = publicationOf(result, output.url)
      const name = `${attemptPath(result)}/${output.path}`
      if (!body || this.#waiting.has(name)) continue
      if (!(await isThere(body.from))) continue
      this.#waiting.set(name, body)
      this.#journal.putPending('publication', name, body)
      found++
    }
    if (found > 0) this.run()
    return found
  }

  /** Does what is waiting; what fails (the file system is away) is tried again. */
  run(): void {
    clearTimeout(this.#timer)
    this.#running ??= this.#publishAll().finally(() => {
      this.#running = undefined
      if (this.#waiting.size > 0) this.#timer = setTimeout(() => this.run(), AGAIN_AFTER_MS)
    })
  }

  async stop(): Promise<void> {
    await this.#running
    clearTimeout(this.#timer)
  }

  async #publishAll(): Promise<void> {
    for (const [name, publication] of this.#waiting) {
      try {
        // A crash between rename and commit does it again, which is harmless; the other order would lose it.
        await this.#journal.committed()
        await publish(publication)
        this.#waiting.delete(name)
        this.#journal.dropPending('publication', name)
        this.#log.info({ output: name, to: publication.to }, 'output.published')
      } catch (error) {
        this.#log.warn({ err: error, output: name }, 'output.publishFailed')
      }
    }
  }
}

async function publish({ from, to }: Publication): Promise<void> {
  try {
    if (to === null) await unlink(from)
    else {
      await rename(from, to)
      failpoint('output.renamed')
      await syncFolder(dirname(to))
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    // Done before, or nothing to remove.
    if (to !== null) await access(to)
  }
}

async function isThere(path: string): Promise<boolean> {
  try {
    await access(path)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    return false
  }
}

/** Only a name that a pilot makes for this very attempt is ever renamed. */
function publicationOf(result: Pick<Result, 'fences'>, url: string): { from: string; to: string } | undefined {
  const from = pathOf(url)
  if (from === undefined) return undefined
  const suffix = `.attempt-${result.fences.join('-')}`
  if (!from.endsWith(suffix) || from.length === suffix.length) return undefined
  return { from, to: from.slice(0, -suffix.length) }
}

/** Undefined for what is no file here, whatever a pilot called it. */
function pathOf(url: string): string | undefined {
  if (!url.startsWith('file:')) return undefined
  try {
    const path = fileURLToPath(url)
    return path.includes('\0') ? undefined : path
  } catch {
    // A host, or a slash that is no slash.
    return undefined
  }
}
