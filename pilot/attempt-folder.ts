/**
 * An attempt's own folder: what lies where in it, and which names in it a campaign may choose. The payload sees `work`
 * (its working directory and HOME) and `tmp`; beside them, for the pilot alone, stand its logs.
 */
import { lstat, mkdir, realpath } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { type ErrorCode, IndraftError } from '../shared/errors.ts'
import { safeParts } from '../shared/files/attempt-files.ts'
import { prepareControl, wasReached } from './container.ts'

/** Where an attempt's logs stand among its files; nothing else may. */
export const LOG_FOLDER = '.log'

export class AttemptFolder {
  readonly path: string
  readonly work: string
  readonly temporary: string
  /** For the wrapper and its status. */
  readonly control: string
  /** For what the container runtime puts aside while it starts. */
  readonly unpack: string
  #untouched = ''

  constructor(path: string) {
    this.path = path
    this.work = join(path, 'work')
    this.temporary = join(path, 'tmp')
    this.control = join(path, 'control')
    this.unpack = join(path, 'unpack')
  }

  async make(): Promise<void> {
    const { path, work, temporary, unpack, control } = this
    await mkdir(path, { recursive: true, mode: 0o700 })
    const folders = [work, temporary, unpack].map((folder) => mkdir(folder, { mode: 0o700 }))
    await Promise.all(folders)
    this.#untouched = await prepareControl(control)
  }

  /** The payload's own program was reached, whatever it did to the wrapper's word of that. */
  async isReached(): Promise<boolean> {
    return await wasReached(this.control, this.#untouched)
  }

  /** Where a payload can write, all of which counts as its scratch. */
  get writable(): string[] {
    return [this.work, this.temporary, this.control]
  }

  log(stream: 'stdout' | 'stderr'): string {
    return join(this.path, stream)
  }

  /** By its real path up to its own name: on the host a payload can remove it, or put a link in its place. */
  async real(): Promise<string> {
    return join(await realpath(dirname(this.path)), basename(this.path))
  }

  /**
   * The working folder, as `real`: a payload can remove that as well, or put a link in its place.
   * @throws IndraftError payload.outputMissing where it is no folder any more
   */
  async realWork(): Promise<string> {
    const work = join(await this.real(), 'work')
    const isFolder = await lstat(work).then(
      (facts) => facts.isDirectory(),
      () => false,
    )
    if (!isFolder) throw new IndraftError('payload.outputMissing', 'the task folder is gone')
    return work
  }
}

/** A relative path that stays inside. @throws IndraftError `reason` */
export function inside(path: string, reason: ErrorCode): string {
  try {
    return safeParts(path).join('/')
  } catch (cause) {
    throw new IndraftError(reason, (cause as Error).message, { cause })
  }
}

/** As inside, for names that a campaign chooses: values are in it by now, so this is where the logs are kept safe. */
export function insideWork(path: string, reason: ErrorCode): string {
  const safe = inside(path, reason)
  if (safe.split('/')[0] !== LOG_FOLDER) return safe
  throw new IndraftError(reason, `path "${path.slice(0, 80)}": ${LOG_FOLDER}/ is for logs`)
}
