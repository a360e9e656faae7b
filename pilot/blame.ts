/**
 * Why an attempt did not end well, and with that whose fault it was: the payload's, its step's, the node's, or that of
 * what else runs there. What was ordered before explains whatever failed after it; that is the caller's to look at.
 */
import { statfs } from 'node:fs/promises'
import { constants as osConstants } from 'node:os'
import { type ErrorCode, IndraftError } from '../shared/errors.ts'
import { formatBytes } from '../shared/quantity.ts'
import type { AttemptFolder } from './attempt-folder.ts'
import type { Runtime } from './container.ts'
import type { ImageStore } from './images.ts'
import { blameOf, type OomCounts, type OomKills } from './oom.ts'
import { folderBytes, MEASURE_AT_MOST_MS, type Watcher } from './watch.ts'
import type { WrapperStatus } from './wrapper.ts'

export interface Exit {
  status: WrapperStatus
  exitCode: number | null
  signal: string | null
  /** The status of the container runtime itself. */
  runtimeExitCode: number | null
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
  watcher: Watcher
  oom: OomKills
  /** As it was when the payload started. */
  oomBefore: OomCounts
}

/** @throws IndraftError with the reason, where a payload that nobody ended did not end well */
export async function judgeExit(exit: Exit, around: Circumstances): Promise<void> {
  const { status, signal, exitCode } = exit
  if (!status.started) {
    const { reason, detail } = around.runtime.explain(exit.said, exit.runtimeExitCode)
    if (reason === 'image.damaged') await around.images.distrust(around.image)
    throw new IndraftError(reason, detail)
  }
  if (status.softwareFailed !== null) throw new IndraftError('software.failed', status.softwareFailed)
  if (status.noCommand) throw new IndraftError('payload.noCommand', `no command "${around.command}"`)
  if (signal === 'SIGKILL') await blameKernel(around)
  if (signal !== null) throw new IndraftError('payload.signal', `ended by ${signal}`)
  if (exitCode === null) throw new IndraftError('payload.signal', 'ended without an exit status')
  if (exitCode === 0) return
  // A program that fails on a full disk is not to blame for the disk.
  if (await isFull(around.folder.path)) {
    throw new IndraftError('node.scratchFull', `exit status ${exitCode}, no space left`)
  }
  throw new IndraftError('payload.exit', `exit status ${exitCode}`)
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

/** Less than this is left on the file system for an ordinary user. */
const FULL_BYTES = 64 * 1024

async function isFull(folder: string): Promise<boolean> {
  const disk = await statfs(folder).catch(() => null)
  return disk !== null && disk.blocks > 0 && disk.bavail * disk.bsize < FULL_BYTES
}

/** A disk that is full, by the system's code or in the words of a program that was asked to make something. */
function saysFull(error: unknown): boolean {
  const { code, message } = error as NodeJS.ErrnoException
  return code === 'ENOSPC' || code === 'EDQUOT' || /no space left on device|disk quota exceeded/i.test(message)
}
