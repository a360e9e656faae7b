/**
 * `npm run fault:mutants [-- NAME ...]`: sees every fault test fail once. Each patch beside this file switches one
 * protection off; it is applied to a copy of the committed tree, the run or test that it names is made there, and that
 * has to fail, saying what the patch expects, or hang. A mutant that lives is a failure here, and so is a patch that does
 * not apply any more.
 *
 * A patch begins with lines `Protection: ...` (what is switched off), `Run: ...` (words of `npm run fault`) or `Test: ...`
 * (a file, and after -t a part of a title), and `Expect: ...` (a regular expression that the output has to match).
 */
import { execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join, resolve } from 'node:path'

const LONGEST_MS = 120_000

const checkout = resolve(import.meta.dirname, '../../..')

export interface Mutant {
  name: string
  path: string
  protection: string
  /** Words of vitest, or of the run. */
  test: string[] | null
  run: string[] | null
  expect: RegExp
}

/** @throws Error for a patch without its head */
export function readMutant(path: string): Mutant {
  const head = readFileSync(path, 'utf8').split(/^--- /m)[0]!
  const said = (key: string) => new RegExp(`^${key}: (.+)$`, 'm').exec(head)?.[1]?.trim()
  const name = basename(path, '.patch')
  const [protection, expected, test, run] = ['Protection', 'Expect', 'Test', 'Run'].map(said)
  if (!protection || !expected || (test === undefined) === (run === undefined)) {
    throw new Error(`${path}: expected lines Protection, Expect, and one of Test and Run before the patch`)
  }
  return {
    name,
    path,
    protection,
    test: test ? testWords(test) : null,
    run: run?.split(' ') ?? null,
    expect: new RegExp(expected),
  }
}

/** `file -t part of a title`. */
function testWords(line: string): string[] {
  const [file, title] = line.split(' -t ')
  return title === undefined ? [file!] : [file!, '-t', title]
}

export function allMutants(): Mutant[] {
  const patches = readdirSync(import.meta.dirname).filter((file) => file.endsWith('.patch'))
  return patches.sort().map((file) => readMutant(join(import.meta.dirname, file)))
}

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
    const words = mutant.test
      ? [join(tree, 'node_modules/vitest/vitest.mjs'), 'run', ...mutant.test]
      : [join(tree, 'test/fault/run.ts'), ...mutant.run!]
    const { status, output } = await runIn(tree, words)
    if (/No test files found|Tests +[0-9]+ skipped/.test(plain(output)))
      return `there is no such test: ${words.join(' ')}`
    if (status === 0) return 'it lives: nothing failed'
    if (status !== null && !mutant.expect.test(plain(output)))
      return `it failed without ${mutant.expect}:\n${output.slice(-2000)}`
    return undefined
  } finally {
    rmSync(tree, { recursive: true, force: true })
  }
}

/** Without colours. */
function plain(output: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: that is what a colour is
  return output.replace(/\x1b\[[0-9;]*m/g, '')
}

function runIn(tree: string, words: string[]): Promise<{ status: number | null; output: string }> {
  const child = spawn(process.execPath, words, { cwd: tree, stdio: ['ignore', 'pipe', 'pipe'] })
  const end = () => void child.kill('SIGTERM')
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.on(signal, end)
    child.once('close', () => process.off(signal, end))
  }
  // A protection whose absence lets a test wait for ever is missed as well; the titles are said at the start of a wait.
  const late = setTimeout(() => child.kill('SIGKILL'), LONGEST_MS)
  child.once('close', () => clearTimeout(late))
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (bytes: Buffer) => (output += bytes.toString()))
  return new Promise((done) => child.once('close', (status) => done({ status, output })))
}

if (import.meta.main) {
  const wanted = process.argv.slice(2)
  const mutants = allMutants().filter(({ name }) => wanted.length === 0 || wanted.includes(name))
  const missing = wanted.filter((name) => !mutants.some((mutant) => mutant.name === name))
  if (missing.length > 0) throw new Error(`no such mutant: ${missing.join(', ')}`)
  let lived = 0
  for (const mutant of mutants) {
    const wrong = await tryMutant(mutant)
    if (wrong !== undefined) lived++
    console.log(
      `${wrong === undefined ? 'noticed' : 'NOT NOTICED'}  ${mutant.name}: without ${mutant.protection}${wrong === undefined ? '' : `\n  ${wrong}`}`,
    )
  }
  console.log(`${mutants.length - lived} passed, ${lived} failed`)
  process.exitCode = lived === 0 ? 0 : 1
}
