import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { startServer } from './process.ts'

let dir: string
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'indraft-server-'))
})
afterEach(() => {
  rmSync(dir, { recursive: true, force: true })
})

/** Processes with the mark among their arguments. */
function living(mark: string): string[] {
  return readdirSync('/proc').filter((name) => {
    try {
      return /^\d+$/.test(name) && readFileSync(`/proc/${name}/cmdline`, 'latin1').includes(mark)
    } catch {
      return false
    }
  })
}

function start() {
  return startServer({
    name: 'fake',
    dir,
    path: process.execPath,
    host: '127.0.0.1',
    port: 65_000,
    prepare: () => ['-e', 'setInterval(() => {}, 1000)', `mark-of-${dir}`],
    probe: async () => 'ready',
  })
}

test.each([['fake.pid'], ['fake.port']])('servers - a start that fails leaves no process: %s', async (file) => {
  if (file === 'fake.pid') {
    // The folder of the record's temporary name is in the way: it cannot be written, as on a full disk.
    mkdirSync(join(dir, `fake.pid.${process.pid}.tmp`))
  } else {
    mkdirSync(join(dir, file))
  }
  await expect(start()).rejects.toMatchObject({ code: 'server.failed', message: expect.stringContaining(dir) })
  expect(living(`mark-of-${dir}`)).toEqual([])
  expect(readdirSync(dir)).not.toContain('fake.pid')
})

test('servers - a start that goes well runs until it is stopped', async () => {
  const server = await start()
  expect(living(`mark-of-${dir}`)).not.toEqual([])
  await server.stop()
  expect(living(`mark-of-${dir}`)).toEqual([])
})
