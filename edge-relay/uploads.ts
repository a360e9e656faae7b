/**
 * Files on their way up: the outputs that a result names (before the result goes), the logs of failed attempts (at
 * once), logs that central asks for. With the link down they wait, the results behind them with them, and so they do
 * while the relay is turned away; which goes when is upload-queue.ts's.
 */
import type { Clock } from '../shared/clock.ts'
import { IndraftError, isIndraftError } from '../shared/errors.ts'
import { failpoint } from '../shared/failpoint.ts'
import type { AttemptFiles } from '../shared/files/attempt-files.ts'
import { attemptFolder, parseAttemptUrl } from '../shared/files/attempt-files.ts'
import type { AttemptName } from '../shared/files/capability.ts'
import { checksumFile } from '../shared/files/checksum.ts'
import { type FileClient, fileAddress } from '../shared/files/client.ts'
import { attemptPath } from '../shared/ids.ts'
import type { Log } from '../shared/log.ts'
import type { OutputRecord, Result } from '../shared/protocol/messages.ts'
import { attemptKey, type Cache } from './cache.ts'
import type { Journal, JournalContent } from './journal.ts'
import type { Outgoing } from './outgoing.ts'
import { UploadQueue } from './upload-queue.ts'

export const LOG_PATHS = { stdout: '.log/stdout', stderr: '.log/stderr' } as const

interface LogUpload {
  attempt: AttemptName
  path: string
  /** Opens it at central; kept here, because a log may go up when its lease is over. */
  capability: string | null
}

export interface UploadOptions {
  /** What pilots handed in and central does not have yet. */
  outbox: AttemptFiles
  /** Holds what central has, or need not have. */
  cache: Cache
  client: FileClient
  /** `https://host:port` of central. */
  centralUrl: string
  /** Opens an attempt's files at central; null where it is not known any more. */
  capabilityOf: (attempt: AttemptName) => string | null
  journal: Journal
  outgoing: Outgoing
  clock: Clock
  log: Log
  onUploaded?: (bytes: number) => void
}

export class Uploads {
  readonly #options: UploadOptions
  readonly #stop = new AbortController()
  readonly #queue: UploadQueue
  readonly #logs = new Map<string, LogUpload>()
  /** On their way from the outbox to the cache: for a moment in neither. */
  readonly #moving = new Map<string, Promise<void>>()

  constructor(options: UploadOptions) {
    const { clock, log } = options
    this.#options = options
    this.#queue = new UploadQueue(clock, this.#stop.signal, {
      onPutOff: ({ name }, err, pauseMs) => log.warn({ err, what: name, pauseMs }, 'upload.putOff'),
      onError: ({ name }, err) => log.error({ err, what: name }, 'upload.failed'),
    })
  }

  /** Goes on with what the journal kept, then with every result that is handed in. */
  start(kept: JournalContent['pending']): void {
    const { outgoing } = this.#options
    outgoing.onAdded = (result) => this.#take(result, false)
    for (const attempt of [...outgoing.attempts]) {
      const result = outgoing.unready(attempt)
      if (result) this.#take(result, true)
    }
    for (const { kind, name, body } of kept) if (kind === 'upload') this.#enqueueLog(name, body as LogUpload)
  }

  /** Ends transfers; what is not up stays in the journal. */
  async stop(): Promise<void> {
    this.#stop.abort()
    await this.#queue.ended()
  }

  get waiting(): number {
    return this.#queue.waiting
  }

  /** Central wants this log. @param capability what the order brought @returns false where the log is not here */
  async sendLog(attempt: AttemptName, stream: 'stdout' | 'stderr', capability: string | null): Promise<boolean> {
    const path = LOG_PATHS[stream]
    if (!(await this.#find(attempt, path))) return false
    this.#addLog(attempt, path, capability)
    return true
  }

  #take(result: Result, isAfterRestart: boolean): void {
    // It may wait long: not with the result in hand.
    if (ownFiles(result).length > 0) this.#addOutputs(result.campaign, attemptPath(result), isAfterRestart)
    else this.#options.outgoing.makeReady(result)
    if (result.end === 'failed' && result.reason !== 'node.lost') {
      for (const path of Object.values(LOG_PATHS)) this.#addLog(result, path, null)
    }
  }

  #addOutputs(campaign: string, attempt: string, isAfterRestart: boolean): void {
    const { outgoing, log } = this.#options
    // A newer one of the same attempt, which comes in the meantime, has outputs of its own and its own place.
    let result: Result | undefined
    const work = async (isAgain: boolean) => {
      result = outgoing.unready(attempt)
      if (!result) return
      const capability = this.#options.capabilityOf(result)
      for (const [at, output] of ownFiles(result).entries()) {
        if (at === 1) failpoint('upload.halfway')
        await this.#upload(result, output.path, capability, output, isAfterRestart || isAgain)
      }
      failpoint('upload.finished')
    }
    const settle = (error?: unknown) => {
      if (!result) return
      if (error === undefined) {
        outgoing.makeReady(result)
        return
      }
      log.error({ err: error, task: attempt }, 'output.uploadFailed')
      // Without its outputs a success is none. The reason says whose fault it is: not the payload's.
      const detail = `upload of outputs: ${(error as Error).message}`.slice(0, 500)
      outgoing.makeReady(result, { ...result, end: 'failed', reason: 'stage.outFailed', detail, outputs: [] })
    }
    this.#queue.add({ campaign, kind: 'outputs', name: attempt, work, settle })
  }

  /** Central has the result: its files may be dropped when room is needed. */
  async release(attempt: AttemptName): Promise<void> {
    await this.#release(attempt, await this.#options.outbox.list(attempt))
  }

  async #release(attempt: AttemptName, paths: readonly string[]): Promise<void> {
    const { outbox, cache } = this.#options
    for (const path of paths) {
      const name = `${attemptFolder(attempt)}/${path}`
      // A log that is just going up stays where it is read; it follows when it is up.
      if (this.#logs.has(name)) continue
      const moved = cache.adopt(attemptKey(name), outbox.locate(attempt, path))
      this.#moving.set(name, moved)
      await moved.finally(() => this.#moving.delete(name))
    }
    await outbox.dropEmpty(attempt)
  }

  #addLog(attempt: AttemptName, path: string, given: string | null): void {
    const { campaign, step, index, fences } = attempt
    const name = `${attemptFolder(attempt)}/${path}`
    const capability = given ?? this.#options.capabilityOf(attempt) ?? this.#logs.get(name)?.capability ?? null
    const body: LogUpload = { attempt: { campaign, step, index, fences }, path, capability }
    this.#options.journal.putPending('upload', name, body)
    this.#enqueueLog(name, body)
  }

  #enqueueLog(name: string, body: LogUpload): void {
    const isQueued = this.#logs.has(name)
    this.#logs.set(name, body)
    if (isQueued) return
    const { attempt, path } = body
    const work = async () => {
      // An order may have brought a newer one since.
      const capability = this.#logs.get(name)?.capability ?? null
      if (await this.#find(attempt, path)) await this.#upload(attempt, path, capability, null, true)
    }
    const settle = async (error?: unknown) => {
      if (error !== undefined) this.#options.log.warn({ err: error, log: name }, 'log.uploadFailed')
      this.#logs.delete(name)
      this.#options.journal.dropPending('upload', name)
      // Its attempt's other files went before, or stay: those of one thought lost do.
      const isSettled = !this.#options.outgoing.isWaiting(attemptFolder(attempt))
      if (isSettled) await this.#release(attempt, [path])
    }
    this.#queue.add({ campaign: attempt.campaign, kind: 'log', name, work, settle })
  }

  async #find(attempt: AttemptName, path: string) {
    const { outbox, cache } = this.#options
    const name = `${attemptFolder(attempt)}/${path}`
    const look = async () => (await outbox.find(attempt, path)) ?? (await cache.find(attemptKey(name)))
    const found = await look()
    if (found && !this.#moving.has(name)) return found
    await this.#moving.get(name)?.catch(() => {})
    return await look()
  }

  /** @param expected null: whatever is here. @throws IndraftError where it is not here, or central refuses it */
  async #upload(
    attempt: AttemptName,
    path: string,
    capability: string | null,
    expected: OutputRecord | null,
    mayBeThere: boolean,
  ): Promise<void> {
    const { client, centralUrl, onUploaded } = this.#options
    const address = centralUrl + fileAddress.attempt(`${attemptFolder(attempt)}/${path}`)
    // One try: the queue tries again.
    const options = { capability, signal: this.#stop.signal, giveUpAfterMs: 0 }
    const file = await this.#find(attempt, path)
    if (mayBeThere || !file) {
      const sizeBytes = await client.size(address, options).catch((error: unknown) => {
        // Without a body central cannot say why it refuses: the PUT will tell.
        if (!isIndraftError(error, 'auth.forbidden')) throw error
        if (!file) throw new IndraftError('request.notFound', `${path} is not here, and central shows none`)
        return null
      })
      // A file of an attempt is written once, so one of the right size is the right one.
      if (sizeBytes !== null && sizeBytes === (expected?.sizeBytes ?? file?.sizeBytes)) return
    }
    if (!file) throw new IndraftError('stage.outFailed', `${path} is not at the relay any more`)
    const checksum = expected?.checksum ?? (await checksumFile(file.location))
    await client.putFile(address, file.location, checksum, options)
    onUploaded?.(file.sizeBytes)
  }
}

/** Outputs that lie at the relay, under this very attempt. */
function ownFiles(result: Result): OutputRecord[] {
  return result.outputs.filter(({ url }) => {
    if (!url.startsWith('store:')) return false
    const named = parseAttemptUrl(url.slice('store:'.length))
    return named !== undefined && attemptFolder(named.attempt) === attemptFolder(result)
  })
}
