/** CampaignStore, as the API asks for it: each question goes to the part that knows. */
import { IndraftError } from '../../shared/errors.ts'
import type { BundleId } from '../../shared/ids.ts'
import type { CampaignStore } from '../campaigns/model.ts'
import type { Campaigns } from './campaigns.ts'
import { FILES_OPEN_MS } from './envelope.ts'
import type { StoreOptions } from './options.ts'
import type { Sessions } from './sessions.ts'
import { readSiteShapes } from './site-shapes.ts'
import type { Tasks } from './tasks.ts'
import type { Verifier } from './verify.ts'

const DAY_MS = 24 * 3600_000

export interface CampaignStoreParts {
  options: StoreOptions
  campaigns: Campaigns
  tasks: Tasks
  sessions: Sessions
  verifier: Verifier
  starved: CampaignStore['starved']
}

export function openCampaignStore({
  options,
  campaigns,
  tasks,
  sessions,
  verifier,
  starved,
}: CampaignStoreParts): CampaignStore {
  return {
    create: (plan) => campaigns.create(plan),
    list: (groups) => campaigns.list(groups),
    find: (nameOrId, groups) => campaigns.find(nameOrId, groups),
    source: (id) => campaigns.source(id),
    tasks: (id, filter, from, limit) => tasks.list(id, filter, from, limit),
    task: (id, step, index) => tasks.one(id, step, index),
    outputs: (id, step, indices) => tasks.outputs(id, step, indices),
    setDesired: (id, desired) => campaigns.setDesired(id, desired),
    retry: (id, which) => campaigns.retry(id, which),
    holders: () => sessions.holders(),
    pilots: () => sessions.pilots(options.clock.wallMs()),
    verify: () => verifier.verify(),
    starved,
    async requestLog(attempt, site, stream) {
      const live = (await sessions.listed()).filter((one) => one.site === site && one.state === 'active')
      const relays = live.filter((one) => one.role === 'relay')
      const asked = relays.length > 0 ? relays : live
      if (asked.length === 0) throw new IndraftError('request.notFound', `nobody is there at ${site} to send the log`)
      const { campaign, step, index, bundle, fences } = attempt
      const lease = { campaign, step, fences: fences.slice(0, 1), tasks: String(index) }
      // Whole days, so that asking again is the same order again.
      const expiresAtMs = Math.ceil(options.clock.wallMs() / DAY_MS) * DAY_MS + FILES_OPEN_MS
      const capability = options.capabilityFor?.(site, lease, expiresAtMs)
      const opened = capability === undefined ? {} : { capability }
      for (const session of asked) {
        const plain = { campaign, step, index, bundle: bundle as BundleId, fences }
        await sessions.order(site, session.id, { kind: 'log.send', attempt: plain, stream, ...opened })
      }
    },
    siteShapes: () => readSiteShapes(options, sessions),
  }
}
