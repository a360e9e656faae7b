/**
 * Whatever comes, in whatever order: holders that pull, forget, repeat, give back, die and come late, messages lost,
 * doubled and replayed, users who pause, cancel and retry, two centres that die half-way, all drawn from a seed. After
 * every few steps the invariants hold, and at the end every task is over and was counted once.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest'
import type { OpenStore } from '../../central/leases/open.ts'
import { frameHandler } from '../../shared/dispatcher.ts'
import { IndraftError } from '../../shared/errors.ts'
import { enableFailpoints, FAILPOINTS } from '../../shared/failpoint.ts'
import type { StepName } from '../../shared/ids.ts'
import { isCampaignOver, openTasks } from '../../shared/lifecycle.ts'
import type { FrameHandler } from '../../shared/link.ts'
import { silentLog } from '../../shared/log.ts'
import type { LeasePart, Result } from '../../shared/protocol/messages.ts'
import { type Seeded, seeded } from '../seeded.ts'
import { EXIT_3, NODE_LOST, TestHolder } from './store-holder.ts'
import { GROUP, openStoreLab, planOf, type StoreLab, startRedisForTests } from './store-lab.ts'

const STEPS = 120
const LOOK_EVERY = 12
const HOLDERS = 4
const base = `indraft:{${GROUP}}`
const moments = Object.entries(FAILPOINTS)
  .filter(([, what]) => what.startsWith('central: '))
  .map(([name]) => name)

let redis: { url: string; stop(): Promise<void> }
let failpoints: string
let lab: StoreLab
let both: [OpenStore, OpenStore]
beforeAll(async () => {
  redis = await startRedisForTests()
})
afterAll(() => redis.stop())
beforeEach(async () => {
  failpoints = mkdtempSync(join(tmpdir(), 'indraft-odd-orders-'))
  // A pilot is lost after 600 ms, a grant taken back after 600 ms, a retry due after 100 ms.
  lab = await openStoreLab(redis.url, { timeScale: 0.01 })
  both = [lab, await lab.reopen()]
})
afterEach(async () => {
  enableFailpoints(null)
  await lab.end()
  rmSync(failpoints, { recursive: true, force: true })
})

const after = (step: string, accept: number) => [{ step: step as StepName, accept }]
const RETRIES = { payload: 1, infrastructure: 20, holdExitCodes: [9], exhausted: 'failed' as const }
const PLANS = [
  planOf('odd', {
    a: { size: 31, retries: RETRIES },
    b: { size: 12, after: after('a', 0.3), retries: RETRIES },
    c: { size: 5, after: after('b', 1), retries: { ...RETRIES, exhausted: 'held' } },
  }),
  planOf('even', { a: { size: 24, retries: RETRIES } }, { maxRunning: 7 }),
  planOf('gone', { a: { size: 20, retries: RETRIES }, b: { size: 20, after: after('a', 0.1) } }),
]
const view = async (id: string) => (await lab.store.find(id, [GROUP]))!

/** What must not be lost for the rest of a run: holders, what they once had, and frames that were once sent. */
class Crowd {
  readonly holders: TestHolder[] = []
  readonly past: LeasePart[] = []
  readonly #frames: { site: string; frame: Uint8Array }[] = []
  readonly #random: Seeded

  constructor(random: Seeded) {
    this.#random = random
  }

  /** A message goes to either centre; it may come twice, and its answer may be lost. */
  #around = (site: string) => (): FrameHandler => async (peer, frame) => {
    const random = this.#random
    const ask = () => frameHandler(random.pick(both).dispatcher, silentLog)(peer, frame)
    this.#frames.push({ site, frame })
    if (random.chance(0.05)) await Promise.all([ask(), ask()])
    const answer = await ask()
    if (random.chance(0.05)) throw new IndraftError('link.timeout')
    return answer
  }

  async replace(at: number): Promise<void> {
    const site = at % 2 === 0 ? 'ALPHA' : 'BETA'
    const options = { site, name: `p${at}`, around: this.#around(site) }
    if (this.holders[at]) this.past.push(...this.holders[at].leases.values())
    this.holders[at] = await new TestHolder(lab.dispatcher, options).hello()
  }

  async replay(): Promise<void> {
    const { site, frame } = this.#random.pick(this.#frames)
    await frameHandler(this.#random.pick(both).dispatcher, silentLog)({ site }, frame)
  }
}

function endOf(random: Seeded): Partial<Result> {
  if (random.chance(0.6)) return {}
  return random.pick<Partial<Result>>([EXIT_3, NODE_LOST, { ...EXIT_3, exitCode: 9 }])
}

/** One thing that somebody does. */
async function act(crowd: Crowd, random: Seeded): Promise<void> {
  const at = random.below(HOLDERS)
  const holder = crowd.holders[at]!
  const leases = [...holder.leases.values()]
  const lease = leases.length > 0 ? random.pick(leases) : null
  const { id } = random.pick(PLANS)
  const store = random.pick(both)
  const request = `r${random.below(4)}`
  const acts: [number, () => Promise<unknown>][] = [
    [10, () => holder.pull(random.below(5))],
    [5, () => holder.startAll()],
    [10, async () => lease && holder.verdicts(holder.results(lease, endOf(random)))],
    [3, () => holder.pull(random.below(3), { finished: lease ? holder.results(lease, endOf(random)) : [] })],
    [3, async () => lease && holder.leases.delete(lease.bundle) && holder.pull(1, { returned: [lease] })],
    // It forgets what it holds, and tells of it late.
    [2, async () => lease && holder.leases.delete(lease.bundle) && crowd.past.push(lease)],
    [
      4,
      async () => crowd.past.length > 0 && holder.verdicts([holder.result(random.pick(crowd.past), 0, endOf(random))]),
    ],
    [4, async () => crowd.past.length > 0 && lateOf(crowd, random)],
    [1, () => crowd.replace(at)],
    [4, () => crowd.replay()],
    [1, () => holder.holder.bye({ code: 200, reason: 'test', returned: leases }).then(() => crowd.replace(at))],
    [8, () => random.pick(both).work.sweep()],
    [4, () => Promise.all(both.map(({ work }) => work.sweep()))],
    [2, () => store.store.setDesired(id, random.pick(['paused', 'run'] as const))],
    [2, () => store.store.retry(id, { states: ['failed', 'held'], request })],
    [0.4, () => store.store.setDesired(PLANS[2]!.id, 'cancelled')],
    [1, () => store.store.create(random.pick(PLANS))],
    [3, async () => writeFileSync(join(failpoints, random.pick(moments)), 'throw EIO')],
    [1, () => new Promise((resolve) => setTimeout(resolve, 150))],
  ]
  try {
    await drawn(acts, random)()
  } catch (error) {
    // Refused, or a centre died of it.
    const { code } = error as { code?: string }
    if (!(error instanceof IndraftError) && code !== 'EIO') throw error
    if (code === 'session.unknown') await holder.hello()
  }
}

/** One of several, each as often as it weighs. */
function drawn<T>(weighed: [number, T][], random: Seeded): T {
  const points = weighed.map(([weight], i) => weighed.slice(0, i).reduce((sum, [one]) => sum + one, weight))
  const point = random.next() * points.at(-1)!
  return weighed[points.findIndex((upTo) => point < upTo)]![1]
}

/** Everything of a lease, by the holder who had it. */
async function lateOf(crowd: Crowd, random: Seeded): Promise<void> {
  const lease = random.pick(crowd.past)
  const holder = random.pick(crowd.holders)
  await holder.verdicts(holder.results({ ...lease }, endOf(random)))
}

async function looksWell(step: number): Promise<void> {
  for (let i = 0; i < 2; i++) await both[i]!.work.sweep()
  expect(await both[0].store.verify(), `after step ${step}`).toEqual([])
}

test.each([1, Math.floor(Math.random() * 1e6)])(
  'odd orders - seed %i: nothing is lost or counted twice',
  async (seed) => {
    const random = seeded(seed)
    lab.sites.set('BETA', { ...lab.sites.get('ALPHA')! })
    for (const plan of PLANS) await lab.store.create(plan)
    const crowd = new Crowd(random)
    for (let at = 0; at < HOLDERS; at++) await crowd.replace(at)
    enableFailpoints(failpoints)
    for (let step = 1; step <= STEPS; step++) {
      await act(crowd, random)
      if (step % LOOK_EVERY !== 0) continue
      enableFailpoints(null)
      await looksWell(step)
      enableFailpoints(failpoints)
    }
    enableFailpoints(null)
    for (const { id } of PLANS) await lab.store.setDesired(id, 'run').catch(() => {})
    const last = await new TestHolder(lab.dispatcher, { name: 'last', site: 'ALPHA' }).hello()
    const other = await new TestHolder(both[1].dispatcher, { name: 'other', site: 'BETA' }).hello()
    await vi.waitFor(
      async () => {
        await looksWell(STEPS + 1)
        for (const { id } of PLANS) {
          if ((await view(id)).counts.held > 0)
            await lab.store.retry(id, { states: ['held'], request: `${Math.random()}` })
        }
        for (const one of [last, other]) {
          // A look may take longer than a silent pilot lives.
          await one.hello()
          await one.pull(8)
          await one.startAll()
          const results = one.allResults()
          if (results.length > 0) await one.verdicts(results)
        }
        for (const { id } of PLANS) expect(isCampaignOver((await view(id)).state), id).toBe(true)
      },
      { timeout: 300_000, interval: 20 },
    )
    await looksWell(STEPS + 2)
    for (const { id, steps } of PLANS) {
      for (const { name, counts, size } of (await view(id)).steps) {
        expect(openTasks(counts)).toBe(0)
        expect(Number(await lab.redis.hget(`${base}:step:${id}:${name}`, 'wallCount')), `${id}/${name}`).toBe(
          counts.done,
        )
        expect(Object.values(counts).reduce((sum, count) => sum + count, 0)).toBe(size)
      }
      expect(steps.length).toBeGreaterThan(0)
    }
    const use = Object.values(await lab.redis.hgetall(`${base}:use`))
    expect(use.filter((count) => Number(count) !== 0)).toEqual([])
  },
  600_000,
)
