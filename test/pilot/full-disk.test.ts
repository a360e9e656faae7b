/** A scratch that is full or read-only under a living pilot: it says so, takes no work, and loses no result. */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { execa } from 'execa'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { makeTemplate } from '../../pilot/testbench.ts'
import { PilotBench, sh, until } from './bench.ts'

/** A file system of its own needs root. */
const CANNOT_MOUNT = process.getuid?.() !== 0

let bench: PilotBench
beforeEach(async () => {
  bench = await PilotBench.open()
  if (CANNOT_MOUNT) return
  mkdirSync(bench.scratch)
  await execa('mount', ['-t', 'tmpfs', '-o', 'size=4m,mode=700', 'tmpfs', bench.scratch])
})
afterEach(async () => {
  if (!CANNOT_MOUNT) await execa('umount', ['-l', bench.scratch])
  await bench.close()
})

const outbox = () => join(bench.scratch, 'pilot1', 'outbox')
const fillers = () => [join(bench.scratch, 'filler'), join(outbox(), 'filler')]

/** The outbox has a disk of its own then: each payload that ends makes room for a result on the one that it was on. */
async function fill(): Promise<void> {
  await execa('mount', ['-t', 'tmpfs', '-o', 'size=64k,mode=700', 'tmpfs', outbox()])
  for (const filler of fillers()) {
    try {
      writeFileSync(filler, Buffer.alloc(8 * 2 ** 20))
    } catch (error) {
      expect(error).toMatchObject({ code: 'ENOSPC' })
    }
  }
}

const ready = () => join(bench.site.folder, 'ready')

/** Payloads that end when told, with that exit status; each of one bundle, all granted at once. */
function give(...wanted: { exitCode: number; cores?: number }[]): (exitCode: number) => void {
  const flag = (exitCode: number) => join(bench.site.folder, `end-${exitCode}`)
  const made = wanted.map(({ exitCode, cores = 1 }) => {
    const needs = { ...makeTemplate().needs, cores }
    const loop = `echo >>${ready()}; while [ ! -e ${flag(exitCode)} ]; do sleep 0.05; done; exit ${exitCode}`
    return bench.script.grantOf({ ...sh(loop), needs }, '0')
  })
  bench.script.ready.push({ grants: made.map(({ grant }) => grant), templates: made.map(({ template }) => template) })
  return (exitCode) => writeFileSync(flag(exitCode), '')
}

/** Not before: what is only on its way would find the disk full. */
const started = (count: number) =>
  until(`${count} payloads run`, () => existsSync(ready()) && readFileSync(ready(), 'utf8').length === count)

describe.skipIf(CANNOT_MOUNT)('full disk (needs root for a file system of its own)', () => {
  test('full disk - the result is told from memory, no work is taken, and work goes on when there is room', async () => {
    const { script } = bench
    const pilot = bench.start()
    const end = give({ exitCode: 7 }, { exitCode: 8 }, { exitCode: 9, cores: 2 })
    await started(2)
    script.isDeaf = true
    await fill()
    end(7)
    await pilot.said('outbox.writeFailed')
    await until('the result waits, and why', () => {
      const { undelivered, diskRefuses } = script.beats.at(-1)?.gauges ?? {}
      return undelivered === 1 && diskRefuses === 1
    })
    // The third was granted and has not started: others may have it.
    const back = await until('it is given back', () => script.pulls.flatMap(({ returned }) => returned)[0])
    expect(back.bundle).toBe('b3')
    const since = script.pulls.length
    script.isDeaf = false
    end(8)
    await until('both are told', () => script.results.length === 2)
    expect(script.results.map(({ exitCode }) => exitCode)).toEqual([7, 8])
    const asked = script.pulls.length
    expect(script.pulls.slice(since).filter(({ offer }) => offer.length > 0)).toEqual([])
    for (const filler of fillers()) rmSync(filler)
    await pilot.said('outbox.mended')
    await until('it asks again', () => script.pulls.slice(asked).some(({ offer }) => offer.length > 0))
    expect(script.pulls.slice(asked)[0]?.offer).not.toEqual([])
    give({ exitCode: 0 })(0)
    await until('work goes on', () => script.results.some(({ end }) => end === 'done'))
  })

  test('full disk - results in memory are written when there is room again, and survive a kill', async () => {
    const { script } = bench
    const pilot = bench.start()
    const end = give({ exitCode: 8 })
    await started(1)
    script.isDeaf = true
    await execa('mount', ['-t', 'tmpfs', '-o', 'ro', 'tmpfs', outbox()])
    end(8)
    await until('it is in memory alone', () => script.beats.at(-1)?.gauges.undelivered === 1)
    await execa('umount', ['-l', outbox()])
    await pilot.said('outbox.mended')
    await until('it is on disk', () => bench.undelivered().length === 1)
    pilot.signal('SIGKILL')
    await pilot.ended
    script.isDeaf = false
    script.session = 's2'
    bench.start({ name: 'pilot2' })
    await until('it is told', () => script.results.some(({ exitCode, pilot }) => exitCode === 8 && pilot === 'pilot1'))
  })

  test('full disk - a read-only scratch that stays so: what runs ends and is told, then the pilot leaves with 500', async () => {
    const { script } = bench
    const pilot = bench.start({ 'disk-patience': '1s' })
    const end = give({ exitCode: 9 }, { exitCode: 3 })
    await started(2)
    // A file system with open files cannot be made read-only: one that is comes over the outbox.
    await execa('mount', ['-t', 'tmpfs', '-o', 'ro', 'tmpfs', outbox()])
    end(9)
    await until('the first is told', () => script.results.length === 1)
    await pilot.said('pilot.draining')
    expect(pilot.lines.some(({ msg }) => msg === 'pilot.left')).toBe(false)
    end(3)
    expect(await pilot.ended).toBe(1)
    expect(script.results.map(({ exitCode }) => exitCode)).toEqual([9, 3])
    expect(script.byes).toMatchObject([{ code: 500, reason: expect.stringMatching(/cannot be written.*EROFS/) }])
  })

  test('full disk - a scratch that is read-only from the start: 500, in words, and no stack', async () => {
    await execa('mount', ['-o', 'remount,ro', bench.scratch])
    const pilot = bench.start()
    expect(await pilot.ended).toBe(1)
    expect(pilot.lines.at(-1)).toMatchObject({ msg: expect.stringMatching(/scratch.*EROFS/) })
    expect(pilot.lines.filter(({ msg }) => /^\s+at /.test(msg))).toEqual([])
  })
})
