/**
 * Puts the store together: Redis, scripts, dispatcher and the work about work. The composition root (central/main.ts)
 * and the tests call openStore; nobody else makes these parts.
 */

import type { AcceptedPage } from '../../shared/files/accepted.ts'
import type { AttemptName } from '../../shared/files/capability.ts'
import type { Needs } from '../../shared/protocol/work.ts'
import { containsIndex, parseRanges } from '../../shared/ranges.ts'
import type { CampaignStore } from '../campaigns/model.ts'
import { possibleSites } from '../matching/nearest.ts'
import { Manifests } from '../publishing/manifests.ts'
import { isKept } from '../publishing/publish.ts'
import { makeRedis, type Temper } from '../redis.ts'
import { Compactor } from '../work/compact.ts'
import { Reaper } from '../work/reaper.ts'
import { Work, WorkQueue } from '../work/work.ts'
import { Beats } from './beats.ts'
import { Campaigns } from './campaigns.ts'
import { CentralDispatcher } from './dispatcher.ts'
import { Envelopes } from './envelope.ts'
import { Feeder } from './feeding.ts'
import { Granting } from './granting.ts'
import { GLOBAL, groupBase } from './keys.ts'
import { Leases } from './leases.ts'
import { Mark } from './mark.ts'
import { MatchIndex } from './match-index.ts'
import { listNamed } from './named.ts'
import type { StoreOptions } from './options.ts'
import { Plans } from './plans.ts'
import { Results } from './results.ts'
import { Scripts } from './scripts.ts'
import { Sessions } from './sessions.ts'
import { readSiteShapes } from './site-shapes.ts'
import { findStarved } from './starvation.ts'
import { openCampaignStore } from './store.ts'
import { Tasks } from './tasks.ts'
import { Unreadable } from './unreadable.ts'
import { type OutputChecker, Verifier } from './verify.ts'
import { Waiting } from './waiting.ts'

/** What the composition root gets; the parts beneath are its own business. */
export interface OpenStore {
  store: CampaignStore
  dispatcher: CentralDispatcher
  /** The background work: BullMQ worker and scheduler. Several processes may run it side by side. */
  work: {
    start(): Promise<void>
    stop(): Promise<void>
    /** One round of everything that is due, now. */
    sweep(): Promise<void>
  }
  /** Resolves while Redis answers. @throws where it does not */
  ping(): Promise<void>
  /** Whether this site had the task under the attempt's first fence, and lost it in another way than by its success. */
  wasLeased(site: string, attempt: AttemptName): Promise<boolean>
  /** A page of the site's accepted results whose outputs a relay names. @throws IndraftError request.invalid */
  named(site: string, from: string | null): Promise<AcceptedPage>
  /** After the store lost writes: what an administrator calls when the inventories were looked at. */
  liftHalt(): Promise<void>
  /** Limits and weight of a group; null takes a limit away. */
  setGroup(group: string, set: { maxRunning?: number | null; share?: number | null }): Promise<void>
  /** Ends waiting pulls with dispatcher.busy, then the connections. Stop the work first. */
  close(): Promise<void>
}

/** Redis must be `noeviction` and, for what is acknowledged to be on disk, `appendfsync always`. */
export async function openStore(options: StoreOptions): Promise<OpenStore> {
  const { blobs, clock, log, signer, timeScale, outputsDir } = options
  const events = options.events ?? {}
  const connect = (temper: Temper) => makeRedis(options.redis, log, temper)
  const redis = connect('hasty')
  const listener = connect('patient')
  const jobs = connect('patient')
  const scripts = new Scripts(redis)
  const queue = new WorkQueue(jobs, log)
  const plans = new Plans(redis, blobs, log)
  const mark = new Mark(redis, clock, log, options.markKey, options.replicas)
  const sessions = new Sessions(scripts)
  const index = new MatchIndex(scripts, plans, sessions, clock)
  const leases = new Leases({ scripts, plans, sessions, feeding: queue, log, timeScale, events })
  const sitesFor = async (needs: Needs) => possibleSites(needs, await readSiteShapes(options, sessions))
  const results = new Results({ scripts, plans, blobs, sessions, sitesFor, feeding: queue, log, timeScale, events })
  const unreadable = new Unreadable(clock, log, timeScale)
  const granting = new Granting({ scripts, plans, sessions, index, mark, feeding: queue, unreadable, log, events })
  const envelopes = new Envelopes({ scripts, plans, signer, clock, capabilityFor: options.capabilityFor })
  const waiting = new Waiting(clock)
  const beats = new Beats(scripts, leases, log)
  const manifests = new Manifests(plans, results, blobs, log)
  const feeder = new Feeder({ scripts, plans, index, mark, manifests, log })
  const compactor = new Compactor(scripts, plans, results, blobs)
  const reaper = new Reaper(scripts, sessions, leases, log, timeScale, options.siteOf, options.hears)
  const work = new Work(
    {
      connect: () => connect('patient'),
      scripts,
      plans,
      results,
      feeder,
      compactor,
      reaper,
      outputsDir,
      log,
      timeScale,
    },
    queue,
  )
  await listener.subscribe(GLOBAL.wake)
  listener.on('message', () => {
    index.forget()
    waiting.wake()
  })
  const campaigns = new Campaigns({ scripts, plans, mark, signer, log, feeding: queue })
  const starved = () => findStarved({ scripts, sessions, index, siteOf: options.siteOf, timeScale })
  const isThere: OutputChecker = (output, result, isPublished) => isKept(outputsDir, result, output, isPublished)
  const verifier = new Verifier({ scripts, plans, sessions, results, mark, starved, isThere })
  return {
    store: openCampaignStore({
      options,
      campaigns,
      sessions,
      verifier,
      starved,
      tasks: new Tasks(scripts, plans, results),
    }),
    dispatcher: new CentralDispatcher({
      options,
      mark,
      sessions,
      leases,
      results,
      granting,
      envelopes,
      unreadable,
      waiting,
      beats,
      index,
    }),
    work,
    async ping() {
      await redis.ping()
    },
    async wasLeased(site, { campaign, index, fences }) {
      const known = await plans.place(campaign)
      const past = known && (await redis.hget(`${known.base}:past:${campaign}`, String(fences[0])))
      const [holder, tasks] = past?.split('|') ?? []
      return holder === site && tasks !== undefined && containsIndex(parseRanges(tasks), index)
    },
    named: (site, from) => listNamed({ scripts, results }, site, from),
    liftHalt: () => mark.liftHalt(),
    async setGroup(group, set) {
      for (const [field, value] of Object.entries(set)) {
        if (value === null) await redis.hdel(`${groupBase(group)}:limits`, field)
        else await redis.hset(`${groupBase(group)}:limits`, field, String(value))
      }
    },
    async close() {
      waiting.close()
      await queue.close()
      for (const connection of [listener, jobs, redis]) connection.disconnect()
    },
  }
}
