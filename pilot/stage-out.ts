/**
 * What an attempt leaves, stored under its own path: the outputs that its step names, all or none of which count, and
 * its logs, of which any may get lost without changing how the task ended.
 */
import { lstat, realpath } from 'node:fs/promises'
import { join } from 'node:path'
import { IndraftError } from '../shared/errors.ts'
import { expand, type Values } from '../shared/expand.ts'
import { checksumFile } from '../shared/files/checksum.ts'
import type { AttemptRef } from '../shared/ids.ts'
import type { Log } from '../shared/log.ts'
import type { OutputRecord } from '../shared/protocol/messages.ts'
import type { TemplateBody } from '../shared/protocol/work.ts'
import { type AttemptFolder, insideWork, LOG_FOLDER } from './attempt-folder.ts'
import { storeOutput, type Transfer, transferAll } from './drivers.ts'

export type WantedOutput = TemplateBody['outputs'][number]

/** The outputs of a step with this task's values in them. @throws IndraftError payload.outputRefused */
export function wantedOutputs(outputs: readonly WantedOutput[], values: Values): WantedOutput[] {
  return outputs.map((output) => ({
    ...output,
    path: insideWork(expand(output.path, values), 'payload.outputRefused'),
    url: output.url === null ? null : expand(output.url, values),
  }))
}

/** @throws IndraftError payload.outputMissing | payload.outputRefused | stage.outFailed | policy.refused */
export async function storeOutputs(
  attempt: AttemptRef,
  wanted: readonly WantedOutput[],
  folder: AttemptFolder,
  transfer: Transfer,
): Promise<OutputRecord[]> {
  const work = await folder.realWork()
  const present: { path: string; url: string | null; location: string; sizeBytes: number }[] = []
  for (const { path, url, optional } of wanted) {
    const location = join(work, path)
    const sizeBytes = await sizeOf(location, path)
    if (sizeBytes !== null) present.push({ path, url, location, sizeBytes })
    else if (!optional) throw new IndraftError('payload.outputMissing', path)
  }
  const records: OutputRecord[] = []
  await transferAll(present, async ({ path, url, location, sizeBytes }, i) => {
    const checksum = await checksumFile(location, 'sha256', transfer.signal)
    records[i] = await storeOutput({ attempt, path, location, sizeBytes, checksum }, url, transfer)
  })
  return records
}

/** Those that are not empty. @returns the ones that were stored; what goes wrong is logged */
export async function storeLogs(
  attempt: AttemptRef,
  folder: AttemptFolder,
  transfer: Transfer,
  log: Log,
): Promise<OutputRecord[]> {
  const stored: OutputRecord[] = []
  for (const stream of ['stdout', 'stderr'] as const) {
    const location = folder.log(stream)
    try {
      const facts = await lstat(location).catch(() => null)
      if (!facts || facts.size === 0) continue
      const checksum = await checksumFile(location)
      const file = { attempt, path: `${LOG_FOLDER}/${stream}`, location, sizeBytes: facts.size, checksum }
      stored.push(await storeOutput(file, null, transfer))
    } catch (error) {
      log.warn({ err: error, stream }, 'attempt.logNotStored')
    }
  }
  return stored
}

/**
 * Size of an output; null where it is not there.
 * @throws IndraftError payload.outputRefused for anything but a regular file reached without a symbolic link
 */
async function sizeOf(location: string, path: string): Promise<number | null> {
  try {
    const facts = await lstat(location)
    if (facts.isSymbolicLink()) throw new IndraftError('payload.outputRefused', `${path} is a symbolic link`)
    if (!facts.isFile()) throw new IndraftError('payload.outputRefused', `${path} is not a regular file`)
    if ((await realpath(location)) !== location) {
      throw new IndraftError('payload.outputRefused', `${path} lies behind a symbolic link`)
    }
    return facts.size
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return null
    throw error
  }
}
