/** The demo as people run it, with each part killed in the middle: the answer is the same to the last digit. */
import { execFile } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, test } from 'vitest'

const run = promisify(execFile)
const INDRAFT = join(import.meta.dirname, '..', 'central', 'cli', 'indraft.mjs')
const SEEDS = 4

let dir: string
const digests = new Set<string>()
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'indraft-demo-test-'))
})
afterAll(() => rmSync(dir, { recursive: true, force: true, maxRetries: 5 }))

test.each(['none', 'pilot', 'relay', 'central', 'redis', 'nats'])(
  'demo - the same answer with %s killed in the middle',
  { timeout: 240_000 },
  async (victim) => {
    const words = [INDRAFT, 'demo', '--folder', dir, '--kill', victim, '--seeds', String(SEEDS), '--json']
    const { stdout } = await run(process.execPath, words).catch((error) => error)
    const outcome = JSON.parse(stdout)
    expect(outcome).toMatchObject({
      good: true,
      state: 'done',
      tasks: 15 * SEEDS + 1,
      done: 15 * SEEDS + 1,
      failed: 0,
      findings: 0,
      agrees: true,
      killed: victim === 'none' ? null : victim === 'pilot' ? expect.stringMatching(/^local-\d$/) : victim,
    })
    expect(outcome.failedAttempts['payload.exit']).toBe(1)
    expect(readFileSync(outcome.picture, 'utf8')).toMatch(/^<svg.*<\/svg>\s*$/s)
    expect(existsSync(join(dir, 'up'))).toBe(false)
    digests.add(outcome.tableDigest)
    expect(digests.size).toBe(1)
  },
)
