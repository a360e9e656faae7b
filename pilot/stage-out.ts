/**
 * What an attempt leaves, stored under its own path: the outputs that its step names, all or none of which count, and
 * its logs, of which any may get lost without changing how the task ended.
 */
import { join } from 'node:path'
import { IndraftError, isIndraftError } from '../shared/errors.ts'
import { expand, type Values } from '../shared/expand.ts'
import { checksumFile } from '../shared/files/checksum.ts'
import type { AttemptRef } from '../shared/ids.ts'
import type { Log } from '../shared/log.ts'
import type { OutputRecord } from '../shared/protocol/messages.ts'
import type { TemplateBody } from '../shared/protocol/work.ts'
import { type AttemptFolder, insideWork, LOG_FOLDER } from './attempt-folder.ts'
import { dropOutput, storeOutput, type Transfer, transferAll } from './drivers.ts'
import { type Held, holdFile } from './held.ts'

export type WantedOutput = TemplateBody['outputs'][number]

/** The outputs of a step with this task's values in them. @throws IndraftError payload.outputRefused */
export function wantedOutputs(outputs: readonly WantedOutput[], values: Values): WantedOutput[] {
  return outputs.map((output) => ({
    ...output,
    path: insideWork(expand(output.path, values), 'payload.outputRefused'),
    url: output.url === null ? null : expand(output.url, values),
  }))
}

/**
 * All of them, or none: where one cannot be stored, or the attempt ends meanwhile, those that would stay are taken back.
 * @throws IndraftError payload.outputMissing | payload.outputRefused | stage.outFailed | policy.refused
 */
export async function storeOutputs(
  attempt: AttemptRef,
  wanted: readonly WantedOutput[],
  folder: AttemptFolder,
  transfer: Transfer,
): Promise<OutputRecord[]> {
  const work = await folder.realWork()
  const present: WantedOutput[] = []
  // All are looked at before the first is stored.
  for (const output of wanted) {
    const held = await holdOutput(work, output.path)
    await held?.handle.close()
    if (held) present.push(output)
    else if (!output.optional) throw new IndraftError('payload.outputMissing', output.path)
  }
  const storeOne = async ({ path, url }: WantedOutput, _i: number, together: Transfer) => {
    const held = await holdOutput(work, path)
    if (!held) throw new IndraftError('payload.outputMissing', `${path} was removed before it could be stored`)
    try {
      return await storeHeld(attempt, path, held, url, together)
    } finally {
      await held.handle.close()
    }
  }
  return await transferAll(present, transfer, storeOne, dropOutput)
}

async function storeHeld(
  attempt: AttemptRef,
  path: string,
  { handle, location }: Held,
  url: string | null,
  transfer: Transfer,
): Promise<OutputRecord> {
  const { size, ctimeNs } = await handle.stat({ bigint: true })
  try {
    const checksum = await checksumFile(location, 'sha256', transfer.signal)
    return await storeOutput({ attempt, path, location, sizeBytes: Number(size), checksum }, url, transfer)
  } catch (error) {
    const causes = [error, (error as Error).cause] as NodeJS.ErrnoException[]
    // Read twice, with other content: its own doing where it was written meanwhile, else the node's.
    const isOther = causes.some((cause) => isIndraftError(cause, 'file.checksum'))
    if (isOther && (await handle.stat({ bigint: true })).ctimeNs !== ctimeNs) {
      throw new IndraftError('payload.outputRefused', `${path} was changed while it was stored`, { cause: error })
    }
    const isLocked = causes.some((cause) => cause?.path === location && LOCKED.includes(cause.code ?? ''))
    if (isLocked) throw new IndraftError('payload.outputRefused', `${path} was locked while it was stored`)
    throw error
  }
}

/**
 * Those that are not empty, and files: on the host a payload can put anything in their place.
 * @returns the ones that were stored; what goes wrong is logged
 */
export async function storeLogs(
  attempt: AttemptRef,
  folder: AttemptFolder,
  transfer: Transfer,
  log: Log,
): Promise<OutputRecord[]> {
  const stored: OutputRecord[] = []
  for (const stream of ['stdout', 'stderr'] as const) {
    try {
      const held = await holdOutput(await folder.real(), stream)
      if (!held) continue
      try {
        if ((await held.handle.stat()).size === 0) continue
        stored.push(await storeHeld(attempt, `${LOG_FOLDER}/${stream}`, held, null, transfer))
      } finally {
        await held.handle.close()
      }
    } catch (error) {
      log.warn({ err: error, stream }, 'attempt.logNotStored')
    }
  }
  return stored
}

/** How a system says that a file, or a folder above it, keeps its own user out. */
const LOCKED = ['EACCES', 'EPERM']

/**
 * An output, to be closed; null where it is not there.
 * @param work as AttemptFolder.realWork gives it, or for logs `real`
 * @throws IndraftError payload.outputRefused for anything but a regular file that can be read without following a link
 */
async function holdOutput(work: string, path: string): Promise<Held | null> {
  const refuse = (why: string): never => {
    throw new IndraftError('payload.outputRefused', `${path} ${why}`)
  }
  const location = join(work, path)
  const held = await holdFile(location).catch((error: NodeJS.ErrnoException) => {
    const code = error.code ?? ''
    if (['ENOENT', 'ENOTDIR'].includes(code)) return null
    if (code === 'ELOOP') return refuse('is a symbolic link')
    if (['ENXIO', 'ENODEV'].includes(code)) return refuse('is not a regular file')
    if (LOCKED.includes(code)) return refuse('cannot be read: its mode, or that of a folder above it, forbids it')
    throw error
  })
  if (held === null) return null
  try {
    if (!(await held.handle.stat()).isFile()) refuse('is not a regular file')
    if (held.real !== location) refuse('lies behind a symbolic link, or was moved')
    return held
  } catch (error) {
    await held.handle.close()
    throw error
  }
}
