/**
 * Why an attempt did not end well, and with that whose fault it was: the payload's, its step's, the node's, or that of
 * what else runs there. What was ordered before explains whatever failed after it; that is the caller's to look at.
 */
import { mkdir, rm, writeFile } from 'node:fs/promises'
import { constants as osConstants } from 'node:os'
import { join } from 'node:path'
import { type ErrorCode, IndraftError } from '../shared/errors.ts'
import { formatBytes } from '../shared/quantity.ts'
import type { AttemptFolder } from './attempt-folder.ts'
import type { Runtime } from './container.ts'
import { folderBytes, MEASURE_AT_MOST_MS } from './folder-bytes.ts'
import type { ImageDigests } from './image-digest.ts'
import type { ImageStore } from './images.ts'
import { blameOf, type OomCounts, type OomKills } from './oom.ts'
import type { Watcher } from './watch.ts'
import type { WrapperStatus } from './wrapper.ts'

export interface Exit {
  status: WrapperStatus
  exitCode: number | null
  signal: string | null
  /** The end of what it wrote. */
  said: string
}

export interface Circumstances {
  /** Its path; names it to the watcher. */
  attempt: string
  command: string
  image: string
  folder: AttemptFolder
  runtime: Runtime
  images: ImageStore
  digests: ImageDigests
  watcher: Watcher
  oom: OomKills
  /** As it was when the payload started. */
  oomBefore: OomCounts
}

/** @throws IndraftError with the reason, where a payload that nobody ended did not end well */
export async function judgeExit(exit: Exit, around: Circumstances): Promise<void> {
  const { status, signal, exitCode } = exit
  if (!status.started) {
    const { reason, detail } = around.runtime.explain(exit.said)
    if (reason === 'image.damaged') await around.images.distrust(around.image)
    throw new IndraftError(reason, detail)
  }
  if (status.softwareFailed !== null) throw new IndraftError('software.failed', status.softwareFailed)
  if (status.noCommand) throw new IndraftError('payload.noCommand', `no command "${around.command}"`)
  if (signal === 'SIGKILL') await blameKernel(around)
  if (exitCode === 0) return
  const end = signal !== null ? `ended by ${signal}` : `exit status ${exitCode ?? 'unknown'}`
  // A program that fails on a full disk is not to blame for the disk, nor for an image that cannot be read.
  const full = await fullness(around.folder.path)
  if (full !== null) throw new IndraftError('node.scratchFull', `${end}; ${full}`)
  if (mayBeDamage(exit) && (await around.digests.isSpoilt(around.image))) {
    await around.images.distrust(around.image)
    throw new IndraftError('image.damaged', `${end}; the image is not what it was, or cannot be read`)
  }
  throw new IndraftError(signal === null && exitCode !== null ? 'payload.exit' : 'payload.signal', end)
}

/** How it shows that part of a program cannot be read: by the shell, by the kernel, or in the program's own words. */
function mayBeDamage({ exitCode, signal, said }: Exit): boolean {
  return exitCode === 126 || signal === 'SIGBUS' || /input\/output error/i.test(said)
}

/** A kill that nobody here ordered may be the kernel's, for want of memory. @throws IndraftError with whose it was */
async function blameKernel({ attempt, oom, oomBefore, watcher }: Circumstances): Promise<void> {
  const blame = blameOf(oomBefore, await oom.read())
  if (blame === 'node') throw new IndraftError('node.fault', 'ended by the kernel: the node ran out of memory')
  if (blame === null) return
  const other = watcher.overMemory(attempt)
  if (other) throw new IndraftError('node.fault', `ended by the kernel: ${other} used more memory than it asked for`)
  throw new IndraftError('payload.memory', 'ended by the kernel: the memory limit of the job was reached')
}

/** What was written since the last measurement, or by a payload too quick for any. @throws IndraftError payload.scratch */
export async function checkScratch(folder: AttemptFolder, scratchBytes: number): Promise<void> {
  if (scratchBytes === 0) return
  if ((await folderBytes(folder.writable, scratchBytes, MEASURE_AT_MOST_MS)) > scratchBytes) {
    throw new IndraftError('payload.scratch', `more than ${formatBytes(scratchBytes)}`)
  }
}

/** What an error is called that nobody foresaw. */
export function reasonOf(error: unknown): ErrorCode {
  if (error instanceof IndraftError) return error.code
  return saysFull(error) ? 'node.scratchFull' : 'node.fault'
}

/** Nothing was started. */
export function spawnError({ code, message }: { code: string; message: string }): IndraftError {
  if (code === 'E2BIG') return new IndraftError('campaign.invalid', 'the command line is too long for the system')
  return new IndraftError('node.fault', `nothing could be started: ${message}`)
}

/** Of a status as shells give it. */
export function signalOf(exitCode: number | null): string | null {
  if (exitCode === null || exitCode <= 128) return null
  const number = exitCode - 128
  return Object.entries(osConstants.signals).find(([, value]) => value === number)?.[0] ?? null
}

/** Where less can be written the disk is full. What a payload held open has come free since it failed: not just one file. */
const FULL_BYTES = 64 * 1024
const FULL_FILES = 16

/**
 * What keeps a little from being written, where that is want of space, of files or of quota; null otherwise. Tried, because
 * a file system's own figures say nothing of quotas.
 */
async function fullness(folder: string): Promise<string | null> {
  const probe = join(folder, 'probe')
  try {
    await mkdir(probe)
    await writeFile(join(probe, 'bytes'), Buffer.alloc(FULL_BYTES, 1), { flush: true })
    for (let number = 1; number < FULL_FILES; number++) await writeFile(join(probe, String(number)), '')
    return null
  } catch (error) {
    return saysFull(error) ? (error as Error).message : null
  } finally {
    await rm(probe, { recursive: true, force: true }).catch(() => {})
  }
}

/** A disk that is full, by the system's code or in the words of a program that was asked to make something. */
function saysFull(error: unknown): boolean {
  const { code, message } = error as NodeJS.ErrnoException
  return code === 'ENOSPC' || code === 'EDQUOT' || /no space left on device|disk quota exceeded/i.test(message)
}
