/**
 * Final names on the shared file system. A pilot writes `<final>.attempt-<fences>`; when central has accepted the
 * attempt the relay gives the file its final name, and removes what other attempts left. In the journal until done; what
 * a destroyed journal forgot is asked for (names.ts).
 *
 * A file that was moved or removed by somebody else is given up, with an error, when neither of its names was there for
 * some minutes. Only where its folder holds something, though: one that is empty or missing may be that of a file system
 * that is not mounted now, and is waited for.
 */
import { access, opendir, rename, unlink } from 'node:fs/promises'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Clock } from '../shared/clock.ts'
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
/** A client of a network file system may not see for a minute what another one wrote. */
const GONE_AFTER_MS = 10 * 60_000

export class Publications {
  readonly #journal: Journal
  readonly #clock: Clock
  readonly #log: Log
  readonly #waiting = new Map<string, Publication>()
  /** Since when neither name is there. */
  readonly #missingSinceMs = new Map<string, number>()
  #pause: AbortController | undefined
  #running: Promise<void> | undefined

  constructor(journal: Journal, clock: Clock, log: Log, kept: JournalContent['pending']) {
    this.#journal = journal
    this.#clock = clock
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
    this.#pause?.abort()
    this.#running ??= this.#publishAll().finally(() => {
      this.#running = undefined
      if (this.#waiting.size > 0) this.#runLater()
    })
  }

  #runLater(): void {
    const pause = new AbortController()
    this.#pause = pause
    void this.#clock.sleep(AGAIN_AFTER_MS, pause.signal).then(() => {
      if (!pause.signal.aborted) this.run()
    })
  }

  async stop(): Promise<void> {
    await this.#running
    this.#pause?.abort()
  }

  async #publishAll(): Promise<void> {
    for (const [name, publication] of this.#waiting) {
      try {
        // A crash between rename and commit does it again, which is harmless; the other order would lose it.
        await this.#journal.committed()
        const isDone = await publish(publication)
        if (!isDone && !(await this.#isGone(name, publication))) continue
        this.#waiting.delete(name)
        this.#missingSinceMs.delete(name)
        this.#journal.dropPending('publication', name)
        if (isDone) this.#log.info({ output: name, to: publication.to }, 'output.published')
        else this.#log.error({ output: name, ...publication }, 'output.gone')
      } catch (error) {
        this.#missingSinceMs.delete(name)
        this.#log.warn({ err: error, output: name }, 'output.publishFailed')
      }
    }
  }

  /** Neither name is there: nobody will bring the file back. */
  async #isGone(name: string, { from, to }: Publication): Promise<boolean> {
    const nowMs = this.#clock.monotonicMs()
    const sinceMs = this.#missingSinceMs.get(name) ?? nowMs
    this.#missingSinceMs.set(name, sinceMs)
    if (nowMs - sinceMs >= GONE_AFTER_MS && (await holdsSomething(dirname(from)))) return true
    this.#log.warn({ output: name, from, to }, 'output.missing')
    return false
  }
}

/** @returns false where neither name is there */
async function publish({ from, to }: Publication): Promise<boolean> {
  try {
    if (to === null) await unlink(from)
    else {
      await rename(from, to)
      failpoint('output.renamed')
      await syncFolder(dirname(to))
    }
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    // Done before, or nothing to remove.
    return to === null || (await isThere(to))
  }
}

async function holdsSomething(folder: string): Promise<boolean> {
  const entries = await opendir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error
    return null
  })
  if (!entries) return false
  try {
    return (await entries.read()) !== null
  } finally {
    await entries.close()
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
