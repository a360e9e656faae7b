/**
 * A process that is kept alive, as systemd or a batch system would: when it ends it is started again a little later. It
 * can be killed, stopped and held down by whoever makes faults. Its log goes on in one file over all its lives.
 */
import { closeSync, mkdirSync, openSync } from 'node:fs'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { spawnTied } from '../../shared/servers/tied.ts'

const RESTART_MS = 300

/** One life of it. */
export interface Life {
  pid: number
  exited: Promise<unknown>
  signal(signal: NodeJS.Signals): void
}

export interface KeptOptions {
  name: string
  start: () => Promise<Life> | Life
  /** Between its end and its next start. Default 300 ms. */
  restartMs?: number
  /** Between SIGTERM and SIGKILL at the end. */
  graceMs?: number
  say: (line: string) => void
}

export class Kept {
  readonly name: string
  readonly #options: KeptOptions
  #life: Life | undefined
  #downMs: number | undefined
  #held: Promise<void> | undefined
  #isEnding = false
  #keeping: Promise<void> | undefined
  /** How often it was started. */
  lives = 0

  constructor(options: KeptOptions) {
    this.name = options.name
    this.#options = options
  }

  get pid(): number | undefined {
    return this.#life?.pid
  }

  /** Resolves when it was started once. @throws Error when it could not be */
  async start(): Promise<void> {
    await this.#begin()
    this.#keeping = this.#keep()
  }

  /** @returns false where it is not alive now */
  signal(signal: NodeJS.Signals): boolean {
    if (!this.#life) return false
    this.#life.signal(signal)
    return true
  }

  /** SIGKILL, and started again after `downMs`. Resolves when it is dead. */
  async kill(downMs: number): Promise<void> {
    const life = this.#life
    this.#downMs = downMs
    life?.signal('SIGKILL')
    await life?.exited
  }

  /** Kills it and starts it again only when `work` is done: for what is done to its files. */
  async whileDown(work: () => Promise<void> | void): Promise<void> {
    const free = Promise.withResolvers<void>()
    this.#held = free.promise
    try {
      await this.kill(0)
      await work()
    } finally {
      this.#held = undefined
      free.resolve()
    }
  }

  /** The next death is followed by a pause of this length. */
  nextDownMs(ms: number): void {
    this.#downMs = ms
  }

  /** SIGTERM, and SIGKILL after the grace. */
  async stop(): Promise<void> {
    this.#isEnding = true
    const life = this.#life
    life?.signal('SIGCONT')
    life?.signal('SIGTERM')
    const late = setTimeout(() => this.#life?.signal('SIGKILL'), this.#options.graceMs ?? 10_000)
    await this.#keeping
    clearTimeout(late)
  }

  async #begin(): Promise<void> {
    this.#life = await this.#options.start()
    this.lives++
  }

  async #keep(): Promise<void> {
    const { name, say, restartMs = RESTART_MS } = this.#options
    while (!this.#isEnding) {
      await this.#life?.exited
      this.#life = undefined
      if (this.#isEnding) return
      const downMs = this.#downMs ?? restartMs
      this.#downMs = undefined
      await sleep(downMs)
      while (this.#held) await this.#held
      if (this.#isEnding) return
      try {
        await this.#begin()
      } catch (error) {
        say(`${name} did not start: ${(error as Error).message.split('\n').slice(0, 3).join(' | ')}`)
      }
      // Told to end while it was starting.
      if (this.#isEnding) (this.#life as Life | undefined)?.signal('SIGTERM')
    }
    await this.#life?.exited
  }
}

/** A program as a child that ends with this process; standard output and error are appended to the log. */
export function spawnLogged(path: string, args: readonly string[], log: string, env: NodeJS.ProcessEnv): Life {
  mkdirSync(dirname(log), { recursive: true })
  const file = openSync(log, 'a', 0o600)
  const child = spawnTied(path, args, { cwd: dirname(log), env, stdio: ['ignore', file, file] })
  closeSync(file)
  const exited = new Promise<void>((resolve) => {
    child.once('exit', () => resolve())
    child.once('error', () => resolve())
  })
  return { pid: child.pid ?? 0, exited, signal: (signal) => void child.kill(signal) }
}
