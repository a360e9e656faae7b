/**
 * `npm run fault:mutants [-- NAME ...]`: sees every fault test fail once. Each patch beside this file switches one
 * protection off; it is applied to a copy of the committed tree, and each test that it names is run there and has to
 * fail, or hang. A mutant that lives is a failure here, and so is a patch that does not apply any more.
 *
 * A patch begins with a line `Protection: ...` (what is switched off) and lines `Test: FILE -t PART OF A TITLE`, one for
 * each test that has to notice.
 */
import { execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { allMutants, type Mutant, type Named } from './mutant.ts'

/** For each test: one that lasts longer waits for ever. */
const LONGEST_MS = 120_000

/** Told to end: nothing further is begun. */
let isStopped = false

const checkout = resolve(import.meta.dirname, '../../..')

/** @returns what is wrong: undefined for a mutant that was noticed as expected */
async function tryMutant(mutant: Mutant): Promise<string | undefined> {
  const tree = mkdtempSync(join(tmpdir(), 'indraft-mutant-'))
  try {
    const archive = execFileSync('git', ['archive', 'HEAD'], { cwd: checkout, maxBuffer: 1 << 28 })
    execFileSync('tar', ['x', '-C', tree], { input: archive })
    symlinkSync(join(checkout, 'node_modules'), join(tree, 'node_modules'))
    try {
      execFileSync('git', ['apply', '--unsafe-paths', '--directory', tree, mutant.path], { cwd: '/', stdio: 'pipe' })
    } catch (error) {
      return `the patch does not apply any more: ${(error as { stderr: Buffer }).stderr.toString().trim()}`
    }
    return await tryTests(tree, mutant.tests)
  } finally {
    rmSync(tree, { recursive: true, force: true })
  }
}

/** All in one go; where that hangs, each by itself. */
async function tryTests(tree: string, tests: readonly Named[]): Promise<string | undefined> {
  const files = [...new Set(tests.map(({ file }) => file))]
  const titles = tests.map(({ title }) => title.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('|')
  const vitest = join(tree, 'node_modules/vitest/vitest.mjs')
  const { status, output } = await runIn(tree, [vitest, 'run', ...files, '-t', titles], tests.length * LONGEST_MS)
  if (status === null && tests.length === 1) return undefined
  if (status === null) {
    for (const one of tests) {
      const wrong = await tryTests(tree, [one])
      if (wrong !== undefined) return wrong
    }
    return undefined
  }
  const failed = plain(output)
    .split('\n')
    .filter((line) => /^ *FAIL /.test(line))
  const lived = tests.filter(({ file, title }) => !failed.some((line) => line.includes(file) && line.includes(title)))
  if (lived.length === 0) return undefined
  if (/No test files found|Tests +[0-9]+ skipped \(/.test(plain(output))) return `there is no such test: ${titles}`
  const names = lived.map(({ file, title }) => `${file} "${title}"`).join(', ')
  return `it lives: ${names} did not fail\n${plain(output).slice(-1500)}`
}

/** Without colours. */
function plain(output: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: that is what a colour is
  return output.replace(/\x1b\[[0-9;]*m/g, '')
}

/** Status null: it did not end by itself, and was killed with all that it had started. */
function runIn(tree: string, words: string[], longestMs: number): Promise<{ status: number | null; output: string }> {
  const child = spawn(process.execPath, words, { cwd: tree, stdio: ['ignore', 'pipe', 'pipe'], detached: true })
  const signalAll = (signal: NodeJS.Signals) => {
    try {
      process.kill(-child.pid!, signal)
    } catch {
      // All are gone.
    }
  }
  const end = () => {
    isStopped = true
    signalAll('SIGTERM')
  }
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.on(signal, end)
    child.once('close', () => process.off(signal, end))
  }
  const late = setTimeout(() => signalAll('SIGKILL'), longestMs)
  child.once('close', () => clearTimeout(late))
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (bytes: Buffer) => (output += bytes.toString()))
  return new Promise((done) => child.once('close', (status) => done({ status, output })))
}

const wanted = process.argv.slice(2)
const mutants = allMutants().filter(({ name }) => wanted.length === 0 || wanted.includes(name))
const missing = wanted.filter((name) => !mutants.some((mutant) => mutant.name === name))
if (missing.length > 0) throw new Error(`no such mutant: ${missing.join(', ')}`)
let lived = 0
const startMs = performance.now()
for (const mutant of mutants) {
  if (isStopped) break
  const beganMs = performance.now()
  const wrong = await tryMutant(mutant)
  if (isStopped) break
  if (wrong !== undefined) lived++
  const verdict = wrong === undefined ? 'noticed' : 'NOT NOTICED'
  const seconds = Math.round((performance.now() - beganMs) / 1000)
  console.log(`${verdict}  ${mutant.name}: without ${mutant.protection} (${seconds} s)`)
  if (wrong !== undefined) console.log(`  ${wrong}`)
}
const tests = mutants.reduce((sum, mutant) => sum + mutant.tests.length, 0)
const minutes = Math.round((performance.now() - startMs) / 60_000)
console.log(`${mutants.length - lived} passed, ${lived} failed; ${tests} tests, ${minutes} min`)
process.exitCode = lived === 0 ? 0 : 1
