/**
 * `indraft demo`: the main job on real input, from nothing to a checked picture, on this machine and in a folder of its
 * own. Starts what `up` starts, submits deploy/demo/ising.yaml, kills something in the middle, and holds the answer
 * against the exact solution.
 */
import { createHash } from 'node:crypto'
import {
  accessSync,
  constants,
  createWriteStream,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join, relative } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { IndraftError } from '../../shared/errors.ts'
import { isCampaignOver } from '../../shared/lifecycle.ts'
import { formatDuration } from '../../shared/quantity.ts'
import { type Client, makeClient, Unreachable } from '../api/client.ts'
import type { CampaignView } from '../campaigns/model.ts'
import { causeAccident, VICTIMS, type Victim } from './demo/accident.ts'
import { makeProgress, type Progress } from './demo/progress.ts'
import { resolveFileUrls } from './file-urls.ts'
import { loadUpConfig, temporaryFolder } from './up/config.ts'
import type { Stack } from './up/stack.ts'
import { stopSignal } from './up.ts'

const CAMPAIGN_FILE = fileURLToPath(new URL('../../deploy/demo/ising.yaml', import.meta.url))
const PILOTS = 4
/** As in the campaign file: seeds for each of its temperatures. */
const SEEDS = 16
const TEMPERATURES = 15
/** How the attempt ends that the campaign makes fail. */
const MADE_TO_FAIL = 'payload.exit'
/** The accident happens when this share of the tasks is done. */
const ACCIDENT_AT = 0.35
const LOOK_EVERY_MS = 250
const GIVE_UP_AFTER_MS = 10 * 60_000

interface DemoOptions {
  kill: Victim
  folder: string | undefined
  pilots: number
  seeds: number
  keep: boolean
  json: boolean
}

interface Outcome {
  state: string
  tasks: number
  done: number
  failed: number
  /** Attempts that failed, by reason; every one of their tasks was tried again. */
  failedAttempts: Record<string, number>
  killed: string | null
  findings: number
  agrees: boolean
  tableDigest: string
  picture: string
  table: string
  tookMs: number
}

export function registerDemo(program: Command): void {
  program
    .command('demo')
    .description('run a real campaign on this machine, kill something in the middle, and check the answer')
    .addOption(new Option('--kill <part>', 'what is killed in the middle').choices(VICTIMS).default('pilot'))
    .option('--folder <folder>', 'where its state and results go (default: .indraft/demo here)')
    .option('--pilots <number>', 'number of pilots', readCount, PILOTS)
    .option('--seeds <number>', 'seeds for each temperature: fewer are quicker, with larger errors', readCount, SEEDS)
    .option('--keep', 'keep the state, to be looked at with "indraft up --home FOLDER"')
    .option('--json', 'print the outcome as JSON')
    .addHelpText('after', '\nExamples:\n  indraft demo\n  indraft demo --kill relay\n  indraft demo --keep')
    .action(async (_options: unknown, command: Command) => {
      const { kill, folder, pilots, seeds, keep, json } = command.optsWithGlobals()
      const options = { kill, folder, pilots, seeds, keep: keep === true, json: json === true } as DemoOptions
      if (!(await runDemo(options))) process.exitCode = 1
    })
}

function readCount(text: string): number {
  if (!/^[1-9]\d{0,2}$/.test(text)) throw new InvalidArgumentError('expected a number from 1 to 999')
  return Number(text)
}

async function runDemo(options: DemoOptions): Promise<boolean> {
  const say = options.json ? () => {} : (line: string) => console.log(line)
  const startMs = performance.now()
  const folder = options.folder ?? ownFolder()
  const results = join(folder, 'results')
  await makeRoom(folder, results)
  const config = loadUpConfig({ home: folder, pilots: options.pilots, cores: 1 })
  say(
    `indraft demo: a two-dimensional magnet through central, a relay and ${options.pilots} pilots, in ${shown(folder)}\n`,
  )

  const stopping = stopSignal()
  const progress = makeProgress(process.stdout.isTTY === true && !options.json, say)
  let stack: Stack | undefined
  let good = false
  try {
    const { startStack } = await import('./up/stack.ts')
    stack = await startStack(config, {
      say: (line) => progress.note(`  ${line}`),
      onRunning: ({ name, part, starts }) => {
        if (starts === 1) say(`  ${name.padEnd(9)} process ${String(part?.pid).padEnd(8)} ${part?.address ?? ''}`)
        else progress.note(`  ${name} runs again (process ${part?.pid})`)
      },
    })
    say(`  ready after ${formatDuration(performance.now() - startMs)}\n`)
    const client = makeClient({ url: stack.apiUrl, token: stack.token, ca: stack.ca })
    try {
      const outcome = await runCampaign({
        options,
        stack,
        client,
        progress,
        results,
        startMs,
        isStopping: stopping.isOver,
      })
      good = isGood(outcome)
      if (options.json) console.log(JSON.stringify({ ...outcome, good }))
      else for (const line of report(outcome, good)) console.log(line)
    } finally {
      await client.close()
    }
  } catch (error) {
    progress.end()
    const wasStopped = stopping.isOver()
    say(wasStopped ? '\nstopped' : `\nthe demo failed; its state and logs stay in ${shown(join(folder, 'up'))}`)
    if (!wasStopped) throw error
  } finally {
    await stack?.stop()
    stopping.done()
  }
  if (good && !options.keep) rmSync(join(folder, 'up'), { recursive: true, force: true })
  rmSync(join(folder, 'client.json'), { force: true })
  if (good) for (const line of nextSteps(options, folder)) say(line)
  return good
}

/**
 * Clears away what an earlier demo left: on its state the same campaign would be over before it began. A folder that is
 * not a demo's is left alone.
 */
async function makeRoom(folder: string, results: string): Promise<void> {
  const marker = join(folder, 'demo')
  if (existsSync(join(folder, 'up')) && !existsSync(marker)) {
    throw new IndraftError('request.invalid', `${folder} is the home of an installation: give another --folder`)
  }
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  writeFileSync(marker, 'This folder belongs to "indraft demo", which clears it at its next start.\n')
  const { clearState } = await import('./up/stack.ts')
  await clearState(folder)
  rmSync(results, { recursive: true, force: true })
  mkdirSync(results)
}

/** Here where that can be written, else in the temporary folder. What an earlier demo left there is cleared away. */
function ownFolder(): string {
  const candidates = [
    join(process.cwd(), '.indraft', 'demo'),
    join(temporaryFolder(), `indraft-demo-${process.getuid?.() ?? 0}`),
  ]
  for (const folder of candidates) {
    try {
      mkdirSync(folder, { recursive: true, mode: 0o700 })
      accessSync(folder, constants.W_OK)
      if (statSync(folder).uid === process.getuid?.()) return folder
    } catch {
      // The next one.
    }
  }
  throw new IndraftError('request.invalid', `neither ${candidates.join(' nor ')} can be written: give --folder`)
}

interface Run {
  options: DemoOptions
  stack: Stack
  client: Client
  progress: Progress
  results: string
  startMs: number
  isStopping: () => boolean
}

async function runCampaign({ options, stack, client, progress, results, startMs, isStopping }: Run): Promise<Outcome> {
  const source = campaignFor(options.seeds)
  const { id, tasks } = await client.call('submitCampaign', { body: { source } })
  progress.note(`  submitted deploy/demo/ising.yaml: ${tasks} tasks in 2 steps; task simulate 2/3 is made to fail once`)
  let killed: string | null = options.kill === 'none' ? '' : null
  let view: CampaignView | undefined
  const giveUpMs = performance.now() + GIVE_UP_AFTER_MS
  while (!view || !isCampaignOver(view.state)) {
    if (isStopping()) throw new Error('stopped')
    if (performance.now() > giveUpMs) throw new Error(`not over after ${formatDuration(GIVE_UP_AFTER_MS)}`)
    view = (await patiently(() => client.call('showCampaign', { params: { campaign: id } }))) as
      | CampaignView
      | undefined
    if (view) progress.show(view)
    const simulate = view?.steps[0]
    if (killed === null && simulate && simulate.counts.done >= simulate.size * ACCIDENT_AT) {
      const victim = options.kill as Exclude<Victim, 'none'>
      const accident = await patiently(() => causeAccident(victim, stack, client))
      if (accident) progress.note(`  ${accident.line}`)
      killed = accident?.service ?? null
    }
    await sleep(LOOK_EVERY_MS)
  }
  progress.end()
  const files = await fetchOutputs(client, id, results)
  const { findings } = await client.call('verify', {})
  const read = (name: string) => (files.includes(name) ? readFileSync(join(results, name)) : Buffer.alloc(0))
  const summary = JSON.parse(read('summary.json').toString() || '{}') as { agrees?: boolean }
  return {
    state: view.state,
    tasks,
    done: view.counts.done,
    failed: view.counts.failed,
    failedAttempts: Object.fromEntries(view.failures.map(({ reason, count }) => [reason, count])),
    killed: killed || null,
    findings: findings.length,
    agrees: summary.agrees === true,
    tableDigest: createHash('sha256').update(read('magnetisation.csv')).digest('hex'),
    picture: join(results, 'magnetisation.svg'),
    table: join(results, 'magnetisation.csv'),
    tookMs: performance.now() - startMs,
  }
}

/** The campaign file, with another number of seeds where that is wanted. */
function campaignFor(seeds: number): string {
  return resolveFileUrls(readFileSync(CAMPAIGN_FILE, 'utf8'), CAMPAIGN_FILE)
    .replace(`1..${SEEDS}`, `1..${seeds}`)
    .replace(`"${SEEDS * TEMPERATURES}"`, `"${seeds * TEMPERATURES}"`)
}

/** undefined while central cannot be asked: it may be what was killed. */
async function patiently<T>(ask: () => Promise<T>): Promise<T | undefined> {
  try {
    return await ask()
  } catch (error) {
    if (error instanceof Unreachable) return undefined
    if (error instanceof IndraftError && ['internal.error', 'dispatcher.busy'].includes(error.code)) return undefined
    throw error
  }
}

/** The files of the merge step, into `results`. @returns their names */
async function fetchOutputs(client: Client, campaign: string, results: string): Promise<string[]> {
  const { outputs } = await client.call('listOutputs', { params: { campaign }, query: { step: 'merge' } })
  // Logs are outputs too, under a name that no task can give.
  const files = outputs.filter(({ path }) => !path.startsWith('.log/'))
  for (const { step, index, path } of files) {
    const file = await client.file('getOutput', { params: { campaign, step, index, '*': path } })
    if (!('body' in file)) throw new Error(`${path} is not there yet`)
    await pipeline(file.body, createWriteStream(join(results, path)))
  }
  return files.map(({ path }) => path)
}

function isGood({ state, tasks, done, findings, agrees }: Outcome): boolean {
  return state === 'done' && done === tasks && findings === 0 && agrees
}

function report(outcome: Outcome, good: boolean): string[] {
  const { tasks, done, failed, failedAttempts, killed, findings, agrees, tookMs } = outcome
  const lost = Object.entries(failedAttempts).reduce((sum, [reason, n]) => sum + (reason === MADE_TO_FAIL ? 0 : n), 0)
  const again = `${lost} ${lost === 1 ? 'task' : 'tasks'} ran again because of it`
  const accident = killed ? `${killed} was killed and started again; ${again}` : 'nothing was killed'
  const failures = failedAttempts[MADE_TO_FAIL] ?? 0
  const madeToFail = `task simulate 2/3 failed ${failures === 1 ? 'once' : `${failures} times`} on purpose, and was tried again`
  return [
    '',
    `  ${accident}; ${good ? 'nothing lost, nothing counted twice' : 'SOMETHING IS WRONG'}`,
    `  ${madeToFail}`,
    `  tasks    ${tasks}: ${done} done, ${failed} failed`,
    `  physics  ${agrees ? 'measured and exact magnetisation agree within their errors' : 'measurement and theory DISAGREE'}`,
    `  verify   ${findings === 0 ? 'every invariant holds' : `${findings} findings`}`,
    `  picture  ${shown(outcome.picture)}`,
    `  table    ${shown(outcome.table)}`,
    `  took     ${formatDuration(tookMs)}`,
  ]
}

function nextSteps({ keep, folder: given }: DemoOptions, folder: string): string[] {
  const home = keep ? ` --home ${given ?? shown(folder)}` : ''
  return [
    '',
    'next:',
    `  npx indraft up${home}`,
    '  and, in another terminal: npx indraft campaign submit deploy/demo/ising.yaml',
  ]
}

function shown(path: string): string {
  const here = relative(process.cwd(), path)
  return here.startsWith('..') ? path : here
}
