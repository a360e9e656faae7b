/**
 * One tick: take the lock, read what happened, decide, do, write down. It may die anywhere: an order is written down
 * before it is given, with a name that the batch system keeps, so the next tick finds what this one did not record.
 * Knows no file and no Slurm: those come as ports, which the simulation replaces by a site in memory.
 */
import type { Log } from '../../shared/log.ts'
import type { Message, OfferEntry } from '../../shared/protocol/messages.ts'
import { onEndRecord, onQueue, onTime, type QueuedJob } from './absorb.ts'
import { noteTaken, strikeRefused } from './back-off.ts'
import { type Decision, decide, type Start, shouldLook } from './decide.ts'
import { offerOf, shouldAsk } from './demand.ts'
import type { FoundRecord } from './end-record.ts'
import { forgetUnknown, judgeLiving, noteCanary, postponeCanary } from './nodes.ts'
import { isOverCalls } from './room.ts'
import type { SiteFile } from './site-file.ts'
import { bringToNow, newStarted, type Started, type State } from './state.ts'

/** What starts pilots: Slurm, or processes of this machine. */
export interface Starter {
  /** Jobs of this vacuum that wait or run. One Slurm call. Throws where the batch system does not answer. */
  queue(): Promise<QueuedJob[]>
  /** One Slurm call. @returns the job's id. Throws NotStarted where it is certain that nothing was started. */
  start(order: Start): Promise<string>
  /** Takes waiting ones out of the queue. One Slurm call for all. */
  withdraw(starts: readonly Started[]): Promise<void>
  /** Ends running ones. One Slurm call for all. */
  end(starts: readonly Started[]): Promise<void>
  /** Names of all nodes. One Slurm call, after a submission that was refused for a node's name. */
  nodeNames?(): Promise<string[]>
}

/** Refused: nothing was started. Any other error leaves open whether something was. */
export class NotStarted extends Error {}
/** The same, because a node that was named is not known. */
export class NotStartedForNodes extends NotStarted {}

export interface Ports {
  /** @returns null where another tick runs */
  lock(): Promise<{ isHeld(): Promise<boolean>; release(): Promise<void> } | null>
  readState(): Promise<State>
  /** Durable when it resolves, and never half. */
  writeState(state: State): Promise<void>
  endRecords(): Promise<FoundRecord[]>
  /** What pilots that live did so far. */
  progress(): Promise<FoundRecord[]>
  /** @param alive the file by which a pilot says that it lives */
  askToLeave(alive: string, why: string): Promise<void>
  removeEndRecords(files: readonly string[]): Promise<void>
  /** @returns null, or throws why, where nobody answers */
  ask(offer: OfferEntry[]): Promise<Message<'demanded'> | null>
  isStopped(): Promise<boolean>
  /** Removes old logs; once an hour. */
  tidy(): Promise<void>
  starter: Starter
  nowMs(): number
  random(): number
  /** The folder's tag and eight hexadecimal digits, never twice. */
  newId(): string
}

export type TickOutcome =
  | { outcome: 'busy' }
  | {
      outcome: 'done'
      decision: Decision
      state: State
      errors: string[]
      /** Why the relay's answer is not known, where it was asked in this tick. */
      unanswered: string | null
    }

const HOUR_MS = 3_600_000

/** With `isDry` it looks and decides the same, and changes nothing: no file, no job. */
export async function tick(site: SiteFile, ports: Ports, log: Log, isDry = false): Promise<TickOutcome> {
  if (isDry) return await runTick(site, ports, log, true, async () => true)
  const lock = await ports.lock()
  if (!lock) return { outcome: 'busy' }
  try {
    return await runTick(site, ports, log, false, () => lock.isHeld())
  } finally {
    await lock.release()
  }
}

async function runTick(
  site: SiteFile,
  ports: Ports,
  log: Log,
  isDry: boolean,
  isHeld: () => Promise<boolean>,
): Promise<TickOutcome> {
  const { starter } = ports
  const state = await ports.readState()
  const moment = { nowMs: ports.nowMs(), random: ports.random }
  bringToNow(state, moment.nowMs)
  const errors: string[] = []
  const save = async () => {
    if (!isDry) await ports.writeState(state)
  }
  const countCall = () => {
    if (site.starter === 'slurm') state.calls.push(moment.nowMs)
  }
  const failed = (what: string, error: unknown) => {
    const detail = `${what}: ${(error as Error).message}`
    errors.push(detail)
    log.warn({ detail }, 'vacuum.stepFailed')
  }

  /** A job of one node by the batch system; one of several by a word to that node's pilot: the others do well perhaps. */
  const endHoles = async (holes: ReturnType<typeof judgeLiving>, living: readonly FoundRecord[]) => {
    const ofOneNode = holes
      .flatMap(({ start }) => state.pilots[start] ?? [])
      .filter((one) => one.nodes === 1 && one.jobId)
    const trying = (act: () => Promise<void>) =>
      act().catch((error) => failed('pilots on black holes could not be ended', error))
    for (const { start, node, why } of holes) {
      if (ofOneNode.some(({ id }) => id === start)) continue
      const mine = living.find(({ record }) => record?.start === start && record.node === node)
      await trying(() => ports.askToLeave(mine!.file, why))
    }
    if (ofOneNode.length === 0) return
    countCall()
    await trying(() => starter.end(ofOneNode))
  }

  /** @returns whether the others of this tick may go on */
  const onRefused = async (order: Start, error: NotStarted): Promise<boolean> => {
    delete state.pilots[order.id]
    if (error instanceof NotStartedForNodes && starter.nodeNames && !isOverCalls(state, site, 1)) {
      countCall()
      const names = await starter.nodeNames().catch((why) => {
        failed('the names of the nodes could not be read', why)
        return []
      })
      const gone = names.length > 0 ? forgetUnknown(state, new Set(names)) : []
      if (gone.length > 0) {
        errors.push(`the batch system knows no ${gone.join(', ')}: forgotten`)
        return false
      }
    }
    if (order.canaryOf !== null) postponeCanary(state, site, order.canaryOf, moment.nowMs)
    else strikeRefused(state, site, order.kind, error.message, moment)
    return true
  }

  const found = await ports.endRecords()
  for (const { file, record } of found) {
    const said = record === null ? null : onEndRecord(state, site, file, record, moment)
    if (said) log.info({ detail: said.detail, file }, said.event)
  }
  if (found.length > 0 && !isDry) {
    // Counted first, removed then: whoever dies in between finds them counted.
    await save()
    await ports.removeEndRecords(found.map(({ file }) => file))
    state.absorbed = []
  }

  let unanswered: string | null = null
  const isStopped = await ports.isStopped()
  if (!isStopped && shouldAsk(state, site, moment.nowMs)) {
    const answer = await ports.ask(offerOf(state, site, moment.nowMs)).catch((error: Error) => {
      unanswered = error.message
      log.warn({ why: error.message }, 'demand.unanswered')
      return null
    })
    state.demand = { askedAtMs: moment.nowMs, answer }
  }
  if (shouldLook(state, site, moment.nowMs)) {
    countCall()
    try {
      for (const detail of onQueue(state, site, await starter.queue(), moment)) log.info({ detail }, 'job.found')
    } catch (error) {
      failed('the queue could not be read', error)
      if (state.lookedAtMs !== null) state.lookedAtMs = moment.nowMs
    }
  }
  if (!isDry && Object.keys(state.pilots).length > 0 && moment.nowMs - state.progressAtMs >= site.look.quiet) {
    state.progressAtMs = moment.nowMs
    const living = await ports.progress()
    const records = living.flatMap(({ record }) => (record?.start && state.pilots[record.start] ? record : []))
    const gone = living.filter(({ record }) => record === null || !records.includes(record))
    await ports.removeEndRecords(gone.map(({ file }) => file))
    const holes = judgeLiving(state, site, records, moment.nowMs)
    for (const { isNew, ...hole } of holes) if (isNew) log.warn(hole, 'node.latched')
    await endHoles(holes, living)
  }
  for (const detail of onTime(state, site, moment)) log.warn({ detail }, 'pilot.vanished')

  const decision = decide(state, site, moment, { isStopped, newId: ports.newId })
  if (state.lookedAtMs === null && decision.starts.length > 0) {
    decision.starts = []
    decision.why.push('nothing starts before the queue was read once: the state may be lost, and pilots there')
  }
  for (const why of decision.why) log.debug({ why }, 'vacuum.decided')
  if (isDry) return { outcome: 'done', decision, state, errors, unanswered }

  const refused = new Set<string>()
  for (const order of decision.starts) {
    if (refused.has(order.kind)) continue
    if (!(await isHeld())) {
      errors.push('the lock was taken over: nothing more is started')
      return { outcome: 'done', decision, state, errors, unanswered }
    }
    // Written down before it is given.
    state.pilots[order.id] = orderedPilot(order, site, moment.nowMs)
    state.submissions.push(moment.nowMs)
    if (order.canaryOf !== null) noteCanary(state, site, moment.nowMs)
    countCall()
    await save()
    try {
      const jobId = await starter.start(order)
      Object.assign(state.pilots[order.id]!, { jobId, state: 'queued' })
      noteTaken(state, order.kind)
      log.info({ start: order.id, jobId, nodes: order.nodes, because: order.because }, 'pilot.started')
    } catch (error) {
      failed(`${order.id} could not be started`, error)
      // Where nobody knows what came of it the batch system is not well: no more of it now.
      if (!(error instanceof NotStarted) || !(await onRefused(order, error))) break
      if (order.canaryOf === null) refused.add(order.kind)
    } finally {
      await save()
    }
  }
  if (decision.withdraw.length > 0) {
    countCall()
    // Written down before it is given, as it may work though nobody answers; the next look says whether it did.
    for (const { id, canaryOf } of decision.withdraw) {
      if (state.pilots[id]) state.pilots[id].isWithdrawn = true
      if (canaryOf !== null) postponeCanary(state, site, canaryOf, moment.nowMs)
    }
    await save()
    try {
      await starter.withdraw(decision.withdraw)
      log.info({ starts: decision.withdraw.map(({ id }) => id) }, 'job.withdrawn')
    } catch (error) {
      failed('waiting jobs could not be withdrawn', error)
    }
  }
  if (moment.nowMs - state.tidiedAtMs > HOUR_MS) {
    state.tidiedAtMs = moment.nowMs
    await ports.tidy().catch((error) => failed('old logs could not be removed', error))
  }
  await save()
  return { outcome: 'done', decision, state, errors, unanswered }
}

function orderedPilot({ id, kind, nodes, timeMs, because, canaryOf }: Start, site: SiteFile, nowMs: number): Started {
  const { account } = site.kinds[kind]!
  return newStarted({ id, kind, account, nodes, timeMs, submittedAtMs: nowMs, because, canaryOf })
}
