/**
 * A payload's standard output and error: the first half and the last half of what it wrote, in a file of bounded size,
 * whatever it writes. The payload gets the write end of a FIFO (a real pipe, so that /dev/stdout can be opened, which
 * sockets cannot); the pilot reads the other end through one small buffer. Writing a gigabyte costs the payload about
 * 1.7 s and the pilot no memory.
 *
 * The file: bytes up to half the cap as they came, the rest round and round in the second half; put in order at the end.
 * Whatever becomes of it says nothing of how the task ended: on the host a payload can do there what it likes.
 */
import { randomUUID } from 'node:crypto'
import { close, constants, openSync, unlinkSync } from 'node:fs'
import { type FileHandle, mkdir, open, rename } from 'node:fs/promises'
import { Socket } from 'node:net'
import { join } from 'node:path'
import { execa } from 'execa'

const FIFOS_AT_ONCE = 32
const BUFFER_BYTES = 32 * 1024

/** Both ends of a pipe, as file descriptors. Whoever takes it closes both. */
export interface Pipe {
  read: number
  write: number
}

/** Pipes made by `mkfifo`, many at a time because Node has no pipe(2). */
export class PipeMaker {
  readonly #folder: string
  readonly #ready: string[] = []
  #making: Promise<void> | undefined

  constructor(folder: string) {
    this.#folder = folder
  }

  /** @throws Error where the file system has no FIFOs */
  async take(): Promise<Pipe> {
    for (;;) {
      const path = this.#ready.pop()
      if (path !== undefined) return openPipe(path)
      this.#making ??= this.#make().finally(() => {
        this.#making = undefined
      })
      await this.#making
    }
  }

  async #make(): Promise<void> {
    await mkdir(this.#folder, { recursive: true, mode: 0o700 })
    const batch = randomUUID()
    const paths = Array.from({ length: FIFOS_AT_ONCE }, (_, number) => join(this.#folder, `${batch}-${number}`))
    await execa('mkfifo', ['-m', '600', ...paths], { stdin: 'ignore', timeout: 30_000 })
    this.#ready.push(...paths)
  }
}

function openPipe(path: string): Pipe {
  // The reader first, without waiting for a writer; then the writer, which finds it.
  const read = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
  const write = openSync(path, constants.O_WRONLY)
  unlinkSync(path)
  return { read, write }
}

export class CappedLog {
  readonly #path: string
  readonly #half: number
  readonly #capBytes: number
  readonly #socket: Socket
  readonly #ended: Promise<void>
  #file: FileHandle | undefined
  #bytes = 0
  #lost = false

  /** Takes over `read`, the reading end of a pipe. */
  constructor(read: number, path: string, capBytes: number) {
    this.#path = path
    this.#capBytes = capBytes
    this.#half = Math.ceil(capBytes / 2)
    let socket: Socket | undefined
    this.#ended = new Promise((resolve) => {
      const onread = {
        buffer: Buffer.allocUnsafeSlow(BUFFER_BYTES),
        callback: (count: number, buffer: Buffer | Uint8Array) => {
          void this.#write(buffer.subarray(0, count)).then(() => socket!.resume())
          return false // Reading goes on when the buffer is free again: the payload waits, not the pilot's memory.
        },
      }
      // `onread` is honoured for a given descriptor too, which the type does not say.
      socket = new Socket({ fd: read, readable: true, writable: false, onread } as ConstructorParameters<
        typeof Socket
      >[0])
      socket.on('close', () => resolve())
      socket.on('end', () => resolve())
      socket.on('error', () => resolve())
      socket.resume()
    })
    this.#socket = socket!
  }

  /** Bytes written so far, before any cut. */
  get bytes(): number {
    return this.#bytes
  }

  async #write(chunk: Uint8Array): Promise<void> {
    const ring = this.#capBytes - this.#half
    let offset = 0
    while (offset < chunk.length) {
      const left = chunk.length - offset
      const inHead = this.#half - this.#bytes
      // Of what goes into the second half only its last round stays: the rest is counted, not written.
      const skipped = inHead > 0 ? 0 : Math.max(0, left - ring)
      const at = this.#position(this.#bytes + skipped)
      const room = inHead > 0 ? inHead : this.#capBytes - at
      const length = Math.max(0, Math.min(left - skipped, room))
      if (length > 0) await this.#store(chunk.subarray(offset + skipped, offset + skipped + length), at)
      offset += skipped + length
      this.#bytes += skipped + length
    }
  }

  /** Where the byte of that number lies in the file. */
  #position(byte: number): number {
    const ring = this.#capBytes - this.#half
    return byte < this.#half || ring === 0 ? byte : this.#half + ((byte - this.#half) % ring)
  }

  async #store(chunk: Uint8Array, at: number): Promise<void> {
    if (this.#lost) return
    try {
      // Of its own making: on the host a payload can put a link or a pipe there before.
      this.#file ??= await open(this.#path, 'wx+', 0o600)
      await this.#file.write(chunk, 0, chunk.length, at)
    } catch {
      // A full disk must not stop the payload; the scratch watch says what happened.
      this.#lost = true
    }
  }

  /**
   * Call when the payload has ended. A process that outlived it may hold the pipe: no longer than `waitMs` is waited.
   * Never throws. @returns the file, in order; null where nothing was written, or that was lost
   */
  async finish(waitMs = 2000): Promise<string | null> {
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, waitMs)
    })
    await Promise.race([this.#ended, late])
    clearTimeout(timer)
    this.#socket.destroy()
    const file = this.#file
    if (!file) return null
    try {
      if (this.#bytes > this.#capBytes) await this.#putInOrder(file).catch(() => this.#keepHead(file))
      return this.#path
    } catch {
      return null
    } finally {
      await file.close().catch(() => {})
    }
  }

  async #putInOrder(file: FileHandle): Promise<void> {
    const ring = this.#capBytes - this.#half
    const start = ring === 0 ? 0 : (this.#bytes - this.#half) % ring
    const ordered = `${this.#path}.ordered`
    const target = await open(ordered, 'wx', 0o600)
    try {
      await copyPart(file, target, 0, this.#half)
      await target.write(leftOut(this.#bytes - this.#capBytes))
      await copyPart(file, target, this.#half + start, this.#capBytes)
      await copyPart(file, target, this.#half, this.#half + start)
    } finally {
      await target.close()
    }
    await rename(ordered, this.#path)
  }

  /** Where the second half cannot be put in order, which takes a name and room, the log ends with the first. */
  async #keepHead(file: FileHandle): Promise<void> {
    const { size } = await file.stat()
    const kept = Math.min(size, this.#half)
    await file.truncate(kept)
    await file.write(leftOut(this.#bytes - kept), kept)
  }
}

function leftOut(bytes: number): string {
  return `\n[... ${bytes} bytes left out ...]\n`
}

async function copyPart(from: FileHandle, to: FileHandle, start: number, end: number): Promise<void> {
  const buffer = Buffer.allocUnsafe(BUFFER_BYTES)
  for (let at = start; at < end; ) {
    const { bytesRead } = await from.read(buffer, 0, Math.min(buffer.length, end - at), at)
    if (bytesRead === 0) return
    await to.write(buffer, 0, bytesRead)
    at += bytesRead
  }
}

/** The last of a text file, at most `maxBytes`; null where there is none, or anything else. Never waits, never follows. */
export async function tailOf(path: string | null, maxBytes: number): Promise<string | null> {
  if (path === null) return null
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK).catch(() => null)
  if (file === null) return null
  try {
    const facts = await file.stat()
    if (!facts.isFile()) return null
    const { size } = facts
    const length = Math.min(size, maxBytes)
    const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, size - length)
    const text = buffer.subarray(0, bytesRead).toString('utf8')
    return text === '' ? null : text.slice(-maxBytes)
  } finally {
    await file.close()
  }
}

/** Closes the ends of a pipe that nobody took. */
export function dropPipe(pipe: Pipe): void {
  close(pipe.read, () => {})
  close(pipe.write, () => {})
}
