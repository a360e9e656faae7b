/**
 * The invariants of the store, in words where one does not hold. Reads only. Each step is looked at as it was at one
 * moment; what is found is looked at once more, because sessions and files are not part of that moment.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { type Counts, emptyCounts, openTasks, sumCounts, TASK_STATES, type TaskState } from '../../shared/lifecycle.ts'
import { unpack } from '../../shared/protocol/codec.ts'
import type { Result } from '../../shared/protocol/messages.ts'
import { formatDuration } from '../../shared/quantity.ts'
import { formatRanges, indices, parseRanges, rangesOf } from '../../shared/ranges.ts'
import type { Finding, Starved } from '../campaigns/model.ts'
import { storeRefusal, weakSettings } from '../redis.ts'
import { GLOBAL, groupBase } from './keys.ts'
import type { Mark } from './mark.ts'
import type { KnownCampaign, Plans, StoredStep } from './plans.ts'
import { countsOf, stateAt } from './read.ts'
import type { Results } from './results.ts'
import { mapOf, type Scripts } from './scripts.ts'
import type { Sessions } from './sessions.ts'

const SECOND_LOOK_MS = 300

/** Whether an output's bytes are where its record says, and under its final name where that was given. */
export type OutputChecker = (
  output: Result['outputs'][number],
  result: Result,
  isPublished: boolean,
) => Promise<boolean>

interface Bundle {
  id: string
  state: string
  remaining: string
  session?: string
  site?: string
  fence?: string
  queued: boolean
  listed: boolean
  deadline?: string | number
}

interface Snapshot {
  counts: Record<string, string>
  ready: string[]
  retry: string[]
  bundles: Bundle[]
  results: string[]
  blocks: Record<string, string>
}

export interface VerifierParts {
  scripts: Scripts
  plans: Plans
  sessions: Sessions
  results: Results
  mark: Mark
  starved(): Promise<Starved[]>
  isThere: OutputChecker
}

export class Verifier {
  readonly #parts: VerifierParts
  readonly #scripts: Scripts

  constructor(parts: VerifierParts) {
    this.#parts = parts
    this.#scripts = parts.scripts
  }

  /** Empty where everything holds. */
  async verify(): Promise<Finding[]> {
    const findings: Finding[] = [...(await this.#checkStore()), ...(await this.#checkStarved())]
    for (const group of await this.#scripts.redis.smembers(GLOBAL.groups)) {
      const base = groupBase(group)
      const readable: KnownCampaign[] = []
      for (const campaign of await this.#scripts.redis.zrange(`${base}:campaigns`, '0', '-1')) {
        const known = await this.#parts.plans.readable(campaign)
        if (known) readable.push(known)
        else findings.push(finding('a campaign has its plan', campaign, 'no plan', 'a plan in the blob store'))
      }
      for (const { plan } of readable) {
        for (const step of plan.steps) findings.push(...(await twice(() => this.#verifyStep(base, plan.id, step))))
      }
      findings.push(...(await twice(() => this.#checkGroup(base, group, readable))))
    }
    return findings
  }

  /** What is counted of a group beside its steps: what limits go by, and which campaigns the sweep looks at. */
  async #checkGroup(base: string, group: string, campaigns: readonly KnownCampaign[]): Promise<Finding[]> {
    const asked = this.#scripts.redis.multi().hgetall(`${base}:use`).smembers(`${base}:active`)
    const steps = campaigns.flatMap(({ plan }) => plan.steps.map((step) => ({ id: plan.id, name: step.name })))
    for (const { id, name } of steps) asked.hgetall(`${base}:counts:${id}:${name}`)
    const [use, active, ...counted] = ((await asked.exec()) ?? []).map(([, value]) => value) as [
      Record<string, string>,
      string[],
      ...Record<string, string>[],
    ]
    const findings: Finding[] = []
    for (const { plan } of campaigns) {
      const counts = sumCounts(counted.filter((_, i) => steps[i]!.id === plan.id).map(countsOf))
      const leased = counts.assigned + counts.running
      const used = Number(use[`leased:${plan.id}`] ?? 0)
      if (used !== leased) {
        findings.push(finding('limits go by what is leased', plan.id, `${used} tasks in use`, `${leased}`))
      }
      if (openTasks(counts) > 0 && !active.includes(plan.id)) {
        findings.push(finding('a campaign that is not over is looked at', plan.id, 'not listed', 'listed'))
      }
    }
    const sum = Object.entries(use).reduce((total, [name, n]) => total + (name === 'leased' ? 0 : Number(n)), 0)
    if (sum !== Number(use.leased ?? 0)) {
      findings.push(finding('limits go by what is leased', group, `${use.leased ?? 0} tasks in use`, `${sum}`))
    }
    return findings
  }

  async #checkStore(): Promise<Finding[]> {
    const { halted } = await this.#parts.mark.check(null, null)
    const findings = ((await weakSettings(this.#scripts.redis)) ?? []).map(({ found, expected }) =>
      finding('the store keeps what it acknowledges', 'settings of Redis', found, expected),
    )
    if (halted === null) return findings
    const expected = 'none lost; look at the inventories, then: indraft admin lift-halt'
    return [...findings, finding('acknowledged writes are there', 'the store', halted, expected)]
  }

  async #checkStarved(): Promise<Finding[]> {
    return (await this.#parts.starved()).map((one) =>
      finding(
        'queued work is given to who waits for it',
        `${one.campaign}/${one.step}`,
        `${one.bundles} bundles queued for ${formatDuration(one.queuedForMs)} while ${one.holder} at ${one.site} waits for ${formatDuration(one.waitingForMs)}`,
        'granted, for it fits',
      ),
    )
  }

  async #verifyStep(base: string, campaign: string, step: StoredStep): Promise<Finding[]> {
    const where = `${campaign}/${step.name}`
    const [states, packed] = (await this.#scripts.runRaw('snapshot', base, { campaign, step: step.name })) as [
      Buffer,
      Buffer,
    ]
    const snapshot = unpack(packed) as Snapshot
    const byState = new Map<TaskState, Set<number>>(TASK_STATES.map((state) => [state, new Set()]))
    const findings: Finding[] = []
    for (let index = 0; index < step.size; index++) {
      const state = stateAt(states, index)
      const set = byState.get(state)
      if (set) set.add(index)
      else findings.push(finding('every task is in a state', `${where}/${index}`, `code ${state}`, 'a known code'))
    }
    return [
      ...findings,
      ...checkCounts(where, byState, mapOf(snapshot.counts)),
      ...checkPlaces(where, byState, snapshot),
      ...(await this.#checkLeases(where, snapshot.bundles)),
      ...(await this.#checkWinners(base, campaign, step.name, [...byState.get('done')!])),
    ]
  }

  async #checkLeases(where: string, bundles: Bundle[]): Promise<Finding[]> {
    const findings: Finding[] = []
    const live = new Map((await this.#parts.sessions.listed()).map((session) => [session.id, session]))
    for (const bundle of bundles) {
      const place = `${where} ${bundle.id}`
      if (bundle.state === 'queued' && !bundle.queued) {
        findings.push(finding('a queued bundle is in its queue', place, 'not in it', 'in it'))
      }
      if (bundle.state !== 'leased') continue
      const session = live.get(bundle.session ?? '')
      if (!session || (session.state !== 'active' && session.state !== 'draining')) {
        findings.push(
          finding('every lease has a holder', place, `session ${session?.state ?? 'unknown'}`, 'a live one'),
        )
      }
      if (!bundle.listed) {
        findings.push(finding("a lease is listed under its holder's session", place, 'not listed', 'listed'))
      }
      if (!bundle.deadline && !(session && session.lostAfterMs > 0)) {
        findings.push(finding('every lease has a deadline', place, 'none', 'of its grant, or of its session'))
      }
    }
    return findings
  }

  async #checkWinners(base: string, campaign: string, step: string, done: number[]): Promise<Finding[]> {
    const where = `${campaign}/${step}`
    const findings: Finding[] = []
    for (let first = 0; first < done.length; first += 1000) {
      const part = done.slice(first, first + 1000)
      const winners = await this.#parts.results.winners(campaign, step, part).catch((error: Error) => error)
      if (winners instanceof Error) {
        if (storeRefusal(winners)) throw winners
        findings.push(
          finding('results can be read', `${where}/${formatRanges(rangesOf(part))}`, winners.message, 'there'),
        )
        continue
      }
      // Read after the winners: what is not on the list any more has its name.
      const unpublished = new Set(await this.#scripts.redis.smembers(`${base}:publish`))
      for (const index of part) {
        const winner = winners.get(index)
        if (winner?.end !== 'done' || winner.index !== index) {
          findings.push(finding('a done task has one winning result', `${where}/${index}`, 'none', 'one'))
          continue
        }
        const isPublished = !unpublished.has(`${campaign}|${step}|${index}`)
        for (const output of winner.outputs) {
          if (await this.#parts.isThere(output, winner, isPublished)) continue
          findings.push(
            finding(
              "a winner's outputs are there",
              `${where}/${index} ${output.path}`,
              'missing, of another size or without its final name',
              output.url,
            ),
          )
        }
      }
    }
    return findings
  }
}

/** What is found at two looks: what is under way explains the first. */
async function twice(look: () => Promise<Finding[]>): Promise<Finding[]> {
  const found = await look()
  if (found.length === 0) return found
  await delay(SECOND_LOOK_MS)
  const nameOf = ({ invariant, where }: Finding) => JSON.stringify([invariant, where])
  const again = new Set((await look()).map(nameOf))
  return found.filter((one) => again.has(nameOf(one)))
}

function finding(invariant: string, where: string, found: string, expected: string): Finding {
  return { invariant, where, found, expected }
}

function checkCounts(where: string, byState: Map<TaskState, Set<number>>, stored: Record<string, string>): Finding[] {
  const real: Counts = emptyCounts()
  for (const [state, tasks] of byState) real[state] = tasks.size
  return TASK_STATES.flatMap((state) =>
    Number(stored[state] ?? 0) === real[state]
      ? []
      : [
          finding(
            'counts are those of the tasks',
            `${where} ${state}`,
            String(stored[state] ?? 0),
            String(real[state]),
          ),
        ],
  )
}

/** Every queued task waits in exactly one place, every leased one is in exactly one lease, and nothing else is there. */
function checkPlaces(where: string, byState: Map<TaskState, Set<number>>, snapshot: Snapshot): Finding[] {
  const findings: Finding[] = []
  const places = new Map<number, string[]>()
  const put = (index: number, place: string) => places.set(index, [...(places.get(index) ?? []), place])
  for (const span of snapshot.ready) for (const index of indices(parseRanges(span))) put(index, 'ready')
  for (const index of snapshot.retry) put(Number(index), 'retry')
  const inBundles = { queued: new Set<number>(), leased: new Set<number>() }
  for (const bundle of snapshot.bundles) {
    for (const index of indices(parseRanges(bundle.remaining))) {
      put(index, `${bundle.state} ${bundle.id}`)
      if (bundle.state === 'queued' || bundle.state === 'leased') inBundles[bundle.state].add(index)
    }
  }
  for (const [index, list] of places) {
    if (list.length > 1) {
      findings.push(finding('a task waits or runs in one place', `${where}/${index}`, list.join(' and '), 'one place'))
    }
  }
  const waiting = new Set([...places.keys()].filter((index) => !inBundles.leased.has(index)))
  const leased = new Set([...byState.get('assigned')!, ...byState.get('running')!])
  findings.push(...compare('queued tasks are those that wait', where, waiting, byState.get('queued')!))
  findings.push(...compare('assigned and running tasks are those leased', where, inBundles.leased, leased))
  return findings
}

function compare(invariant: string, where: string, found: Set<number>, expected: Set<number>): Finding[] {
  const extra = rangesOf([...found].filter((index) => !expected.has(index)))
  const missing = rangesOf([...expected].filter((index) => !found.has(index)))
  if (extra.length + missing.length === 0) return []
  const say = (spans: typeof extra) => (spans.length === 0 ? 'none' : formatRanges(spans.slice(0, 10)))
  return [finding(invariant, where, `too many: ${say(extra)}; missing: ${say(missing)}`, 'neither')]
}
