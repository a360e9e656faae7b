/** Handlers about campaigns: what is asked of the store, and in whose name. Groups are checked here. */

import { IndraftError } from '../../shared/errors.ts'
import type { Unmet } from '../../shared/fit.ts'
import type { Log } from '../../shared/log.ts'
import { formatBytes, formatDuration } from '../../shared/quantity.ts'
import { checkCampaign } from '../campaigns/check.ts'
import type { CampaignPlan, CampaignStore, CampaignView } from '../campaigns/model.ts'
import type { Problem } from '../campaigns/source.ts'
import { nearestSite, type SiteShapes } from '../matching/nearest.ts'
import { type Principal, requireGroup } from '../people.ts'
import type { Handlers } from './server.ts'
import { campaignViewSchema, stepViewSchema } from './views.ts'

/** A campaign file with everything that is wrong with it. */
export class CampaignRefused extends IndraftError {
  readonly problems: Problem[]

  constructor(problems: Problem[]) {
    const first = problems[0]!
    const more = problems.length > 1 ? ` (and ${problems.length - 1} more)` : ''
    super('campaign.invalid', `${first.path === '' ? '' : `${first.path}: `}${first.message}${more}`, {
      ...(first.path === '' ? {} : { path: first.path }),
    })
    this.problems = problems
  }
}

type CampaignHandlers = Pick<
  Handlers,
  | 'submitCampaign'
  | 'listCampaigns'
  | 'showCampaign'
  | 'campaignSource'
  | 'setDesired'
  | 'retryTasks'
  | 'listTasks'
  | 'showTask'
>

export interface CampaignParts {
  store: CampaignStore
  log: Log
  /** Shapes seen and declared, of sites that are not disabled. */
  siteShapes(): Promise<SiteShapes[]>
  /** Vouches for subjects, as sites' traces name it. */
  issuer?(): string
}

/** @throws IndraftError request.notFound; a campaign of another group is not found either */
export async function findCampaign(store: CampaignStore, name: string, caller: Principal): Promise<CampaignView> {
  const found = await store.find(name, caller.groups)
  if (!found)
    throw new IndraftError('request.notFound', `there is no campaign "${name}" in your groups`, { path: 'campaign' })
  return found
}

export function campaignHandlers({ store, log, siteShapes, issuer }: CampaignParts): CampaignHandlers {
  return {
    async submitCampaign({ body }, caller) {
      const checked = checkCampaign(body.source, body.tables, caller.subject, (group) => requireGroup(caller, group))
      if ('problems' in checked) throw new CampaignRefused(checked.problems)
      const plan = issuedBy(issuer?.() ?? '', checked.plan)
      const warnings = unmatchedSteps(plan, await siteShapes())
      if (body.strict && warnings.length > 0) {
        throw new IndraftError('campaign.unmatchable', warnings[0]!.message, { path: warnings[0]!.path })
      }
      const { created } = body.dryRun ? { created: false } : await store.create(plan)
      return {
        id: plan.id,
        name: plan.name,
        group: plan.group,
        created,
        dryRun: body.dryRun,
        tasks: plan.steps.reduce((sum, step) => sum + step.size, 0),
        steps: plan.steps.map((step) => ({ name: step.name, tasks: step.size })),
        warnings,
      }
    },
    async listCampaigns(_given, caller) {
      const campaigns = await store.list(caller.groups)
      // One that cannot be shown must not hide the others of its group.
      const shown = campaigns.filter((campaign) => {
        const misfit = findMisfit(campaign)
        if (misfit !== null) log.warn({ campaign: campaign.id, misfit }, 'api.campaignUnshowable')
        return misfit === null
      })
      return { campaigns: shown.sort((a, b) => b.createdAtMs - a.createdAtMs) }
    },
    async showCampaign({ params }, caller) {
      const found = await findCampaign(store, params.campaign, caller)
      const misfit = findMisfit(found)
      if (misfit !== null) {
        const message = `${found.name} holds a value that cannot be shown (${misfit}); it can still be cancelled`
        throw new IndraftError('campaign.invalid', message, { path: 'campaign' })
      }
      return found
    },
    async campaignSource({ params }, caller) {
      return { source: await store.source((await findCampaign(store, params.campaign, caller)).id) }
    },
    async setDesired({ params, body }, caller) {
      const found = await findCampaign(store, params.campaign, caller)
      requireGroup(caller, found.group)
      const changed = await store.setDesired(found.id, body.desired)
      if (findMisfit(changed) === null) return changed
      // What was asked is done: the answer carries what of the campaign can be shown.
      return {
        ...changed,
        priority: Number.isFinite(changed.priority) ? changed.priority : 0,
        steps: changed.steps.filter((step) => stepViewSchema.safeParse(step).success),
      }
    },
    async retryTasks({ params, body }, caller) {
      const found = await findCampaign(store, params.campaign, caller)
      requireGroup(caller, found.group)
      if (body.step !== undefined) requireStep(found, body.step)
      return await store.retry(found.id, body)
    },
    async listTasks({ params, query }, caller) {
      const found = await findCampaign(store, params.campaign, caller)
      const { step, state, site, from, limit } = query
      if (step !== undefined) requireStep(found, step)
      const filter = { ...(step && { step }), ...(state && { state }), ...(site && { site }) }
      const page = await store.tasks(found.id, filter, readCursor(from), limit)
      return { tasks: page.rows, next: writeCursor(page.next) }
    },
    async showTask({ params }, caller) {
      const found = await findCampaign(store, params.campaign, caller)
      return await findTask(store, found, params.step, params.index)
    },
  }
}

/** Outside the digest, like the subject: the same work by way of another address is the same campaign. */
function issuedBy(issuer: string, plan: CampaignPlan): CampaignPlan {
  const steps = plan.steps.map((step) => ({ ...step, template: { ...step.template, issuer: issuer.slice(0, 200) } }))
  return { ...plan, steps: issuer === '' ? plan.steps : steps }
}

/** The first value that the API's form has no room for (no number, or one past 2^53), in words; null where all fits. */
function findMisfit(campaign: CampaignView): string | null {
  const issue = campaignViewSchema.safeParse(campaign).error?.issues[0]
  return issue ? `${issue.path.join('.')}: ${issue.message}` : null
}

/** @throws IndraftError request.notFound naming the steps there are */
export function requireStep(campaign: CampaignView, step: string): void {
  if (campaign.steps.some(({ name }) => name === step)) return
  const steps = campaign.steps.map(({ name }) => name).join(', ')
  throw new IndraftError('request.notFound', `${campaign.name} has no step "${step}"; steps: ${steps}`, {
    path: 'step',
  })
}

/** @throws IndraftError request.notFound */
export async function findTask(store: CampaignStore, campaign: CampaignView, step: string, index: number) {
  requireStep(campaign, step)
  const task = await store.task(campaign.id, step, index)
  if (!task) throw new IndraftError('request.notFound', `${step} has no task ${index}`, { path: 'index' })
  return task
}

export function readCursor(text: string | undefined): { step: string; index: number } | null {
  if (text === undefined) return null
  const [step = '', index] = text.split('/', 2)
  return { step, index: Number(index) }
}

export function writeCursor(cursor: { step: string; index: number } | null): string | null {
  return cursor && `${cursor.step}/${cursor.index}`
}

/** The field of the file that a need comes from. */
const FIELD_OF: Record<Unmet['need'], string> = {
  cores: 'resources.cores',
  memory: 'resources.memory',
  scratch: 'resources.scratch',
  gpus: 'resources.gpus',
  'gpu memory': 'resources.gpu_memory',
  architecture: 'arch',
  runtime: 'image',
  network: 'network',
  software: 'software',
  group: '',
  'time left': 'resources.walltime',
  site: '',
}
const BYTES: readonly Unmet['need'][] = ['memory', 'scratch', 'gpu memory']

/** Steps that no known node of any site could run, each with the site that comes nearest and what it lacks. */
export function unmatchedSteps(plan: CampaignPlan, sites: readonly SiteShapes[]): { path: string; message: string }[] {
  return plan.steps.flatMap((step) => {
    const nearest = nearestSite(step.needs, sites)
    const path = `steps.${step.name}`
    if (nearest === null) {
      return [{ path, message: 'no site has shown its nodes yet: it waits until one comes that fits' }]
    }
    const first = nearest.unmet[0]
    if (first === undefined) return []
    const lacks = nearest.unmet.map(({ need, wanted, offered }) => {
      const show = (value: number | string) => shownNeed(need, value)
      return `${need}: ${show(wanted)} wanted, ${show(offered)} there`
    })
    const field = first.need === 'site' ? 'sites' : first.need === 'group' ? 'group' : `${path}.${FIELD_OF[first.need]}`
    return [
      {
        path: field,
        message: `no registered site can run ${step.name}; the nearest is ${nearest.site} (${lacks.join('; ')})`,
      },
    ]
  })
}

function shownNeed(need: Unmet['need'], value: number | string): string {
  if (typeof value === 'string') return value
  if (BYTES.includes(need)) return formatBytes(value)
  return need === 'time left' ? formatDuration(value) : String(value)
}
