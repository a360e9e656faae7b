/** Handlers about sites, pilots, tokens and the store as a whole. */
import { IndraftError } from '../../shared/errors.ts'
import type { CampaignStore, HolderView, PilotView } from '../campaigns/model.ts'
import type { People } from '../people.ts'
import { type JoinFacts, joinSite } from '../sites/join.ts'
import type { Site, SiteRegistry } from '../sites/registry.ts'
import type { Handlers } from './server.ts'

type SiteHandlers = Omit<
  Handlers,
  | 'submitCampaign'
  | 'listCampaigns'
  | 'showCampaign'
  | 'campaignSource'
  | 'setDesired'
  | 'retryTasks'
  | 'addBan'
  | 'listBans'
  | 'liftBan'
  | 'listTasks'
  | 'showTask'
  | 'taskLog'
  | 'listOutputs'
  | 'getOutput'
>

export interface SiteParts {
  store: CampaignStore
  people: People
  sites: SiteRegistry
  join: JoinFacts
  /** How long a join token can be used, milliseconds. */
  joinValidMs: number
  /** As relays reach the API. */
  publicUrl(): string
  /** Credentials that are over open nothing when it resolves. @throws Error where that could not be had */
  endCredentials(): Promise<void>
  liftHalt(): Promise<void>
}

export function siteHandlers(parts: SiteParts): SiteHandlers {
  const { store, people, sites } = parts
  return {
    whoami: async (_given, caller) => caller,
    listPilots: async () => ({ pilots: await store.pilots() }),
    async listHolders({ query }) {
      const holders = await store.holders()
      return { holders: holders.filter((holder) => query.role === undefined || holder.role === query.role) }
    },
    async addSite({ body }) {
      const { name, ...settings } = body
      // What the request leaves out stays as it is at a site that is there already.
      const site = await sites.put(name, settings as Partial<Site>)
      const joinToken = await sites.makeJoinToken(name, parts.joinValidMs)
      return { site, joinToken, validMs: parts.joinValidMs, url: parts.publicUrl() }
    },
    async listSites() {
      const [all, holders, pilots] = await Promise.all([sites.list(), store.holders(), store.pilots()])
      return { sites: all.map((site) => viewOf(site, holders, pilots)) }
    },
    async showSite({ params }) {
      const site = await sites.get(params.site)
      if (!site) throw unknownSite(params.site)
      return viewOf(site, await store.holders(), await store.pilots())
    },
    async setSiteState({ params, body }) {
      const site = await sites.setState(params.site, body.state)
      if (!site) throw unknownSite(params.site)
      return viewOf(site, await store.holders(), await store.pilots())
    },
    async rotateSite({ params, body }) {
      const site = await sites.get(params.site)
      if (!site) throw unknownSite(params.site)
      const { now, keepOldMs } = body
      // First: what a token that is still open would give meanwhile would not be ended.
      if (now) await sites.endJoinTokens(site.name)
      const ended = now ? await sites.endCredentials(site.name, Date.now(), null) : 0
      if (now) await parts.endCredentials()
      const joinToken = await sites.makeJoinToken(site.name, parts.joinValidMs, now ? undefined : keepOldMs)
      return { site, joinToken, validMs: parts.joinValidMs, url: parts.publicUrl(), ended }
    },
    async joinSite({ body }) {
      return { credential: { ...(await joinSite(sites, parts.join, body.token)) } }
    },
    addToken: async ({ body }) => ({ token: await people.add(body) }),
    listTokens: async () => ({ tokens: await people.list() }),
    removeToken: async ({ params }) => ({ removed: await people.remove(params.id) }),
    verify: async () => ({ findings: await store.verify() }),
    async liftHalt() {
      await parts.liftHalt()
      return { lifted: true }
    },
  }
}

function unknownSite(name: string): IndraftError {
  return new IndraftError('request.notFound', `there is no site "${name}"`, { path: 'site' })
}

function viewOf(site: Site, holders: readonly HolderView[], pilots: readonly PilotView[]) {
  const isHere = (other: { site: string }) => other.site === site.name
  const active = pilots.filter((pilot) => isHere(pilot) && (pilot.state === 'active' || pilot.state === 'draining'))
  return { ...site, holders: holders.filter(isHere), pilots: active.length }
}
