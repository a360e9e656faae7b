/**
 * One attempt at one task, top to bottom: plan, prepare, fetch inputs, start, watch, judge, collect outputs, one result.
 * The work was verified before (leases.ts). The states are those of attemptTable; the first reason to end wins, whoever
 * had it. What each part decides is in prepare.ts, stage-in.ts, blame.ts and stage-out.ts.
 *
 * What the payload sees: its own folder (as working directory and HOME), a folder for temporary files, a clean
 * environment. Never the credential, the capability, the outbox, or another payload's folder; on the host runtime this
 * rests on file modes and on not being told, since all run as one account.
 */

import { close } from 'node:fs'
import { cpus } from 'node:os'
import { join } from 'node:path'
import { type ErrorCode, IndraftError } from '../shared/errors.ts'
import { failpoint } from '../shared/failpoint.ts'
import { attemptPath, taskPath } from '../shared/ids.ts'
import { type AttemptState, attemptTable, mustNextState } from '../shared/lifecycle.ts'
import type { Log } from '../shared/log.ts'
import { noResult, type ResultBody } from '../shared/no-result.ts'
import type { Result } from '../shared/protocol/messages.ts'
import { formatDuration } from '../shared/quantity.ts'
import type { FileServer } from './access.ts'
import { AttemptFolder } from './attempt-folder.ts'
import { checkScratch, judgeExit, reasonOf, signalOf, spawnError } from './blame.ts'
import { type Launch, type Runtime, readStatus, type Started } from './container.ts'
import type { Transfer } from './drivers.ts'
import type { Gpus } from './gpus.ts'
import { removeFolder } from './home.ts'
import { ImageDigests } from './image-digest.ts'
import { CappedLog, type PipeMaker, tailOf } from './logs.ts'
import type { OomCounts, OomKills } from './oom.ts'
import type { SitePolicy } from './policy.ts'
import { type AttemptWork, type LaunchAround, type Prepared, plan, prepare } from './prepare.ts'
import { fetchInputs } from './stage-in.ts'
import { storeLogs, storeOutputs } from './stage-out.ts'
import type { Trace } from './trace.ts'
import type { Usage, Watched, Watcher } from './watch.ts'
import { parseStatus, type WrapperStatus } from './wrapper.ts'

/** What all attempts of a pilot share. */
export interface PayloadAround extends LaunchAround {
  /** Folder for the attempts' folders, and one for what several of them share. */
  tasksFolder: string
  blobsFolder: string
  policy: SitePolicy
  /** Of this node, as far as they are this pilot's. */
  gpus?: Gpus | null
  /** Processors to bind payloads to, one number each; null where they are not bound. */
  cpus?: readonly string[] | null
  digests: ImageDigests
  pipes: PipeMaker
  watcher: Watcher
  oom: OomKills
  /** The dispatcher's file server, as of now. */
  files: () => FileServer
  trace: Trace
  payloadGraceMs: number
  stageTimeoutMs: number
}

const TAIL_BYTES = 2000
/** A result names at most so many; logs come last. */
const MOST_OUTPUTS = 100
/** How long storing the logs may hold up a result; less where the pilot itself is leaving. */
const LOG_GIVE_UP_MS = 30_000
const LOG_LEAVING_MS = 3000

const START_LOOK_MS = { first: 100, longest: 1000 }
/** Whose fault it is that the wrapper was not reached in time. */
const NOT_STARTED = { container: 'container.failed', host: 'node.fault' } as const satisfies Record<string, ErrorCode>

let foldersMade = 0

interface EndReason {
  reason: ErrorCode
  detail: string | null
  /** Between SIGTERM and SIGKILL. */
  graceMs: number
}

export class Attempt {
  readonly work: AttemptWork
  readonly path: string
  readonly #around: PayloadAround
  readonly #log: Log
  readonly #folder: AttemptFolder
  /** Aborts transfers and everything else that waits, when the attempt is to end. */
  readonly #ending = new AbortController()
  #state: AttemptState = 'accepted'
  #end: EndReason | undefined
  #watched: Watched | undefined
  #exited = new AbortController()
  #stdout: CappedLog | undefined
  #stderr: CappedLog | undefined
  #acceptedAtMs: number
  #oomBefore: OomCounts
  #startedAtMs: number | undefined
  #result: ResultBody
  #release = () => {}
  /** Called when the attempt's state changes: room may have become free. */
  onChanged: () => void = () => {}
  /** Called once, after its end: its files take no scratch any more, or are not to be removed and take it for good. */
  onRemoved: (isGone: boolean) => void = () => {}
  /** Called once, when SIGKILL does not end something of it; mostly after its own end. */
  onUnkillable: () => void = () => {}

  constructor(work: AttemptWork, around: PayloadAround) {
    this.work = work
    this.path = attemptPath(work.ref)
    this.#around = around
    this.#folder = new AttemptFolder(join(around.tasksFolder, `${process.pid}-${foldersMade++}`))
    this.#acceptedAtMs = around.clock.monotonicMs()
    this.#oomBefore = around.oom.known
    const { campaign, step, index } = work.ref
    this.#log = around.log.child({
      campaign,
      step,
      task: index,
      attempt: work.ref.fences.join('.'),
      pilot: around.pilot,
    })
    this.#result = noResult(around)
  }

  get state(): AttemptState {
    return this.#state
  }

  /** Cores and memory are taken from acceptance until the payload has ended; storing outputs takes neither. */
  get takesRoom(): boolean {
    return this.#state === 'accepted' || this.#state === 'staging-in' || this.#state === 'running'
  }

  get elapsedMs(): number {
    return this.#around.clock.monotonicMs() - (this.#startedAtMs ?? this.#acceptedAtMs)
  }

  get usage(): Usage | null {
    return this.#watched?.usage ?? null
  }

  /**
   * Ends the attempt wherever it stands. Only the first reason counts; a later call may shorten the grace.
   * @param graceMs between SIGTERM and SIGKILL of a running payload
   */
  end(reason: ErrorCode, detail: string | null, graceMs = this.#around.payloadGraceMs): void {
    const isFirst = this.#end === undefined
    this.#end ??= { reason, detail, graceMs }
    if (isFirst) this.#log.info({ reason, detail }, 'attempt.endOrdered')
    this.#ending.abort()
    // Once its first process has ended, the pids known of it may be anybody's.
    if (this.#watched && !this.#exited.signal.aborted && (isFirst || graceMs < this.#end.graceMs)) {
      this.#end.graceMs = Math.min(this.#end.graceMs, graceMs)
      void this.#around.watcher.end(this.#watched, graceMs, this.#exited.signal)
    }
  }

  /** Runs the attempt to its end. Never throws: whatever happens is in the result. */
  async run(): Promise<Result> {
    try {
      await this.#runThrough()
    } catch (error) {
      this.#fail(error)
    }
    this.#release()
    const result: Result = { ...this.#result, ...this.work.ref }
    this.#event('attempt.ended', {
      end: result.end,
      reason: result.reason,
      detail: result.detail,
      exitCode: result.exitCode,
      wallMs: result.wallMs,
    })
    void removeFolder(this.#folder.path, this.#log).then((isGone) => this.onRemoved(isGone))
    // An attempt waits for its acknowledgement, perhaps long: not with buffers in hand.
    this.#stdout = undefined
    this.#stderr = undefined
    this.#watched = undefined
    return result
  }

  /** The dispatcher has the result. */
  acknowledge(verdict: string): void {
    this.#event('attempt.acknowledged', { verdict })
  }

  #event(event: string, facts: Record<string, unknown> = {}): void {
    this.#state = mustNextState(attemptTable, this.#state, event)
    if (event === 'attempt.started' || event === 'attempt.ended') this.#log.info(facts, event)
    else this.#log.debug(facts, event)
    this.onChanged()
  }

  /** First reason wins: an order that came before explains whatever failed after it. */
  #fail(error: unknown): void {
    if (!(error instanceof IndraftError) && !this.#end) this.#log.error({ err: error }, 'attempt.faulted')
    const reason = this.#end?.reason ?? reasonOf(error)
    const detail = this.#end ? this.#end.detail : (error as Error).message
    Object.assign(this.#result, { end: 'failed', reason, detail: detail?.slice(0, 500) ?? null })
  }

  #stopIfEnding(): void {
    if (this.#end) throw new IndraftError(this.#end.reason, this.#end.detail ?? undefined)
  }

  async #runThrough(): Promise<void> {
    const { clock, blobsFolder } = this.#around
    this.#stopIfEnding()
    const planned = plan(this.work, this.#around, this.#folder)
    const { runtime, values, outputs } = planned

    this.#event('attempt.fetching')
    this.#log.debug({ runtime: runtime.name, folder: this.#folder.path }, 'attempt.prepared')
    const transfer = this.#transfer(this.#ending.signal)
    const prepared = await prepare(planned, this.work, this.path, this.#around, this.#folder, transfer)
    this.#release = prepared.release
    const { inputs } = this.work.template
    const { manifests } = this.work.bundle
    await fetchInputs({ inputs, manifests, values, work: this.#folder.work, blobsFolder, transfer })
    this.#result.stageInMs = Math.round(clock.monotonicMs() - this.#acceptedAtMs)
    this.#stopIfEnding()

    const status = await this.#runPayload(runtime, prepared)
    const exitedAtMs = clock.monotonicMs()
    try {
      const said = await this.#finishLogs()
      await this.#judge(status, runtime, prepared.image, said)
      await checkScratch(this.#folder, this.work.template.needs.scratchBytes)
      const stored = await storeOutputs(this.work.ref, outputs, this.#folder, this.#transfer(this.#ending.signal))
      this.#stopIfEnding()
      Object.assign(this.#result, { outputs: stored, end: 'done', reason: null, detail: null })
    } catch (error) {
      this.#fail(error)
      this.#result.outputs = []
    } finally {
      await this.#storeLogs()
      this.#result.stageOutMs = Math.round(clock.monotonicMs() - exitedAtMs)
    }
  }

  #transfer(signal: AbortSignal, giveUpAfterMs = this.#around.stageTimeoutMs): Transfer {
    const { files, policy, own } = this.#around
    const { scratchBytes } = this.work.template.needs
    const maxBytes = scratchBytes > 0 ? scratchBytes : Number.POSITIVE_INFINITY
    return { files, capability: this.work.capability, signal, giveUpAfterMs, policy, own, maxBytes }
  }

  async #runPayload(runtime: Runtime, prepared: Prepared): Promise<WrapperStatus> {
    const { watcher, clock, trace } = this.#around
    const { started, launch } = await this.#start(runtime, prepared)
    if (started.pid !== undefined) this.#onStarted(started.pid, runtime, launch)
    void this.#watchStart(NOT_STARTED[runtime.kind])
    const end = await this.#exit(started)
    this.#exited.abort()
    failpoint('payload.ended')
    if (this.#watched) watcher.release(this.#watched)
    if (end?.failure) throw spawnError(end.failure)
    const status = parseStatus(await readStatus(prepared.control))
    status.started ||= await this.#folder.isReached()
    const usage = this.#watched!.usage
    const wallMs = Math.round(clock.monotonicMs() - this.#startedAtMs!)
    Object.assign(this.#result, {
      wallMs,
      // The status may be the payload's own words: no more than the node has.
      cpuMs: Math.round(Math.min(Math.max(status.cpuMs, usage.cpuMs), wallMs * cpus().length)),
      maxRssBytes: Math.round(usage.maxRssBytes),
      exitCode: status.exitCode,
      signal: signalOf(status.exitCode) ?? end?.signal ?? null,
    })
    this.#event('attempt.exited', { exitCode: status.exitCode })
    trace.write({ event: 'ended', ...this.#named, exitCode: status.exitCode, reason: this.#end?.reason ?? null })
    return status
  }

  /** @throws IndraftError campaign.invalid for arguments that no process can have */
  async #start(runtime: Runtime, prepared: Prepared): Promise<{ started: Started; launch: Launch }> {
    const { pipes, clock, oom } = this.#around
    const { logBytes } = this.work.template
    const [out, err] = [await pipes.take(), await pipes.take()]
    this.#stdout = new CappedLog(out.read, this.#folder.log('stdout'), logBytes)
    this.#stderr = new CappedLog(err.read, this.#folder.log('stderr'), logBytes)
    const launch = { ...prepared, stdout: out.write, stderr: err.write }
    try {
      const started = runtime.start(launch)
      this.#startedAtMs = clock.monotonicMs()
      this.#oomBefore = oom.known
      return { started, launch }
    } catch (cause) {
      // The arguments themselves: a zero byte, or too many of them.
      throw new IndraftError('campaign.invalid', `the command cannot be started: ${(cause as Error).message}`, {
        cause,
      })
    } finally {
      close(out.write, () => {})
      close(err.write, () => {})
    }
  }

  #onStarted(pid: number, runtime: Runtime, launch: Launch): void {
    const { watcher, trace, node } = this.#around
    const { template } = this.work
    const [stdout, stderr] = [this.#stdout!, this.#stderr!]
    const sealing = runtime.sealing(launch)
    this.#event('attempt.started', { pid, runtime: runtime.name, sealing })
    trace.write({
      event: 'started',
      ...this.#named,
      node,
      pid,
      campaign: template.campaignName,
      issuer: template.issuer ?? null,
      subject: template.subject,
      group: template.group,
      image: template.image,
      digest: ImageDigests.ofName(template.image),
      ...sealing,
    })
    this.#traceImage(launch.image)
    this.#watched = watcher.watch({
      attempt: this.path,
      pid,
      folders: this.#folder.writable,
      limits: { ...template.needs, stalledAfterMs: template.stalledAfterMs },
      outputBytes: () => stdout.bytes + stderr.bytes,
      onViolated: (reason, detail) => this.end(reason, detail),
      onUnkillable: () => {
        this.onUnkillable()
        this.#unkillable.resolve()
      },
    })
    failpoint('payload.started')
    if (this.#end) void watcher.end(this.#watched, this.#end.graceMs, this.#exited.signal)
  }

  /** As the site's trace names it. */
  get #named() {
    const { ref } = this.work
    return { pilot: this.#around.pilot, task: taskPath(ref), attempt: ref.fences.join('.') }
  }

  /** What a path led to; said once it is computed, which no payload waits for. */
  #traceImage(path: string): void {
    const { digests, trace, pilot } = this.#around
    const { image } = this.work.template
    if (ImageDigests.ofName(image) !== null) return
    void digests.of(path).then((digest) => {
      if (digest !== null && digests.isNews(image, digest)) trace.write({ event: 'image', pilot, image, digest })
    })
  }

  /** The payload's limits count from when its wrapper is reached; what is not reached in time is ended. */
  async #watchStart(reason: ErrorCode): Promise<void> {
    const { clock, stageTimeoutMs, watcher } = this.#around
    const sinceMs = clock.monotonicMs()
    const { signal } = this.#exited
    const watched = this.#watched
    if (!watched) return
    for (let pauseMs = START_LOOK_MS.first; ; pauseMs = Math.min(2 * pauseMs, START_LOOK_MS.longest)) {
      await clock.sleep(pauseMs, signal)
      if (signal.aborted) return
      // A file system that does not answer is met again when it ends.
      if (await this.#folder.isReached().catch(() => false)) return watcher.begin(watched)
      if (clock.monotonicMs() - sinceMs < stageTimeoutMs) continue
      return this.end(reason, `the payload had not started after ${formatDuration(stageTimeoutMs)}`)
    }
  }

  /** The end of the first process; null where it cannot be ended at all. */
  async #exit(started: Started): Promise<Awaited<typeof started.ended> | null> {
    return await Promise.race([started.ended, this.#unkillable.promise.then(() => null)])
  }

  /** SIGKILL did not end it: the attempt is over without it, and its room stays closed (the owner sees to that). */
  readonly #unkillable = Promise.withResolvers<void>()

  /** @returns the end of what it said */
  async #finishLogs(): Promise<string> {
    const [stdout, stderr] = await Promise.all([this.#stdout!.finish(), this.#stderr!.finish()])
    this.#result.stdoutBytes = this.#stdout!.bytes
    this.#result.stderrBytes = this.#stderr!.bytes
    return (await tailOf(stderr, TAIL_BYTES)) ?? (await tailOf(stdout, TAIL_BYTES)) ?? ''
  }

  /** @throws IndraftError with the reason, where the payload did not end well */
  async #judge(status: WrapperStatus, runtime: Runtime, image: string, said: string): Promise<void> {
    this.#result.tail = said === '' ? null : said
    this.#stopIfEnding()
    const { exitCode, signal } = this.#result
    const exit = { status, exitCode, signal, said }
    const { images, digests, watcher, oom } = this.#around
    await judgeExit(exit, {
      ...{ attempt: this.path, image, runtime, images, digests, watcher, oom, oomBefore: this.#oomBefore },
      command: this.work.template.command[0]!,
      folder: this.#folder,
    })
    this.#result.tail = null
  }

  /** That one is lost changes nothing about how the task ended. */
  async #storeLogs(): Promise<void> {
    if (this.#around.files().url === null) return
    const giveUpMs = this.#end?.reason === 'node.ending' ? LOG_LEAVING_MS : LOG_GIVE_UP_MS
    const transfer = this.#transfer(AbortSignal.timeout(giveUpMs), giveUpMs)
    const stored = await storeLogs(this.work.ref, this.#folder, transfer, this.#log)
    this.#result.outputs = [...this.#result.outputs, ...stored].slice(0, MOST_OUTPUTS)
  }
}
