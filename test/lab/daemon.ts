/**
 * A process that a test started in the lab and that stays: its log, what it said so far, its end. The process that
 * the test started is nsenter; the daemon proper is its only child and gets the signals.
 */
import type { ChildProcess } from 'node:child_process'
import { createWriteStream, readdirSync, readFileSync } from 'node:fs'
import type { Writable } from 'node:stream'

export class Daemon {
  readonly name: string
  readonly logPath: string
  /** Settles with the exit status (128 + signal number when a signal ended it). Never rejects. */
  readonly exited: Promise<number>
  readonly #child: ChildProcess
  readonly #watchers = new Set<() => void>()
  #output = ''
  #code: number | undefined

  constructor(name: string, child: ChildProcess, logPath: string) {
    this.name = name
    this.logPath = logPath
    this.#child = child
    const log = createWriteStream(logPath, { flags: 'a' })
    const take = (text: string) => {
      log.write(text)
      this.#output += text
      for (const watch of this.#watchers) watch()
    }
    child.stdout?.setEncoding('utf8').on('data', take)
    child.stderr?.setEncoding('utf8').on('data', take)
    child.stdin?.on('error', () => {})
    this.exited = new Promise((done) => {
      const end = (code: number) => {
        this.#code = code
        log.end()
        for (const watch of this.#watchers) watch()
        done(code)
      }
      child.on('error', (error) => {
        take(`${error.message}\n`)
        end(127)
      })
      child.on('close', (code, signal) => end(code ?? (signal === 'SIGKILL' ? 137 : 143)))
    })
  }

  /** Standard output and standard error so far. */
  get output(): string {
    return this.#output
  }

  get running(): boolean {
    return this.#code === undefined
  }

  /** Its standard input. */
  get stdin(): Writable {
    return this.#child.stdin!
  }

  /** On this machine; undefined before it has started and after its end. */
  get pid(): number | undefined {
    return this.running ? firstChildOf(this.#child.pid!) : undefined
  }

  /**
   * Waits for a text in what it says (from its start on, or from `after`, an offset into `output`), with the patience that
   * a busy machine needs.
   * @throws Error with the output's end when it ended before, or after the timeout
   */
  waitFor(pattern: RegExp, timeoutMs = 300_000, after = 0): Promise<RegExpExecArray> {
    return new Promise((done, fail) => {
      const finish = (settle: () => void) => {
        clearTimeout(timer)
        this.#watchers.delete(look)
        settle()
      }
      const complain = (what: string) =>
        fail(new Error(`${this.name} ${what} and did not say ${pattern}:\n${this.#output.slice(-3000)}`))
      const look = () => {
        const found = pattern.exec(this.#output.slice(after))
        if (found) finish(() => done(found))
        else if (!this.running) finish(() => complain(`ended with ${this.#code}`))
      }
      const timer = setTimeout(() => finish(() => complain(`ran for ${timeoutMs} ms`)), timeoutMs)
      this.#watchers.add(look)
      look()
    })
  }

  /** Sends a signal to the daemon itself. */
  signal(signal: NodeJS.Signals): void {
    const pid = this.pid
    if (pid !== undefined) process.kill(pid, signal)
  }

  /** SIGTERM, and SIGKILL to it and all it started when it has not ended by then. */
  async stop(graceMs = 60_000): Promise<number> {
    this.signal('SIGTERM')
    const timer = setTimeout(() => killTree(this.#child.pid!), graceMs)
    const code = await this.exited
    clearTimeout(timer)
    return code
  }
}

/** Every process below this one, in no order. */
export function descendantsOf(pid: number): number[] {
  const children = new Map<number, number[]>()
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue
    const parent = parentOf(Number(entry))
    if (parent !== undefined) children.set(parent, [...(children.get(parent) ?? []), Number(entry)])
  }
  const found: number[] = []
  for (let queue = [pid]; queue.length > 0; ) {
    const next = children.get(queue.pop()!) ?? []
    found.push(...next)
    queue = [...queue, ...next]
  }
  return found
}

export function firstChildOf(pid: number): number | undefined {
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .map(Number)
    .find((candidate) => parentOf(candidate) === pid)
}

/** SIGKILL to this process and all below it. */
export function killTree(pid: number): void {
  for (const each of [...descendantsOf(pid), pid]) {
    try {
      process.kill(each, 'SIGKILL')
    } catch {
      // Gone already.
    }
  }
}

function parentOf(pid: number): number | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1])
  } catch {
    return undefined
  }
}
