/**
 * For tests only: a temporary site around one pilot. Signs real work, serves files over HTTP from a folder, watches real
 * processes, and leaves nothing behind.
 */
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '../shared/clock.ts'
import { AttemptFiles, storedFile } from '../shared/files/attempt-files.ts'
import { FileClient } from '../shared/files/client.ts'
import { fileHandler } from '../shared/files/server.ts'
import type { AttemptRef } from '../shared/ids.ts'
import { type Log, silentLog } from '../shared/log.ts'
import type { Result } from '../shared/protocol/messages.ts'
import type { BundleBody, TemplateBody } from '../shared/protocol/work.ts'
import { digestOf, makeSigner, makeSigningKey } from '../shared/signing.ts'
import { hostRuntime } from './container.ts'
import { removeFolder } from './home.ts'
import { ImageDigests } from './image-digest.ts'
import { ImageStore } from './images.ts'
import { PipeMaker } from './logs.ts'
import { OomKills } from './oom.ts'
import { Attempt, type PayloadAround } from './payload.ts'
import { linuxProcesses } from './processes.ts'
import { Trace } from './trace.ts'
import { Watcher } from './watch.ts'

export const PATH = '/usr/local/bin:/usr/bin:/bin'

export function makeTemplate(more: Partial<TemplateBody> = {}): TemplateBody {
  return {
    kind: 'template',
    campaign: 'c0000000001',
    campaignName: 'bench',
    step: 'sim',
    group: '/vo.example/prod',
    subject: 'someone',
    image: 'host',
    command: ['true'],
    env: {},
    axes: null,
    inputs: [],
    outputs: [],
    logBytes: 64 * 1024,
    stalledAfterMs: null,
    secrets: [],
    ...more,
    needs: {
      cores: 1,
      memoryBytes: 2 ** 30,
      scratchBytes: 0,
      gpus: 0,
      gpuMemoryBytes: 0,
      walltimeMs: 60_000,
      arch: [],
      network: 'none',
      runtime: 'host',
      allowSites: [],
      denySites: [],
      group: '/vo.example/prod',
      ...more.needs,
    },
  }
}

export function makeBundle(more: Partial<BundleBody> = {}): BundleBody {
  return {
    kind: 'bundle',
    bundle: 'b1',
    campaign: 'c0000000001',
    step: 'sim',
    template: `sha256:${'0'.repeat(64)}`,
    tasks: '0-9',
    rows: null,
    manifests: {},
    site: 'here',
    expiresAtMs: Date.now() + 3_600_000,
    ...more,
  }
}

export class TestSite {
  readonly folder = mkdtempSync(join(tmpdir(), 'indraft-pilot-'))
  readonly store = new AttemptFiles(join(this.folder, 'store'))
  readonly signer = makeSigner(makeSigningKey())
  readonly run = crypto.randomUUID()
  /** Content of blobs by digest. */
  readonly blobs = new Map<string, string>()
  readonly #server: Server
  readonly #client = new FileClient({ ca: null, token: 'secret' })
  readonly #watcher: Watcher
  readonly #log: Log
  /** Lines of the trace, after close(). */
  readonly traceFolder = join(this.folder, 'trace')
  readonly trace: Trace
  readonly #pipes = new PipeMaker(join(this.folder, 'pipes'))
  #fence = 1

  constructor(log: Log = silentLog) {
    this.#log = log
    this.trace = new Trace({
      folder: this.traceFolder,
      node: 'node1',
      keepMs: 86_400_000,
      mostBytes: 2 ** 30,
      log,
      wallMs: () => Date.now(),
    })
    const handler = fileHandler(
      {
        authorize: () => {},
        findBlob: async (digest) => await storedFile(this.blobs.get(digest) ?? join(this.folder, 'none')),
        findAttemptFile: (attempt, path) => this.store.find(attempt, path),
        putAttemptFile: (attempt, path, content, checksum) => this.store.put(attempt, path, content, checksum),
      },
      silentLog,
    )
    this.#server = createServer(handler)
    this.#watcher = new Watcher({
      source: linuxProcesses(),
      clock: systemClock,
      log,
      run: this.run,
      everyMs: 100,
    })
  }

  async open(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve))
    return this
  }

  get filesUrl(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`
  }

  around(more: Partial<PayloadAround> = {}): PayloadAround {
    return {
      site: 'here',
      node: 'node1',
      pilot: 'pilot1',
      run: this.run,
      tasksFolder: join(this.folder, 'tasks'),
      blobsFolder: join(this.folder, 'blobs'),
      own: [join(this.folder, 'own')],
      policy: { allowGroups: [], allowImages: [], hostRuntime: true, network: 'outgoing', sharedFolders: [] },
      runtimes: [hostRuntime(PATH)],
      images: new ImageStore({ folder: join(this.folder, 'images'), clock: systemClock, log: this.#log }),
      cvmfs: join(this.folder, 'cvmfs'),
      digests: new ImageDigests(join(this.folder, 'images')),
      pipes: this.#pipes,
      watcher: this.#watcher,
      oom: new OomKills(),
      files: () => ({ client: this.#client, url: this.filesUrl }),
      clock: systemClock,
      expiryNowMs: () => Date.now(),
      log: this.#log,
      trace: this.trace,
      payloadGraceMs: 500,
      // No test waits for it that does not say so: nothing here is for a slow machine to get wrong.
      stageTimeoutMs: 20_000,
      ...more,
    }
  }

  /** Today's file of the trace; whole after trace.close(). */
  get tracePath(): string {
    return join(this.traceFolder, `node1-${new Date().toISOString().slice(0, 10).replaceAll('-', '')}.jsonl`)
  }

  addBlob(content: string): string {
    const digest = digestOf(Buffer.from(content))
    const path = join(this.folder, `blob-${this.blobs.size}`)
    writeFileSync(path, content)
    this.blobs.set(digest.slice('sha256:'.length), path)
    return digest
  }

  ref(index = 0): AttemptRef {
    return {
      campaign: 'c0000000001',
      step: 'sim',
      index,
      bundle: 'b1',
      fences: [this.#fence++, 2],
    } as AttemptRef
  }

  attempt(
    template: Partial<TemplateBody>,
    bundle: Partial<BundleBody> = {},
    around: Partial<PayloadAround> = {},
  ): Attempt {
    const work = {
      ref: this.ref(),
      template: makeTemplate(template),
      bundle: makeBundle(bundle),
      earlierAttempts: 0,
      capability: null,
    }
    return new Attempt(work, this.around(around))
  }

  /** A host task of one shell script, run to its end; `$(` in it is the shell's. */
  async runScript(
    script: string,
    template: Partial<TemplateBody> = {},
    around: Partial<PayloadAround> = {},
  ): Promise<Result> {
    const command = ['sh', '-c', script.replaceAll('$(', () => '$$(')]
    return await this.attempt({ command, ...template }, {}, around).run()
  }

  /** What was stored of an attempt; null where nothing was. */
  async stored(result: Pick<Result, 'campaign' | 'step' | 'index' | 'fences'>, path: string): Promise<string | null> {
    const file = await this.store.find(result, path)
    return file === null ? null : readFileSync(file.location, 'utf8')
  }

  async close(): Promise<void> {
    this.#watcher.close()
    await this.trace.close()
    await this.#client.close()
    this.#server.closeAllConnections()
    await new Promise((resolve) => this.#server.close(resolve))
    // Also what a payload barred; the attempt may be about to remove it too.
    if (!(await removeFolder(this.folder, silentLog))) throw new Error(`${this.folder} is still there`)
  }
}
