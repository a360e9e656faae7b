/** What a batch system does to a pilot: SIGTERM (scancel, preemption, requeue), once and twice, with everything in hand. */
import { existsSync, readFileSync } from 'node:fs'
import { createServer, type Server } from 'node:net'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { makeTemplate } from '../../pilot/testbench.ts'
import { systemClock } from '../../shared/clock.ts'
import { chargeOf, IndraftError } from '../../shared/errors.ts'
import { PilotBench, type PilotProcess, sh, until } from './bench.ts'

let bench: PilotBench
beforeEach(async () => {
  bench = await PilotBench.open()
})
afterEach(async () => {
  await bench.close()
})

const started = (pilot: PilotProcess, count: number) =>
  until(`${count} payloads run`, () => pilot.lines.filter(({ msg }) => msg === 'attempt.started').length === count)

/** By the pilot's own clock: from the signal until it had said bye. */
function leavingMs({ lines }: PilotProcess): number {
  const at = (name: string) => Date.parse(String(lines.find(({ msg }) => msg === name)?.time))
  return at('pilot.left') - at('pilot.draining')
}

describe('SIGTERM', () => {
  test('SIGTERM - payloads get the signal and their grace, what is finished is told, the rest is given back', async () => {
    const { script } = bench
    // Long enough for a trap to have its turn on a slow machine; one payload here waits for it to be over.
    const pilot = bench.start({ cores: 3, 'payload-grace': '5s', 'drain-grace': '1min' })
    script.isDeaf = true
    script.give(sh('exit 4'), '0')
    await pilot.said('attempt.ended')
    const ready = join(bench.site.folder, 'ready')
    const stubborn = sh(`trap "" TERM; echo >>${ready}; while :; do sleep 0.1; done`)
    const polite = sh(`trap "echo saved; exit 0" TERM; echo >>${ready}; while :; do sleep 0.1; done`)
    const large = { ...sh('true'), needs: { ...makeTemplate().needs, cores: 2 } }
    const made = [script.grantOf(stubborn, '0'), script.grantOf(polite, '0'), script.grantOf(large, '5-7')]
    script.ready.push({ grants: made.map(({ grant }) => grant), templates: made.map(({ template }) => template) })
    await until('both have set their traps', () => existsSync(ready) && readFileSync(ready, 'utf8').length === 2)
    pilot.signal('SIGTERM')
    await pilot.said('pilot.draining')
    script.isDeaf = false
    expect(await pilot.ended).toBe(1)
    const ends = script.results.map(({ bundle, exitCode, reason }) => ({ bundle, exitCode, reason }))
    expect(ends).toContainEqual({ bundle: 'b1', exitCode: 4, reason: 'payload.exit' })
    expect(ends).toContainEqual({ bundle: 'b3', exitCode: 0, reason: 'node.ending' })
    expect(ends).toContainEqual(expect.objectContaining({ bundle: 'b2', reason: 'node.ending' }))
    expect(chargeOf('node.ending')).toBe('infrastructure')
    const polited = script.results.find(({ bundle }) => bundle === 'b3')!
    expect(await bench.site.stored(polited, '.log/stdout')).toBe('saved\n')
    const back = [...script.pulls.flatMap(({ returned }) => returned), ...script.byes.flatMap((bye) => bye.returned)]
    expect(back.map(({ bundle, tasks }) => `${bundle} ${tasks}`)).toEqual(['b4 5-7'])
    expect(script.byes).toMatchObject([{ code: 700, reason: expect.stringContaining('SIGTERM') }])
    expect(pilot.lines.filter(({ msg }) => /session\.(lost|unknown)|loopFailed/.test(msg))).toEqual([])
  })

  test('SIGTERM - with nobody who answers and outputs that nobody takes it is gone within its grace all the same', async () => {
    const hole: Server = createServer(() => {})
    await new Promise<void>((resolve) => hole.listen(0, '127.0.0.1', resolve))
    try {
      const { script } = bench
      script.filesUrl = `http://127.0.0.1:${(hole.address() as { port: number }).port}`
      const pilot = bench.start({ 'drain-grace': '9s' })
      const outputs = [{ path: 'out', url: null, optional: false }]
      script.give({ ...sh('echo x > out'), outputs }, '0')
      script.give(sh('trap "" TERM; while :; do sleep 0.1; done'), '0')
      await started(pilot, 2)
      await until('the output is being stored', () => pilot.lines.some(({ msg }) => msg === 'attempt.exited'))
      // Not gone, which is heard at once: it hears everything and says nothing.
      const mute = () => new Promise<never>(() => {})
      Object.assign(script, { onBeat: mute, onPull: mute, onReport: mute, onBye: mute })
      pilot.signal('SIGTERM')
      expect(await pilot.ended).toBe(1)
      // By its grace, with what a slow machine adds; what it waits for would take minutes.
      expect(leavingMs(pilot)).toBeLessThan(30_000)
      expect(bench.undelivered().length).toBeGreaterThan(0)
    } finally {
      hole.close()
    }
  })

  test('SIGTERM - twice: it hurries, and no payload outlives it', async () => {
    const { script } = bench
    const pilot = bench.start({ 'drain-grace': '10min', 'payload-grace': '9min' })
    const ready = join(bench.site.folder, 'ready')
    script.give(sh(`trap "" TERM; echo >>${ready}; while :; do sleep 0.1; done`), '0')
    const payload = Number((await pilot.said('attempt.started')).pid)
    await until('it has set its trap', () => existsSync(ready))
    pilot.signal('SIGTERM')
    await pilot.said('pilot.draining')
    // What comes within a second is taken for the same word.
    await systemClock.sleep(1100)
    pilot.signal('SIGTERM')
    expect(await pilot.ended).toBe(1)
    await until('the payload is gone', () => {
      try {
        return !process.kill(payload, 0)
      } catch {
        return true
      }
    })
    expect(script.results).toMatchObject([{ reason: 'node.ending' }])
  })
})

test('leaving - an idle pilot says bye, and nothing of its open pull is taken for a lost session', async () => {
  const { script } = bench
  // As a relay does: the open pull of a session that says bye is answered first, and its session is unknown by then.
  const left = Promise.withResolvers<never>()
  left.promise.catch(() => {})
  const [pull, bye] = [script.onPull.bind(script), script.onBye.bind(script)]
  script.onPull = (peer, message) => Promise.race([pull(peer, { ...message, waitMs: 60_000 }), left.promise])
  script.onBye = async (peer, message) => {
    left.reject(new IndraftError('session.unknown'))
    await systemClock.sleep(100)
    return await bye(peer, message)
  }
  const pilot = bench.start()
  await until('it asks', () => script.pulls.length > 0)
  pilot.signal('SIGTERM')
  expect(await pilot.ended).toBe(0)
  expect(script.byes).toMatchObject([{ code: 200 }])
  expect(script.hellos).toHaveLength(1)
  expect(pilot.lines.filter(({ level }) => level === 'warn' || level === 'error')).toEqual([])
})
