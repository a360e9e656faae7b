/**
 * The way to the dispatcher: what the credential file says, and the link and the file client made from it.
 *
 * A relay that lost its disk comes back with another authority, other passwords and other ports, and writes them into the
 * same file; one whose secrets were changed, likewise, at the place where it was. So the file is looked at while there is no
 * link, and a new content is followed: the link and files at once, files at another place with the next welcome, which
 * says where. Transfers under way at the old place end with link.closed, and drivers.ts begins them anew.
 *
 * What always holds: a living pilot follows no file that says another site, brings a key that it did not know at its
 * start, or can be written by anybody who could not write the one it started with. Such a file is for the next pilot;
 * this one leaves with 700 when its dispatcher stays away.
 */
import { statSync } from 'node:fs'
import { readFile, stat } from 'node:fs/promises'
import { isDeepStrictEqual } from 'node:util'
import type { Clock } from '../shared/clock.ts'
import { type PilotCredential, parsePilotCredential, readPilotCredential } from '../shared/credentials.ts'
import { IndraftError, isIndraftError } from '../shared/errors.ts'
import { FileClient } from '../shared/files/client.ts'
import type { Link } from '../shared/link.ts'
import { connectNats, natsLink } from '../shared/link-nats.ts'
import type { Log } from '../shared/log.ts'

/** Between two looks at the file while there is no link. It lies on the file system that all nodes share. */
const LOOK_MS = 3000
/** A request waits so long for the first connection. */
const FIRST_MS = 1000
const OTHERS_MAY_WRITE = 0o022

/** The dispatcher's file server, as of now. */
export interface FileServer {
  client: FileClient
  /** `https://host:port`; null where it serves no files. */
  url: string | null
}

interface Seen {
  owner: number
  mode: number
}

export class Access implements Link {
  readonly #path: string
  readonly #name: string
  readonly #clock: Clock
  readonly #log: Log
  readonly #start: { credential: PilotCredential; file: Seen }
  readonly #closed = new AbortController()
  #credential: PilotCredential
  #link: Link | undefined
  #connecting: Promise<void> | undefined
  #refused: Error | undefined
  #files: FileServer
  /** What `#files` was made from. */
  #filesOf: PilotCredential
  #lookedAt = ''

  /** @throws IndraftError request.invalid for a file that cannot be used */
  constructor(path: string, name: string, clock: Clock, log: Log) {
    this.#path = path
    this.#name = name
    this.#clock = clock
    this.#log = log
    this.#credential = readPilotCredential(path)
    this.#start = { credential: this.#credential, file: seen(statSync(path)) }
    this.#filesOf = this.#credential
    this.#files = { client: this.#fileClient(), url: null }
  }

  get credential(): PilotCredential {
    return this.#credential
  }

  readonly files = (): FileServer => this.#files

  /** Connects in the background, for ever: until it is connected a request fails as if nobody answered. */
  connect(): this {
    this.#connect()
    void this.#watch()
    return this
  }

  onWelcome(filesUrl: string | null): void {
    const before = this.#files
    if (this.#filesOf === this.#credential && (before.url === null || before.url === filesUrl)) {
      before.url = filesUrl
      return
    }
    this.#renewFiles(filesUrl)
  }

  #renewFiles(url: string | null): void {
    const before = this.#files
    this.#filesOf = this.#credential
    this.#files = { client: this.#fileClient(), url }
    void before.client.close()
  }

  get isUp(): boolean {
    return this.#link?.isUp ?? false
  }

  async request(frame: Uint8Array, timeoutMs: number): Promise<Uint8Array> {
    if (this.#closed.signal.aborted) throw new IndraftError('link.closed')
    if (!this.#link) await Promise.race([this.#connecting, this.#clock.sleep(Math.min(timeoutMs, FIRST_MS))])
    if (this.#refused) throw new IndraftError('auth.invalid', this.#refused.message, { cause: this.#refused })
    if (!this.#link) throw new IndraftError('link.noResponder', 'not connected yet')
    try {
      return await this.#link.request(frame, timeoutMs)
    } catch (cause) {
      if (this.#closed.signal.aborted || !isIndraftError(cause, 'link.closed')) throw cause
      // Not by us: refused for good, or changed for another one. There may be one again.
      await this.#clock.sleep(Math.min(timeoutMs, FIRST_MS), this.#closed.signal)
      throw new IndraftError('link.timeout', 'the connection was closed', { cause })
    }
  }

  /** The link; files may still be wanted. */
  async close(): Promise<void> {
    this.#closed.abort()
    await this.#link?.close()
  }

  #fileClient(): FileClient {
    const { ca, token } = this.#credential.files
    return new FileClient({ ca, token, clock: this.#clock })
  }

  #connect(): void {
    const credential = this.#credential
    const { nats, site } = credential
    this.#refused = undefined
    this.#link = undefined
    this.#connecting = connectNats({
      url: nats.url,
      name: this.#name,
      creds: nats.creds ?? undefined,
      user: nats.user ?? undefined,
      password: nats.password ?? undefined,
      ca: nats.ca ?? undefined,
      inboxPrefix: nats.inboxPrefix,
    }).then(
      async (connection) => {
        const link = natsLink(connection, site)
        if (this.#closed.signal.aborted || this.#credential !== credential) await link.close()
        else this.#link = link
      },
      (error: Error) => {
        if (this.#credential !== credential) return
        this.#log.error({ err: error, url: nats.url }, 'link.refused')
        this.#refused = error
      },
    )
  }

  async #watch(): Promise<void> {
    for (;;) {
      await this.#clock.sleep(LOOK_MS, this.#closed.signal)
      if (this.#closed.signal.aborted) return
      if (this.isUp) continue
      try {
        await this.#look()
      } catch (error) {
        // Half-way through being replaced, or gone with the relay's disk: there will be one again.
        this.#log.debug({ err: error }, 'credential.unreadable')
      }
    }
  }

  /** @throws Error for a file that is not there or not whole */
  async #look(): Promise<void> {
    const facts = await stat(this.#path)
    const version = `${facts.ino} ${facts.size} ${facts.mtimeMs}`
    if (version === this.#lookedAt) return
    const found = parsePilotCredential(this.#path, await readFile(this.#path, 'utf8'))
    this.#lookedAt = version
    if (isDeepStrictEqual(found, this.#credential) || this.#closed.signal.aborted) return
    const refusal = whyNot(this.#start, found, seen(facts))
    if (refusal !== null) {
      this.#log.warn({ path: this.#path, refusal }, 'credential.notFollowed')
      return
    }
    this.#log.info({ path: this.#path, url: found.nats.url }, 'credential.renewed')
    const before = this.#link
    this.#credential = found
    this.#renewFiles(this.#files.url)
    this.#connect()
    await before?.close()
  }
}

function seen({ uid, mode }: { uid: number; mode: number }): Seen {
  return { owner: uid, mode }
}

/** Why a pilot that began with one file does not follow another; null where it does. */
export function whyNot(
  start: { credential: PilotCredential; file: Seen },
  found: PilotCredential,
  file: Seen,
): string | null {
  const { credential } = start
  if (found.site !== credential.site) return `it is for site ${found.site}, this pilot is of ${credential.site}`
  const unknown = Object.entries(found.keys).filter(([name, key]) => credential.keys[name] !== key)
  if (unknown.length > 0) return `its key ${unknown[0]![0]} was not known when this pilot started`
  if (file.owner !== start.file.owner) return 'it belongs to another user'
  if ((file.mode & OTHERS_MAY_WRITE & ~start.file.mode) !== 0) return 'others than before may write it'
  return null
}
