/** Single tasks as people look at them: rows of a list, and one task with its attempts. Reads only. */

import type { AttemptRef, CampaignId, StepName } from '../../shared/ids.ts'
import { TASK_STATE_CODE, type TaskState } from '../../shared/lifecycle.ts'
import { noResult } from '../../shared/no-result.ts'
import { unpack } from '../../shared/protocol/codec.ts'
import type { OutputRecord, Result } from '../../shared/protocol/messages.ts'
import { containsIndex, parseRanges, type Span } from '../../shared/ranges.ts'
import type { TaskRow, TaskView } from '../campaigns/model.ts'
import type { KnownCampaign, Plans } from './plans.ts'
import { readTaskRecord, stateAt } from './read.ts'
import type { Results } from './results.ts'
import type { Scripts } from './scripts.ts'

/** A page looks at so many tasks at most: a step may have ten million, and none of them fit. Even. */
const MOST_LOOKED_AT = 65_536
/** Tasks that are read together where only that tells whether they fit. */
const READ_TOGETHER = 4096

type Place = { step: string; index: number }
type Filter = { step?: string; state?: TaskState; site?: string }

interface Lease {
  site: string
  /** What runs where, as far as the holder said. */
  places: { node: string; spans: Span[] }[]
}

/** Tasks of a lease; sorted by the first where they are in a list. */
interface LeasedSpan {
  first: number
  last: number
  lease: Lease
}

/** Before the name of a node, in a leased bundle's record. */
const AT = 'at:'

export class Tasks {
  readonly #scripts: Scripts
  readonly #plans: Plans
  readonly #results: Results

  constructor(scripts: Scripts, plans: Plans, results: Results) {
    this.#scripts = scripts
    this.#plans = plans
    this.#results = results
  }

  /**
   * Rows in the order of steps and indices, from `from` on; `next` is where the following page begins. A page may have
   * fewer rows than `limit`, and none, before there is no next one.
   */
  async list(
    id: string,
    filter: Filter,
    from: Place | null,
    limit: number,
  ): Promise<{ rows: TaskRow[]; next: Place | null }> {
    const known = await this.#plans.get(id)
    const rows: TaskRow[] = []
    if (!known) return { rows, next: null }
    const names = known.plan.steps.map((step) => step.name)
    const first = from === null ? 0 : Math.max(0, names.indexOf(from.step as StepName))
    let lookedAt = 0
    for (const step of known.plan.steps.slice(first)) {
      if (filter.step !== undefined && filter.step !== step.name) continue
      let leases: LeasedSpan[] | undefined
      let index = from?.step === step.name ? from.index : 0
      while (index < step.size) {
        if (lookedAt >= MOST_LOOKED_AT) return { rows, next: { step: step.name, index } }
        const start = index - (index % 2)
        const bytes = await this.#scripts.redis.getrangeBuffer(
          `${known.base}:state:${id}:${step.name}`,
          start / 2,
          (start + MOST_LOOKED_AT) / 2 - 1,
        )
        const last = Math.min(step.size, start + MOST_LOOKED_AT, index + MOST_LOOKED_AT - lookedAt)
        const most = filter.site === undefined ? limit - rows.length + 1 : READ_TOGETHER
        const wanted: { index: number; state: TaskState }[] = []
        for (; index < last && wanted.length < most; index++, lookedAt++) {
          const code = filter.state === undefined ? undefined : TASK_STATE_CODE[filter.state]
          const state = stateAt(bytes, index - start)
          if (code === undefined || code === TASK_STATE_CODE[state]) wanted.push({ index, state })
        }
        if (wanted.some(({ state }) => state === 'assigned' || state === 'running')) {
          leases ??= await this.#leases(known, id, step.name)
        }
        for (const row of await this.#rows(known, id, step.name, wanted, leases ?? [])) {
          if (filter.site !== undefined && row.site !== filter.site) continue
          if (rows.length === limit) return { rows, next: { step: row.step, index: row.index } }
          rows.push(row)
        }
      }
    }
    return { rows, next: null }
  }

  async #rows(
    known: KnownCampaign,
    id: string,
    step: string,
    tasks: { index: number; state: TaskState }[],
    leases: LeasedSpan[],
  ): Promise<TaskRow[]> {
    if (tasks.length === 0) return []
    const done = tasks.filter(({ state }) => state === 'done').map(({ index }) => index)
    const [winners, records] = await Promise.all([
      this.#results.winners(id, step, done),
      this.#scripts.redis.hmgetBuffer(`${known.base}:tasks:${id}:${step}`, ...tasks.map(({ index }) => String(index))),
    ])
    return tasks.map(({ index, state }, i) => {
      const record = readTaskRecord(records[i])
      const winner = winners.get(index)
      const lease = state === 'assigned' || state === 'running' ? leaseOf(leases, index) : undefined
      return {
        step: step as StepName,
        index,
        state,
        attempts: (record?.attempts ?? 0) + (winner || state === 'running' ? 1 : 0),
        site: winner?.site ?? lease?.site ?? record?.site ?? null,
        node: winner?.node ?? (lease ? nodeOf(lease, index) : (record?.node ?? null)),
        reason: winner || state === 'done' ? null : ((record?.reason as TaskRow['reason']) ?? null),
      }
    })
  }

  async #leases(known: KnownCampaign, id: string, step: string): Promise<LeasedSpan[]> {
    const bundles = await this.#scripts.redis.smembers(`${known.base}:bundles:${id}:${step}`)
    const pipeline = this.#scripts.redis.pipeline()
    for (const bundle of bundles) pipeline.hgetall(`${known.base}:bundle:${bundle}`)
    const answers = (await pipeline.exec()) ?? []
    const spans = answers.flatMap(([, value]) => {
      const { state, remaining = '', site = '', ...others } = (value ?? {}) as Record<string, string>
      if (state !== 'leased') return []
      const places = Object.entries(others).flatMap(([field, tasks]) =>
        field.startsWith(AT) ? [{ node: field.slice(AT.length), spans: parseRanges(tasks) }] : [],
      )
      return parseRanges(remaining).map(([first, last]) => ({ first, last, lease: { site, places } }))
    })
    return spans.sort((one, other) => one.first - other.first)
  }

  /** Outputs of tasks of a step: a list for each index. */
  async outputs(id: string, step: string, indices: number[]): Promise<OutputRecord[][]> {
    const winners = await this.#results.winners(id, step, indices)
    return indices.map((index) => winners.get(index)?.outputs ?? [])
  }

  async one(id: string, step: string, index: number): Promise<TaskView | null> {
    const known = await this.#plans.step(id, step)
    if (!known || !(index >= 0 && index < known.step.size)) return null
    const { base } = known
    const byte = await this.#scripts.redis.getrangeBuffer(`${base}:state:${id}:${step}`, index >> 1, index >> 1)
    const state = stateAt(byte, index % 2)
    const leases = state === 'assigned' || state === 'running' ? await this.#leases(known, id, step) : []
    const [row] = await this.#rows(known, id, step, [{ index, state }], leases)
    const record = readTaskRecord(await this.#scripts.redis.hgetBuffer(`${base}:tasks:${id}:${step}`, String(index)))
    const fences = record?.fences ? record.fences.split(',') : []
    const entries =
      fences.length === 0
        ? []
        : await this.#scripts.redis.hmgetBuffer(
            `${base}:history:${id}:${step}`,
            ...fences.map((fence) => `${index}:${fence}`),
          )
    const ref = { campaign: id as CampaignId, step: step as StepName, index }
    const history = entries.flatMap((entry, at) =>
      entry ? [resultOf(ref, Number(fences[at]), unpack(entry.subarray(1)) as Partial<Result>)] : [],
    )
    const winner = state === 'done' ? await this.#results.winner(id, step, index) : null
    if (winner) history.push(winner)
    return {
      ...row!,
      campaign: ref.campaign,
      history,
      outputs: winner?.outputs ?? [],
      winner: winner ? (attemptOf(winner) as AttemptRef) : null,
    }
  }
}

/** The last that begins no later, where it has the task. */
function leaseOf(leases: readonly LeasedSpan[], index: number): Lease | undefined {
  let [low, high] = [0, leases.length - 1]
  while (low < high) {
    const middle = Math.ceil((low + high) / 2)
    if (leases[middle]!.first <= index) low = middle
    else high = middle - 1
  }
  const found = leases[low]
  return found && found.first <= index && index <= found.last ? found.lease : undefined
}

function nodeOf(lease: Lease, index: number): string | null {
  return lease.places.find(({ spans }) => containsIndex(spans, index))?.node ?? null
}

function attemptOf({ campaign, step, index, bundle, fences }: Result): Omit<AttemptRef, never> {
  return { campaign, step, index, bundle, fences } as AttemptRef
}

/** An attempt that nobody reported is known by little: its lease expired. What it shows is a result all the same. */
function resultOf(
  ref: { campaign: string; step: string; index: number },
  fence: number,
  known: Partial<Result>,
): Result {
  return {
    bundle: 'unknown',
    fences: [fence],
    ...noResult({ site: 'unknown', node: 'unknown', pilot: 'unknown' }),
    reason: null,
    ...known,
    ...ref,
  }
}
