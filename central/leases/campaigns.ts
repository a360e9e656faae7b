/** Campaigns as wholes: created once, listed, found, paused and cancelled. The tasks' own states are tasks.ts. */

import type { ErrorCode } from '../../shared/errors.ts'
import { IndraftError } from '../../shared/errors.ts'
import { failpoint } from '../../shared/failpoint.ts'
import { campaignState, type DesiredState, desiredTable, isCampaignOver, sumCounts } from '../../shared/lifecycle.ts'
import type { Log } from '../../shared/log.ts'
import type { Signer } from '../../shared/signing.ts'
import type { CampaignPlan, CampaignView, RetryRequest, StepView } from '../campaigns/model.ts'
import { ALL_GROUPS } from '../people.ts'
import { GLOBAL, groupBase } from './keys.ts'
import type { Feeding } from './leases.ts'
import type { Mark } from './mark.ts'
import type { KnownCampaign, Plans } from './plans.ts'
import { readCounts } from './read.ts'
import type { Scripts } from './scripts.ts'

export interface CampaignsParts {
  scripts: Scripts
  plans: Plans
  mark: Mark
  signer: Signer
  log: Log
  feeding: Feeding & { want(job: 'expand', campaign: string, step: string): void }
}

export class Campaigns {
  readonly #parts: CampaignsParts

  constructor(parts: CampaignsParts) {
    this.#parts = parts
  }

  /** Blobs first, then the indexes, then the script that makes it exist. @throws campaign.conflict | store.full */
  async create(plan: CampaignPlan): Promise<{ created: boolean }> {
    const { scripts, plans, mark, signer, feeding, log } = this.#parts
    if (await mark.isFull()) throw new IndraftError('store.full', undefined, { retryAfterMs: 60_000 })
    const { digest } = await plans.write(plan, signer)
    failpoint('campaign.written')
    await scripts.redis.sadd(GLOBAL.groups, plan.group)
    // Never moved: results of a campaign find their group by it, and whoever looks long enough finds a name of the same id.
    await scripts.redis.hsetnx(GLOBAL.campaigns, plan.id, plan.group)
    if ((await scripts.redis.hget(GLOBAL.campaigns, plan.id)) !== plan.group) {
      const why = `the id of "${plan.name}" in ${plan.group}, ${plan.id}, is that of a campaign of another group`
      throw new IndraftError('campaign.conflict', `${why}: choose another name`)
    }
    const answer = await scripts.run('create', groupBase(plan.group), {
      id: plan.id,
      name: plan.name,
      digest: plan.digest,
      fields: {
        plan: digest,
        name: plan.name,
        ...(plan.maxRunning === null ? {} : { maxRunning: String(plan.maxRunning) }),
      },
      steps: plan.steps.map((step) => ({ name: step.name, size: step.size, fields: {} })),
    })
    if (answer.outcome === 3) {
      throw new IndraftError('campaign.conflict', `${plan.name} exists in ${plan.group} with other content`)
    }
    failpoint('campaign.created')
    await mark.advance()
    feeding.want('expand', plan.id, '')
    const created = answer.outcome === 1
    if (created) log.info({ campaign: plan.id, name: plan.name, group: plan.group }, 'campaign.created')
    return { created }
  }

  async list(groups: readonly string[]): Promise<CampaignView[]> {
    const views: CampaignView[] = []
    for (const group of await this.#named(groups)) {
      for (const id of await this.#parts.scripts.redis.zrevrange(`${groupBase(group)}:campaigns`, '0', '-1')) {
        const known = await this.#parts.plans.readable(id)
        if (known) views.push(await this.#viewOf(known))
      }
    }
    return views.sort((a, b) => b.createdAtMs - a.createdAtMs)
  }

  /**
   * By id, by `/group/name`, or by name within any of the groups; null also where the id is of another group.
   * @throws IndraftError request.ambiguous where several groups have a campaign of that name
   */
  async find(nameOrId: string, groups: readonly string[]): Promise<CampaignView | null> {
    const byId = await this.view(nameOrId)
    if (byId) return groups.includes(byId.group) || groups.includes(ALL_GROUPS) ? byId : null
    const cut = nameOrId.lastIndexOf('/')
    const inGroup = cut > 0 ? nameOrId.slice(0, cut) : undefined
    const name = cut > 0 ? nameOrId.slice(cut + 1) : nameOrId
    const found: { group: string; id: string }[] = []
    for (const group of await this.#named(groups)) {
      if (inGroup !== undefined && group !== inGroup) continue
      const id = await this.#parts.scripts.redis.hget(`${groupBase(group)}:names`, name)
      if (id) found.push({ group, id })
    }
    if (found.length > 1) {
      const which = found.map(({ group, id }) => `${group}/${name} (${id})`).join(', ')
      throw new IndraftError('request.ambiguous', `several campaigns are called ${name}: ${which}; give one of these`)
    }
    return found[0] ? this.view(found[0].id) : null
  }

  async #named(groups: readonly string[]): Promise<readonly string[]> {
    return groups.includes(ALL_GROUPS) ? this.#parts.scripts.redis.smembers(GLOBAL.groups) : groups
  }

  async source(id: string): Promise<string> {
    const known = await this.#parts.plans.get(id)
    if (!known) throw new IndraftError('request.notFound', `no campaign ${id}`)
    return known.plan.source
  }

  async view(id: string): Promise<CampaignView | null> {
    const known = await this.#parts.plans.get(id)
    return known && this.#viewOf(known)
  }

  async #viewOf({ base, plan }: KnownCampaign): Promise<CampaignView> {
    const { redis } = this.#parts.scripts
    const { id } = plan
    const [fields, failures] = await Promise.all([
      redis.hgetall(`${base}:campaign:${id}`),
      redis.hgetall(`${base}:failures:${id}`),
    ])
    const steps: StepView[] = await Promise.all(
      plan.steps.map(async (step) => {
        const [counts, walls] = await Promise.all([
          readCounts(redis, base, id, step.name),
          redis.hmget(`${base}:step:${id}:${step.name}`, 'wallMs', 'wallCount'),
        ])
        const wallCount = Number(walls[1] ?? 0)
        const { name, size, after, needs } = step
        return { name, size, after, needs, counts, meanWallMs: wallCount > 0 ? Number(walls[0]) / wallCount : null }
      }),
    )
    const desired = (fields.desired ?? 'run') as DesiredState
    const counts = sumCounts(steps.map((step) => step.counts))
    return {
      id: plan.id,
      name: plan.name,
      group: plan.group,
      subject: plan.subject,
      activity: plan.activity,
      priority: plan.priority,
      desired,
      desiredVersion: Number(fields.version ?? 1),
      state: campaignState(desired, counts),
      createdAtMs: Number(fields.createdMs ?? 0),
      endedAtMs: fields.endedMs === undefined ? null : Number(fields.endedMs),
      counts,
      steps,
      failures: Object.entries(failures)
        .map(([name, times]) => {
          const [step = '', reason = '', ...detail] = name.split('|')
          return { step, reason: reason as ErrorCode, detail: detail.join('|'), count: Number(times) }
        })
        .sort((a, b) => b.count - a.count) as CampaignView['failures'],
    }
  }

  /**
   * Failed or held tasks get fresh credit and are queued again; steps that were skipped for them wait again. The same
   * request never retries a task twice. @throws IndraftError request.notFound | request.invalid
   */
  async retry(id: string, which: RetryRequest): Promise<{ tasks: number }> {
    const { scripts, plans, mark, feeding, log } = this.#parts
    const known = await plans.get(id)
    if (!known) throw new IndraftError('request.notFound', `no campaign ${id}`)
    let tasks = 0
    for (const step of known.plan.steps) {
      if (which.step !== undefined && which.step !== step.name) continue
      for (let cursor = 0, more = true; more; ) {
        const answer = await scripts.run<{ outcome: number; tasks: number; more: boolean; cursor: number }>(
          'retry',
          known.base,
          { campaign: id, step: step.name, size: step.size, from: which.states, request: which.request, cursor },
        )
        if (answer.outcome === 2) {
          throw new IndraftError('request.invalid', 'the campaign is cancelled, which is for ever', {
            path: 'campaign',
          })
        }
        failpoint('tasks.partRetried')
        tasks += answer.tasks
        more = answer.more
        cursor = answer.cursor
      }
    }
    await mark.advance()
    log.info({ campaign: id, ...which, tasks }, 'campaign.retried')
    feeding.want('release', id, '')
    return { tasks }
  }

  /** Repeating is harmless. @throws IndraftError request.notFound | request.invalid */
  async setDesired(id: string, to: DesiredState): Promise<CampaignView> {
    const { scripts, plans, mark, feeding, log } = this.#parts
    const known = await plans.get(id)
    const before = await this.view(id)
    if (!known || !before) throw new IndraftError('request.notFound', `no campaign ${id}`)
    if (before.desired !== to && isCampaignOver(before.state)) {
      throw new IndraftError('request.invalid', `the campaign is ${before.state}`, { path: 'desired' })
    }
    const from = Object.entries(desiredTable).flatMap(([state, events]) =>
      (Object.values(events) as string[]).includes(to) ? [state] : [],
    )
    const answer = await scripts.run<{ outcome: number; desired?: string }>('desired', known.base, {
      campaign: id,
      from,
      to,
    })
    if (answer.outcome === 3) {
      throw new IndraftError('request.invalid', `a campaign that is ${answer.desired} cannot become ${to}`, {
        path: 'desired',
      })
    }
    failpoint('campaign.desiredSet')
    await mark.advance()
    if (answer.outcome === 1) log.info({ campaign: id, desired: to }, 'campaign.desiredSet')
    feeding.want('release', id, '')
    return (await this.view(id))!
  }
}
