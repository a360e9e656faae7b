/**
 * The whole product for a test: `up` in a folder of its own on free ports, and the command as a user types it. Whatever
 * the test does, everything it started ends with it.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { execa } from 'execa'
import { loadUpConfig } from '../../central/cli/up/config.ts'
import { type Stack, startStack } from '../../central/cli/up/stack.ts'

const LAUNCHER = fileURLToPath(new URL('../../central/cli/indraft.mjs', import.meta.url))
const POLL_MS = 100
/** For a busy machine. */
const PATIENCE_MS = 300_000

export interface Answer {
  code: number
  stdout: string
  stderr: string
}

export interface WholeProduct {
  stack: Stack
  /** Its folder; campaign files and outputs of the test go here too. */
  folder: string
  /** `indraft <words>`, as a process. */
  indraft(...words: string[]): Promise<Answer>
  /** The same with --json, which must succeed. */
  ask<T>(...words: string[]): Promise<T>
  /** Writes a campaign file and submits it. */
  submit(name: string, campaign: string, ...words: string[]): Promise<Answer>
  stop(): Promise<void>
}

export async function startWholeProduct(settings: Record<string, unknown> = {}): Promise<WholeProduct> {
  const folder = mkdtempSync(join(tmpdir(), 'indraft-e2e-'))
  const lines: string[] = []
  const stack = await startStack(loadUpConfig({ home: join(folder, 'home'), logLevel: 'debug', ...settings }, {}), {
    say: (line) => lines.push(line),
  })
  const indraft = async (...words: string[]): Promise<Answer> => {
    const { exitCode, stdout, stderr } = await execa(process.execPath, [LAUNCHER, ...words], {
      cwd: folder,
      env: { INDRAFT_HOME: join(folder, 'home') },
      reject: false,
      timeout: PATIENCE_MS,
    })
    return { code: exitCode ?? -1, stdout, stderr }
  }
  return {
    stack,
    folder,
    indraft,
    async ask<T>(...words: string[]) {
      const answer = await indraft(...words, '--json')
      if (answer.code !== 0)
        throw new Error(`indraft ${words.join(' ')}: ${answer.code} ${answer.stderr}${answer.stdout}`)
      return JSON.parse(answer.stdout) as T
    },
    async submit(name, campaign, ...words) {
      const path = join(folder, `${name}.yaml`)
      writeFileSync(path, campaign)
      return indraft('campaign', 'submit', path, ...words)
    },
    async stop() {
      await stack.stop()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

/** Asks until the answer is not undefined. For what no event reports to the outside. */
export async function eventually<T>(what: string, probe: () => Promise<T | undefined>): Promise<T> {
  const deadline = performance.now() + PATIENCE_MS
  for (;;) {
    const found = await probe()
    if (found !== undefined) return found
    if (performance.now() > deadline) throw new Error(`did not happen in time: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, POLL_MS))
  }
}
