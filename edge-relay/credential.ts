/**
 * The relay's own credential, and a newer one that takes its place while the relay runs: `indraft relay join` with a
 * token of `indraft site rotate` replaces the file, and what is asked for next is of the new one. The connection that
 * stands goes on until the centre ends it.
 *
 * What always holds: a credential of another site, or with a key that the relay did not know at its start, is not
 * followed by a running relay.
 */
import { statSync } from 'node:fs'
import { isDeepStrictEqual } from 'node:util'
import type { Clock } from '../shared/clock.ts'
import { type RelayCredential, readRelayCredential } from '../shared/credentials.ts'
import type { Log } from '../shared/log.ts'

const LOOK_MS = 2000

export class KeptCredential {
  readonly #path: string
  readonly #log: Log
  readonly #stopped = new AbortController()
  #now: RelayCredential
  #lookedAt: string

  /** @throws IndraftError request.invalid for a file that cannot be used */
  constructor(path: string, clock: Clock, log: Log) {
    this.#path = path
    this.#log = log
    this.#lookedAt = versionOf(path)
    this.#now = readRelayCredential(path)
    void this.#watch(clock)
  }

  get now(): RelayCredential {
    return this.#now
  }

  stop(): void {
    this.#stopped.abort()
  }

  async #watch(clock: Clock): Promise<void> {
    for (;;) {
      await clock.sleep(LOOK_MS, this.#stopped.signal)
      if (this.#stopped.signal.aborted) return
      this.#look()
    }
  }

  #look(): void {
    const version = versionOf(this.#path)
    if (version === this.#lookedAt) return
    this.#lookedAt = version
    try {
      const found = readRelayCredential(this.#path)
      if (isDeepStrictEqual(found, this.#now)) return
      const refusal = whyNot(this.#now, found)
      if (refusal !== null) return void this.#log.warn({ path: this.#path, refusal }, 'credential.notFollowed')
      this.#now = found
      this.#log.info({ path: this.#path }, 'credential.renewed')
    } catch (error) {
      // What was read before goes on being used.
      this.#log.warn({ err: error, path: this.#path }, 'credential.unreadable')
    }
  }
}

function whyNot(known: RelayCredential, found: RelayCredential): string | null {
  if (found.site !== known.site) return `it is for site ${found.site}, this relay is of ${known.site}: start it anew`
  const unknown = Object.entries(found.keys).find(([name, key]) => known.keys[name] !== key)
  return unknown ? `its key ${unknown[0]} was not known when this relay started: start it anew` : null
}

/** Of a file that is not there: the same every time. */
function versionOf(path: string): string {
  try {
    const { ino, size, mtimeMs } = statSync(path)
    return `${ino} ${size} ${mtimeMs}`
  } catch {
    return ''
  }
}
