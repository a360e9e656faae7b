/**
 * A store over a real Redis for tests: opened on an empty database, with campaigns made from few words, and ended
 * whole. Redis's own time cannot be set, so times are scaled and tests wait for what they expect.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import { folderBlobs } from '../../central/blobs.ts'
import { campaignIdOf } from '../../central/campaigns/identity.ts'
import type { CampaignPlan, StepPlan } from '../../central/campaigns/model.ts'
import { type OpenStore, openStore } from '../../central/leases/open.ts'
import type { SiteInfo } from '../../central/leases/options.ts'
import { type Clock, systemClock } from '../../shared/clock.ts'
import type { Digest, StepName } from '../../shared/ids.ts'
import { silentLog } from '../../shared/log.ts'
import { startRedis } from '../../shared/servers/redis.ts'
import { digestOf } from '../../shared/signing.ts'
import { sampleNeeds, sampleTemplate, testSigner } from '../sample-messages.ts'

export interface StoreLab extends OpenStore {
  folder: string
  redis: Redis
  sites: Map<string, SiteInfo>
  /** Whether the store believes that holders can be heard. */
  hearing: { hears: boolean }
  /** Does what is due until nothing changes any more. */
  settle(): Promise<void>
  /** Opens the same store once more, as after a crash of the first. */
  reopen(): Promise<OpenStore>
  end(): Promise<void>
}

export const GROUP = '/vo.example/prod'

export async function startRedisForTests(): Promise<{ url: string; stop(): Promise<void> }> {
  const dir = mkdtempSync(join(tmpdir(), 'indraft-redis-'))
  const redis = await startRedis({ dir })
  return {
    url: redis.url,
    stop: async () => {
      await redis.stop()
      rmSync(dir, { recursive: true, force: true })
    },
  }
}

export async function openStoreLab(
  url: string,
  options: { timeScale: number; clock?: Clock; replicas?: number },
): Promise<StoreLab> {
  const folder = mkdtempSync(join(tmpdir(), 'indraft-store-'))
  const redis = new Redis(url)
  await redis.flushall()
  const sites = new Map<string, SiteInfo>([['ALPHA', { labels: {}, state: 'enabled' }]])
  const hearing = { hears: true }
  const open = () =>
    openStore({
      redis: url,
      blobs: folderBlobs(join(folder, 'blobs')),
      signer: testSigner,
      markKey: new Uint8Array(32),
      clock: options.clock ?? systemClock,
      log: silentLog,
      timeScale: options.timeScale,
      replicas: options.replicas ?? 0,
      outputsDir: join(folder, 'outputs'),
      siteOf: async (name) => sites.get(name) ?? null,
      siteNames: async () => [...sites.keys()],
      filesUrl: () => null,
      hears: () => hearing.hears,
    })
  const opened = await open()
  const others: OpenStore[] = []
  return {
    ...opened,
    folder,
    redis,
    sites,
    hearing,
    settle: async () => {
      for (let i = 0; i < 3; i++) await opened.work.sweep()
    },
    reopen: async () => {
      const again = await open()
      others.push(again)
      return again
    },
    end: async () => {
      for (const one of [opened, ...others]) {
        await one.work.stop()
        await one.close()
      }
      redis.disconnect()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

type StepWords = Partial<Omit<StepPlan, 'name' | 'template'>> & {
  inputs?: StepPlan['template']['inputs']
  outputs?: StepPlan['template']['outputs']
}

/** A plan of steps that run anywhere, with three infrastructure and one payload retry unless said otherwise. */
export function planOf(name: string, steps: Record<string, StepWords>, more: Partial<CampaignPlan> = {}): CampaignPlan {
  const group = more.group ?? GROUP
  const id = campaignIdOf(group, name)
  const needs = {
    ...sampleNeeds,
    arch: [],
    allowSites: [],
    denySites: [],
    cores: 1,
    memoryBytes: 0,
    scratchBytes: 0,
    gpus: 0,
    group,
  }
  const plan: CampaignPlan = {
    id,
    name,
    group,
    subject: 'alice',
    activity: 'production',
    priority: 0,
    deadlineMs: null,
    maxRunning: null,
    labels: {},
    digest: '' as Digest,
    source: `name: ${name}\n`,
    ...more,
    steps: Object.entries(steps).map(([step, { inputs = [], outputs = [], ...words }]) => ({
      name: step as StepName,
      size: 1,
      needs,
      matchClass: 'class0000001',
      rows: null,
      after: [],
      retries: { payload: 1, infrastructure: 3, holdExitCodes: [], exhausted: 'failed' as const },
      ...words,
      template: {
        ...sampleTemplate,
        campaign: id,
        campaignName: name,
        step,
        group,
        axes: null,
        inputs,
        outputs,
        needs: words.needs ?? needs,
      },
    })),
  }
  return { ...plan, digest: more.digest ?? digestOf(Buffer.from(JSON.stringify(plan))) }
}
