/**
 * The immutable part of campaigns: plan, signed templates, table rows, in the blob store; here written once at
 * creation and read back through small caches. Nothing of it ever changes, so nothing is ever invalidated.
 */
import { promisify } from 'node:util'
import { deflateRaw, inflateRaw } from 'node:zlib'
import type { Redis } from 'ioredis'
import type { Digest } from '../../shared/ids.ts'
import type { Log } from '../../shared/log.ts'
import { pack, unpack } from '../../shared/protocol/codec.ts'
import type { Needs, Signed } from '../../shared/protocol/work.ts'
import { indices, parseRanges } from '../../shared/ranges.ts'
import { digestOf, type Signer } from '../../shared/signing.ts'
import type { BlobStore } from '../blobs.ts'
import type { CampaignPlan, StepPlan } from '../campaigns/model.ts'
import { storeRefusal } from '../redis.ts'
import { GLOBAL, groupBase } from './keys.ts'

type Row = Record<string, string>

const compress = promisify(deflateRaw)
const decompress = promisify(inflateRaw)
const ROWS_PER_BLOCK = 1000
/** A plan that could not be read is not asked for again before this. */
const UNREADABLE_MS = 5000

/** A step of a stored plan: rows went into blocks. */
export interface StoredStep extends Omit<StepPlan, 'rows'> {
  rowBlocks: Digest[] | null
  /** The largest row, bytes; 0 without a table. */
  rowBytesMax: number
  /** Digest of the signed template's bytes. */
  template16: string
  templateDigest: Digest
  /** The blob that holds the template with its signature. */
  templateBlob: Digest
}

export interface StoredPlan extends Omit<CampaignPlan, 'steps'> {
  steps: (Omit<StoredStep, 'template'> & { template: StepPlan['template'] })[]
}

/** A campaign that is known here: where it lives and what it is. */
export interface KnownCampaign {
  base: string
  plan: StoredPlan
}

export class Plans {
  readonly #redis: Redis
  readonly #blobs: BlobStore
  readonly #campaigns = new Map<string, KnownCampaign>()
  readonly #templates = new Map<Digest, Signed>()
  readonly #rows = new Map<Digest, Row[]>()
  readonly #log: Log
  /** Campaign -> when its plan could not be read, by performance.now(). */
  readonly #unreadable = new Map<string, number>()

  constructor(redis: Redis, blobs: BlobStore, log: Log) {
    this.#redis = redis
    this.#blobs = blobs
    this.#log = log
  }

  /** Writes all that is immutable of a new campaign. Idempotent. */
  async write(plan: CampaignPlan, signer: Signer): Promise<{ digest: Digest; stored: StoredPlan }> {
    const steps: StoredPlan['steps'] = []
    /** Steps that name the same table have the same list. */
    const written = new Map<Row[], Pick<StoredPlan['steps'][number], 'rowBlocks' | 'rowBytesMax'>>()
    for (const { rows, ...step } of plan.steps) {
      if (rows && !written.has(rows)) written.set(rows, await this.#writeRows(rows))
      const signed = signer.template(step.template)
      const templateDigest = digestOf(signed.bytes)
      steps.push({
        ...step,
        ...(rows ? written.get(rows)! : { rowBlocks: null, rowBytesMax: 0 }),
        templateDigest,
        template16: templateDigest.slice('sha256:'.length, 'sha256:'.length + 16),
        templateBlob: await this.#blobs.put(pack(signed)),
      })
    }
    const stored: StoredPlan = { ...plan, steps }
    return { digest: await this.#blobs.put(pack(stored)), stored }
  }

  async #writeRows(rows: Row[]): Promise<{ rowBlocks: Digest[]; rowBytesMax: number }> {
    const rowBlocks: Digest[] = []
    for (const block of chunks(rows, ROWS_PER_BLOCK)) rowBlocks.push(await this.#blobs.put(await compress(pack(block))))
    return { rowBlocks, rowBytesMax: Math.max(0, ...chunks(rows, ROWS_PER_BLOCK).map(largestRow)) }
  }

  /** Where a campaign lives, which is known without any of its blobs; null where no campaign of this id is. */
  async place(id: string): Promise<{ base: string; group: string } | null> {
    const group = this.#campaigns.get(id)?.plan.group ?? (await this.#redis.hget(GLOBAL.campaigns, id))
    return group === null ? null : { base: groupBase(group), group }
  }

  /** Null where no campaign of this id is known. */
  async get(id: string): Promise<KnownCampaign | null> {
    const cached = this.#campaigns.get(id)
    if (cached) return cached
    const group = await this.#redis.hget(GLOBAL.campaigns, id)
    if (group === null) return null
    const base = groupBase(group)
    const digest = await this.#redis.hget(`${base}:campaign:${id}`, 'plan')
    if (digest === null) return null
    const known = { base, plan: unpack(await this.#blobs.get(digest)) as StoredPlan }
    return remember(this.#campaigns, id, known, 1000)
  }

  /**
   * As get(), for who goes through many campaigns, and is not to be held up by one whose blob is gone: null for that one
   * too, which is said in the log. @throws where the store does not answer
   */
  async readable(id: string): Promise<KnownCampaign | null> {
    const failedAtMs = this.#unreadable.get(id)
    if (failedAtMs !== undefined && performance.now() - failedAtMs < UNREADABLE_MS) return null
    try {
      const known = await this.get(id)
      this.#unreadable.delete(id)
      return known
    } catch (error) {
      if (storeRefusal(error)) throw error
      this.#unreadable.set(id, performance.now())
      this.#log.error({ err: error, campaign: id }, 'campaign.unreadable')
      return null
    }
  }

  /** A step of what readable() gives. */
  async readableStep(id: string, name: string): ReturnType<Plans['step']> {
    return stepOf(await this.readable(id), name)
  }

  async step(id: string, name: string): Promise<{ base: string; plan: StoredPlan; step: StoredStep } | null> {
    return stepOf(await this.get(id), name)
  }

  async template(step: StoredStep): Promise<Signed> {
    const cached = this.#templates.get(step.templateBlob)
    if (cached) return cached
    const signed = unpack(await this.#blobs.get(step.templateBlob)) as Signed
    return remember(this.#templates, step.templateBlob, signed, 500)
  }

  /** One row per task of `tasks`, in order; null where the step has no table. */
  async rows(step: StoredStep, tasks: string): Promise<Row[] | null> {
    if (!step.rowBlocks) return null
    const rows: Row[] = []
    for (const index of indices(parseRanges(tasks))) {
      const block = await this.#rowBlock(step.rowBlocks[Math.floor(index / ROWS_PER_BLOCK)]!)
      rows.push(block[index % ROWS_PER_BLOCK]!)
    }
    return rows
  }

  async #rowBlock(digest: Digest): Promise<Row[]> {
    const cached = this.#rows.get(digest)
    if (cached) return cached
    return remember(this.#rows, digest, unpack(await decompress(await this.#blobs.get(digest))) as Row[], 64)
  }
}

/** The needs of a match class of a step. One class per step until retries may ask for more memory. */
export function needsOf(step: StoredStep, _matchClass: string): Needs {
  return step.needs
}

function stepOf(known: KnownCampaign | null, name: string) {
  const step = known?.plan.steps.find((candidate) => candidate.name === name)
  return known && step ? { ...known, step } : null
}

function largestRow(rows: Row[]): number {
  return Math.max(...rows.map((row) => pack(row).length))
}

function chunks<T>(list: T[], size: number): T[][] {
  return Array.from({ length: Math.ceil(list.length / size) }, (_, i) => list.slice(i * size, (i + 1) * size))
}

/** Keeps at most `limit`, dropping the oldest. */
function remember<K, V>(cache: Map<K, V>, key: K, value: V, limit: number): V {
  cache.set(key, value)
  if (cache.size > limit) cache.delete(cache.keys().next().value as K)
  return value
}
