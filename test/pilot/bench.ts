/**
 * A pilot as a process of its own, over a real nats-server, against a dispatcher that gives what a test wants
 * (pilot/scripted-dispatcher.ts): for what can only be done to a process. Everything it starts ends with close().
 */
import { mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { NatsConnection } from '@nats-io/transport-node'
import { execa } from 'execa'
import { expect, vi } from 'vitest'
import { ScriptedDispatcher } from '../../pilot/scripted-dispatcher.ts'
import { PATH, TestSite } from '../../pilot/testbench.ts'
import { writeCredential } from '../../shared/credentials.ts'
import { frameHandler } from '../../shared/dispatcher.ts'
import type { LinkServer } from '../../shared/link.ts'
import { connectNats, serveNats } from '../../shared/link-nats.ts'
import { silentLog } from '../../shared/log.ts'
import type { Message } from '../../shared/protocol/messages.ts'
import { type RunningNats, startNats } from '../../shared/servers/nats.ts'

const PROGRAM = fileURLToPath(new URL('../../pilot/indraft-pilot.mjs', import.meta.url))
const INBOX = '_INBOX_pilot'
const USERS = `
authorization {
  users: [
    { user: relay, password: r }
    { user: pilot, password: p, permissions: { publish: ["indraft.site.here"], subscribe: ["${INBOX}.>"] } }
  ]
}`

export const TIMINGS: Message<'welcome'>['timings'] = {
  beatMs: 100,
  lostAfterMs: 3000,
  leaseMs: 60_000,
  confirmMs: 3000,
  pullWaitMs: 300,
}

export type Line = Record<string, unknown> & { msg: string }

/** A pilot process and what it said. */
export interface PilotProcess {
  pid: number
  lines: Line[]
  signal(signal: NodeJS.Signals): void
  /** The first log line of that name, whenever it comes. */
  said(msg: string): Promise<Line>
  /** Exit status, or the signal's name. */
  ended: Promise<number | string>
}

export class PilotBench {
  readonly site: TestSite
  readonly script: ScriptedDispatcher
  readonly #nats: RunningNats
  #serving: { connection: NatsConnection; server: LinkServer } | undefined
  readonly #pilots: PilotProcess[] = []
  readonly #alive = new Set<PilotProcess>()

  private constructor(site: TestSite, script: ScriptedDispatcher, nats: RunningNats) {
    this.site = site
    this.script = script
    this.#nats = nats
  }

  static async open(timings = TIMINGS): Promise<PilotBench> {
    const site = await new TestSite().open()
    const dir = join(site.folder, 'nats')
    mkdirSync(dir)
    const nats = await startNats({ dir, configText: USERS })
    const bench = new PilotBench(site, new ScriptedDispatcher(site, timings), nats)
    const url = { url: nats.url, user: 'pilot', password: 'p', creds: null, ca: null, inboxPrefix: INBOX }
    const keys = site.signer.keys
    const credential = { kind: 'pilot', site: 'here', nats: url, files: { token: 'secret', ca: null }, keys } as const
    writeCredential(bench.credential, credential)
    await bench.answer()
    return bench
  }

  get credential(): string {
    return join(this.site.folder, 'pilot.json')
  }

  get scratch(): string {
    return join(this.site.folder, 'scratch')
  }

  /** The dispatcher answers (again). */
  async answer(): Promise<void> {
    const options = { url: this.#nats.url, name: 'relay', user: 'relay', password: 'r' }
    const connection = await connectNats(options)
    const handler = frameHandler(this.script, silentLog)
    const server = serveNats(connection, handler, silentLog, 'here', { inboxPrefixOf: () => INBOX })
    await connection.flush()
    this.#serving = { connection, server }
  }

  /** The dispatcher is gone; nats-server stays. */
  async fallSilent(): Promise<void> {
    await this.#serving?.connection.close()
    this.#serving = undefined
  }

  /**
   * @param args null leaves a setting to its default
   * @param env besides PATH
   * @param before shell text that comes first: it may go into a control group, or put words before the pilot's in "$@"
   */
  start(
    args: Record<string, string | number | null> = {},
    env: Record<string, string> = {},
    before = '',
  ): PilotProcess {
    const settings = {
      ...{ credential: this.credential, scratch: this.scratch, name: 'pilot1', node: 'node1', cores: 2 },
      ...{ memory: '4GiB', 'container-runtime': 'none', 'watch-every': '100ms', 'payload-grace': '500ms' },
      ...{ 'drain-grace': '6s', 'log-level': 'debug', ...args },
    }
    const words = Object.entries(settings).flatMap(([name, value]) =>
      value === null ? [] : [`--${name}`, String(value)],
    )
    const child = execa('sh', ['-c', `${before}\nexec "$@"`, 'sh', process.execPath, PROGRAM, 'run', ...words], {
      env: { PATH, ...env },
      extendEnv: false,
      reject: false,
      buffer: false,
      stdin: 'ignore',
      stdout: 'ignore',
    })
    const lines: Line[] = []
    let rest = ''
    child.stderr.on('data', (data: Buffer) => {
      const parts = (rest + data.toString()).split('\n')
      rest = parts.pop()!
      for (const part of parts) lines.push(part.startsWith('{') ? JSON.parse(part) : { msg: part })
    })
    const pilot: PilotProcess = {
      pid: child.pid!,
      lines,
      signal: (signal) => void process.kill(child.pid!, signal),
      said: (msg) => until(`the pilot says ${msg}`, () => lines.find((line) => line.msg === msg)),
      ended: child.then(({ exitCode, signal }) => exitCode ?? signal ?? -1),
    }
    this.#pilots.push(pilot)
    this.#alive.add(pilot)
    void pilot.ended.then(() => this.#alive.delete(pilot))
    return pilot
  }

  /** Names of undelivered results of a pilot on disk. */
  undelivered(name = 'pilot1', scratch = this.scratch): string[] {
    try {
      return readdirSync(join(scratch, name, 'outbox')).filter((file) => file.endsWith('.json'))
    } catch {
      return []
    }
  }

  /** Living processes that carry this variable. */
  marked(text: string): number[] {
    return readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .filter((name) => {
        try {
          return readFileSync(`/proc/${name}/environ`, 'latin1').includes(text)
        } catch {
          return false
        }
      })
      .map(Number)
  }

  async close(): Promise<void> {
    for (const pilot of this.#alive) {
      pilot.signal('SIGCONT')
      pilot.signal('SIGKILL')
    }
    for (const pilot of this.#pilots) await pilot.ended
    await this.fallSilent()
    await this.#nats.stop()
    await this.site.close()
  }
}

/** Waits for an event that is only seen from outside. */
export async function until<T>(what: string, look: () => T | undefined | false | null, timeout = 60_000): Promise<T> {
  return await vi.waitFor(
    () => {
      const found = look()
      expect(found, what).toBeTruthy()
      return found as T
    },
    { timeout, interval: 20 },
  )
}

export const sh = (text: string) => ({ command: ['sh', '-c', text] })
