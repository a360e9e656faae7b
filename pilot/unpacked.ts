/**
 * Image files on a node that cannot mount them: each is unpacked once, for all payloads that run in it, by the container
 * runtime's own `build --sandbox`. The time and the memory that this takes are the pilot's: no payload has started yet.
 *
 * What always holds: a folder that is handed out is whole and stays until its last user has released it; nothing is being
 * unpacked that nobody waits for; folders without users go before another image is unpacked, and with the pilot.
 */
import { mkdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { execa } from 'execa'
import type { Clock } from '../shared/clock.ts'
import { IndraftError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import { formatDuration } from '../shared/quantity.ts'
import { folderBytes, MEASURE_AT_MOST_MS } from './folder-bytes.ts'
import { isDoneWithin } from './hanging.ts'
import { removeFolder } from './home.ts'
import type { ImageRefusal } from './sif.ts'

export interface Unpacker {
  binary: string
  /** Of the runtime itself; where it unpacks first is added. */
  env: Readonly<Record<string, string>>
  explain: (said: string) => ImageRefusal
}

export interface UnpackOrder {
  /** Where unpacked images lie, each in a folder of its own. */
  folder: string
  /** Marks the processes as this pilot's. */
  marker: Readonly<Record<string, string>>
  /** Whoever asked is to end, and waits no longer. */
  signal: AbortSignal
  limitMs: number
  clock: Clock
  log: Log
}

export interface Unpacked {
  path: string
  /** To be called once, when nothing runs in it any more. */
  release(): void
}

interface Kept {
  /** Its own, below the one for all. */
  folder: string
  users: number
  bytes: number
  isWhole: boolean
  ready: Promise<void>
  /** Nobody waits any more. */
  abandoned: AbortController
}

const SAID_BYTES = 64 * 1024
const LINGER_MS = 1000

export class UnpackedImages {
  readonly #unpacker: Unpacker
  /** By path and version of the image file. */
  readonly #kept = new Map<string, Kept>()
  #made = 0

  constructor(unpacker: Unpacker) {
    this.#unpacker = unpacker
  }

  /** On disk, of those in use; the others go where room is needed. */
  get bytes(): number {
    let sum = 0
    for (const { users, bytes } of this.#kept.values()) if (users > 0) sum += bytes
    return sum
  }

  /** @throws IndraftError image.missing | image.damaged | container.failed | node.scratchFull | link.closed (`signal`) */
  async take(image: string, order: UnpackOrder): Promise<Unpacked> {
    const { signal } = order
    const facts = await stat(image).catch((cause) => {
      throw new IndraftError('image.missing', `${image}: ${(cause as Error).message}`, { cause })
    })
    const key = `${image} ${facts.size} ${facts.mtimeMs} ${facts.ino}`
    const kept = this.#kept.get(key) ?? this.#begin(key, image, order)
    kept.users++
    const release = () => {
      if (--kept.users > 0 || kept.isWhole) return
      this.#forget(key, kept)
      kept.abandoned.abort()
    }
    try {
      await orAborted(kept.ready, signal)
      return { path: rootOf(kept), release }
    } catch (error) {
      release()
      throw error
    }
  }

  /** Removes what nobody uses. */
  async makeRoom(log: Log): Promise<void> {
    const unused = [...this.#kept].filter(([, { users, isWhole }]) => users === 0 && isWhole)
    for (const [key, kept] of unused) this.#forget(key, kept)
    for (const [, { folder }] of unused) {
      await removeFolder(folder, log)
      log.info({ folder }, 'image.unpackedRemoved')
    }
  }

  #begin(key: string, image: string, order: UnpackOrder): Kept {
    const folder = join(order.folder, String(this.#made++))
    const ready = Promise.withResolvers<void>()
    const kept = { folder, users: 0, bytes: 0, isWhole: false, ready: ready.promise, abandoned: new AbortController() }
    this.#kept.set(key, kept)
    this.#unpack(image, kept, order).then(ready.resolve, async (error) => {
      await removeFolder(folder, order.log)
      ready.reject(error)
    })
    // Those who asked may all have left.
    kept.ready.catch(() => {})
    return kept
  }

  /** Another one may have been begun under the same key. */
  #forget(key: string, kept: Kept): void {
    if (this.#kept.get(key) === kept) this.#kept.delete(key)
  }

  async #unpack(image: string, kept: Kept, { marker, limitMs, clock, log }: UnpackOrder): Promise<void> {
    const { binary, env, explain } = this.#unpacker
    await this.makeRoom(log)
    const aside = join(kept.folder, 'aside')
    await mkdir(aside, { recursive: true, mode: 0o700 })
    const startMs = performance.now()
    const limit = startLimit(limitMs, clock)
    const { ok, said } = await runToEnd(binary, ['--quiet', 'build', '--sandbox', rootOf(kept), image], {
      env: { ...env, APPTAINER_TMPDIR: aside, SINGULARITY_TMPDIR: aside, ...marker },
      signal: AbortSignal.any([limit.reached, kept.abandoned.signal]),
    }).finally(limit.lift)
    if (!ok && limit.reached.aborted) {
      throw new IndraftError('container.failed', `${image}: not unpacked after ${formatDuration(limitMs)}`)
    }
    if (!ok) {
      const { reason, detail } = explain(said)
      throw new IndraftError(reason, detail)
    }
    await removeFolder(aside, log)
    // Whoever waited has left while it ended: it is forgotten already.
    if (kept.abandoned.signal.aborted) throw new IndraftError('link.closed', 'nobody waits for the image any more')
    kept.isWhole = true
    log.info({ image, folder: kept.folder, ms: Math.round(performance.now() - startMs) }, 'image.unpacked')
    void folderBytes([kept.folder], Number.POSITIVE_INFINITY, MEASURE_AT_MOST_MS).then((bytes) => {
      kept.bytes = bytes
    })
  }
}

function rootOf({ folder }: Kept): string {
  return join(folder, 'root')
}

/** @returns a signal that aborts after so long, unless lifted before */
function startLimit(limitMs: number, clock: Clock): { reached: AbortSignal; lift: () => void } {
  const reached = new AbortController()
  const lifted = new AbortController()
  void clock.sleep(limitMs, lifted.signal).then(() => {
    if (!lifted.signal.aborted) reached.abort()
  })
  return { reached: reached.signal, lift: () => lifted.abort() }
}

async function orAborted(promise: Promise<void>, signal: AbortSignal): Promise<void> {
  const aborted = Promise.withResolvers<never>()
  const onAbort = () => aborted.reject(new IndraftError('link.closed', 'the attempt was ended'))
  if (signal.aborted) onAbort()
  signal.addEventListener('abort', onAbort)
  await Promise.race([promise, aborted.promise]).finally(() => signal.removeEventListener('abort', onAbort))
}

/**
 * To its end, or to the signal's; then its process group is killed. Waits little longer for what cannot be killed, or left
 * the group and holds on to the output.
 */
async function runToEnd(
  file: string,
  args: readonly string[],
  { env, signal }: { env: Record<string, string>; signal: AbortSignal },
): Promise<{ ok: boolean; said: string }> {
  const child = execa(file, args, {
    ...{ env, extendEnv: false, stdin: 'ignore', stdout: 'ignore', buffer: false, reject: false },
    ...{ cleanup: false, detached: true },
  })
  let said = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said = (said + text).slice(-SAID_BYTES)
  })
  const endGroup = () => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
    } catch {
      // Nothing of it is left.
    }
  }
  const over = Promise.withResolvers<void>()
  const onAbort = () => {
    endGroup()
    over.resolve()
  }
  child.on('exit', () => over.resolve())
  signal.addEventListener('abort', onAbort)
  if (signal.aborted) onAbort()
  const end = await Promise.race([child, over.promise.then(() => isDoneWithin(LINGER_MS, child))])
  signal.removeEventListener('abort', onAbort)
  endGroup()
  child.stderr.destroy()
  const failure = typeof end === 'object' ? end.shortMessage : undefined
  return { ok: child.exitCode === 0, said: said.trim() === '' ? (failure ?? `${file} was ended`) : said }
}
