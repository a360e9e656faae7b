import { execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { open, readdir } from 'node:fs/promises'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { takeLock } from './lock.ts'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-lock-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))
const owner = (change: object) => {
  const others = { host: hostname(), pid: 1, startTicks: 1, takenAtMs: 0, token: 'other', ...change }
  writeFileSync(join(folder, 'lock'), JSON.stringify(others))
}

describe('lock', () => {
  it('one has it, until it is released', async () => {
    const first = await takeLock(folder, 0)
    expect(await takeLock(folder, 0)).toBeNull()
    expect(await first!.isHeld()).toBe(true)
    await first!.release()
    const second = await takeLock(folder, 0)
    expect(second).not.toBeNull()
    expect(await first!.isHeld()).toBe(false)
    await first!.release()
    expect(await second!.isHeld()).toBe(true)
  })

  it.each([
    ['of a process that is gone', { pid: 2 ** 22 + 1 }, 0, true],
    ['of a process number that is another process by now', { pid: process.pid, startTicks: 1 }, 0, true],
    ['of another machine, young', { host: 'elsewhere' }, 14 * 60_000, false],
    ['of another machine, old', { host: 'elsewhere' }, 16 * 60_000, true],
  ])('a lock %s', async (_title, change, nowMs, isTaken) => {
    owner(change)
    expect((await takeLock(folder, nowMs)) !== null).toBe(isTaken)
    expect((await readdir(folder)).filter((name) => name !== 'lock')).toEqual([])
  })

  it('a lock that is no lock is replaced', async () => {
    writeFileSync(join(folder, 'lock'), 'half')
    expect(await takeLock(folder, 0)).not.toBeNull()
  })

  it('of many that find a dead lock at the same time one gets it', async () => {
    for (let round = 0; round < 20; round++) {
      owner({ pid: 2 ** 22 + 1 })
      const locks = await Promise.all(Array.from({ length: 8 }, () => takeLock(folder, 0)))
      const held = []
      for (const lock of locks) if (lock && (await lock.isHeld())) held.push(lock)
      expect(held).toHaveLength(1)
      await held[0]!.release()
      rmSync(join(folder, 'lock'), { force: true })
    }
  })

  it('a fresh lock that was taken away for a dead one is put back', async () => {
    const path = join(folder, 'lock')
    execFileSync('mkfifo', [path])
    // It reads who has the lock, and hears of a dead one; meanwhile another tick has replaced that.
    const taking = takeLock(folder, 0)
    const pipe = await open(path, 'w')
    rmSync(path)
    const fresh = await takeLock(folder, 0)
    await pipe.writeFile(
      JSON.stringify({ host: hostname(), pid: 2 ** 22 + 1, startTicks: 1, takenAtMs: 0, token: 'x' }),
    )
    await pipe.close()
    expect(await taking).toBeNull()
    expect(await fresh!.isHeld()).toBe(true)
    expect(await readdir(folder)).toEqual(['lock'])
  })

  it('a process that is killed loses it', async () => {
    const program = `import { takeLock } from ${JSON.stringify(join(import.meta.dirname, 'lock.ts'))}
      await takeLock(${JSON.stringify(folder)}, Date.now()); console.log('taken'); setInterval(() => {}, 1000)`
    const child = spawn(process.execPath, ['--input-type=module-typescript', '-e', program], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    try {
      await new Promise((resolve) => child.stdout.once('data', resolve))
      expect(await takeLock(folder, Date.now())).toBeNull()
      expect(JSON.parse(readFileSync(join(folder, 'lock'), 'utf8'))).toMatchObject({ pid: child.pid })
    } finally {
      const gone = new Promise((resolve) => child.once('exit', resolve))
      child.kill('SIGKILL')
      await gone
    }
    expect(await takeLock(folder, Date.now())).not.toBeNull()
  })
})
