/**
 * The site's own record of whose payload ran where and when: a JSON line at the start and one at the end of each. One
 * file a node and day, so that a site keeps all of its nodes' in one folder on the shared file system: no file for each
 * pilot, none written from two nodes, none renamed. Any number of pilots of a node append, and anybody reads meanwhile.
 *
 * What always holds: a line is appended by one write; a node's files together stay within `mostBytes`, and none is kept
 * for longer than `keepMs`, because the oldest are removed when another one is begun.
 */
import { appendFile, mkdir, readdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { Log } from '../shared/log.ts'

const PART_BYTES = 64 * 2 ** 20
const DAY_MS = 86_400_000
/** Of a name in a line, so that a line stays small whatever a campaign calls its image. */
const MOST_CHARACTERS = 1500

export interface TraceOptions {
  folder: string
  node: string
  keepMs: number
  mostBytes: number
  partBytes?: number
  log: Log
  wallMs: () => number
}

/** `<node>-<yyyymmdd>.jsonl`, further parts of a day `-1`, `-2` and on. Days are UTC. */
export interface TraceFile {
  name: string
  node: string
  dayMs: number
  part: number
}

interface OpenFile {
  name: string
  day: string
  part: number
  bytes: number
}

export class Trace {
  readonly #options: TraceOptions
  #writing: Promise<void> = Promise.resolve()
  #lines: string[] = []
  #file: OpenFile | undefined

  constructor(options: TraceOptions) {
    this.#options = options
  }

  /** Never waits for the disk and never throws: lines are written in order, together where they come together. */
  write(line: Record<string, unknown>): void {
    const at = new Date(this.#options.wallMs()).toISOString()
    const short = (_key: string, value: unknown) =>
      typeof value === 'string' ? value.slice(0, MOST_CHARACTERS) : value
    this.#lines.push(`${JSON.stringify({ at, ...line }, short)}\n`)
    if (this.#lines.length === 1) this.#writing = this.#writing.then(() => this.#flush())
  }

  /** Resolves when everything so far is written. */
  async close(): Promise<void> {
    await this.#writing
  }

  async #flush(): Promise<void> {
    const text = this.#lines.join('')
    this.#lines = []
    const { folder, log } = this.#options
    try {
      const file = await this.#current()
      await appendFile(join(folder, file.name), text, { mode: 0o600 })
      file.bytes += Buffer.byteLength(text)
    } catch (error) {
      log.error({ err: error }, 'trace.writeFailed')
    }
  }

  async #current(): Promise<OpenFile> {
    const { folder, node, partBytes = PART_BYTES, wallMs } = this.#options
    const day = new Date(wallMs()).toISOString().slice(0, 10).replaceAll('-', '')
    let file = this.#file?.day === day ? this.#file : undefined
    if (file && file.bytes < partBytes) return file
    await mkdir(folder, { recursive: true, mode: 0o700 })
    await this.#removeOld()
    // Others of this node may be parts ahead.
    for (let part = file ? file.part + 1 : 0; ; part++) {
      const name = `${safeName(node)}-${day}${part > 0 ? `-${part}` : ''}.jsonl`
      const bytes = await stat(join(folder, name)).then(
        ({ size }) => size,
        () => 0,
      )
      file = { name, day, part, bytes }
      if (bytes < partBytes) break
    }
    this.#file = file
    return file
  }

  /** Several pilots may do so at once: who comes second finds nothing. */
  async #removeOld(): Promise<void> {
    const { folder, node, keepMs, mostBytes, partBytes = PART_BYTES, wallMs, log } = this.#options
    const own = traceFiles(await readdir(folder)).filter((file) => file.node === safeName(node))
    // The part about to be begun has its room too.
    let bytes = partBytes
    for (const file of own.reverse()) {
      const path = join(folder, file.name)
      const size = await stat(path).then(
        (facts) => facts.size,
        () => 0,
      )
      bytes += size
      if (bytes <= mostBytes && wallMs() - file.dayMs <= keepMs + DAY_MS) continue
      await rm(path, { force: true })
      log.info({ path, sizeBytes: size }, 'trace.removed')
    }
  }
}

function safeName(node: string): string {
  return node.replace(/[^A-Za-z0-9._-]/g, '_')
}

/** Those of a folder's files that are traces, oldest first. */
export function traceFiles(names: readonly string[]): TraceFile[] {
  const files: TraceFile[] = []
  for (const name of names) {
    const [, node, year, month, day, part] = /^(.+)-(\d{4})(\d\d)(\d\d)(?:-(\d+))?\.jsonl$/.exec(name) ?? []
    if (node === undefined) continue
    files.push({ name, node, dayMs: Date.UTC(Number(year), Number(month) - 1, Number(day)), part: Number(part ?? 0) })
  }
  return files.sort((a, b) => a.dayMs - b.dayMs || a.part - b.part)
}
