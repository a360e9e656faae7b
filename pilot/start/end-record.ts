/**
 * How a pilot's work and end are learned without a Slurm call: one small file in a folder that `indraft-pilot start`
 * reads, always written under a temporary name and renamed. While the pilot lives it is `<start>-<pilot>.alive`, replaced
 * now and then; its last act makes it `.json`. The other way goes one word: a `.leave` beside it asks this pilot to end,
 * which a call of the batch system could not say to one node of a job. Written here, read here.
 */
import { mkdir, open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { z } from 'zod'
import type { Log } from '../../shared/log.ts'
import type { Result } from '../../shared/protocol/messages.ts'
import { Questions } from '../hanging.ts'

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
  /** Called once, with the reason, when `indraft-pilot start` asks this pilot to end. */
  whenAsked(act: (why: string) => void): void
  /** The last act. Never throws: what cannot be said is logged. Waits as long as the folder's file system does. */
  tell(end: { code: number; reason: string }): Promise<void>
}

/** How often a living pilot says what it did, so that a black hole is found before it ends. */
const PROGRESS_EVERY_MS = 600_000
/** How often a pilot looks whether it is asked to end. */
const ASKED_EVERY_MS = 30_000
/** What `.alive` records say in place of an end. */
const ALIVE = { code: 100, reason: 'alive' }

/** Where a pilot says how it ended; says nothing where no folder was given. */
export function endTeller(
  config: { endFolder: string | null; startId: string | null; node: string },
  pilot: { name: string; job: string | null; livedMs: () => number },
  log: Log,
  everyMs = { progress: PROGRESS_EVERY_MS, asked: ASKED_EVERY_MS },
): EndTeller {
  const tally = new EndTally()
  const { endFolder } = config
  let writing: Promise<unknown> = Promise.resolve()
  let isWriting = false
  const write = (isAlive: boolean, { code, reason }: { code: number; reason: string }) => {
    if (endFolder === null || (isAlive && isWriting)) return Promise.resolve()
    isWriting = true
    writing = writing
      .then(() => {
        const record: EndRecord = {
          ...{ version: 1, start: config.startId, pilot: pilot.name, node: config.node, job: pilot.job },
          ...{ code, reason: reason.slice(0, 300), livedMs: Math.round(pilot.livedMs()), work: tally.work() },
        }
        return writeEndRecord(endFolder, record, isAlive)
      })
      .catch((error) => log.error({ err: error }, 'end.notWritten'))
      .finally(() => {
        isWriting = false
      })
    return writing
  }
  const timers: NodeJS.Timeout[] = []
  const every = (ms: number, act: () => unknown) => {
    if (endFolder !== null && config.startId !== null) timers.push(setInterval(() => void act(), ms).unref())
  }
  every(everyMs.progress, () => write(true, ALIVE))
  return {
    tally,
    whenAsked(act) {
      const questions = new Questions()
      let isAsked = false
      const look = async () => {
        const why = await readFile(join(endFolder!, `${nameOf(config.startId, pilot.name)}.leave`), 'utf8').catch(
          () => null,
        )
        if (why === null || isAsked) return
        isAsked = true
        log.warn({ why }, 'end.asked')
        act(why.trim().slice(0, 200))
      }
      every(everyMs.asked, () => questions.ask('leave', look))
    },
    async tell(end) {
      for (const timer of timers) clearInterval(timer)
      await write(false, end)
    },
  }
}

function nameOf(start: string | null, pilot: string): string {
  return `${basename(start ?? 'other')}-${basename(pilot)}`
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
  const name = nameOf(record.start, record.pilot)
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

/** And what was asked of their pilots. */
export async function removeEndRecords(folder: string, files: readonly string[]): Promise<void> {
  const asked = files.map((file) => file.replace(/\.(json|alive)$/, '.leave'))
  await Promise.all([...files, ...asked].map((file) => rm(join(folder, file), { force: true })))
}

/** @param alive the file by which the pilot says that it lives */
export async function askToLeave(folder: string, alive: string, why: string): Promise<void> {
  const name = alive.replace(/\.alive$/, '')
  const temporary = join(folder, `.${name}.leave.tmp`)
  await writeFile(temporary, `${why}\n`, { mode: 0o600, flush: true })
  await rename(temporary, join(folder, `${name}.leave`))
}
