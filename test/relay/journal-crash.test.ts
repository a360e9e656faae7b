/** What the journal said was committed is there after SIGKILL in the middle of commits. */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { Journal } from '../../edge-relay/journal.ts'
import { silentLog } from '../../shared/log.ts'

const WRITER = fileURLToPath(new URL('./journal-writer.ts', import.meta.url))

let folder: string
let child: ChildProcess | undefined
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-journal-'))
})
afterEach(() => {
  child?.kill('SIGKILL')
  rmSync(folder, { recursive: true, force: true })
})

it.each([200, 1000, 2000])('journal - after SIGKILL at %i committed results they are all there', async (killAfter) => {
  const path = join(folder, 'journal.sqlite')
  const writer = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', WRITER, path], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  child = writer
  const acknowledged = new Set<string>()
  for await (const line of createInterface({ input: writer.stdout })) {
    acknowledged.add(line)
    if (acknowledged.size === killAfter) writer.kill('SIGKILL')
  }
  expect(acknowledged.size).toBeGreaterThanOrEqual(killAfter)
  const journal = Journal.open(path, silentLog, () => {})
  const kept = new Set([...journal.results()].map(({ attempt }) => attempt))
  journal.close()
  expect([...acknowledged].filter((name) => !kept.has(name))).toEqual([])
})
