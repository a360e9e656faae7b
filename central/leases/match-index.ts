/**
 * What matching looks at: the non-empty queues of every group with the needs, limits and shares that belong to them,
 * and the sites that are there now. Read from Redis at most every few milliseconds, whoever asks.
 */
import type { Clock } from '../../shared/clock.ts'
import { tasksPerShape, unmetNeeds } from '../../shared/fit.ts'
import type { Needs } from '../../shared/protocol/work.ts'
import { BANS } from '../bans.ts'
import type { QueueEntry, Share } from '../matching/choose.ts'
import { GLOBAL, groupBase, parseQueueName } from './keys.ts'
import { needsOf, type Plans } from './plans.ts'
import type { Scripts } from './scripts.ts'
import type { SessionRecord, Sessions } from './sessions.ts'

const QUEUES_MAX_AGE_MS = 20
const SITES_MAX_AGE_MS = 1000

export interface Queues {
  entries: QueueEntry[]
  shares: Map<string, Share>
}

export class MatchIndex {
  readonly #scripts: Scripts
  readonly #plans: Plans
  readonly #sessions: Sessions
  readonly #clock: Clock
  #queues: { atMs: number; value: Promise<Queues> } | undefined
  #sites: { atMs: number; value: Promise<SessionRecord[]> } | undefined

  constructor(scripts: Scripts, plans: Plans, sessions: Sessions, clock: Clock) {
    this.#scripts = scripts
    this.#plans = plans
    this.#sessions = sessions
    this.#clock = clock
  }

  /** Something was granted or became grantable. */
  forget(): void {
    this.#queues = undefined
  }

  queues(): Promise<Queues> {
    const now = this.#clock.monotonicMs()
    if (!this.#queues || now - this.#queues.atMs > QUEUES_MAX_AGE_MS) {
      const value = this.#readQueues()
      this.#queues = { atMs: now, value }
      value.catch(() => this.forget())
    }
    return this.#queues.value
  }

  /** Sessions that are there now. */
  live(): Promise<SessionRecord[]> {
    const now = this.#clock.monotonicMs()
    if (!this.#sites || now - this.#sites.atMs > SITES_MAX_AGE_MS) {
      const value = this.#sessions.listed().then((list) => list.filter((one) => one.state === 'active'))
      this.#sites = { atMs: now, value }
      value.catch(() => {
        this.#sites = undefined
      })
    }
    return this.#sites.value
  }

  /** How many tasks of these needs could run at once on the nodes that are known. */
  async slots(needs: Needs): Promise<number> {
    let slots = 0
    for (const session of await this.live()) {
      const nodes = Math.max(1, session.gauges.pilots ?? 1)
      const best = Math.max(0, ...session.nodes.map((node) => tasksPerShape(needs, node)))
      slots += session.role === 'relay' ? nodes * best : best
    }
    return slots
  }

  async #readQueues(): Promise<Queues> {
    const entries: QueueEntry[] = []
    const shares = new Map<string, Share>()
    const banned = new Set(await this.#scripts.redis.hkeys(BANS))
    for (const group of await this.#scripts.redis.smembers(GLOBAL.groups)) {
      const base = groupBase(group)
      const names = await this.#scripts.redis.smembers(`${base}:queues`)
      if (names.length === 0) continue
      const [limits, use] = await Promise.all([
        this.#scripts.redis.hgetall(`${base}:limits`),
        this.#scripts.redis.hgetall(`${base}:use`),
      ])
      let leasedCores = 0
      for (const name of names) {
        const entry = await this.#readQueue(group, base, name, limits, use)
        if (entry && !(await this.#isOf(banned, entry.campaign))) entries.push(entry)
      }
      for (const [name, tasks] of Object.entries(use)) {
        if (!name.startsWith('leased:') || Number(tasks) === 0) continue
        const plan = (await this.#plans.readable(name.slice('leased:'.length)))?.plan
        leasedCores += Number(tasks) * (plan ? Math.max(...plan.steps.map((step) => step.needs.cores)) : 1)
      }
      shares.set(group, { leasedCores, weight: Number(limits.share ?? 1) })
    }
    return { entries, shares }
  }

  async #isOf(subjects: ReadonlySet<string>, campaign: string): Promise<boolean> {
    return subjects.size > 0 && subjects.has((await this.#plans.readable(campaign))?.plan.subject ?? '')
  }

  async #readQueue(
    group: string,
    base: string,
    name: string,
    limits: Record<string, string>,
    use: Record<string, string>,
  ): Promise<QueueEntry | null> {
    const { campaign, step: stepName, matchClass, avoid } = parseQueueName(name)
    const known = await this.#plans.readableStep(campaign, stepName)
    if (!known) return null
    const { redis } = this.#scripts
    const [bundles, first, fields, walls, queued, refused] = await Promise.all([
      redis.zcard(`${base}:queue:${name}`),
      redis.zrange(`${base}:queue:${name}`, '0', '0', 'WITHSCORES'),
      redis.hmget(`${base}:campaign:${campaign}`, 'desired', 'maxRunning', 'createdMs'),
      redis.hmget(`${base}:step:${campaign}:${stepName}`, 'wallMs', 'wallCount'),
      redis.hget(`${base}:counts:${campaign}:${stepName}`, 'queued'),
      redis.hgetall(`${base}:refused:${campaign}:${stepName}`),
    ])
    const [desired, maxRunning, createdMs] = fields
    if (bundles === 0 || desired !== 'run') return null
    const [wallMs, wallCount] = walls.map((value) => Number(value ?? 0)) as [number, number]
    const ofCampaign = maxRunning ? Number(maxRunning) - Number(use[`leased:${campaign}`] ?? 0) : Infinity
    const ofGroup = limits.maxRunning ? Number(limits.maxRunning) - Number(use.leased ?? 0) : Infinity
    return {
      group,
      campaign,
      step: stepName,
      matchClass,
      avoid,
      avoidUntilMs: avoid === '' ? 0 : scoreOf(first),
      refused: refusedUntil(refused),
      needs: needsOf(known.step, matchClass),
      priority: known.plan.priority,
      createdMs: Number(createdMs ?? 0),
      // One task a bundle until run times are known; afterwards what is queued is the only bound.
      tasks: wallCount > 0 ? Number(queued ?? 0) : Math.min(bundles, Number(queued ?? 0)),
      remaining: Number(queued ?? 0),
      meanWallMs: wallCount > 0 ? wallMs / wallCount : null,
      room: Math.min(ofCampaign, ofGroup),
    }
  }
}

/** As noteRefusal in scripts/prelude.lua keeps them; none counts while no site is left that has not refused. */
function refusedUntil(fields: Record<string, string>): Map<string, number> {
  if ('*' in fields) return new Map()
  return new Map(Object.entries(fields).map(([site, text]) => [site, Number.parseInt(text, 10)]))
}

/** The score of a ZRANGE ... WITHSCORES of one; flat or in pairs, as the protocol version has it. */
function scoreOf(answer: unknown): number {
  return Number((answer as unknown[]).flat()[1] ?? 0)
}

/** Whether any of these sessions' nodes fits. */
export function anyFits(sessions: readonly SessionRecord[], needs: Needs): boolean {
  return sessions.some((session) => session.nodes.some((node) => unmetNeeds(needs, node, node.timeLeftMs).length === 0))
}
