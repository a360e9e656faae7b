/**
 * Judging results: each is durable and has a verdict when judge() resolves. One script call per group and message.
 * Also reads results back, from Redis or, once compacted, from the blob store.
 */
import { promisify } from 'node:util'
import { inflateRaw } from 'node:zlib'
import { failpoint } from '../../shared/failpoint.ts'
import { isForeign } from '../../shared/files/attempt-files.ts'
import type { Log } from '../../shared/log.ts'
import { pack, unpack } from '../../shared/protocol/codec.ts'
import type { OutputRecord, Result, Verdict } from '../../shared/protocol/messages.ts'
import type { Needs } from '../../shared/protocol/work.ts'
import type { BlobStore } from '../blobs.ts'
import { storeRefusal } from '../redis.ts'
import { parseStepName } from './keys.ts'
import type { Feeding } from './leases.ts'
import { NAMED_KEPT, namedFences } from './named.ts'
import type { StoreEvents } from './options.ts'
import type { Plans, StoredStep } from './plans.ts'
import { failureRules, isPolicy, RETRIES_UNKNOWN, reasonOf, refusedRules } from './retries.ts'
import type { Scripts } from './scripts.ts'
import type { Sessions } from './sessions.ts'

const decompress = promisify(inflateRaw)
/** Tasks whose results are compacted together. */
export const BLOCK_TASKS = 256

const LONGEST_MS = 366 * 24 * 3_600_000
const MOST_CORES = 100_000

/** A compacted block: index -> the winning result. */
export type ResultBlock = Record<string, Result>

interface Judged {
  outcome: number
  verdicts: (Verdict['verdict'] | 'done')[]
  ended: string[]
  retries: string[]
  orders: {
    session: string
    site: string
    bundle: string
    fence: string
    campaign: string
    step: string
    index: number
  }[]
}

interface Entry {
  at: number
  /** Null where its campaign cannot be read. */
  step: StoredStep | null
  group: string
}

export class Results {
  readonly #scripts: Scripts
  readonly #plans: Plans
  readonly #blobs: BlobStore
  readonly #sessions: Sessions
  readonly #sitesFor: (needs: Needs) => Promise<string[]>
  readonly #feeding: Feeding & { want(job: 'publish', campaign: string, step: string): void }
  readonly #log: Log
  readonly #scale: number
  readonly #events: StoreEvents

  constructor(parts: {
    scripts: Scripts
    plans: Plans
    blobs: BlobStore
    sessions: Sessions
    /** Sites that may run a step, for all that is known. */
    sitesFor: (needs: Needs) => Promise<string[]>
    feeding: Feeding & { want(job: 'publish', campaign: string, step: string): void }
    log: Log
    timeScale: number
    events: StoreEvents
  }) {
    this.#scripts = parts.scripts
    this.#plans = parts.plans
    this.#blobs = parts.blobs
    this.#sessions = parts.sessions
    this.#sitesFor = parts.sitesFor
    this.#feeding = parts.feeding
    this.#log = parts.log
    this.#scale = parts.timeScale
    this.#events = parts.events
  }

  /**
   * Verdicts in the order of the results. `site` is who the link proves to have sent them. One that cannot be judged now
   * (a blob of its campaign is gone) has no verdict, and is to be sent again: it must not hold up the others.
   */
  async judge(site: string, reported: Result[]): Promise<Verdict[]> {
    const results = reported.map((result) => plausible(site, result))
    const verdicts: (Verdict['verdict'] | null)[] = new Array(results.length).fill('refused')
    const byBase = new Map<string, Entry[]>()
    for (const [at, { campaign, step }] of results.entries()) {
      const place = await this.#plans.place(campaign)
      if (!place) continue
      if (this.#isForeign(site, results[at]!, place.group)) continue
      const known = await this.#plans.readableStep(campaign, step)
      const list = byBase.get(place.base) ?? []
      list.push({ at, step: known?.step ?? null, group: place.group })
      byBase.set(place.base, list)
    }
    for (const [base, list] of byBase) {
      const sites = await this.#sitesLeft(results, list)
      const answer = await this.#scripts.run<Judged>(
        'finish',
        base,
        {
          site,
          results: list.map(({ at, step }) => this.#scriptResult(site, results[at]!, step, sites)),
          namedMs: NAMED_KEPT.ms,
          namedMost: NAMED_KEPT.most,
        },
        list.map(({ at }) => pack(results[at]!)),
      )
      failpoint('results.persisted')
      for (const [i, { at, group }] of list.entries()) {
        const result = results[at]!
        const verdict = answer.verdicts[i]!
        verdicts[at] = verdict === 'done' ? await this.#compareWithWinner(result) : verdict
        if (verdicts[at] === null) continue
        this.#events.onVerdict?.(verdicts[at]!, result.end, group)
        if (verdict === 'accepted' && result.outputs.some((output) => mustPublish(output.url, result))) {
          this.#feeding.want('publish', result.campaign, result.step)
        }
        this.#logResult(result, verdicts[at]!)
      }
      await this.#followUp(answer)
    }
    return results.flatMap(({ campaign, step, index, fences }, at) => {
      const verdict = verdicts[at]!
      return verdict === null ? [] : [{ campaign, step, index, fences, verdict }]
    })
  }

  /**
   * Whether a result names a file that is not its attempt's own: what it names is given to the readers of its campaign and
   * fetched by the sites of later steps.
   */
  #isForeign(site: string, result: Result, group: string): boolean {
    const foreign = result.outputs.find((output) => !isOwn(result, output))
    if (!foreign) return false
    this.#events.onVerdict?.('refused', result.end, group)
    const { campaign, step, index, fences } = result
    const task = `${campaign}/${step}/${index}`
    this.#log.warn({ site, task, attempt: fences.join('.'), output: foreign.url }, 'output.foreign')
    return true
  }

  /** Of steps that the site's policy refused: which sites may run them. */
  async #sitesLeft(results: readonly Result[], list: readonly Entry[]): Promise<Map<StoredStep, string[]>> {
    const sites = new Map<StoredStep, string[]>()
    for (const { at, step } of list) {
      if (step && isPolicy(results[at]!) && !sites.has(step)) sites.set(step, await this.#sitesFor(step.needs))
    }
    return sites
  }

  #scriptResult(site: string, result: Result, step: StoredStep | null, sites: ReadonlyMap<StoredStep, string[]>) {
    const rules = failureRules(step?.retries ?? RETRIES_UNKNOWN, this.#scale, result)
    const left = step && isPolicy(result) ? sites.get(step) : undefined
    return {
      campaign: result.campaign,
      step: result.step,
      index: result.index,
      bundle: result.bundle,
      fence: String(result.fences[0]),
      done: result.end === 'done',
      wallMs: result.wallMs,
      publish: result.end === 'done' && result.outputs.some((output) => mustPublish(output.url, result)),
      named: namedFences(result),
      reason: reasonOf(result),
      detail: detailOf(result),
      rules: left ? refusedRules(rules, this.#scale, site, left) : rules,
    }
  }

  async #followUp(answer: Judged): Promise<void> {
    for (const name of answer.ended) {
      const { campaign, step } = parseStepName(name)
      this.#feeding.want('release', campaign, step)
    }
    for (const order of answer.orders) {
      const { campaign, step, index, bundle } = order
      await this.#sessions.order(order.site, order.session, {
        kind: 'attempt.cancel',
        attempt: { campaign, step, index, bundle, fences: [Number(order.fence)] },
      })
    }
  }

  /**
   * The task is done: by this attempt (a repeat), or by another one, which may have been under the same lease of ours: a
   * relay has fences of its own. Null where the winner cannot be read.
   */
  async #compareWithWinner(result: Result): Promise<'duplicate' | 'stale' | null> {
    const { campaign, step, index, end, fences } = result
    if (end === 'failed') return 'stale'
    try {
      const winner = await this.winner(campaign, step, index)
      return winner?.fences.join() === fences.join() ? 'duplicate' : 'stale'
    } catch (error) {
      if (storeRefusal(error)) throw error
      this.#log.error({ err: error, task: `${campaign}/${step}/${index}` }, 'result.notJudged')
      return null
    }
  }

  #logResult(result: Result, verdict: Verdict['verdict']): void {
    const { campaign, step, index, fences, site, node, pilot, reason, detail } = result
    const line = {
      campaign,
      task: `${campaign}/${step}/${index}`,
      attempt: fences.join('.'),
      site,
      node,
      pilot,
      verdict,
    }
    if (result.end === 'done') this.#log.debug(line, 'task.finished')
    else this.#log.info({ ...line, reason, detail }, 'task.failed')
  }

  /** The winning result of a task, or null. */
  async winner(campaign: string, step: string, index: number): Promise<Result | null> {
    return (await this.winners(campaign, step, [index])).get(index) ?? null
  }

  /** Winning results of any tasks of a step. */
  async winners(campaign: string, step: string, indices: number[]): Promise<Map<number, Result>> {
    const found = new Map<number, Result>()
    const known = await this.#plans.place(campaign)
    if (!known || indices.length === 0) return found
    const key = `${known.base}:results:${campaign}:${step}`
    const missing = new Map<number, number[]>()
    for (let first = 0; first < indices.length; first += 1000) {
      const part = indices.slice(first, first + 1000)
      const packed = await this.#scripts.redis.hmgetBuffer(key, ...part.map(String))
      for (const [i, index] of part.entries()) {
        const bytes = packed[i]
        if (bytes) found.set(index, unpack(bytes) as Result)
        else
          missing.set(Math.floor(index / BLOCK_TASKS), [...(missing.get(Math.floor(index / BLOCK_TASKS)) ?? []), index])
      }
    }
    for (const [block, wanted] of missing) {
      const digest = await this.#scripts.redis.hget(`${known.base}:blocks:${campaign}:${step}`, String(block))
      if (!digest) continue
      const results = await this.readBlock(digest)
      for (const index of wanted) if (results[index]) found.set(index, results[index])
    }
    return found
  }

  async readBlock(digest: string): Promise<ResultBlock> {
    return unpack(await decompress(await this.#blobs.get(digest))) as ResultBlock
  }
}

/** Whether the centre has to give an output its final name: what it keeps, and files of pilots without a relay. */
export function mustPublish(url: string, result: Pick<Result, 'fences'>): boolean {
  if (url.startsWith('store:')) return true
  return result.fences.length === 1 && url.startsWith('file://') && url.endsWith(`.attempt-${result.fences[0]}`)
}

/**
 * Whether an output is where its attempt puts it. Pilots put them nowhere else: at the dispatcher, or on a shared file
 * system beside the final name.
 */
export function isOwn(result: Result, output: Pick<OutputRecord, 'path' | 'url'>): boolean {
  if (output.url.startsWith('store:')) return !isForeign(result, output)
  return output.url.startsWith('file://') && output.url.endsWith(`.attempt-${result.fences.join('-')}`)
}

/**
 * From the site that sent it, whatever it says: a site blames no other. And with no time beyond what any attempt can take:
 * times are added up, and a sum that ran over stays wrong.
 */
function plausible(site: string, result: Result): Result {
  const atMost = (ms: number) => Math.min(ms, LONGEST_MS)
  const cpuMs = Math.min(result.cpuMs, LONGEST_MS * MOST_CORES)
  const { wallMs, stageInMs, stageOutMs } = result
  const times = { wallMs: atMost(wallMs), cpuMs, stageInMs: atMost(stageInMs), stageOutMs: atMost(stageOutMs) }
  return { ...result, ...times, site }
}

/** What failures are told apart by, beside their reason. */
function detailOf(result: Result): string {
  if (isPolicy(result)) return `at ${result.site}`
  if (result.reason === 'payload.exit' && result.exitCode !== null) return `exit ${result.exitCode}`
  if (result.reason === 'payload.signal' && result.signal) return result.signal
  return ''
}
