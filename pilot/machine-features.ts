/**
 * Machine/Job Features (HSF-TN-2016-02): what a site says about this machine and this job, one value a key, below
 * $MACHINEFEATURES and $JOBFEATURES, each a folder or an http(s) address. A key that cannot be read is not said.
 */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'

const ASK_MS = 5000
/** More than any value of the note. */
const MOST_CHARACTERS = 64

/** @param source a folder or an address, without a slash at its end; null where the site sets none */
export async function readFeature(source: string | null, key: string): Promise<number | null> {
  if (source === null) return null
  const text = source.startsWith('/')
    ? await readFile(join(source, key), 'utf8').catch(() => '')
    : await ask(source, key)
  return text.length <= MOST_CHARACTERS && /^\d+(\.\d+)?\s*$/.test(text) ? Number(text) : null
}

/** Of a folder one after the other: where its file system hangs, one read does. */
async function readFeatures(source: string | null, keys: readonly string[]): Promise<(number | null)[]> {
  if (!source?.startsWith('/')) return await Promise.all(keys.map((key) => readFeature(source, key)))
  const values: (number | null)[] = []
  for (const key of keys) values.push(await readFeature(source, key))
  return values
}

/** Never cached: what is dynamic may appear and vanish. */
async function ask(source: string, key: string): Promise<string> {
  try {
    const reply = await fetch(`${source}/${key}`, {
      signal: AbortSignal.timeout(ASK_MS),
      headers: { accept: 'text/plain' },
    })
    return reply.ok ? await reply.text() : ''
  } catch {
    return ''
  }
}

export interface JobFeatures {
  cores: number | null
  memoryBytes: number | null
  scratchBytes: number | null
}

/** What this job was given, as far as the site says. */
export async function jobFeatures(source: string | null): Promise<JobFeatures> {
  const keys = ['allocated_cpu', 'max_rss_bytes', 'scratch_limit_bytes']
  const [cores, memoryBytes, scratchBytes] = await readFeatures(source, keys)
  return { cores: cores || null, memoryBytes: memoryBytes || null, scratchBytes: scratchBytes ?? null }
}

/** Ends in Unix seconds: of the wall and the CPU time of the job, of the job's slot, of the machine. */
export async function featureEnds(machine: string | null, job: string | null): Promise<number[]> {
  const keys = ['jobstart_secs', 'wall_limit_secs', 'cpu_limit_secs', 'allocated_cpu', 'shutdowntime_job']
  const [startS, wallS, cpuS, cores, jobEndS] = await readFeatures(job, keys)
  const ends = [jobEndS, await readFeature(machine, 'shutdowntime')]
  if (startS != null && wallS != null) ends.push(startS + wallS)
  // As if every processor were busy from the start: the limit can only come later.
  if (startS != null && cpuS != null && cores) ends.push(startS + cpuS / cores)
  return ends.filter((end): end is number => end != null)
}
