/**
 * Gives winning outputs their final names: what the centre keeps is hard-linked to
 * `published/<campaign>/<step>/<index>/<path>`, and files that a pilot without a relay wrote beside their final name
 * are renamed to it. Idempotent; a task leaves the list only when all its outputs are published.
 */
import { link, mkdir, rename, stat, unlink } from 'node:fs/promises'
import { dirname, join, normalize } from 'node:path'
import { fileURLToPath } from 'node:url'
import { failpoint } from '../../shared/failpoint.ts'
import { isForeign } from '../../shared/files/attempt-files.ts'
import type { Log } from '../../shared/log.ts'
import type { OutputRecord, Result } from '../../shared/protocol/messages.ts'

/** Logs stay under their attempt only. */
const isLog = (path: string) => path.startsWith('.log/')

/** Where the centre keeps an attempt's file; null where it lies elsewhere. @throws RangeError outside the folder */
function storedFilePath(outputsDir: string, url: string): string | null {
  return url.startsWith('store:') ? within(join(outputsDir, 'attempt'), url.slice('store:'.length)) : null
}

function publishedPath(outputsDir: string, result: Pick<Result, 'campaign' | 'step' | 'index'>, path: string) {
  return within(join(outputsDir, 'published', result.campaign, result.step, String(result.index)), path)
}

function within(folder: string, path: string): string {
  const whole = join(folder, path)
  if (normalize(whole) !== whole || !whole.startsWith(`${folder}/`)) throw new RangeError(`outside the folder: ${path}`)
  return whole
}

/**
 * @returns the folders that have new names, which are durable only when these are synced: once for many tasks
 * @throws Error where a file is neither here nor published: it is tried again later
 */
export async function publishOutputs(outputsDir: string, result: Result, log: Log): Promise<string[]> {
  const folders: string[] = []
  for (const output of result.outputs) {
    if (isLog(output.path)) continue
    if (isForeign(result, output)) {
      // Of a result that was taken before such ones were refused.
      log.error({ task: `${result.campaign}/${result.step}/${result.index}`, output: output.url }, 'output.foreign')
      continue
    }
    const stored = storedFilePath(outputsDir, output.url)
    if (stored) {
      const published = publishedPath(outputsDir, result, output.path)
      await linkTo(stored, published)
      folders.push(...foldersBetween(outputsDir, published))
    } else {
      const final = await renameFinal(output, result)
      if (final) folders.push(dirname(final))
    }
    failpoint('output.published')
  }
  log.debug(
    { task: `${result.campaign}/${result.step}/${result.index}`, outputs: result.outputs.length },
    'task.published',
  )
  return folders
}

/** Those of a file up to this one. */
function foldersBetween(root: string, path: string): string[] {
  const folders: string[] = []
  for (let at = dirname(path); at.length >= root.length; at = dirname(at)) folders.push(at)
  return folders
}

/**
 * Whether an output that the centre keeps is there in the size recorded, and under its final name too unless that is
 * still to be given; others are not ours to look at.
 */
export async function isKept(
  outputsDir: string,
  result: Result,
  output: OutputRecord,
  isPublished: boolean,
): Promise<boolean> {
  if (isForeign(result, output)) return false
  const stored = storedFilePath(outputsDir, output.url)
  if (stored === null) return true
  const named = isPublished && !isLog(output.path)
  const places = named ? [stored, publishedPath(outputsDir, result, output.path)] : [stored]
  const sizes = await Promise.all(
    places.map((path) =>
      stat(path).then(
        ({ size }) => size,
        () => -1,
      ),
    ),
  )
  return sizes.every((size) => size === output.sizeBytes)
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

/** @returns the final name, null where another gives it */
async function renameFinal(output: OutputRecord, result: Result): Promise<string | null> {
  const suffix = `.attempt-${result.fences.join('-')}`
  if (result.fences.length !== 1 || !output.url.startsWith('file://') || !output.url.endsWith(suffix)) return null
  const written = fileURLToPath(output.url)
  const final = written.slice(0, -suffix.length)
  try {
    await rename(written, final)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    await stat(final)
  }
  return final
}
