/**
 * The site's shared file system stops answering while a pilot lives. Its files are named pipes then: whoever opens one
 * waits for ever, in a thread of its own, as with a server that is gone.
 */
import { execFileSync } from 'node:child_process'
import { closeSync, constants, mkdirSync, openSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { PilotBench, sh, until } from './bench.ts'

let bench: PilotBench
beforeEach(async () => {
  bench = await PilotBench.open()
})
afterEach(() => bench.close())

test('hung disk - work goes on without the shared one, and a signal ends the pilot with its own status', async () => {
  const shared = join(bench.site.folder, 'shared')
  mkdirSync(shared)
  const banFile = join(shared, 'BANNED')
  writeFileSync(banFile, '')
  const pilot = bench.start(
    { 'ban-file': banFile, 'ban-every': '100ms', 'end-folder': shared, 'start-id': 's', 'drain-grace': '4s' },
    { JOBOUTPUTS: shared },
  )
  bench.script.give(sh('true'), '0')
  await until('a first result', () => bench.script.results.length === 1)
  rmSync(banFile)
  for (const name of ['BANNED', '.s-pilot1.tmp', 'shutdown_message']) execFileSync('mkfifo', [join(shared, name)])
  // Somebody who may write and does not: there is one as soon as the pilot reads.
  const silent = await until('the pilot reads the ban file', () => {
    try {
      return openSync(banFile, constants.O_WRONLY | constants.O_NONBLOCK)
    } catch {
      return null
    }
  })
  try {
    bench.script.give(sh('true'), '1')
    await until('another result', () => bench.script.results.length === 2)
    pilot.signal('SIGTERM')
    expect(await pilot.ended).toBe(0)
  } finally {
    closeSync(silent)
  }
  expect(bench.script.byes).toMatchObject([{ code: 200 }])
  expect(await pilot.said('end.notSaid')).toMatchObject({ code: 200 })
})
