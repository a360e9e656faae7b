/**
 * Brings campaigns forward: cuts ready tasks and due retries into bundles, releases steps whose time has come, skips
 * those that can never run, cancels in bulk, and marks the end. Every function may be repeated and may die anywhere;
 * called by the background work, and by nothing else.
 */
import { failpoint } from '../../shared/failpoint.ts'
import { ENDED_TASK_STATES } from '../../shared/lifecycle.ts'
import type { Log } from '../../shared/log.ts'
import { chooseBundleSize } from '../matching/bundle-size.ts'
import type { Mark } from './mark.ts'
import type { MatchIndex } from './match-index.ts'
import type { KnownCampaign, Plans, StoredStep } from './plans.ts'
import { readCounts } from './read.ts'
import type { ScriptArgs, Scripts } from './scripts.ts'

/** Tasks that one release script makes ready: bounded, so that no script holds Redis for long. Even. */
const RELEASE_TASKS = 262_144
/** Bundles kept ready per queue: enough for a burst of pulls between two looks. */
const WINDOW = { least: 64, most: 1000 }

export interface ManifestWriter {
  /** Digests of the manifests a step's inputs need, by the input's position. */
  write(campaign: string, step: StoredStep): Promise<Record<string, string>>
}

export class Feeder {
  readonly #scripts: Scripts
  readonly #plans: Plans
  readonly #index: MatchIndex
  readonly #mark: Mark
  readonly #manifests: ManifestWriter
  readonly #log: Log
  /** `campaign|step` -> where its due retries are looked at next, while those before have full queues. */
  readonly #retriesFrom = new Map<string, number>()

  constructor(parts: {
    scripts: Scripts
    plans: Plans
    index: MatchIndex
    mark: Mark
    manifests: ManifestWriter
    log: Log
  }) {
    this.#scripts = parts.scripts
    this.#plans = parts.plans
    this.#index = parts.index
    this.#mark = parts.mark
    this.#manifests = parts.manifests
    this.#log = parts.log
  }

  /** Fills a step's queues up to their window, due retries first. Nothing new while the store is full. */
  async feed(campaign: string, stepName: string): Promise<void> {
    const known = await this.#plans.step(campaign, stepName)
    if (!known || (await this.#mark.isFull())) return
    const { base, step } = known
    const [counts, walls, slots] = await Promise.all([
      readCounts(this.#scripts.redis, base, campaign, stepName),
      this.#scripts.redis.hmget(`${base}:step:${campaign}:${stepName}`, 'wallMs', 'wallCount'),
      this.#index.slots(step.needs),
    ])
    if (counts.queued === 0) return
    const wallCount = Number(walls[1] ?? 0)
    const mean = wallCount > 0 ? Number(walls[0]) / wallCount : null
    const size = chooseBundleSize(mean, counts.queued, slots, step.rowBytesMax)
    const window = Math.min(WINDOW.most, Math.max(WINDOW.least, Math.ceil((2 * slots) / size)))
    const args = { campaign, step: stepName, class: step.matchClass, size, window }
    await this.#feedRetries(base, args)
    failpoint('retries.fed')
    await this.#scripts.run('feed', base, args)
  }

  async #feedRetries(base: string, args: { campaign: string; step: string } & ScriptArgs): Promise<void> {
    const name = `${args.campaign}|${args.step}`
    const answer = await this.#scripts.run<{ outcome: number; from?: number }>('feed-retries', base, {
      ...args,
      from: this.#retriesFrom.get(name) ?? 0,
    })
    if (answer.from) this.#retriesFrom.set(name, answer.from)
    else this.#retriesFrom.delete(name)
  }

  /** Looks at every step of a campaign and does what is due. Returns false where the campaign is over. */
  async advance(campaign: string): Promise<boolean> {
    const known = await this.#plans.get(campaign)
    if (!known) return false
    const { base, plan } = known
    const [desired, ended] = await this.#scripts.redis.hmget(`${base}:campaign:${campaign}`, 'desired', 'endedMs')
    if (ended) return false
    for (let changed = true; changed; ) {
      changed = false
      for (const step of plan.steps) {
        if (desired === 'cancelled') await this.#settle(base, campaign, step, 'cancel')
        else changed = (await this.#advanceStep(known, campaign, step)) || changed
      }
    }
    return this.#endIfOver(known, campaign)
  }

  /** Releases or skips one step if everything before it is over. True where something changed. */
  async #advanceStep(known: KnownCampaign, campaign: string, step: StoredStep): Promise<boolean> {
    const { base, plan } = known
    const released = await this.#scripts.redis.hget(`${base}:step:${campaign}:${step.name}`, 'released')
    if (released === '1') return false
    let isReached = true
    let isOver = true
    for (const after of step.after) {
      const before = plan.steps.find((candidate) => candidate.name === after.step)
      const counts = await readCounts(this.#scripts.redis, base, campaign, after.step)
      const over = ENDED_TASK_STATES.reduce((sum, state) => sum + counts[state], 0)
      if (!before || over < before.size) isOver = false
      if (!before) break
      if (counts.done < Math.ceil(after.accept * before.size - 1e-9)) isReached = false
    }
    if (released === 'skipped' && isOver && !isReached) {
      await this.#settle(base, campaign, step, 'skip')
      return false
    }
    // Something before it was retried, or ended well after all.
    if (released === 'skipped' || released === 'reopening') return this.#reopen(base, campaign, step)
    if (!isOver) return false
    if (isReached) return this.#release(base, campaign, step)
    this.#log.warn({ campaign, step: step.name }, 'step.skipped')
    await this.#settle(base, campaign, step, 'skip')
    return true
  }

  async #release(base: string, campaign: string, step: StoredStep): Promise<boolean> {
    const manifests = JSON.stringify(await this.#manifests.write(campaign, step))
    failpoint('step.prepared')
    for (let first = 0; first < step.size; first += RELEASE_TASKS) {
      const last = Math.min(step.size, first + RELEASE_TASKS) - 1
      const answer = await this.#scripts.run('release', base, {
        campaign,
        step: step.name,
        first,
        last,
        complete: last === step.size - 1,
        manifests,
      })
      if (answer.outcome !== 1) return false
      failpoint('step.partReleased')
      // The first bundles need not wait for the last million tasks.
      await this.feed(campaign, step.name)
    }
    this.#log.info({ campaign, step: step.name, tasks: step.size }, 'step.released')
    return true
  }

  async #reopen(base: string, campaign: string, step: StoredStep): Promise<boolean> {
    for (let cursor = 0, more = true; more; ) {
      const answer = await this.#scripts.run<{ outcome: number; more?: boolean; cursor?: number }>('reopen', base, {
        campaign,
        step: step.name,
        size: step.size,
        cursor,
      })
      if (answer.outcome !== 1) return false
      more = answer.more === true
      cursor = answer.cursor ?? 0
    }
    this.#log.info({ campaign, step: step.name }, 'step.reopened')
    return true
  }

  async #settle(base: string, campaign: string, step: StoredStep, mode: 'skip' | 'cancel'): Promise<void> {
    for (let cursor = 0, more = true; more; ) {
      const answer = await this.#scripts.run<{ outcome: number; more?: boolean; cursor?: number }>('settle', base, {
        campaign,
        step: step.name,
        size: step.size,
        mode,
        cursor,
      })
      if (mode === 'cancel') failpoint('campaign.partCancelled')
      more = answer.outcome === 1 && answer.more === true
      cursor = answer.cursor ?? 0
    }
  }

  async #endIfOver(known: KnownCampaign, campaign: string): Promise<boolean> {
    const { base, plan } = known
    const steps = plan.steps.map((step) => step.name)
    const answer = await this.#scripts.run('end', base, { campaign, steps })
    if (answer.outcome === 1) this.#log.info({ campaign, name: plan.name }, 'campaign.ended')
    return answer.outcome === 3
  }
}
