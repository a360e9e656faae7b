/**
 * The judgement at the end of a run: what central says of every task, held against the payloads' own ledger and against
 * what was acknowledged on the way. Three figures have to be 0; everything found is said in words.
 */
import { existsSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import type { CampaignView, Finding, TaskRow, TaskView } from '../../central/campaigns/model.ts'
import { ENDED_TASK_STATES, TASK_STATES } from '../../shared/lifecycle.ts'
import type { Ack } from './acks.ts'
import { type Ledger, taskOf } from './ledger.ts'
import { finalPath, resultValue, type Wave } from './work.ts'
import { until, type World } from './world.ts'

const ENDED: ReadonlySet<string> = new Set(ENDED_TASK_STATES)
/** Questions to central at a time. */
const AT_ONCE = 16
/** A relay that lost its journal asks what is to be named when it is back, and once more a minute later (timeScale 0.1). */
const PUBLISHED_MS = 120_000

export interface Verdict {
  tasks: number
  tasksLost: number
  doubleCounted: number
  acknowledgedLost: number
  /** Acknowledged results that went with a journal that the run itself destroyed; their tasks ran again. */
  forgotten: number
  /** Successes beyond the first of a task, and attempts that ended without the payload's own word. */
  wasted: { repeated: number; broken: number }
  findings: Finding[]
  /** Each loss, in words. */
  words: string[]
}

export interface JudgeOptions {
  world: World
  ledger: Ledger
  waves: Wave[]
  seed: number
  /** As planWork was told. */
  final: string
  acks: () => readonly Ack[]
  /**
   * Where a relay lost its journal on purpose: how long its log was then. What it had acknowledged before may be gone, and
   * is run again. A place, not a time: an acknowledgement is read when its pilot has come to write it down.
   */
  forgetful: ReadonlyMap<string, number>
  /** Wait this long for results that are acknowledged and still on their way. */
  settleMs?: number
}

interface Seen {
  view: CampaignView
  rows: Map<string, TaskRow>
}

/** @throws Error where central cannot be asked */
export async function judge(options: JudgeOptions): Promise<Verdict> {
  const { world, ledger, waves } = options
  const words: string[] = []
  const verdict = { tasksLost: 0, doubleCounted: 0, acknowledgedLost: 0 }
  const blame = (figure: keyof typeof verdict, what: string) => {
    verdict[figure]++
    words.push(`${figure}: ${what}`)
  }
  const campaigns = new Map<string, Seen>()
  let tasks = 0
  for (const wave of waves) {
    const seen = await look(world, wave.name)
    campaigns.set(seen.view.id, seen)
    tasks += seen.rows.size
    judgeCounts(wave, seen, blame)
    for (const [step, expected] of Object.entries(wave.steps)) {
      for (const [index, { state }] of expected.entries()) {
        const task = `${seen.view.id}/${step}/${index}`
        const found = seen.rows.get(`${step}/${index}`)?.state
        if (found === state || (state === 'ended' && ENDED.has(found ?? 'blocked'))) continue
        blame('tasksLost', `${task} is ${found ?? 'unknown'}, expected ${state} (${wave.name})`)
      }
    }
  }

  await judgeOutputs(options, campaigns, blame)
  for (const [task, times] of acceptedTwice(world)) blame('doubleCounted', `${task} was accepted ${times} times`)
  const forgotten = await judgeAcks(options, campaigns, blame)

  const { findings } = await world.ask((client) => client.call('verify', {}))
  for (const one of findings)
    words.push(`verify: ${one.invariant}: ${one.where}: ${one.found}, expected ${one.expected}`)
  return { tasks, ...verdict, forgotten, wasted: wastedOf(ledger), findings, words }
}

async function look(world: World, name: string): Promise<Seen> {
  const view = (await world.ask((client) =>
    client.call('showCampaign', { params: { campaign: name } }),
  )) as CampaignView
  const rows = new Map<string, TaskRow>()
  for (let from: string | undefined; ; ) {
    const query = { limit: 1000, ...(from === undefined ? {} : { from }) }
    const page = await world.ask((client) => client.call('listTasks', { params: { campaign: name }, query }))
    for (const row of page.tasks as TaskRow[]) rows.set(`${row.step}/${row.index}`, row)
    if (page.next === null) break
    from = page.next
  }
  return { view, rows }
}

function judgeCounts(wave: Wave, { view, rows }: Seen, blame: (figure: 'doubleCounted', what: string) => void): void {
  const real = new Map<string, number>()
  for (const { state } of rows.values()) real.set(state, (real.get(state) ?? 0) + 1)
  let sum = 0
  for (const state of TASK_STATES) {
    sum += view.counts[state]
    if (view.counts[state] !== (real.get(state) ?? 0)) {
      blame('doubleCounted', `${wave.name}: ${view.counts[state]} ${state} by count, ${real.get(state) ?? 0} by task`)
    }
  }
  if (sum !== wave.tasks) blame('doubleCounted', `${wave.name}: counts add up to ${sum}, expected ${wave.tasks}`)
}

/** A done task has its published output, which is what its winner wrote, a successful attempt in the ledger. */
async function judgeOutputs(
  { world, ledger, waves, seed, final }: JudgeOptions,
  campaigns: ReadonlyMap<string, Seen>,
  blame: (figure: 'tasksLost', what: string) => void,
): Promise<void> {
  const published = (id: string, task: string) => {
    const [step, index] = task.split('/')
    if (step === 'second') return finalPath(final, id, Number(index))
    return join(world.centralState, 'outputs/published', id, task, 'out.txt')
  }
  const winners = new Map<string, string>()
  for (const { task, attempt, verdict, isDone } of judgedByCentral(world)) {
    if (isDone && verdict === 'accepted') winners.set(task, attempt)
  }
  for (const wave of waves) {
    const [id, { rows }] = [...campaigns].find(([, { view }]) => view.name === wave.name)!
    const done = [...rows].filter(([task, row]) => row.state === 'done' && !task.startsWith('fails/'))
    const isAllThere = () => done.every(([task]) => existsSync(published(id, task)))
    await until('outputs are published', isAllThere, PUBLISHED_MS).catch(() => {})
    const firsts: string[] = []
    for (const [task, row] of done) {
      const path = published(id, task)
      const successes = ledger.successes.get(`${id}/${task}`) ?? []
      if (successes.length === 0) {
        blame('tasksLost', `${id}/${task} is done, and its payload never said so`)
        continue
      }
      if (!existsSync(path)) {
        blame('tasksLost', `${id}/${task} is done, and its output is not there${keptName(path, successes)}`)
        continue
      }
      const lines = readFileSync(path, 'utf8').split('\n')
      const [step, index, value, attempt = ''] = lines[0]!.split(' ')
      const isGood = step === row.step && Number(index) === row.index && Number(value) === resultValue(seed, row.index)
      if (!isGood || !successes.includes(attempt)) {
        blame('tasksLost', `${id}/${task} is done, and its output is "${lines[0]}" of no successful attempt`)
      }
      // A central that was killed has not said of every winner that it is.
      const winner = winners.get(`${id}/${task}`) ?? attempt
      if (isGood && attempt !== winner) {
        blame('tasksLost', `${id}/${task} was won by ${winner}, and its output is that of ${attempt}`)
      }
      if (step === 'first') firsts.push(lines[0]!)
      if (step === 'second' && !sameLines(lines.slice(1, -1), firsts)) {
        blame('tasksLost', `${id}/${task} is done, and did not get what the first step published`)
      }
    }
  }
}

/** Where the output of a success lies that was never given its final name, in words. */
function keptName(path: string, successes: readonly string[]): string {
  const names = successes.map((attempt) => `${path}.attempt-${basename(attempt).replaceAll('.', '-')}`)
  const kept = names.find(existsSync)
  return kept === undefined ? '' : `, but under its attempt's name: ${kept}`
}

function sameLines(a: readonly string[], b: readonly string[]): boolean {
  return JSON.stringify([...a].sort()) === JSON.stringify([...b].sort())
}

/** By central's own log: the verdict that makes a task done is given once. */
function acceptedTwice(world: World): Map<string, number> {
  const times = new Map<string, number>()
  for (const { task, verdict, isDone } of judgedByCentral(world)) {
    if (isDone && verdict === 'accepted') times.set(task, (times.get(task) ?? 0) + 1)
  }
  return new Map([...times].filter(([, count]) => count > 1))
}

/** Every result that a central has judged, as its log says. */
function* judgedByCentral(
  world: World,
): Generator<{ task: string; attempt: string; verdict: string; isDone: boolean }> {
  for (const name of world.names().filter((part) => part.startsWith('central-'))) {
    for (const line of readFileSync(world.logOf(name), 'utf8').split('\n')) {
      const isDone = line.includes('"task.finished"')
      if (!isDone && !line.includes('"task.failed"')) continue
      const said = JSON.parse(line) as { task: string; attempt: string; verdict: string }
      yield { ...said, attempt: `${said.task}/${said.attempt}`, isDone }
    }
  }
}

/**
 * At the hop to the relay: a result that it has taken reaches central, where it is settled. At the hop to central: the
 * attempt whose success was accepted is the task's winner. At both: no success is turned away as one of nobody's.
 */
async function judgeAcks(
  { world, ledger, acks, forgetful, settleMs = 45_000 }: JudgeOptions,
  campaigns: ReadonlyMap<string, Seen>,
  blame: (figure: 'acknowledgedLost', what: string) => void,
): Promise<number> {
  const arrived = new Set<string>()
  const missing = () => {
    for (const { hop, attempt } of acks()) if (hop === 'central') arrived.add(attempt)
    return acks().filter(({ hop, verdict, attempt }) => {
      return hop === 'relay' && verdict === 'accepted' && !arrived.has(attempt) && campaigns.has(attempt.split('/')[0]!)
    })
  }
  const forgotten = new Map([...forgetful].map(([relay, bytes]) => [relay, takenBefore(world, relay, bytes)]))
  const isForgiven = ({ relay, attempt }: Ack) => forgotten.get(relay)?.has(attempt) ?? false
  await until('results are at central', () => missing().every(isForgiven), settleMs).catch(() => {})
  // A relay that died before it could log the answer, or forgot that it had asked.
  for (const { attempt } of judgedByCentral(world)) arrived.add(attempt)
  const gone = missing()
  for (const { attempt, relay, node } of gone.filter((ack) => !isForgiven(ack))) {
    blame('acknowledgedLost', `${attempt}: relay ${relay} acknowledged it to ${node}, and it never came to central`)
  }
  const successes = new Set([...ledger.successes.values()].flat())
  for (const { attempt, hop, relay, verdict } of acks()) {
    // A relay that lost its journal does not know any more what it gave.
    if (verdict !== 'refused' || !successes.has(attempt) || (hop === 'relay' && forgetful.has(relay))) continue
    blame('acknowledgedLost', `${attempt}: a success, which ${hop === 'relay' ? `relay ${relay}` : 'central'} refused`)
  }
  const accepted = acks()
    .filter(({ hop, verdict, end }) => hop === 'central' && verdict === 'accepted' && end === 'done')
    .map(({ attempt }) => attempt)
    .filter((attempt) => campaigns.has(attempt.split('/')[0]!))
  const winners = new Map<string, string>()
  const tasks = [...new Set(accepted.map(taskOf))]
  for (let first = 0; first < tasks.length; first += AT_ONCE) {
    const asked = tasks.slice(first, first + AT_ONCE)
    const found = await Promise.all(asked.map((task) => winnerOf(world, task)))
    for (const [i, task] of asked.entries()) winners.set(task, found[i]!)
  }
  for (const attempt of accepted) {
    const winner = winners.get(taskOf(attempt))
    if (winner !== attempt) blame('acknowledgedLost', `${attempt}: central accepted it, and the winner is ${winner}`)
  }
  return gone.filter(isForgiven).length
}

/** Results that a relay's log names in its first so many bytes. */
function takenBefore(world: World, relay: string, bytes: number): Set<string> {
  const taken = new Set<string>()
  const log = readFileSync(world.logOf(`relay-${relay}`)).subarray(0, bytes)
  for (const line of log.toString('utf8').split('\n')) {
    if (!line.endsWith('"task.finished"}') && !line.endsWith('"task.failed"}')) continue
    const { task, attempt } = JSON.parse(line) as { task: string; attempt: string }
    taken.add(`${task}/${attempt}`)
  }
  return taken
}

async function winnerOf(world: World, task: string): Promise<string> {
  const [campaign = '', step = '', index = ''] = task.split('/')
  const params = { campaign, step, index: Number(index) }
  const { winner } = (await world.ask((client) => client.call('showTask', { params }))) as TaskView
  return winner ? `${campaign}/${step}/${index}/${winner.fences.join('.')}` : 'nobody'
}

function wastedOf(ledger: Ledger): Verdict['wasted'] {
  let repeated = 0
  for (const successes of ledger.successes.values()) repeated += successes.length - 1
  const broken = [...ledger.attempts.values()].filter(({ end }) => end === null).length
  return { repeated, broken }
}
