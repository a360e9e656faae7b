/** A pilot whose dispatcher is gone, or that is killed itself: what ran to its end is kept and told, once, by whoever can. */
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { PilotBench, sh, until } from './bench.ts'

let bench: PilotBench
beforeEach(async () => {
  bench = await PilotBench.open()
})
afterEach(async () => {
  await bench.close()
})

describe('dispatcher gone', () => {
  test('dispatcher gone - for a while: what runs goes on, its result is kept and handed in late', async () => {
    const { script } = bench
    const pilot = bench.start()
    const flag = join(bench.site.folder, 'go-on')
    script.give(sh(`while [ ! -e ${flag} ]; do sleep 0.05; done; exit 4`), '0')
    await pilot.said('attempt.started')
    await bench.fallSilent()
    writeFileSync(flag, '')
    await pilot.said('attempt.ended')
    await until('the result is on disk', () => bench.undelivered().length === 1)
    expect(script.results).toEqual([])
    await bench.answer()
    await until('the result arrives', () => script.results.length === 1)
    expect(script.results[0]).toMatchObject({ exitCode: 4, index: 0 })
    await until('the disk is clear again', () => bench.undelivered().length === 0)
  })

  test('dispatcher gone - for good: the pilot leaves, says what it kept, and the next pilot of the node hands it in', async () => {
    const { script } = bench
    const pilot = bench.start({ 'gone-after': '5s' })
    const flag = join(bench.site.folder, 'go-on')
    script.give(sh(`while [ ! -e ${flag} ]; do sleep 0.05; done; exit 5`), '0')
    await pilot.said('attempt.started')
    await bench.fallSilent()
    // Longer than goneAfter: a running payload keeps the pilot all the same.
    await until(
      'beats are lost for long',
      () => pilot.lines.filter(({ msg }) => msg === 'session.beatLost').length > 60,
    )
    expect(pilot.lines.some(({ msg }) => msg === 'pilot.left')).toBe(false)
    writeFileSync(flag, '')
    expect(await pilot.ended).toBe(1)
    expect(pilot.lines.find(({ msg }) => msg === 'pilot.left')).toMatchObject({
      code: 700,
      undelivered: 1,
      reason: expect.stringContaining('1 results wait for the next pilot'),
    })
    await bench.answer()
    script.session = 's2'
    bench.start({ name: 'pilot2' })
    expect(await until('it arrives', () => script.results[0])).toMatchObject({ exitCode: 5, pilot: 'pilot1' })
    await until('the first one’s folder is gone', () => !readdirSync(bench.scratch).includes('pilot1'))
  })
})

test('a result that the dispatcher does not understand - is told as a fault in its place; the others are taken', async () => {
  const { script } = bench
  script.notUnderstood.add(1)
  const pilot = bench.start({ cores: 3 })
  script.give(sh('exit 0'), '0-2')
  await until('all are told', () => script.results.length === 3)
  const told = script.results.toSorted((a, b) => a.index - b.index).map(({ end, reason }) => [end, reason])
  expect(told).toEqual([
    ['done', null],
    ['failed', 'node.fault'],
    ['done', null],
  ])
  expect(await pilot.said('result.notTaken')).toMatchObject({ index: 1, end: 'done' })
  await until('nothing waits', () => bench.undelivered().length === 0)
  script.give(sh('exit 3'), '7')
  await until('it works on', () => script.results.some(({ index, exitCode }) => index === 7 && exitCode === 3))
})

describe('killed', () => {
  test.each([
    ['outbox.written', 1],
    ['report.answered', 2],
  ] as const)('killed - at %s: the next pilot of the same scratch hands the result in', async (moment, told) => {
    const { script } = bench
    const failpoints = join(bench.site.folder, 'failpoints')
    mkdirSync(failpoints)
    writeFileSync(join(failpoints, moment), 'kill')
    const pilot = bench.start({ failpoints })
    script.give(sh('exit 6'), '3')
    expect(await pilot.ended).toBe('SIGKILL')
    expect(bench.undelivered()).toHaveLength(1)
    script.session = 's2'
    bench.start({ name: 'pilot2' })
    await until('it arrives', () => script.results.length === told)
    expect(script.results.map(({ exitCode, index }) => [exitCode, index])).toEqual(Array(told).fill([6, 3]))
    await until('nothing is left', () => bench.undelivered('pilot2').length === 0)
  })
})
