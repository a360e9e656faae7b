/** Payloads on the host that ask for no network: what a pilot does on nodes that can keep them from it, and that cannot. */
import { readdirSync } from 'node:fs'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { makeOffline } from '../../pilot/offline.ts'
import { PATH } from '../../pilot/testbench.ts'
import { PilotBench, type PilotProcess, sh, until } from './bench.ts'

/** A node whose administrator allows no network namespaces. */
const NO_NAMESPACES = `set -- unshare --user --map-root-user sh -c 'echo 0 >/proc/sys/user/max_net_namespaces && exec "$@"' sh "$@"`

let bench: PilotBench
beforeEach(async () => {
  bench = await PilotBench.open()
})
afterEach(async () => {
  await bench.close()
})

/** What a payload without network sees of the node's network, and how the attempt was said to be sealed. */
async function seen(pilot: PilotProcess): Promise<{ interfaces: string[]; sealing: unknown }> {
  bench.script.give(sh('ls /proc/sys/net/ipv4/conf'), '0')
  const result = await until('the result', () => bench.script.results[0])
  expect(result).toMatchObject({ end: 'done', reason: null })
  const text = (await bench.site.stored(result, '.log/stdout'))!
  const interfaces = text.split('\n').filter((name) => name !== '' && name !== 'all' && name !== 'default')
  return { interfaces, sealing: (await pilot.said('attempt.started')).sealing }
}

test('own network - where the node can, a payload without network has loopback alone, and its holder ends with the pilot', async (context) => {
  const made = await makeOffline(PATH)
  if (typeof made === 'string') return context.skip(`this machine makes no such namespace: ${made}`)
  made.close()
  const pilot = bench.start({ 'own-network': 'always' })
  expect(await pilot.said('host.found')).toMatchObject({ network: 'own' })
  expect(await seen(pilot)).toEqual({ interfaces: ['lo'], sealing: { network: 'own', processes: 'shared' } })
  pilot.signal('SIGTERM')
  expect(await pilot.ended).toBe(0)
})

test('own network - where the node cannot, it runs all the same and says so', async () => {
  const pilot = bench.start({}, {}, NO_NAMESPACES)
  expect(await pilot.said('host.found')).toMatchObject({ network: expect.stringContaining('shared: ') })
  const { interfaces, sealing } = await seen(pilot)
  expect(interfaces).toEqual(readdirSync('/proc/sys/net/ipv4/conf').filter((name) => !/^(all|default)$/.test(name)))
  expect(sealing).toEqual({ network: 'shared', processes: 'shared' })
})

test('own network - where the site insists on it and the node cannot, the pilot leaves with 500 and runs nothing', async () => {
  const pilot = bench.start({ 'own-network': 'always' }, {}, NO_NAMESPACES)
  bench.script.give(sh('true'), '0')
  expect(await pilot.ended).toBe(1)
  expect(bench.script.byes).toMatchObject([{ code: 500, reason: expect.stringContaining('network of their own') }])
  expect(bench.script.results).toEqual([])
})
