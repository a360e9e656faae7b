/**
 * Whose turn it is among pilots that share a folder, also on a network file system: a file that one of them made, with a
 * word of its own in it, shown to be alive every ALIVE_MS. One that stood still for STALE_MS is put aside by who waits.
 *
 * What always holds: nobody ends a turn but its owner, or who saw it stand still. What cannot hold: who was suspended for
 * longer than that wakes up at its work, beside who took over. Whatever is done in a turn has to bear that, by writing
 * only files that carry the turn's word.
 */
import { randomUUID } from 'node:crypto'
import { link, open, rename, rm, utimes } from 'node:fs/promises'
import type { Clock } from '../shared/clock.ts'

const ALIVE_MS = 5_000
const STALE_MS = 30_000

export interface Turn {
  readonly word: string
  /** Whether nobody put it aside. */
  isHeld(): Promise<boolean>
  end(): Promise<void>
}

interface Seen {
  word: string
  /** Changes whenever its owner shows itself; times of the file server's clock are compared with each other only. */
  mark: string
}

/** One who waits for its turn. */
export class Queue {
  readonly #path: string
  readonly #clock: Clock
  #seen: Seen | null = null
  #seenAtMs = 0
  /** Words of turns that this one put aside: what their owners began is nobody's. */
  readonly aside: string[] = []

  constructor(path: string, clock: Clock) {
    this.#path = path
    this.#clock = clock
  }

  /** The word of who had the turn when this was last asked. */
  get owner(): string | null {
    return this.#seen?.word ?? null
  }

  /** Asks once. @returns null where another has it @throws what making a file throws */
  async take(): Promise<Turn | null> {
    const word = randomUUID()
    if (await create(this.#path, word)) return begin(this.#path, word, this.#clock)
    const seen = await look(this.#path)
    if (seen?.mark !== this.#seen?.mark) this.#seenAtMs = this.#clock.monotonicMs()
    this.#seen = seen
    if (seen === null || this.#clock.monotonicMs() - this.#seenAtMs <= STALE_MS) return null
    if (await putAside(this.#path, seen, `${this.#path}.${word}`)) this.aside.push(seen.word)
    return null
  }
}

function begin(path: string, word: string, clock: Clock): Turn {
  const ended = new AbortController()
  const isHeld = async () => (await look(path))?.word === word
  const live = async () => {
    for (;;) {
      await clock.sleep(ALIVE_MS, ended.signal)
      if (ended.signal.aborted) return
      const nowS = clock.wallMs() / 1000
      if (await isHeld()) await utimes(path, nowS, nowS).catch(() => {})
    }
  }
  void live()
  return {
    word,
    isHeld,
    async end() {
      ended.abort()
      if (await isHeld()) await rm(path, { force: true }).catch(() => {})
    },
  }
}

async function create(path: string, word: string): Promise<boolean> {
  const file = await open(path, 'wx', 0o600).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'EEXIST') return null
    throw error
  })
  if (file === null) return false
  try {
    await file.writeFile(word)
    return true
  } catch (error) {
    // A full disk: an empty file would be in everybody's way until it is stale.
    await rm(path, { force: true }).catch(() => {})
    throw error
  } finally {
    await file.close()
  }
}

/** By opening it, which on NFS asks the server. @returns null where it is not there */
async function look(path: string): Promise<Seen | null> {
  const file = await open(path, 'r').catch(() => null)
  try {
    if (file === null) return null
    const { ino, mtimeMs } = await file.stat()
    const word = await file.readFile('utf8')
    return { word, mark: `${ino} ${mtimeMs} ${word}` }
  } catch {
    return null
  } finally {
    await file?.close()
  }
}

/** Of several that find the same one stale one wins; who took a living one away by mistake puts it back. */
async function putAside(path: string, judged: Seen, aside: string): Promise<boolean> {
  try {
    await rename(path, aside)
    const taken = await look(aside)
    const isRight = taken?.mark === judged.mark
    if (!isRight) await link(aside, path).catch(() => {})
    await rm(aside, { force: true })
    return isRight
  } catch {
    return false
  }
}
