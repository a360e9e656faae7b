/**
 * `npm run fault -- --tasks N --faults K --seed S [--json] [--minutes M] [--keep] [--schedule]`: the whole product as real
 * processes under a schedule of faults, judged against the payloads' own ledger. Exit status 0 only where nothing was lost,
 * nothing counted twice, every invariant holds and every campaign ended. What it is made of stands in docs/reliability.md.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { CampaignView } from '../../central/campaigns/model.ts'
import { isCampaignOver } from '../../shared/lifecycle.ts'
import { locateFaketime } from '../../shared/servers/faketime.ts'
import { Acks } from './acks.ts'
import { openClocks } from './clocks.ts'
import { type Disks, openDisks } from './disks.ts'
import { holds, make, type Tools, touches } from './faults.ts'
import { figuresOf, type Made, tableOf } from './figures.ts'
import { type JudgeOptions, judge, type Verdict } from './judge.ts'
import { Ledger } from './ledger.ts'
import { isInside, runInside } from './namespace.ts'
import { type RunOptions, readOptions } from './options.ts'
import { buildPrograms } from './programs.ts'
import { type Doing, describeFault, drawSchedule, edgesOf, type Fault, kindOf, type Schedule } from './schedule.ts'
import { openTaps } from './taps.ts'
import { planWork, type Wave } from './work.ts'
import { startWorld, type World } from './world.ts'

const SITES = {
  alpha: Array.from({ length: 6 }, (_, i) => `alpha-${i + 1}`),
  beta: Array.from({ length: 6 }, (_, i) => `beta-${i + 1}`),
}
const RELAYS = { alpha: ['alpha', 'alpha-second'] }
const CENTRALS = 2
const SLOTS = 2
const TIME_SCALE = 0.1
const OUTAGE_MS = 12_000
const MOST_AT_ONCE = 4
const LOOP_MS = 100
const PROGRESS_MS = 5000
/** Nothing moved for this long, with every fault undone: the run is stuck. */
const STUCK_MS = 90_000
/** Room for a relay's journal and files, and for a node's scratch. */
const DISK_BYTES = { relay: 64 << 20, node: 24 << 20 }
const WAVE_TASKS = 250
const PAUSED_MS = 5000

interface Outcome {
  verdict: Verdict
  made: Made[]
  seconds: number
  isEnded: boolean
}

async function main(): Promise<number> {
  const options = readOptions(process.argv.slice(2))
  if (options.schedule) {
    const { schedule } = plan(options, '/run', { clock: true, disk: true })
    for (const fault of schedule.faults) console.log(`${fault.number}. at ${fault.at}: ${describeFault(fault)}`)
    return 0
  }
  if (!isInside()) {
    const status = await runInside()
    if (status !== null) return status
    say('no name spaces of our own here: no full and read-only disks, and processes end with this one only')
  }
  const folder = mkdtempSync(join(tmpdir(), 'indraft-fault-'))
  const disks = isInside() ? openDisks() : null
  let isGood = false
  try {
    const outcome = await run(options, folder, disks)
    isGood = report(options, outcome)
  } catch (error) {
    console.error(error)
  }
  disks?.close(!isGood || options.keep)
  if (!isGood) {
    say(`FAILED. Logs, ledger and stores are in ${folder}`)
    say(`again: npm run fault -- --tasks ${options.tasks} --faults ${options.faults} --seed ${options.seed}`)
  } else if (!options.keep) rmSync(folder, { recursive: true, force: true })
  return isGood ? 0 : 1
}

function plan(
  options: RunOptions,
  folder: string,
  able: { clock: boolean; disk: boolean },
): { waves: Wave[]; schedule: Schedule } {
  const { seed, tasks, faults } = options
  const payload = join(import.meta.dirname, 'payload.sh')
  const waves = planWork({
    seed,
    tasks,
    waves: Math.max(2, Math.round(tasks / WAVE_TASKS)),
    payload,
    ...workFolders(folder),
  })
  return {
    waves,
    schedule: drawSchedule({ seed, tasks, faults, waves, sites: SITES, relays: RELAYS, centrals: CENTRALS, able }),
  }
}

/** Outside of every folder of the product. */
function workFolders(folder: string) {
  return { ledger: join(folder, 'ledger'), final: join(folder, 'final') }
}

async function run(options: RunOptions, folder: string, disks: Disks | null): Promise<Outcome> {
  const { ledger: ledgerFolder, final } = workFolders(folder)
  for (const path of [join(ledgerFolder, 'met'), final]) mkdirSync(path, { recursive: true })
  const library = await locateFaketime(say)
  if (library === null) say('no libfaketime here: clocks are not stepped')
  const clocks = library === null ? null : openClocks(join(folder, 'clocks'), library)
  if (disks) {
    for (const { relay } of edgesOf(SITES, RELAYS)) disks.mount(join(folder, 'relay', relay), DISK_BYTES.relay)
    for (const node of Object.values(SITES).flat()) disks.mount(join(folder, 'node', node), DISK_BYTES.node)
  }
  const { waves, schedule } = plan(options, folder, { clock: clocks !== null, disk: disks !== null })
  writeFileSync(join(folder, 'schedule.json'), JSON.stringify(schedule, null, 1))
  const programs = buildPrograms(join(folder, 'programs'))
  const starting = performance.now()
  const world = await startWorld({
    folder,
    programs,
    sites: SITES,
    relays: RELAYS,
    centrals: CENTRALS,
    timeScale: TIME_SCALE,
    outageMs: OUTAGE_MS,
    slots: SLOTS,
    clocks,
    say: (line) => say(`! ${line}`),
  })
  say(
    `seed ${options.seed}: ${options.tasks} tasks, ${options.faults} faults; started in ${seconds(performance.now() - starting)} in ${folder}`,
  )
  const ledger = new Ledger(join(ledgerFolder, 'events'))
  const acks = new Acks(world)
  const taps = openTaps(world)
  try {
    const began = performance.now()
    const going = new Going(world, waves, schedule, ledger, acks, { world, ledger, taps, clocks, disks })
    const isEnded = await going.toTheEnd(options.minutes * 60_000)
    const watching = setInterval(() => {
      acks.read()
      ledger.read()
    }, LOOP_MS)
    const judged: JudgeOptions = {
      world,
      ledger,
      waves,
      seed: options.seed,
      final,
      acks: () => acks.all,
      forgetful: going.forgetful,
    }
    const verdict = await judge(judged).finally(() => clearInterval(watching))
    return { verdict, made: going.made, seconds: (performance.now() - began) / 1000, isEnded }
  } finally {
    await taps.close()
    await world.stop()
  }
}

/** The run between the first submission and the end of the last campaign. */
class Going {
  readonly made: Made[] = []
  /** Where in a relay's log its journal was last destroyed. */
  readonly forgetful = new Map<string, number>()
  readonly #world: World
  readonly #waves: Wave[]
  readonly #faults: Fault[]
  readonly #spares: Fault[]
  readonly #doings: Doing[]
  readonly #ledger: Ledger
  readonly #acks: Acks
  readonly #tools: Omit<Tools, 'onBegun' | 'onForgotten' | 'isWorkOver'>
  readonly #active = new Map<Fault, Made>()
  readonly #held = new Set<string>()
  /** Those of the active ones that wait for somebody to pass their moment. */
  readonly #armed = new Set<Fault>()
  /** Begun, and nothing came yet by what they touched. */
  readonly #waiting = new Map<Fault, Made>()
  #lastMove = { at: performance.now(), settled: 0, acks: 0 }
  #userBusy = 0
  #pausedAtMs = 0
  #isOver = false

  constructor(
    world: World,
    waves: Wave[],
    schedule: Schedule,
    ledger: Ledger,
    acks: Acks,
    tools: Omit<Tools, 'onBegun' | 'onForgotten' | 'isWorkOver'>,
  ) {
    this.#world = world
    this.#waves = waves
    this.#faults = [...schedule.faults]
    this.#spares = [...schedule.spares]
    this.#doings = [...schedule.doings]
    this.#ledger = ledger
    this.#acks = acks
    this.#tools = tools
    acks.onAck = (ack) => {
      for (const [fault, made] of this.#waiting) {
        if (!touches(fault, ack)) continue
        made.resumedMs = ack.atMs
        this.#waiting.delete(fault)
      }
    }
  }

  /** @returns false where it did not end in time, or got stuck */
  async toTheEnd(patienceMs: number): Promise<boolean> {
    const began = performance.now()
    let progressAt = began
    let askedAt = began
    while (!this.#isOver) {
      await sleep(LOOP_MS)
      const now = performance.now()
      this.#ledger.read()
      this.#acks.read()
      this.#beginFaults()
      this.#beginDoings(now)
      if (now - progressAt > PROGRESS_MS) {
        progressAt = now
        this.#sayProgress(now - began)
      }
      const isAllDone = this.#doings.length === 0 && this.#faults.length === 0 && this.#active.size === 0
      if (isAllDone && this.#userBusy === 0 && now - askedAt > 1000) {
        askedAt = now
        this.#isOver = await this.#areAllOver()
      }
      if (now - began > patienceMs) {
        say(`not over after ${seconds(patienceMs)}`)
        return false
      }
      if (this.#isStuck(now)) {
        say(`stuck: nothing moved for ${seconds(STUCK_MS)}`)
        return false
      }
    }
    this.#sayProgress(performance.now() - began)
    return true
  }

  get #isWorkOver(): boolean {
    const wanted = this.#waves.filter(({ isCancelled }) => !isCancelled).reduce((sum, { tasks }) => sum + tasks, 0)
    return this.#doings.length === 0 && this.#ledger.settled >= wanted
  }

  #isStuck(now: number): boolean {
    const { settled } = this.#ledger
    const acks = this.#acks.all.length
    if (settled !== this.#lastMove.settled || acks !== this.#lastMove.acks || this.#active.size > 0) {
      this.#lastMove = { at: now, settled, acks }
    }
    return now - this.#lastMove.at > STUCK_MS
  }

  #beginFaults(): void {
    const { settled } = this.#ledger
    for (const fault of [...this.#faults]) {
      if (this.#active.size - this.#armed.size >= MOST_AT_ONCE || fault.at > settled) return
      const needed = holds(fault)
      if (needed.some((name) => this.#held.has(name))) continue
      this.#faults.splice(this.#faults.indexOf(fault), 1)
      this.#begin(fault, needed)
    }
  }

  #begin(fault: Fault, needed: string[]): void {
    const made: Made = { kind: kindOf(fault), beganMs: null, endedMs: null, resumedMs: null }
    this.made.push(made)
    this.#active.set(fault, made)
    for (const name of needed) this.#held.add(name)
    if (fault.kind === 'failpoint' || fault.kind === 'error') this.#armed.add(fault)
    const onForgotten = (relay: string) => {
      this.forgetful.set(relay, this.#world.logBytes(`relay-${relay}`))
    }
    const onBegun = () => {
      this.#armed.delete(fault)
      made.beganMs = performance.now()
      this.#waiting.set(fault, made)
      say(`fault ${fault.number}: ${describeFault(fault)}`)
    }
    make(fault, { ...this.#tools, onBegun, isWorkOver: () => this.#isWorkOver, onForgotten })
      .then(({ nothing }) => {
        made.endedMs = performance.now()
        if (nothing === undefined) return
        say(`fault ${fault.number}: ${describeFault(fault)}: ${nothing}`)
        made.beganMs = null
        this.#waiting.delete(fault)
        const spare = this.#spares.shift()
        if (spare) this.#faults.unshift({ ...spare, at: this.#ledger.settled })
      })
      .catch((error) => say(`fault ${fault.number} could not be made: ${(error as Error).stack}`))
      .finally(() => {
        this.#active.delete(fault)
        this.#armed.delete(fault)
        for (const name of needed) this.#held.delete(name)
      })
  }

  /** One after the other, as a user does; each is repeated until central answers. */
  #beginDoings(now: number): void {
    const next = this.#doings[0]
    if (!next || this.#userBusy > 0) return
    const isDue = next.at <= this.#ledger.settled && !this.#faults.some(({ at }) => at < next.at)
    // While its campaign is paused nothing may be there to make progress.
    const isLong = next.what === 'resume' && now - this.#pausedAtMs > PAUSED_MS
    if (!isDue && !isLong) return
    this.#doings.shift()
    this.#userBusy++
    void this.#do(next)
      .then(() => {
        if (next.what === 'pause') this.#pausedAtMs = performance.now()
      })
      .catch((error) => say(`${next.what} of ${this.#waves[next.wave]!.name} failed: ${(error as Error).message}`))
      .finally(() => {
        this.#userBusy--
      })
  }

  async #do({ what, wave }: Doing): Promise<void> {
    const { name, yaml, tables } = this.#waves[wave]!
    say(`user: ${what} ${name}`)
    await this.#world.ask(async (client): Promise<unknown> => {
      if (what === 'submit') return client.call('submitCampaign', { body: { source: yaml, tables } })
      if (what === 'retry') {
        const body = { states: ['failed' as const], request: `try-again-${wave}` }
        return client.call('retryTasks', { params: { campaign: name }, body })
      }
      const desired = what === 'pause' ? 'paused' : what === 'resume' ? 'run' : 'cancelled'
      return client.call('setDesired', { params: { campaign: name }, body: { desired } })
    })
  }

  async #areAllOver(): Promise<boolean> {
    const { campaigns } = await this.#world.ask((client) => client.call('listCampaigns', {}))
    const ended = (campaigns as CampaignView[]).filter(({ state }) => isCampaignOver(state))
    return ended.length === this.#waves.length
  }

  #sayProgress(afterMs: number): void {
    const alive = (kind: string) =>
      this.#world.names().filter((name) => name.startsWith(kind) && this.#world.part(name).pid !== undefined).length
    const total = this.#waves.reduce((sum, { tasks }) => sum + tasks, 0)
    const faults = `${this.made.filter(({ beganMs }) => beganMs !== null).length} faults, ${this.#active.size} now`
    const parts = `${alive('central')} centrals, ${alive('relay')} relays, ${alive('pilot')} pilots alive`
    say(`${seconds(afterMs)}: ${this.#ledger.settled} of ${total} tasks settled; ${faults}; ${parts}`)
  }
}

function report(options: RunOptions, { verdict, made, seconds: took, isEnded }: Outcome): boolean {
  const { tasks, tasksLost, doubleCounted, acknowledgedLost, forgotten, wasted, findings, words } = verdict
  const figures = figuresOf(made)
  const isGood = isEnded && tasksLost + doubleCounted + acknowledgedLost + findings.length === 0
  for (const line of words.slice(0, 60)) say(line)
  if (words.length > 60) say(`and ${words.length - 60} more`)
  const faults = made.filter(({ beganMs }) => beganMs !== null).length
  if (options.json) {
    const { seed } = options
    console.log(
      JSON.stringify({
        seed,
        tasks,
        faults,
        tasksLost,
        doubleCounted,
        acknowledgedLost,
        forgotten,
        wasted,
        findings: findings.length,
        isEnded,
        seconds: Math.round(took),
        kinds: figures,
      }),
    )
  } else {
    console.log(tableOf(figures))
  }
  say(
    `seed ${options.seed}: ${tasks} tasks, ${faults} faults in ${Math.round(took)} s: ${tasksLost} lost, ${doubleCounted} counted twice, ` +
      `${acknowledgedLost} acknowledged results lost; ${wasted.repeated} attempts repeated and ${wasted.broken} broken off` +
      (forgotten > 0 ? `; ${forgotten} results went with journals destroyed on purpose, and ran again` : ''),
  )
  return isGood
}

function say(line: string): void {
  console.error(line)
}

function seconds(ms: number): string {
  return `${Math.round(ms / 1000)} s`
}

// Whatever still waits for something that is gone by now must not hold the end up.
process.exit(await main())
