/** Small reads of the store that several parts need; no decisions, no writes. */
import type { Redis } from 'ioredis'
import { type Counts, emptyCounts, TASK_STATES, type TaskState } from '../../shared/lifecycle.ts'
import { unpack } from '../../shared/protocol/codec.ts'

export async function readCounts(redis: Redis, base: string, campaign: string, step: string): Promise<Counts> {
  return countsOf(await redis.hgetall(`${base}:counts:${campaign}:${step}`))
}

/** As the store keeps them: a state without tasks may be missing. */
export function countsOf(fields: Record<string, string>): Counts {
  const counts = emptyCounts()
  for (const state of TASK_STATES) counts[state] = Number(fields[state] ?? 0)
  return counts
}

/** The state of the task at `offset` within a piece of a state string: four bits each, high half first. */
export function stateAt(bytes: Uint8Array, offset: number): TaskState {
  const byte = bytes[offset >> 1] ?? 0
  return TASK_STATES[offset % 2 === 0 ? byte >> 4 : byte & 15]!
}

/** What is kept of a task that had an error or moved between bundles; written by the scripts. */
export interface TaskRecord {
  attempts: number
  payload: number
  infrastructure: number
  /** Fences of its ended attempts, separated by commas. */
  fences: string
  reason?: string
  site?: string
  node?: string
  bundle?: string
}

export function readTaskRecord(bytes: Uint8Array | null | undefined): TaskRecord | null {
  return bytes ? (unpack(bytes) as TaskRecord) : null
}
