/**
 * The rules for dispatchers in the fewest lines, all state in memory and every step atomic: what the conformance suite
 * is checked against, and the upper end for tests of a relay. It runs nothing in production.
 */
import type { Clock } from '../../shared/clock.ts'
import type { Dispatcher } from '../../shared/dispatcher.ts'
import { chargeOf, IndraftError } from '../../shared/errors.ts'
import { tasksPerShape, unmetNeeds } from '../../shared/fit.ts'
import { heldDigest } from '../../shared/held.ts'
import type { Peer } from '../../shared/link.ts'
import type { Grant, LeasePart, Message, ReplyTo, Result, Verdict } from '../../shared/protocol/messages.ts'
import { countRanges, formatRanges, indices, parseRanges, rangesOf, takeFirst } from '../../shared/ranges.ts'
import { digestOf } from '../../shared/signing.ts'
import { timingsFor } from '../../shared/timings.ts'
import { sampleBundle, sampleNeeds, sampleTemplate, testSigner } from '../sample-messages.ts'
import { taskName } from './simulated-holder.ts'

interface Session {
  id: string
  site: string
  holder: string
  incarnation: string
  lastSeenMs: number
  alive: boolean
  sequence: number
  reply: ReplyTo<'pull'> | undefined
}
interface Lease {
  bundle: string
  fence: number
  session: Session
  sequence: number
  confirmed: boolean
  grantedAtMs: number
  left: Set<number>
}
interface Task {
  state: 'queued' | 'assigned' | 'done' | 'failed'
  fence: number
  tries: number
}

const CAMPAIGN = 'cmodel00000'
const STEP = 'only'
const TASKS_PER_BUNDLE = 3
const INFRASTRUCTURE_RETRIES = 10
const template = testSigner.template({ ...sampleTemplate, campaign: CAMPAIGN, step: STEP, inputs: [], outputs: [] })
const templateDigest = digestOf(template.bytes)
const needs = { ...sampleNeeds, walltimeMs: 60_000, arch: ['x86_64'], denySites: [] }

export class ModelDispatcher implements Dispatcher {
  readonly tasks = new Map<number, Task>()
  readonly #clock: Clock
  readonly #role: 'pilot' | 'relay'
  readonly #sessions = new Map<string, Session>()
  readonly #leases = new Map<string, Lease>()
  #queue: number[] = []
  #numbers = 0
  #wake: (() => void)[] = []

  constructor(clock: Clock, role: 'pilot' | 'relay') {
    this.#clock = clock
    this.#role = role
  }

  seed(count: number): string[] {
    const first = this.tasks.size
    const added = Array.from({ length: count }, (_, i) => first + i)
    for (const index of added) this.tasks.set(index, { state: 'queued', fence: 0, tries: 0 })
    this.#requeue(added)
    return added.map(nameOf).sort()
  }

  outcome(): Map<string, string> {
    return new Map([...this.tasks].map(([index, task]) => [nameOf(index), task.state]))
  }

  invariants(): string[] {
    const found: string[] = []
    const owners = new Map<number, number>()
    for (const index of this.#queue) owners.set(index, (owners.get(index) ?? 0) + 1)
    for (const lease of this.#leases.values()) {
      if (!lease.session.alive) found.push(`lease ${lease.bundle} of a dead session`)
      for (const index of lease.left) owners.set(index, (owners.get(index) ?? 0) + 1)
    }
    for (const [index, task] of this.tasks) {
      const open = task.state === 'queued' || task.state === 'assigned'
      if ((owners.get(index) ?? 0) !== (open ? 1 : 0))
        found.push(`${index} is ${task.state}, owned ${owners.get(index)}`)
    }
    return found
  }

  /** The reaper; called whenever time has passed. */
  reap(): void {
    const nowMs = this.#clock.monotonicMs()
    const timings = timingsFor(this.#role, 1)
    for (const session of this.#sessions.values()) {
      if (session.alive && nowMs - session.lastSeenMs > timings.lostAfterMs) this.#bury(session)
    }
    for (const lease of [...this.#leases.values()]) {
      if (!lease.confirmed && nowMs - lease.grantedAtMs > timings.confirmMs) this.#takeBack(lease, lease.left)
    }
  }

  async onHello(peer: Peer, hello: Message<'hello'>): Promise<ReplyTo<'hello'>> {
    this.reap()
    const others = [...this.#sessions.values()].filter(
      (one) => one.alive && one.site === peer.site && one.holder === hello.holder,
    )
    let session = others.find((one) => one.incarnation === hello.incarnation)
    for (const other of others) if (other !== session) this.#bury(other)
    if (!session) {
      const { holder, incarnation } = hello
      const id = `s${++this.#numbers}`
      session = { id, site: peer.site, holder, incarnation, lastSeenMs: 0, alive: true, sequence: 0, reply: undefined }
      this.#sessions.set(id, session)
    }
    session.lastSeenMs = this.#clock.monotonicMs()
    return {
      session: session.id,
      sequence: session.sequence,
      site: peer.site,
      mark: this.#mark(),
      timings: timingsFor(this.#role, 1),
      inventory: 'list',
      keys: testSigner.keys,
      filesUrl: null,
    }
  }

  async onPull(peer: Peer, pull: Message<'pull'>): Promise<ReplyTo<'pull'>> {
    const session = this.#session(peer, pull.session)
    if (pull.sequence < session.sequence) throw new IndraftError('session.sequence')
    this.#confirm(session, pull.processed)
    if (pull.sequence === session.sequence && session.reply) return session.reply
    const verdicts = pull.finished.map((result) => this.#judge(result))
    for (const part of pull.returned) this.#giveBack(part)
    let grants = this.#grant(session, pull)
    if (grants.length === 0 && pull.finished.length === 0 && pull.waitMs > 0) {
      await this.#wait(Math.min(pull.waitMs, timingsFor(this.#role, 1).pullWaitMs))
      // A repeat may have been answered meanwhile, or the session have died.
      this.#session(peer, pull.session)
      if (pull.sequence < session.sequence) throw new IndraftError('session.sequence')
      if (pull.sequence === session.sequence && session.reply) return session.reply
      grants = this.#grant(session, pull)
    }
    session.sequence = pull.sequence
    session.reply = {
      sequence: pull.sequence,
      mark: this.#mark(),
      grants,
      templates: grants.length > 0 && !pull.knows.includes(templateDigest.slice(7, 23)) ? [template] : [],
      verdicts,
      reason: grants.length > 0 ? null : 'noWork',
      askAgainMs: 1000,
    }
    return session.reply
  }

  async onReport(peer: Peer, report: Message<'report'>): Promise<ReplyTo<'report'>> {
    this.#session(peer, report.session)
    return { mark: this.#mark(), verdicts: report.results.map((result) => this.#judge(result)) }
  }

  async onBeat(peer: Peer, beat: Message<'beat'>): Promise<ReplyTo<'beat'>> {
    const session = this.#session(peer, beat.session)
    this.#confirm(session, beat.processed)
    const mine = this.#confirmedOf(session, beat.processed)
    const digest = heldDigest(mine.map((lease) => ({ bundle: lease.bundle, fence: lease.fence })))
    const held = Array.isArray(beat.held)
      ? heldDigest(beat.held.map((lease) => ({ bundle: lease.bundle, fence: lease.fences.at(-1)! })))
      : beat.held.digest
    return { mark: this.#mark(), orders: digest === held ? [] : [{ kind: 'holder.inventory' }] }
  }

  async onInventory(peer: Peer, inventory: Message<'inventory'>): Promise<ReplyTo<'inventory'>> {
    const session = this.#session(peer, inventory.session)
    this.#confirm(session, inventory.processed)
    const listed = new Set(inventory.leases.map((part) => `${part.bundle}#${part.fences.at(-1)}`))
    for (const lease of this.#confirmedOf(session, inventory.processed)) {
      if (!listed.has(`${lease.bundle}#${lease.fence}`)) this.#takeBack(lease, lease.left)
    }
    return { mark: this.#mark(), orders: [] }
  }

  async onBye(peer: Peer, bye: Message<'bye'>): Promise<ReplyTo<'bye'>> {
    const session = this.#sessions.get(bye.session)
    if (session?.site === peer.site) {
      for (const part of bye.returned) this.#giveBack(part)
      if (session.alive) this.#bury(session)
    }
    return { mark: this.#mark() }
  }

  #mark() {
    return { epoch: 'model', sequence: ++this.#numbers }
  }

  #session(peer: Peer, id: string): Session {
    this.reap()
    const session = this.#sessions.get(id)
    if (!session?.alive || session.site !== peer.site) throw new IndraftError('session.unknown')
    session.lastSeenMs = this.#clock.monotonicMs()
    return session
  }

  #confirm(session: Session, processed: number): void {
    for (const lease of this.#leases.values()) {
      if (lease.session === session && lease.sequence <= processed) lease.confirmed = true
    }
  }

  #confirmedOf(session: Session, processed: number): Lease[] {
    return [...this.#leases.values()].filter((lease) => lease.session === session && lease.sequence <= processed)
  }

  #bury(session: Session): void {
    session.alive = false
    for (const lease of [...this.#leases.values()]) if (lease.session === session) this.#takeBack(lease, lease.left)
    this.#wakeAll()
  }

  #takeBack(lease: Lease, gone: Iterable<number>): void {
    const back = [...gone].filter((index) => lease.left.delete(index))
    if (lease.left.size === 0) this.#leases.delete(lease.bundle)
    this.#requeue(back)
  }

  #giveBack(part: LeasePart): void {
    const lease = this.#leases.get(part.bundle)
    if (lease && lease.fence === part.fences[0]) this.#takeBack(lease, [...indices(parseRanges(part.tasks))])
  }

  #requeue(back: number[]): void {
    for (const index of back) this.tasks.get(index)!.state = 'queued'
    this.#queue = [...this.#queue, ...back].sort((x, y) => x - y)
    this.#wakeAll()
  }

  #wakeAll(): void {
    for (const wake of this.#wake.splice(0)) wake()
  }

  async #wait(ms: number): Promise<void> {
    const timeout = new AbortController()
    await Promise.race([
      new Promise<void>((resolve) => this.#wake.push(resolve)),
      this.#clock.sleep(ms, timeout.signal),
    ])
    timeout.abort()
  }

  #grant(session: Session, pull: Message<'pull'>): Grant[] {
    const grants: Grant[] = []
    for (const entry of pull.offer) {
      if (unmetNeeds(needs, entry.shape, entry.timeLeftMs).length > 0) continue
      for (let room = tasksPerShape(needs, entry.shape) * entry.count; room > 0 && this.#queue.length > 0; ) {
        const { taken } = takeFirst(rangesOf(this.#queue), Math.min(TASKS_PER_BUNDLE, room))
        room -= countRanges(taken)
        grants.push(this.#lease(session, pull.sequence, [...indices(taken)]))
      }
    }
    return grants
  }

  #lease(session: Session, sequence: number, taken: number[]): Grant {
    const fence = ++this.#numbers
    const bundle = `b${fence}`
    this.#queue = this.#queue.filter((index) => !taken.includes(index))
    for (const index of taken) Object.assign(this.tasks.get(index)!, { state: 'assigned', fence })
    const grantedAtMs = this.#clock.monotonicMs()
    this.#leases.set(bundle, { bundle, fence, session, sequence, confirmed: false, grantedAtMs, left: new Set(taken) })
    const tasks = formatRanges(rangesOf(taken))
    const body = { ...sampleBundle, bundle, campaign: CAMPAIGN, step: STEP, template: templateDigest, tasks }
    return {
      bundle: testSigner.bundle({ ...body, manifests: {}, site: session.site }),
      lease: { bundle, campaign: CAMPAIGN, step: STEP, fences: [fence], tasks },
      template: templateDigest.slice(7, 23),
      leaseMs: timingsFor(this.#role, 1).leaseMs,
      tries: {},
      avoidNodes: [],
      estimateMs: null,
      capability: null,
    }
  }

  #judge(result: Result): Verdict {
    const { campaign, step, index, fences } = result
    const task = campaign === CAMPAIGN && step === STEP ? this.tasks.get(index) : undefined
    const verdict = (word: Verdict['verdict']): Verdict => ({ campaign, step, index, fences, verdict: word })
    const fence = fences[0]!
    if (!task || fence > task.fence) return verdict('refused')
    if (task.state === 'done') return verdict(result.end === 'done' ? 'duplicate' : 'stale')
    const lease = [...this.#leases.values()].find((one) => one.left.has(index))
    if (result.end === 'done') {
      task.state = 'done'
      this.#queue = this.#queue.filter((queued) => queued !== index)
      lease?.left.delete(index)
      if (lease?.left.size === 0) this.#leases.delete(lease.bundle)
      return verdict('accepted')
    }
    if (!lease || lease.fence !== fence) return verdict('stale')
    const retried = chargeOf(result.reason!) === 'infrastructure' && task.tries++ < INFRASTRUCTURE_RETRIES
    this.#takeBack(lease, [index])
    if (!retried) {
      this.#queue = this.#queue.filter((queued) => queued !== index)
      task.state = 'failed'
    }
    return verdict('accepted')
  }
}

function nameOf(index: number): string {
  return taskName({ campaign: CAMPAIGN, step: STEP, index })
}
