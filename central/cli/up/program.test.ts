import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, expect, test, vi } from 'vitest'
import { startProgram } from './program.ts'

const folder = mkdtempSync(join(tmpdir(), 'indraft-program-'))
afterEach(() => rmSync(folder, { recursive: true, force: true }))

test('program - one that waits for others when everything is stopped is ended too', async () => {
  const launcher = join(folder, 'waits.mjs')
  writeFileSync(launcher, 'console.log(process.pid); setInterval(() => {}, 1000)')
  const stopping = new AbortController()
  const starting = startProgram(
    {
      name: 'waits',
      launcher,
      words: [],
      runDir: folder,
      env: {},
      readyMessage: 'waits.ready',
      address: () => '',
      stopGraceMs: 5000,
    },
    stopping.signal,
  )
  const pid = await vi.waitFor(() => {
    const said = Number(readFileSync(join(folder, 'waits.log'), 'utf8'))
    expect(said).toBeGreaterThan(0)
    return said
  }, 30_000)
  stopping.abort()
  await expect(starting).rejects.toMatchObject({ code: 'server.failed' })
  expect(() => process.kill(pid, 0)).toThrow()
})
