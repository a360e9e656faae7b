/**
 * One attempt at one task, top to bottom: expand, fetch inputs, start, watch, collect outputs, one result. The work
 * was verified before (leases.ts). The states are those of attemptTable; the first reason to end wins, whoever had it.
 *
 * What the payload sees: its own folder (as working directory and HOME), a folder for temporary files, a clean
 * environment. Never the credential, the capability, the outbox, or another payload's folder; on the host runtime this
 * rests on file modes and on not being told, since all run as one account.
 */

import { close } from 'node:fs'
import { lstat, mkdir, realpath, statfs, writeFile } from 'node:fs/promises'
import { constants as osConstants } from 'node:os'
import { dirname, join } from 'node:path'
import type { Clock } from '../shared/clock.ts'
import { type ErrorCode, IndraftError } from '../shared/errors.ts'
import { expand, type Values, valuesOf } from '../shared/expand.ts'
import { failpoint } from '../shared/failpoint.ts'
import { safeParts } from '../shared/files/attempt-files.ts'
import { checksumFile } from '../shared/files/checksum.ts'
import { type AttemptRef, attemptPath } from '../shared/ids.ts'
import { type AttemptState, attemptTable, mustNextState } from '../shared/lifecycle.ts'
import type { Log } from '../shared/log.ts'
import { noResult, type ResultBody } from '../shared/no-result.ts'
import type { OutputRecord, Result } from '../shared/protocol/messages.ts'
import type { BundleBody, TemplateBody } from '../shared/protocol/work.ts'
import { formatBytes, formatDuration } from '../shared/quantity.ts'
import type { FileServer } from './access.ts'
import { type Launch, prepareControl, type Runtime, readStatus } from './container.ts'
import { fetchInput, fetchManifest, fetchWinner, storeOutput, type Transfer } from './drivers.ts'
import type { Gpus } from './gpus.ts'
import { removeFolder } from './home.ts'
import { ImageDigests } from './image-digest.ts'
import type { ImageStore } from './images.ts'
import { CappedLog, type PipeMaker, tailOf } from './logs.ts'
import { blameOf, type OomCounts, type OomKills } from './oom.ts'
import { enforceImagePath, type SitePolicy } from './policy.ts'
import { ATTEMPT_VARIABLE, RUN_VARIABLE } from './processes.ts'
import { repositoriesOf, softwareScript, touchSoftware } from './software.ts'
import type { Trace } from './trace.ts'
import { folderBytes, MEASURE_AT_MOST_MS, type Usage, type Watched, type Watcher } from './watch.ts'
import { parseStatus, type WrapperStatus } from './wrapper.ts'

/** What one attempt is to do; checked before. */
export interface AttemptWork {
  ref: AttemptRef
  template: TemplateBody
  bundle: BundleBody
  earlierAttempts: number
  capability: string | null
  /** Its own for as long as it runs; null where it asked for none. */
  gpus?: Launch['gpus']
  /** Processors it is bound to; null for any. */
  cpus?: string | null
}

/** What all attempts of a pilot share. */
export interface PayloadAround {
  site: string
  node: string
  pilot: string
  /** New at every start; marks the processes. */
  run: string
  /** Folder for the attempts' folders, and one for what several of them share. */
  tasksFolder: string
  blobsFolder: string
  /** Paths that no payload may name as an input. */
  own: readonly string[]
  policy: SitePolicy
  runtimes: readonly Runtime[]
  /** Of this node, as far as they are this pilot's. */
  gpus?: Gpus | null
  /** Processors to bind payloads to, one number each; null where they are not bound. */
  cpus?: readonly string[] | null
  /** Where CVMFS repositories are mounted. */
  cvmfs: string
  images: ImageStore
  digests: ImageDigests
  pipes: PipeMaker
  watcher: Watcher
  oom: OomKills
  /** The dispatcher's file server, as of now. */
  files: () => FileServer
  clock: Clock
  /** See leases.ts. */
  expiryNowMs: () => number
  log: Log
  trace: Trace
  payloadGraceMs: number
  stageTimeoutMs: number
}

const TAIL_BYTES = 2000
const TRANSFERS_AT_ONCE = 4
/** Where an attempt's logs stand among its files; nothing else may. */
const LOG_FOLDER = '.log'
/** How long storing the logs may hold up a result; less where the pilot itself is leaving. */
const LOG_GIVE_UP_MS = 30_000
const LOG_LEAVING_MS = 3000

const START_LOOK_MS = { first: 100, longest: 3000 }
/** Whose fault it is that the wrapper was not reached in time. */
const NOT_STARTED = { container: 'container.failed', host: 'node.fault' } as const satisfies Record<string, ErrorCode>

let foldersMade = 0

/** Everything of a launch but where its output goes. */
type Prepared = Omit<Launch, 'stdout' | 'stderr'>

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
  readonly #folder: string
  /** Aborts transfers and everything else that waits, when the attempt is to end. */
  readonly #ending = new AbortController()
  #state: AttemptState = 'accepted'
  #end: EndReason | undefined
  #watched: Watched | undefined
  #runtimeExitCode: number | null = null
  /** The wrapper was seen to run. */
  #isStarted = false
  #exited = new AbortController()
  #stdout: CappedLog | undefined
  #stderr: CappedLog | undefined
  #acceptedAtMs: number
  #oomBefore: OomCounts
  #startedAtMs: number | undefined
  #result: ResultBody
  /** Called when the attempt's state changes: room may have become free. */
  onChanged: () => void = () => {}

  constructor(work: AttemptWork, around: PayloadAround) {
    this.work = work
    this.path = attemptPath(work.ref)
    this.#around = around
    this.#folder = join(around.tasksFolder, `${process.pid}-${foldersMade++}`)
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
    if (this.#watched && (isFirst || graceMs < this.#end.graceMs)) {
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
    const result: Result = { ...this.#result, ...this.work.ref }
    this.#event('attempt.ended', {
      end: result.end,
      reason: result.reason,
      detail: result.detail,
      exitCode: result.exitCode,
      wallMs: result.wallMs,
    })
    void removeFolder(this.#folder, this.#log)
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

  /** Where a payload can write, all of which counts as its scratch. */
  get #writable(): string[] {
    return ['work', 'tmp', 'control'].map((name) => join(this.#folder, name))
  }

  #event(event: string, facts: Record<string, unknown> = {}): void {
    this.#state = mustNextState(attemptTable, this.#state, event)
    if (event === 'attempt.started' || event === 'attempt.ended') this.#log.info(facts, event)
    else this.#log.debug(facts, event)
    this.onChanged()
  }

  /** First reason wins: an order that came before explains whatever failed after it. */
  #fail(error: unknown): void {
    const known = error instanceof IndraftError
    if (!known && !this.#end) this.#log.error({ err: error }, 'attempt.faulted')
    const fault = saysFull(error) ? 'node.scratchFull' : 'node.fault'
    const reason = this.#end?.reason ?? (known ? error.code : fault)
    const detail = this.#end ? this.#end.detail : (error as Error).message
    Object.assign(this.#result, { end: 'failed', reason, detail: detail?.slice(0, 500) ?? null })
  }

  #stopIfEnding(): void {
    if (this.#end) throw new IndraftError(this.#end.reason, this.#end.detail ?? undefined)
  }

  async #runThrough(): Promise<void> {
    const { clock } = this.#around
    this.#stopIfEnding()
    const { template, bundle, ref } = this.work
    if (this.#around.expiryNowMs() > bundle.expiresAtMs) throw new IndraftError('signature.expired')
    const runtime = this.#around.runtimes.find((one) => one.kind === (template.image === 'host' ? 'host' : 'container'))
    if (!runtime) throw new IndraftError('container.failed', 'this node has no runtime for the image')
    const values = valuesOf(template, bundle, ref.index, this.work.earlierAttempts)
    const argv = template.command.map((argument) => expand(argument, values))
    const launchEnv = this.#environment(values, runtime)
    const outputs = template.outputs.map((output) => ({
      ...output,
      path: insideWork(expand(output.path, values), 'payload.outputRefused'),
      url: output.url === null ? null : expand(output.url, values),
    }))

    this.#event('attempt.fetching')
    const launch = await this.#prepare(runtime, argv, launchEnv)
    const transfer = this.#transfer(this.#ending.signal)
    // Before the inputs: an image that cannot be had or run makes them useless.
    const image = runtime.kind === 'host' ? template.image : await this.#around.images.locate(template.image, transfer)
    launch.image = image
    if (image.startsWith('/')) await enforceImagePath(image, this.#around.own)
    const refused = await runtime.refusal(image)
    if (refused) throw new IndraftError(refused.reason, refused.detail)
    await this.#prepareSoftware(runtime, launch)
    await this.#fetchInputs(values, transfer)
    this.#result.stageInMs = Math.round(clock.monotonicMs() - this.#acceptedAtMs)
    this.#stopIfEnding()

    const status = await this.#runPayload(runtime, launch)
    const exitedAtMs = clock.monotonicMs()
    try {
      const logs = await this.#finishLogs()
      await this.#judge(status, runtime, launch.image, logs.said)
      await this.#checkScratch()
      await this.#storeOutputs(outputs)
      Object.assign(this.#result, { end: 'done', reason: null, detail: null })
    } catch (error) {
      this.#fail(error)
      this.#result.outputs = []
    } finally {
      await this.#storeLogs()
      this.#result.stageOutMs = Math.round(clock.monotonicMs() - exitedAtMs)
    }
  }

  #environment(values: Values, runtime: Runtime): Record<string, string> {
    const { template, ref } = this.work
    const env: Record<string, string> = {
      LANG: 'C.UTF-8',
      OMP_NUM_THREADS: String(template.needs.cores),
    }
    for (const [name, value] of Object.entries(template.env)) {
      if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) throw new IndraftError('campaign.invalid', `env name "${name}"`)
      env[name] = expand(value, values)
    }
    const view = runtime.view({ work: join(this.#folder, 'work'), temporary: join(this.#folder, 'tmp') })
    return Object.assign(env, {
      HOME: view.work,
      TMPDIR: view.temporary,
      INDRAFT_CAMPAIGN: template.campaignName,
      INDRAFT_CAMPAIGN_ID: ref.campaign,
      INDRAFT_STEP: ref.step,
      INDRAFT_INDEX: String(ref.index),
      INDRAFT_CORES: String(template.needs.cores),
      INDRAFT_MEMORY_BYTES: String(template.needs.memoryBytes),
      INDRAFT_SITE: this.#around.site,
      INDRAFT_NODE: this.#around.node,
      INDRAFT_PILOT: this.#around.pilot,
    })
  }

  async #prepare(runtime: Runtime, argv: string[], env: Record<string, string>): Promise<Prepared> {
    const work = join(this.#folder, 'work')
    const temporary = join(this.#folder, 'tmp')
    const control = join(this.#folder, 'control')
    const unpack = join(this.#folder, 'unpack')
    await mkdir(this.#folder, { recursive: true, mode: 0o700 })
    const folders = [work, temporary, unpack].map((folder) => mkdir(folder, { mode: 0o700 }))
    await Promise.all([...folders, prepareControl(control)])
    const marker = { [ATTEMPT_VARIABLE]: this.path, [RUN_VARIABLE]: this.#around.run }
    this.#log.debug({ runtime: runtime.name, folder: this.#folder }, 'attempt.prepared')
    const { network } = this.work.template.needs
    return { image: this.work.template.image, argv, env, marker, work, temporary, control, unpack, network }
  }

  /** CVMFS and EESSI, where the step asks for them. @throws IndraftError software.failed */
  async #prepareSoftware(runtime: Runtime, launch: Prepared): Promise<void> {
    const { software } = this.work.template
    if (!software) return
    const { cvmfs } = this.#around
    const missing = await touchSoftware(cvmfs, repositoriesOf(software))
    if (missing.length > 0)
      throw new IndraftError('software.failed', `${missing.join(', ')} cannot be read in ${cvmfs}`)
    if (runtime.kind === 'container') launch.binds = [`${cvmfs}:/cvmfs`]
    const script = softwareScript(software, runtime.kind === 'container' ? '/cvmfs' : cvmfs)
    if (script !== null) await writeFile(join(launch.control, 'software'), script, { mode: 0o400 })
  }

  #transfer(signal: AbortSignal, giveUpAfterMs = this.#around.stageTimeoutMs): Transfer {
    const { files, policy, own } = this.#around
    const { scratchBytes } = this.work.template.needs
    return {
      files,
      capability: this.work.capability,
      signal,
      giveUpAfterMs,
      policy,
      own,
      maxBytes: scratchBytes > 0 ? scratchBytes : Number.POSITIVE_INFINITY,
    }
  }

  async #fetchInputs(values: Values, transfer: Transfer): Promise<void> {
    const { template, bundle } = this.work
    const work = join(this.#folder, 'work')
    for (const [position, input] of template.inputs.entries()) {
      const path = expand(input.path, values)
      const isFolder = path.endsWith('/')
      const target = join(work, insideWork(isFolder ? path.slice(0, -1) : path, 'campaign.invalid'))
      if (input.url !== null) {
        await fetchInput(expand(input.url, values), target, input.checksum, transfer)
        continue
      }
      const digest = bundle.manifests[String(position)]
      if (!digest) throw new IndraftError('stage.inputMissing', `no manifest for the outputs of step ${input.from}`)
      const manifest = await fetchManifest(digest, this.#around.blobsFolder, transfer)
      const entries = manifest.entries.filter((entry) => input.output === null || entry.output === input.output)
      if (!isFolder && entries.length !== 1) {
        const found = `step ${input.from} has ${entries.length} such outputs`
        throw new IndraftError('stage.inputMissing', `${found}; "${path}" holds one, a path that ends in / many`)
      }
      const names = entries.map((entry) =>
        isFolder ? `${path}${entry.index}/${inside(entry.output, 'stage.inputMissing')}` : path,
      )
      await inParallel(entries, TRANSFERS_AT_ONCE, (entry, i) => fetchWinner(entry, join(work, names[i]!), transfer))
      if (input.list === null) continue
      const list = join(work, insideWork(expand(input.list, values), 'campaign.invalid'))
      await mkdir(dirname(list), { recursive: true })
      await writeFile(list, names.map((name) => `${name}\n`).join(''))
    }
  }

  async #runPayload(runtime: Runtime, prepared: Prepared): Promise<WrapperStatus> {
    const { pipes, watcher, clock, trace } = this.#around
    const { template, ref } = this.work
    const [out, err] = [await pipes.take(), await pipes.take()]
    this.#stdout = new CappedLog(out.read, join(this.#folder, 'stdout'), template.logBytes)
    this.#stderr = new CappedLog(err.read, join(this.#folder, 'stderr'), template.logBytes)
    const [stdout, stderr] = [this.#stdout, this.#stderr]
    const { gpus = null, cpus = null } = this.work
    const launch = { ...prepared, gpus, cpus, stdout: out.write, stderr: err.write }
    let started: ReturnType<Runtime['start']>
    try {
      started = runtime.start(launch)
    } catch (cause) {
      // The arguments themselves: a zero byte, or too many of them.
      throw new IndraftError('campaign.invalid', `the command cannot be started: ${(cause as Error).message}`, {
        cause,
      })
    } finally {
      close(out.write, () => {})
      close(err.write, () => {})
    }
    this.#startedAtMs = clock.monotonicMs()
    this.#oomBefore = this.#around.oom.known
    const named = {
      pilot: this.#around.pilot,
      task: `${ref.campaign}/${ref.step}/${ref.index}`,
      attempt: ref.fences.join('.'),
    }
    if (started.pid !== undefined) {
      const sealing = runtime.sealing(launch)
      this.#event('attempt.started', { pid: started.pid, runtime: runtime.name, sealing })
      trace.write({
        event: 'started',
        ...named,
        node: this.#around.node,
        pid: started.pid,
        campaign: template.campaignName,
        issuer: template.issuer ?? null,
        subject: template.subject,
        group: template.group,
        image: template.image,
        digest: ImageDigests.ofName(template.image),
        ...sealing,
      })
      this.#traceImage(prepared.image)
      this.#watched = watcher.watch({
        attempt: this.path,
        pid: started.pid,
        folders: this.#writable,
        limits: { ...template.needs, stalledAfterMs: template.stalledAfterMs },
        outputBytes: () => stdout.bytes + stderr.bytes,
        onViolated: (reason, detail) => this.end(reason, detail),
      })
      failpoint('payload.started')
      if (this.#end) void watcher.end(this.#watched, this.#end.graceMs, this.#exited.signal)
    }
    void this.#watchStart(prepared.control, NOT_STARTED[runtime.kind])
    const end = await this.#exit(started)
    this.#runtimeExitCode = end?.exitCode ?? null
    this.#exited.abort()
    failpoint('payload.ended')
    if (this.#watched) watcher.release(this.#watched)
    if (end?.failure) throw spawnError(end.failure)
    const status = parseStatus(await readStatus(prepared.control))
    status.started ||= this.#isStarted
    // Time that the payload never had is not its own, whatever ran out.
    if (!status.started && this.#end?.reason.startsWith('payload.')) {
      const detail = `${this.#end.reason} before the payload had started`
      this.#end = { ...this.#end, reason: NOT_STARTED[runtime.kind], detail }
    }
    const usage = this.#watched!.usage
    Object.assign(this.#result, {
      wallMs: Math.round(clock.monotonicMs() - this.#startedAtMs),
      cpuMs: Math.round(Math.max(status.cpuMs, usage.cpuMs)),
      maxRssBytes: Math.round(usage.maxRssBytes),
      exitCode: status.exitCode,
      signal: signalOf(status.exitCode) ?? end?.signal ?? null,
    })
    this.#event('attempt.exited', { exitCode: status.exitCode })
    trace.write({ event: 'ended', ...named, exitCode: status.exitCode, reason: this.#end?.reason ?? null })
    return status
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

  /** Notes that the wrapper was reached, whatever the payload does to its status later; ends what is not in time. */
  async #watchStart(control: string, reason: ErrorCode): Promise<void> {
    const { clock, stageTimeoutMs } = this.#around
    const sinceMs = clock.monotonicMs()
    const { signal } = this.#exited
    for (let pauseMs = START_LOOK_MS.first; ; pauseMs = Math.min(2 * pauseMs, START_LOOK_MS.longest)) {
      await clock.sleep(pauseMs, signal)
      if (signal.aborted) return
      this.#isStarted ||= parseStatus(await readStatus(control)).started
      if (this.#isStarted) return
      if (clock.monotonicMs() - sinceMs < stageTimeoutMs) continue
      return this.end(reason, `the payload had not started after ${formatDuration(stageTimeoutMs)}`)
    }
  }

  /** The end of the first process; null where it cannot be ended at all. */
  async #exit(started: ReturnType<Runtime['start']>): Promise<Awaited<typeof started.ended> | null> {
    return await Promise.race([started.ended, this.#unkillable.promise.then(() => null)])
  }

  readonly #unkillable = Promise.withResolvers<void>()

  /** SIGKILL did not end it: the attempt is over without it, and its room stays closed (the owner sees to that). */
  giveUp(): void {
    this.#unkillable.resolve()
  }

  async #finishLogs(): Promise<{ said: string }> {
    const [stdout, stderr] = await Promise.all([this.#stdout!.finish(), this.#stderr!.finish()])
    this.#result.stdoutBytes = this.#stdout!.bytes
    this.#result.stderrBytes = this.#stderr!.bytes
    const said = (await tailOf(stderr, TAIL_BYTES)) ?? (await tailOf(stdout, TAIL_BYTES)) ?? ''
    return { said }
  }

  /** @throws IndraftError with the reason, where the payload did not end well */
  async #judge(status: WrapperStatus, runtime: Runtime, image: string, said: string): Promise<void> {
    this.#result.tail = said === '' ? null : said
    this.#stopIfEnding()
    const { signal, exitCode } = this.#result
    if (!status.started) {
      const { reason, detail } = runtime.explain(said, this.#runtimeExitCode)
      if (reason === 'image.damaged') await this.#around.images.distrust(image)
      throw new IndraftError(reason, detail)
    }
    if (status.softwareFailed !== null) throw new IndraftError('software.failed', status.softwareFailed)
    if (status.noCommand) throw new IndraftError('payload.noCommand', `no command "${this.work.template.command[0]}"`)
    if (signal === 'SIGKILL') await this.#blameKernel()
    if (signal !== null) throw new IndraftError('payload.signal', `ended by ${signal}`)
    if (exitCode === null) throw new IndraftError('payload.signal', 'ended without an exit status')
    if (exitCode !== 0) {
      // A program that fails on a full disk is not to blame for the disk.
      if (await isFull(this.#folder))
        throw new IndraftError('node.scratchFull', `exit status ${exitCode}, no space left`)
      throw new IndraftError('payload.exit', `exit status ${exitCode}`)
    }
    this.#result.tail = null
  }

  /** A kill that nobody here ordered may be the kernel's, for want of memory. @throws IndraftError with whose it was */
  async #blameKernel(): Promise<void> {
    const { oom, watcher } = this.#around
    const blame = blameOf(this.#oomBefore, await oom.read())
    if (blame === 'node') throw new IndraftError('node.fault', 'ended by the kernel: the node ran out of memory')
    if (blame === null) return
    const other = watcher.overMemory(this.path)
    if (other) throw new IndraftError('node.fault', `ended by the kernel: ${other} used more memory than it asked for`)
    throw new IndraftError('payload.memory', 'ended by the kernel: the memory limit of the job was reached')
  }

  /** What was written since the last measurement, or by a payload too quick for any. @throws IndraftError payload.scratch */
  async #checkScratch(): Promise<void> {
    const { scratchBytes } = this.work.template.needs
    if (scratchBytes === 0) return
    const folders = this.#writable
    if ((await folderBytes(folders, scratchBytes, MEASURE_AT_MOST_MS)) > scratchBytes) {
      throw new IndraftError('payload.scratch', `more than ${formatBytes(scratchBytes)}`)
    }
  }

  async #storeOutputs(outputs: readonly { path: string; url: string | null; optional: boolean }[]): Promise<void> {
    // On the host a payload can remove its own folder, or put a link in its place.
    const work = join(await realpath(this.#folder), 'work')
    if (!(await isFolder(work))) throw new IndraftError('payload.outputMissing', 'the task folder is gone')
    const present: { path: string; url: string | null; location: string; sizeBytes: number }[] = []
    for (const output of outputs) {
      const location = join(work, output.path)
      const found = await checkOutput(location, output.path)
      if (found !== null) present.push({ ...output, location, sizeBytes: found })
      else if (!output.optional) throw new IndraftError('payload.outputMissing', output.path)
    }
    const transfer = this.#transfer(this.#ending.signal)
    const records: OutputRecord[] = []
    await inParallel(present, TRANSFERS_AT_ONCE, async ({ path, url, location, sizeBytes }, i) => {
      const checksum = await checksumFile(location, 'sha256', this.#ending.signal)
      records[i] = await storeOutput({ attempt: this.work.ref, path, location, sizeBytes, checksum }, url, transfer)
    })
    this.#stopIfEnding()
    this.#result.outputs = records
  }

  /** Logs go where outputs go, under `.log/`. That one is lost changes nothing about how the task ended. */
  async #storeLogs(): Promise<void> {
    if (this.#around.files().url === null) return
    const giveUpMs = this.#end?.reason === 'node.ending' ? LOG_LEAVING_MS : LOG_GIVE_UP_MS
    const limit = AbortSignal.timeout(giveUpMs)
    for (const stream of ['stdout', 'stderr'] as const) {
      const location = join(this.#folder, stream)
      try {
        const facts = await lstat(location).catch(() => null)
        if (!facts || facts.size === 0) continue
        const checksum = await checksumFile(location)
        const file = {
          attempt: this.work.ref,
          path: `${LOG_FOLDER}/${stream}`,
          location,
          sizeBytes: facts.size,
          checksum,
        }
        const record = await storeOutput(file, null, this.#transfer(limit, giveUpMs))
        this.#result.outputs = [...this.#result.outputs, record].slice(0, 100)
      } catch (error) {
        this.#log.warn({ err: error, stream }, 'attempt.logNotStored')
      }
    }
  }
}

/** A relative path that stays inside. @throws IndraftError `reason` */
function inside(path: string, reason: ErrorCode): string {
  try {
    return safeParts(path).join('/')
  } catch (cause) {
    throw new IndraftError(reason, (cause as Error).message, { cause })
  }
}

/** As inside, for names that a campaign chooses: values are in it by now, so this is where the logs are kept safe. */
function insideWork(path: string, reason: ErrorCode): string {
  const safe = inside(path, reason)
  if (safe.split('/')[0] !== LOG_FOLDER) return safe
  throw new IndraftError(reason, `path "${path.slice(0, 80)}": ${LOG_FOLDER}/ is for logs`)
}

/**
 * Size of an output; null where it is not there.
 * @throws IndraftError payload.outputRefused for anything but a regular file reached without a symbolic link
 */
async function checkOutput(location: string, path: string): Promise<number | null> {
  try {
    const facts = await lstat(location)
    if (facts.isSymbolicLink()) throw new IndraftError('payload.outputRefused', `${path} is a symbolic link`)
    if (!facts.isFile()) throw new IndraftError('payload.outputRefused', `${path} is not a regular file`)
    if ((await realpath(location)) !== location) {
      throw new IndraftError('payload.outputRefused', `${path} lies behind a symbolic link`)
    }
    return facts.size
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) return null
    throw error
  }
}

async function isFolder(path: string): Promise<boolean> {
  return await lstat(path).then(
    (facts) => facts.isDirectory(),
    () => false,
  )
}

/** Less than this is left on the file system for an ordinary user. */
const FULL_BYTES = 64 * 1024

async function isFull(folder: string): Promise<boolean> {
  const disk = await statfs(folder).catch(() => null)
  return disk !== null && disk.blocks > 0 && disk.bavail * disk.bsize < FULL_BYTES
}

/** A disk that is full, by the system's code or in the words of a program that was asked to make something. */
function saysFull(error: unknown): boolean {
  const { code, message } = error as NodeJS.ErrnoException
  return code === 'ENOSPC' || code === 'EDQUOT' || /no space left on device|disk quota exceeded/i.test(message)
}

function signalOf(exitCode: number | null): string | null {
  if (exitCode === null || exitCode <= 128) return null
  const number = exitCode - 128
  return Object.entries(osConstants.signals).find(([, value]) => value === number)?.[0] ?? null
}

function spawnError({ code, message }: { code: string; message: string }): IndraftError {
  if (code === 'E2BIG') return new IndraftError('campaign.invalid', 'the command line is too long for the system')
  return new IndraftError('node.fault', `nothing could be started: ${message}`)
}

async function inParallel<T>(
  items: readonly T[],
  width: number,
  act: (item: T, i: number) => Promise<void>,
): Promise<void> {
  let next = 0
  const worker = async () => {
    for (let i = next++; i < items.length; i = next++) await act(items[i]!, i)
  }
  await Promise.all(Array.from({ length: Math.min(width, items.length) }, worker))
}
