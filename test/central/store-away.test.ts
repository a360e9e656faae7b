/** Redis gone, frozen, full or refusing writes: holders and people hear so soon, and all goes on when it is back. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { storeRefusal } from '../../central/redis.ts'
import { startRedis } from '../../shared/servers/redis.ts'
import { type CentralLab, startCentralLab } from './central-lab.ts'
import { TestHolder } from './store-holder.ts'
import { GROUP, openStoreLab, planOf, startRedisForTests } from './store-lab.ts'

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-away-'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

/** The refusal that a request of a holder meets, and how it ended otherwise. */
async function refusalOf(work: Promise<unknown>) {
  return work.then(
    () => 'answered',
    (error) => storeRefusal(error)?.refusal ?? error,
  )
}

test('Redis killed - a holder is told to come again, and goes on when it is back', async () => {
  const dir = join(folder, 'killed')
  let redis = await startRedis({ dir })
  const lab = await openStoreLab(redis.url, { timeScale: 0.1 })
  try {
    const plan = planOf('on', { a: { size: 4 } })
    await lab.store.create(plan)
    await lab.settle()
    const pilot = await new TestHolder(lab.dispatcher).hello()
    await pilot.pull(2)
    process.kill(redis.pid, 'SIGKILL')
    await redis.exited
    expect(await refusalOf(lab.store.find(plan.id, [GROUP]))).toMatchObject({
      code: 'dispatcher.busy',
      message: 'the store does not answer: ask again',
      retryAfterMs: expect.any(Number),
    })
    const session = pilot.holder.welcome!.session
    const report = { session, results: pilot.allResults() }
    expect(await refusalOf(lab.dispatcher.onReport({ site: 'ALPHA' }, report))).toMatchObject({
      code: 'dispatcher.busy',
    })
    redis = await startRedis({ dir, port: redis.port })
    await vi.waitFor(async () => {
      const { verdicts } = await lab.dispatcher.onReport({ site: 'ALPHA' }, report)
      expect(verdicts.map(({ verdict }) => verdict)).toEqual(['accepted', 'accepted'])
    }, 30_000)
    await vi.waitFor(async () => expect((await pilot.pull(2)).grants).toHaveLength(2), 30_000)
    expect(await lab.store.verify()).toEqual([])
  } finally {
    await lab.end()
    await redis.stop()
  }
})

test('Redis full - holders and people hear that it is full; what was refused is taken in when there is room', async () => {
  const redis = await startRedisForTests()
  const lab = await openStoreLab(redis.url, { timeScale: 0.1 })
  try {
    await lab.store.create(planOf('full', { a: { size: 4 } }))
    await lab.settle()
    const pilot = await new TestHolder(lab.dispatcher).hello()
    await pilot.pull(2)
    await lab.redis.config('SET', 'maxmemory', '1mb')
    const report = { session: pilot.holder.welcome!.session, results: pilot.allResults() }
    expect(await refusalOf(lab.dispatcher.onReport({ site: 'ALPHA' }, report))).toMatchObject({
      code: 'store.full',
      message: 'the store is full and takes no writes',
    })
    await lab.redis.config('SET', 'maxmemory', '0')
    const { verdicts } = await lab.dispatcher.onReport({ site: 'ALPHA' }, report)
    expect(verdicts.map(({ verdict }) => verdict)).toEqual(['accepted', 'accepted'])
    expect(await lab.store.verify()).toEqual([])
  } finally {
    await lab.end()
    await redis.stop()
  }
})

test('Redis refusing writes - as a replica, or without enough of them, is said in words', async () => {
  const redis = await startRedisForTests()
  const lab = await openStoreLab(redis.url, { timeScale: 0.1 })
  try {
    const create = () => refusalOf(lab.store.create(planOf('refused', { a: {} })))
    await lab.redis.config('SET', 'min-replicas-to-write', '1')
    expect(await create()).toMatchObject({
      code: 'dispatcher.busy',
      message: 'the store has too few replicas and takes no writes: ask again',
    })
    await lab.redis.config('SET', 'min-replicas-to-write', '0')
    await lab.redis.replicaof('127.0.0.1', '1')
    expect(await create()).toMatchObject({ message: 'the store is a replica and takes no writes: ask again' })
    await lab.redis.replicaof('NO', 'ONE')
    expect(await create()).toBe('answered')
  } finally {
    await lab.end()
    await redis.stop()
  }
})

test('replicas - a write is acknowledged when so many have it on disk, and refused before', async () => {
  const first = await startRedis({ dir: join(folder, 'first') })
  const second = await startRedis({ dir: join(folder, 'second') })
  const lab = await openStoreLab(first.url, { timeScale: 0.1, replicas: 1 })
  const other = new Redis(second.url)
  try {
    const plan = planOf('copied', { a: { size: 2 } })
    expect(await refusalOf(lab.store.create(plan))).toMatchObject({
      code: 'dispatcher.busy',
      message: '0 of 1 replicas of the store have what was written: ask again',
    })
    await other.config('SET', 'masterauth', new URL(first.url).password)
    await other.replicaof('127.0.0.1', String(first.port))
    await vi.waitFor(async () => expect(await lab.store.create(plan)).toEqual({ created: false }), {
      timeout: 30_000,
      interval: 100,
    })
    expect(await other.hget(`indraft:{${GROUP}}:names`, 'copied')).toBe(plan.id)
  } finally {
    other.disconnect()
    await lab.end()
    await first.stop()
    await second.stop()
  }
})

test('the whole of central without Redis - the API says 503 in words, not ready, stays up, and stops cleanly', async () => {
  const lab: CentralLab = await startCentralLab()
  try {
    const { hostname, port, password } = new URL(lab.redisUrl)
    const control = new Redis({ host: hostname, port: Number(port), password, retryStrategy: () => null })
    await control.config('SET', 'min-replicas-to-write', '1')
    await expect(lab.admin.call('addSite', { body: { name: 'ALPHA' } })).rejects.toMatchObject({
      code: 'dispatcher.busy',
      message: 'the store has too few replicas and takes no writes: ask again',
    })
    await control.config('SET', 'min-replicas-to-write', '0')
    await control.shutdown('NOSAVE').catch(() => {})
    control.disconnect()
    const answer = await fetch(`${lab.central.apiUrl}/v1/whoami`, {
      headers: { authorization: `Bearer ${lab.adminToken}` },
    })
    expect([answer.status, answer.headers.get('retry-after')]).toEqual([503, '1'])
    expect(await answer.json()).toMatchObject({
      code: 'dispatcher.busy',
      message: 'the store does not answer: ask again',
    })
    expect((await fetch(`${lab.central.metricsUrl}/readyz`)).status).toBe(503)
    expect((await fetch(`${lab.central.metricsUrl}/healthz`)).status).toBe(200)
  } finally {
    await lab.stop()
  }
})
