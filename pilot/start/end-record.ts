/**
 * How a pilot's work and end are learned without a Slurm call: one small file in a folder that `indraft-pilot start`
 * reads, always written under a temporary name and renamed. While the pilot lives it is `<start>-<pilot>.alive`, replaced
 * now and then; its last act makes it `.json`. Written here, read here.
 */
import { mkdir, open, readdir, readFile, rename, rm } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { z } from 'zod'
import type { Log } from '../../shared/log.ts'
import type { Result } from '../../shared/protocol/messages.ts'

const count = z.number().int().min(0)

export const endRecordSchema = z.object({
  version: z.literal(1),
  /** Of `indraft-pilot start`; null where somebody else started the pilot. */
  start: z.string().nullable(),
  pilot: z.string(),
  node: z.string(),
  job: z.string().nullable(),
  code: z.number().int().min(100).max(999),
  reason: z.string(),
  livedMs: z.number().min(0),
  /** By `campaign/step`: only there are run times comparable between nodes. */
  work: z.record(z.string(), z.object({ done: count, failed: count, medianMs: z.number().nullable() })),
})
export type EndRecord = z.infer<typeof endRecordSchema>

/** How many steps a record names, those with most tasks first, and how many run times each keeps for its median. */
const MOST_WORK = 32
const MOST_TIMES = 512

/** What a pilot did, counted while it lives. */
export class EndTally {
  readonly #work = new Map<string, { done: number; failed: number; times: number[] }>()

  /** What never started (refused, cancelled before its start) says nothing about the node. */
  add(result: Pick<Result, 'campaign' | 'step' | 'end' | 'reason' | 'wallMs'>): void {
    if (result.reason === 'attempt.cancelled' || result.reason === 'node.ending') return
    const name = `${result.campaign}/${result.step}`
    const work = this.#work.get(name) ?? { done: 0, failed: 0, times: [] }
    this.#work.set(name, work)
    if (result.end === 'failed') {
      work.failed++
      return
    }
    work.done++
    // The latest are as good as any, and memory stays bounded.
    if (work.times.length < MOST_TIMES) work.times.push(result.wallMs)
    else work.times[work.done % MOST_TIMES] = result.wallMs
  }

  work(): EndRecord['work'] {
    const all = [...this.#work].sort(([, a], [, b]) => b.done + b.failed - a.done - a.failed)
    return Object.fromEntries(
      all
        .slice(0, MOST_WORK)
        .map(([name, { done, failed, times }]) => [name, { done, failed, medianMs: median(times) }]),
    )
  }
}

export interface EndTeller {
  tally: EndTally
  /** The last act. Never throws: what cannot be said is logged. */
  tell(end: { code: number; reason: string }): Promise<void>
}

/** How often a living pilot says what it did, so that a black hole is found before it ends. */
const PROGRESS_EVERY_MS = 600_000
/** What `.alive` records say in place of an end. */
const ALIVE = { code: 100, reason: 'alive' }

/** Where a pilot says how it ended; says nothing where no folder was given. */
export function endTeller(
  config: { endFolder: string | null; startId: string | null; node: string },
  pilot: { name: string; job: string | null; livedMs: () => number },
  log: Log,
): EndTeller {
  const tally = new EndTally()
  const { endFolder } = config
  let writing: Promise<unknown> = Promise.resolve()
  const write = (isAlive: boolean, { code, reason }: { code: number; reason: string }) => {
    if (endFolder === null) return Promise.resolve()
    writing = writing
      .then(() => {
        const record: EndRecord = {
          ...{ version: 1, start: config.startId, pilot: pilot.name, node: config.node, job: pilot.job },
          ...{ code, reason: reason.slice(0, 300), livedMs: Math.round(pilot.livedMs()), work: tally.work() },
        }
        return writeEndRecord(endFolder, record, isAlive)
      })
      .catch((error) => log.error({ err: error }, 'end.notWritten'))
    return writing
  }
  const timer = config.startId === null ? undefined : setInterval(() => void write(true, ALIVE), PROGRESS_EVERY_MS)
  timer?.unref()
  return {
    tally,
    async tell(end) {
      clearInterval(timer)
      await write(false, end)
    },
  }
}

export function median(values: readonly number[]): number | null {
  if (values.length === 0) return null
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

/** @throws Error where the folder cannot be written */
export async function writeEndRecord(folder: string, record: EndRecord, isAlive = false): Promise<void> {
  await mkdir(folder, { recursive: true, mode: 0o700 })
  const name = `${basename(record.start ?? 'other')}-${basename(record.pilot)}`
  const temporary = join(folder, `.${name}.tmp`)
  const handle = await open(temporary, 'w', 0o600)
  try {
    await handle.writeFile(`${JSON.stringify(record)}\n`)
    await handle.sync()
  } finally {
    await handle.close()
  }
  // First in place of what said that it lives, so that a pilot never has two files here.
  await rename(temporary, join(folder, `${name}.alive`))
  if (!isAlive) await rename(join(folder, `${name}.alive`), join(folder, `${name}.json`))
}

export interface FoundRecord {
  file: string
  /** Null for what is no record: it is to be removed too. */
  record: EndRecord | null
}

/** Of pilots that ended, by file name. */
export function readEndRecords(folder: string): Promise<FoundRecord[]> {
  return readRecords(folder, '.json')
}

/** Of pilots that live, or were killed. */
export function readProgress(folder: string): Promise<FoundRecord[]> {
  return readRecords(folder, '.alive')
}

async function readRecords(folder: string, suffix: string): Promise<FoundRecord[]> {
  const names = (await readdir(folder).catch(() => [])).filter((name) => name.endsWith(suffix)).sort()
  return await Promise.all(
    names.map(async (file) => {
      try {
        return { file, record: endRecordSchema.parse(JSON.parse(await readFile(join(folder, file), 'utf8'))) }
      } catch {
        return { file, record: null }
      }
    }),
  )
}

export async function removeEndRecords(folder: string, files: readonly string[]): Promise<void> {
  await Promise.all(files.map((file) => rm(join(folder, file), { force: true })))
}
