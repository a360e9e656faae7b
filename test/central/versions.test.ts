/**
 * Releases side by side: a peer that speaks version 1 only, and a build that speaks 1 and 2 (a made-up 2, whose messages
 * are those of 1), in both roles and while the one takes the other's place.
 */
import { randomBytes } from 'node:crypto'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { systemClock } from '../../shared/clock.ts'
import { frameHandler } from '../../shared/dispatcher.ts'
import { Holder } from '../../shared/holder.ts'
import { memoryLink } from '../../shared/link.ts'
import { silentLog } from '../../shared/log.ts'
import { decode } from '../../shared/protocol/codec.ts'
import { openStoreLab, planOf, type StoreLab, startRedisForTests } from './store-lab.ts'

const OLD = [1]
const NEW = [1, 2]
const FACTS = {
  node: 'n1',
  cores: 4,
  memoryBytes: 2 ** 34,
  scratchBytes: 2 ** 36,
  gpus: 0,
  gpuMemoryBytes: 0,
  arch: 'x86_64' as const,
  runtimes: ['host' as const],
  network: 'outgoing' as const,
  timeLeftMs: null,
  labels: {},
}

let redis: { url: string; stop(): Promise<void> }
let lab: StoreLab
beforeAll(async () => {
  redis = await startRedisForTests()
})
afterAll(() => redis.stop())
beforeEach(async () => {
  lab = await openStoreLab(redis.url, { timeScale: 1 })
  await lab.store.create(planOf('versions', { a: { size: 8 } }))
  await lab.settle()
})
afterEach(() => lab.end())

/** A holder of one release before a dispatcher of another, which may be replaced; and the versions of what they said. */
function pair(holderSpeaks: readonly number[], dispatcherSpeaks: readonly number[]) {
  const said: string[] = []
  const serve = (spoken: readonly number[]) => frameHandler(lab.dispatcher, silentLog, {}, undefined, spoken)
  const place = { handler: serve(dispatcherSpeaks) }
  const note = (who: string, frame: Uint8Array) => {
    const { type, version } = decode(frame, NEW)
    said.push(`${who} ${type} ${version}`)
    return frame
  }
  const holder = new Holder({
    link: memoryLink({ site: 'ALPHA' }, async (peer, frame) => {
      note('>', frame)
      return note('<', await place.handler(peer, frame))
    }),
    clock: systemClock,
    log: silentLog,
    role: 'pilot',
    holder: 'p1',
    incarnation: randomBytes(4).toString('hex'),
    software: 'test 1',
    nodes: () => [FACTS],
    requestTimeoutMs: 5000,
    spoken: holderSpeaks,
  })
  const { node, timeLeftMs, labels: _labels, ...shape } = FACTS
  const pull = async () => {
    const offer = [{ shape: { ...shape, cores: 1 }, count: 1, timeLeftMs, aheadMs: 0, node }]
    const { reply } = await holder.pull({ offer, finished: [], returned: [], waitMs: 0, knows: [] })
    holder.processedGrants(reply.sequence)
    return reply.grants.length
  }
  return {
    holder,
    pull,
    said,
    replace: (spoken: readonly number[]) => Object.assign(place, { handler: serve(spoken) }),
  }
}

test.each([
  ['an old holder before a new dispatcher', OLD, NEW, 1],
  ['a new holder before an old dispatcher', NEW, OLD, 1],
  ['both new', NEW, NEW, 2],
  ['both old', OLD, OLD, 1],
])(
  '%s - they agree in hello and welcome, and every answer is in the version of its request',
  async (_who, a, b, version) => {
    const { holder, pull, said } = pair(a, b)
    await holder.connect()
    expect(await pull()).toBe(1)
    expect(said).toEqual(['> hello 1', '< welcome 1', `> pull ${version}`, `< grants ${version}`])
  },
)

test('rolled back, or a replica of the release before - the holder goes on in the old version, in the same session', async () => {
  const { holder, pull, said, replace } = pair(NEW, NEW)
  const { session } = await holder.connect()
  expect(await pull()).toBe(1)
  replace(OLD)
  expect(await pull()).toBe(1)
  expect(holder.welcome!.session).toBe(session)
  expect(said.slice(4)).toEqual(['> pull 2', '< refused 1', '> hello 1', '< welcome 1', '> pull 1', '< grants 1'])
  // Between two releases it stays with what both speak.
  replace(NEW)
  expect(await pull()).toBe(1)
  expect(said.at(-1)).toBe('< grants 1')
  expect(await lab.store.verify()).toEqual([])
})

test('rolled forward - a new session speaks the new version', async () => {
  const { holder, pull, said, replace } = pair(NEW, OLD)
  await holder.connect()
  expect(await pull()).toBe(1)
  replace(NEW)
  expect(await pull()).toBe(1)
  expect(said.at(-1)).toBe('< grants 1')
  await holder.connect()
  expect(await pull()).toBe(1)
  expect(said.at(-1)).toBe('< grants 2')
})

test('no version in common - the holder is told so, and does not repeat it for ever', async () => {
  const { holder } = pair([2], OLD)
  await expect(holder.connect()).rejects.toMatchObject({ code: 'protocol.version' })
})
