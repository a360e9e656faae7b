/**
 * Reads what trace.ts wrote, for the question a security officer asks: whose payload ran on this node at this time. Needs
 * no dispatcher and no pilot: only the files.
 */
import { createReadStream } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { traceFiles } from './trace.ts'

const DAY_MS = 86_400_000
/** A payload that runs at some time was started at most so long before. */
const LONGEST_MS = 14 * DAY_MS

export interface TraceQuestion {
  /** All nodes where not given. */
  node?: string | undefined
  /** Milliseconds since 1970; everything that is kept where not given. */
  atMs?: number | undefined
  subject?: string | undefined
  campaign?: string | undefined
}

export interface TracedPayload {
  node: string
  pilot: string
  /** `<campaign id>/<step>/<index>`, and the fences of the attempt. */
  task: string
  attempt: string
  campaign: string
  group: string
  /** Who vouched for the subject; null from centres that do not say. */
  issuer: string | null
  subject: string
  image: string
  /** `sha256:...`; null for the host, for unpacked folders, and where the pilot did not live to compute it. */
  digest: string | null
  pid: number | null
  startedAt: string
  /** Null where no end was written: it runs, or its pilot died with it. */
  endedAt: string | null
  exitCode: number | null
  reason: string | null
}

type Line = Record<string, unknown> & { at: string; event: string }

/** In the order of their starts. @throws Error where the folder cannot be read */
export async function readTrace(folder: string, question: TraceQuestion): Promise<TracedPayload[]> {
  const { atMs } = question
  const files = traceFiles(await readdir(folder)).filter(
    ({ dayMs }) => atMs === undefined || (dayMs <= atMs && dayMs >= atMs - LONGEST_MS - DAY_MS),
  )
  const found = new Map<string, TracedPayload>()
  const digests = new Map<string, string>()
  // Ends may stand in the file of a later day.
  const lastDayMs = Math.max(...files.map(({ dayMs }) => dayMs), 0)
  const later = traceFiles(await readdir(folder)).filter(
    ({ dayMs }) => atMs !== undefined && dayMs > lastDayMs && dayMs <= atMs + LONGEST_MS + DAY_MS,
  )
  for (const { name } of [...files, ...later]) {
    for await (const line of linesOf(join(folder, name))) {
      if (line.event === 'image') digests.set(String(line.image), String(line.digest))
      else if (line.event === 'started' && isMeant(line, question)) found.set(keyOf(line), payloadOf(line))
      else if (line.event === 'ended') {
        const payload = found.get(keyOf(line))
        if (!payload) continue
        payload.endedAt = line.at
        payload.exitCode = typeof line.exitCode === 'number' ? line.exitCode : null
        payload.reason = typeof line.reason === 'string' ? line.reason : null
      }
    }
  }
  const payloads = [...found.values()].filter(
    ({ endedAt }) => atMs === undefined || endedAt === null || Date.parse(endedAt) >= atMs,
  )
  for (const payload of payloads) payload.digest ??= digests.get(payload.image) ?? null
  return payloads.sort((a, b) => (a.startedAt < b.startedAt ? -1 : 1))
}

function isMeant(line: Line, { node, atMs, subject, campaign }: TraceQuestion): boolean {
  return (
    (node === undefined || line.node === node) &&
    (subject === undefined || line.subject === subject) &&
    (campaign === undefined || line.campaign === campaign || String(line.task).startsWith(`${campaign}/`)) &&
    (atMs === undefined || Date.parse(line.at) <= atMs)
  )
}

/** The same attempt never runs twice, and pids alone would come again. */
function keyOf(line: Line): string {
  return `${line.pilot} ${line.task} ${line.attempt}`
}

function payloadOf(line: Line): TracedPayload {
  const text = (name: string) => (typeof line[name] === 'string' ? line[name] : '')
  return {
    node: text('node'),
    pilot: text('pilot'),
    task: text('task'),
    attempt: text('attempt'),
    campaign: text('campaign'),
    group: text('group'),
    issuer: text('issuer') || null,
    subject: text('subject'),
    image: text('image'),
    digest: text('digest') || null,
    pid: typeof line.pid === 'number' ? line.pid : null,
    startedAt: line.at,
    endedAt: null,
    exitCode: null,
    reason: null,
  }
}

/** What is no line of ours (the half of one that a crash left) is passed over. */
async function* linesOf(path: string): AsyncGenerator<Line> {
  for await (const text of createInterface({
    input: createReadStream(path, 'utf8'),
    crlfDelay: Number.POSITIVE_INFINITY,
  })) {
    try {
      const line = JSON.parse(text) as Line
      if (typeof line?.at === 'string' && typeof line.event === 'string') yield line
    } catch {
      // See above.
    }
  }
}
