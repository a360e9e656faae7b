import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { execa } from 'execa'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { silentLog } from '../shared/log.ts'
import { runBound } from './bound.ts'
import { adoptDead, removeFolder, startGuard, takeHome, takeScratch } from './home.ts'
import { Outbox } from './outbox.ts'
import { RUN_VARIABLE } from './processes.ts'
import { PATH } from './testbench.ts'

let folder: string
let sleepers: number[]
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-home-'))
  sleepers = []
})
afterEach(() => {
  for (const pid of sleepers) {
    try {
      process.kill(pid, 'SIGKILL')
    } catch {
      // As it should be.
    }
  }
  rmSync(folder, { recursive: true, force: true })
})

function isRunning(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) [ZX]/.test(readFileSync(`/proc/${pid}/stat`, 'latin1'))
  } catch {
    return false
  }
}

/** A process that takes a home, with or without a guard, starts a marked payload in a session of its own, and waits. */
async function startDoomed(
  name: string,
  run: string,
  guarded: boolean,
): Promise<{ kill: () => void; payload: number }> {
  const code = `
    import { spawn } from 'node:child_process'
    import { pino } from 'pino'
    import { startGuard, takeHome } from ${JSON.stringify(fileURLToPath(new URL('./home.ts', import.meta.url)))}
    const home = await takeHome(${JSON.stringify(folder)}, '${name}', 'n1', '${run}', pino({ level: 'silent' }))
    ${guarded ? `await startGuard(home, '${run}', '${PATH}')` : ''}
    const env = { PATH: '${PATH}', ${RUN_VARIABLE}: '${run}' }
    // The clean environment of its child is no way out: the group goes with its leader.
    const payload = spawn('/bin/sh', ['-c', 'env -i /bin/sleep 300; :'], { detached: true, stdio: 'ignore', env })
    console.log(payload.pid)
    setInterval(() => {}, 1000)`
  const child = execa(process.execPath, ['--input-type=module', '-e', code], {
    cwd: fileURLToPath(new URL('..', import.meta.url)),
    reject: false,
    buffer: false,
  })
  const payload = await new Promise<number>((resolve, reject) => {
    child.stdout.once('data', (data) => resolve(Number(data)))
    child.stderr.once('data', (data) => reject(new Error(String(data))))
  })
  sleepers.push(payload)
  return { kill: () => void child.kill('SIGKILL'), payload }
}

test('home - payloads of a killed pilot are ended by its guard', async () => {
  const doomed = await startDoomed('p1', 'run-guarded', true)
  expect(isRunning(doomed.payload)).toBe(true)
  doomed.kill()
  await expect.poll(() => isRunning(doomed.payload)).toBe(false)
})

test('home - without a guard the next pilot of the node ends them and takes over what was not delivered', async () => {
  const doomed = await startDoomed('p1', 'run-bare', false)
  const mine = await takeHome(folder, 'p2', 'n1', 'run-2', silentLog)
  const outbox = await Outbox.open(mine.outboxFolder, silentLog)
  await adoptDead(folder, mine, 'n1', outbox, silentLog)
  expect(isRunning(doomed.payload)).toBe(true)
  doomed.kill()
  await vi.waitFor(async () => {
    await adoptDead(folder, mine, 'n1', outbox, silentLog)
    expect(isRunning(doomed.payload)).toBe(false)
  }, 30_000)
})

test('home - of a dead pilot whose results cannot be read those stay, and nothing else that takes room', async () => {
  const doomed = await startDoomed('p1', 'run-bad', false)
  const dead = join(folder, 'p1')
  for (const name of ['tasks', 'pipes', 'blobs/unpacked', 'container', 'outbox'])
    mkdirSync(join(dead, name), { recursive: true })
  writeFileSync(join(dead, 'outbox', 'x.json.bad'), '[{"campaign":')
  const mine = await takeHome(folder, 'p2', 'n1', 'run-2', silentLog)
  const outbox = await Outbox.open(mine.outboxFolder, silentLog)
  doomed.kill()
  await vi.waitFor(async () => {
    await adoptDead(folder, mine, 'n1', outbox, silentLog)
    expect(readdirSync(dead).sort()).toEqual(['outbox', 'pilot.json'])
  }, 30_000)
  expect(readdirSync(join(dead, 'outbox'))).toEqual(['x.json.bad'])
})

test('home - a guard that is dismissed ends nothing', async () => {
  const home = await takeHome(folder, 'p1', 'n1', 'run-3', silentLog)
  const guard = await startGuard(home, 'run-3', PATH)
  const payload = execa('sleep', ['60'], { env: { [RUN_VARIABLE]: 'run-3' }, reject: false })
  await guard.dismiss()
  expect(isRunning(payload.pid!)).toBe(true)
  payload.kill('SIGKILL')
  await payload
})

describe('removal', () => {
  const target = () => join(folder, 'target')

  test('removal - a folder deeper than any path can say is removed', async () => {
    const name = 'd'.repeat(250)
    const deepen =
      'for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do mkdir "$0"; cd -P "$0"; echo x >x; done'
    mkdirSync(target())
    await execa('/bin/sh', ['-c', deepen, name], { cwd: target() })
    await expect(rm(target(), { recursive: true })).rejects.toMatchObject({ code: 'ENAMETOOLONG' })
    expect(await removeFolder(target(), silentLog)).toBe(true)
    expect(existsSync(target())).toBe(false)
    expect(await removeFolder(target(), silentLog)).toBe(true)
  })

  test('removal - of what cannot be removed it says so, and why', async () => {
    const said = await runBound(`
      import { chmodSync, mkdirSync } from 'node:fs'
      import { pino } from 'pino'
      import { removeFolder } from './home.ts'
      const lines = []
      const log = pino({}, { write: (line) => lines.push(JSON.parse(line)) })
      mkdirSync(${JSON.stringify(target())})
      chmodSync(${JSON.stringify(folder)}, 0o500)
      const isGone = await removeFolder(${JSON.stringify(target())}, log)
      chmodSync(${JSON.stringify(folder)}, 0o700)
      console.log(JSON.stringify({ isGone, said: lines.map(({ msg, err }) => [msg, err.code]) }))`)
    expect(said).toEqual({ isGone: false, said: [['folder.notRemoved', 'EACCES']] })
  })
})

describe('scratch', () => {
  const own = process.getuid!()

  test('scratch - a folder of our own is taken as it is, and made where it is missing', async () => {
    const path = join(folder, 'deep', 'scratch')
    expect(await takeScratch(path)).toBe(path)
    expect(statSync(path).mode & 0o777).toBe(0o700)
    expect(await takeScratch(path)).toBe(path)
  })

  test('scratch - in one for everybody it is a folder of our own below', async () => {
    chmodSync(folder, 0o1777)
    const below = join(folder, `indraft-pilot-${own}`)
    expect(await takeScratch(folder)).toBe(below)
    expect(statSync(below).mode & 0o777).toBe(0o700)
  })

  test('scratch - one that others may change under us is refused, in words', async () => {
    chmodSync(folder, 0o777)
    await expect(takeScratch(folder)).rejects.toThrow(/nobody else may write, found one of user \d+ with mode 777/)
  })

  test('scratch - what somebody put in the place of our folder is refused', async () => {
    chmodSync(folder, 0o1777)
    mkdirSync(join(folder, 'trap'))
    symlinkSync(join(folder, 'trap'), join(folder, `indraft-pilot-${own}`))
    await expect(takeScratch(folder)).rejects.toThrow(/expected a folder of user/)
  })

  test.skipIf(own !== 0)('scratch - a folder of another user is refused', async () => {
    chownSync(folder, 4711, 4711)
    await expect(takeScratch(folder)).rejects.toThrow('found one of user 4711')
  })
})
