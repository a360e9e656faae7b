/**
 * Gives winning outputs their final names: what the centre keeps is hard-linked to
 * `published/<campaign>/<step>/<index>/<path>`, and files that a pilot without a relay wrote beside their final name
 * are renamed to it. Idempotent; a task leaves the list only when all its outputs are published.
 */
import { link, mkdir, rename, stat, unlink } from 'node:fs/promises'
import { dirname, join, normalize } from 'node:path'
import { fileURLToPath } from 'node:url'
import { failpoint } from '../../shared/failpoint.ts'
import type { Log } from '../../shared/log.ts'
import type { OutputRecord, Result } from '../../shared/protocol/messages.ts'

/** Logs stay under their attempt only. */
const isLog = (path: string) => path.startsWith('.log/')

/** Where the centre keeps an attempt's file; null where it lies elsewhere. @throws RangeError outside the folder */
export function storedFilePath(outputsDir: string, url: string): string | null {
  return url.startsWith('store:') ? within(join(outputsDir, 'attempt'), url.slice('store:'.length)) : null
}

export function publishedPath(outputsDir: string, result: Pick<Result, 'campaign' | 'step' | 'index'>, path: string) {
  return within(join(outputsDir, 'published', result.campaign, result.step, String(result.index)), path)
}

function within(folder: string, path: string): string {
  const whole = join(folder, path)
  if (normalize(whole) !== whole || !whole.startsWith(`${folder}/`)) throw new RangeError(`outside the folder: ${path}`)
  return whole
}

/** @throws Error where a file is neither here nor published: it is tried again later */
export async function publishOutputs(outputsDir: string, result: Result, log: Log): Promise<void> {
  for (const output of result.outputs) {
    if (isLog(output.path)) continue
    const stored = storedFilePath(outputsDir, output.url)
    if (stored) await linkTo(stored, publishedPath(outputsDir, result, output.path))
    else await renameFinal(output, result)
    failpoint('output.published')
  }
  log.debug(
    { task: `${result.campaign}/${result.step}/${result.index}`, outputs: result.outputs.length },
    'task.published',
  )
}

async function linkTo(from: string, to: string): Promise<void> {
  await mkdir(dirname(to), { recursive: true })
  try {
    await link(from, to)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    const [source, target] = await Promise.all([stat(from), stat(to)])
    if (source.ino === target.ino) return
    // The winner is set once, so another file here is left from a restored folder.
    await unlink(to)
    await link(from, to)
  }
}

async function renameFinal(output: OutputRecord, result: Result): Promise<void> {
  const suffix = `.attempt-${result.fences.join('-')}`
  if (result.fences.length !== 1 || !output.url.startsWith('file://') || !output.url.endsWith(suffix)) return
  const written = fileURLToPath(output.url)
  const final = written.slice(0, -suffix.length)
  try {
    await rename(written, final)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    await stat(final)
  }
}
