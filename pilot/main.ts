/**
 * The pilot: one per node. Puts the parts together, tests the node while it says hello, and tidies up at the end.
 * Everything it starts ends with it; results that no dispatcher has stay in its folder for the next pilot.
 */
import { randomUUID } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { type Clock, systemClock } from '../shared/clock.ts'
import { IndraftError } from '../shared/errors.ts'
import { enableFailpoints } from '../shared/failpoint.ts'
import type { Link } from '../shared/link.ts'
import type { Log } from '../shared/log.ts'
import type { NodeFacts } from '../shared/protocol/messages.ts'
import { importKeys } from '../shared/signing.ts'
import { VERSION } from '../shared/version.ts'
import { Access } from './access.ts'
import { Banned } from './banned.ts'
import { type BatchEnvironment, credentialPaths, type PilotConfig, readBatchEnvironment, siteFiles } from './config.ts'
import type { Runtime } from './container.ts'
import type { Gpus } from './gpus.ts'
import { isDoneWithin } from './hanging.ts'
import { adoptDead, removeFolder, startGuard, takeHome, takeScratch } from './home.ts'
import { ImageDigests } from './image-digest.ts'
import { ImageStore } from './images.ts'
import { expiryClock, Leases } from './leases.ts'
import { PipeMaker } from './logs.ts'
import { lookAround, testScratch } from './node.ts'
import type { Offline } from './offline.ts'
import { OomKills } from './oom.ts'
import { Outbox } from './outbox.ts'
import type { PayloadAround } from './payload.ts'
import { places, type SitePolicy, unwritable } from './policy.ts'
import { linuxProcesses, type ProcessSource } from './processes.ts'
import { containerBinaries, findRuntimes } from './runtimes.ts'
import { Session } from './session.ts'
import { endTeller } from './start/end-record.ts'
import { TimeLeft } from './time-left.ts'
import { Trace } from './trace.ts'
import { Watcher } from './watch.ts'

export const SOFTWARE = `indraft-pilot ${VERSION}`

export interface Pilot {
  name: string
  /** The code of the bye. Everything is tidied up when it resolves. */
  finished: Promise<number>
  /** It left because its dispatcher did not answer. */
  isAbandoned(): boolean
  /** Its dispatcher answered at least once. */
  wasWelcomed(): boolean
  /** SIGTERM and SIGINT end payloads, SIGUSR1 announces the end. A second SIGTERM hurries. Resolves as finished. */
  stop(signal?: 'SIGTERM' | 'SIGINT' | 'SIGUSR1'): Promise<number>
}

/** What tests put in the place of the world. */
export interface PilotWorld {
  batch?: BatchEnvironment
  clock?: Clock
  /** Instead of NATS by the credential. */
  link?: Link
  /** Instead of what the tools say. */
  gpus?: Gpus
  /** Instead of what the kernel says, and does. */
  processes?: ProcessSource
}

const WELCOME_WAIT_MS = 10_000
/** For what the batch system, the site's trace and `indraft-pilot start` are told at the end, by their own file systems. */
const LAST_WORDS_MS = 10_000
/** Of drainGrace: the end of the process itself. */
const EXIT_MS = 1000

/** @throws IndraftError request.invalid for a credential or name that cannot be used */
export async function startPilot(config: PilotConfig, log: Log, world: PilotWorld = {}): Promise<Pilot> {
  enableFailpoints(config.failpoints)
  const { batch = readBatchEnvironment(), clock = systemClock } = world
  const credentials = credentialPaths(config.credential)
  const run = randomUUID()
  const name = config.name ?? [config.node, batch.slurmJobId, process.pid].filter((part) => part !== null).join('-')
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,120}$/.test(name)) {
    throw new IndraftError('request.invalid', `name "${name}": expected letters, digits, dots and dashes`)
  }
  const dispatcher = new Access(credentials[0] ?? '', name, clock, log)
  const { credential } = dispatcher
  const bornAtMs = clock.monotonicMs()
  const livedMs = () => clock.monotonicMs() - bornAtMs
  const end = endTeller(config, { name, job: batch.slurmJobId, livedMs }, log)
  const expiryNowMs = expiryClock(clock)
  const { scratch, home, outbox } = await takeFolders(config, name, run, log).catch(async (error) => {
    const { message: reason } = error as Error
    await isDoneWithin(
      LAST_WORDS_MS,
      Promise.all([tellBatchSystem(batch, 500, reason, log), end.tell({ code: 500, reason })]),
    )
    throw error
  })
  const guard = await startGuard(home, run, batch.path)

  const timeLeft = new TimeLeft(clock, batch, config)
  await timeLeft.refresh()
  /** Those that passed the node test. */
  const runtimes: Runtime[] = []
  const candidates = await containerBinaries(config, batch)
  const expected: NodeFacts['runtimes'] = [
    ...(config.hostRuntime ? ['host' as const] : []),
    ...(candidates[0] ? ['container' as const] : []),
  ]
  const sight = { config: { ...config, scratch }, batch, runtimes: expected, timeLeftMs: null, gpus: world.gpus }
  const { facts: seen, gpus, cpus, troubles } = await lookAround(sight)
  for (const trouble of troubles) log.warn({ trouble }, 'node.troubled')
  let isTested = false
  const facts = (): NodeFacts => ({
    ...seen,
    runtimes: isTested ? runtimes.map(({ kind }) => kind) : expected,
    timeLeftMs: timeLeft.leftMs,
  })

  const { banFile, stopFile, traceFolder, imageFolder, kept } = siteFiles(config, scratch)
  const banned = new Banned(config.denySubjects, banFile, log)
  await banned.refresh()
  const own = await places([home.folder, ...credentials])
  const policy: SitePolicy = {
    ...config,
    network: config.network as SitePolicy['network'],
    sharedFolders: await places(config.sharedFolders),
    kept: await places(kept),
    isBanned: (subject: string) => banned.has(subject),
  }
  const trace = new Trace({
    folder: traceFolder,
    node: config.node,
    keepMs: config.traceKeep,
    mostBytes: config.traceSize,
    log,
    wallMs: () => clock.wallMs(),
  })
  const watcher = new Watcher({
    source: world.processes ?? linuxProcesses(),
    clock,
    log,
    run,
    everyMs: config.watchEvery,
  })
  const images = new ImageStore({ folder: imageFolder, clock, log })
  void images.tidy()
  const oom = new OomKills()
  await oom.read()
  const around: PayloadAround = {
    site: credential.site,
    node: config.node,
    pilot: name,
    run,
    ...home,
    own,
    policy,
    runtimes,
    gpus,
    cpus,
    cvmfs: config.cvmfs,
    images,
    digests: new ImageDigests(imageFolder),
    pipes: new PipeMaker(home.pipesFolder),
    watcher,
    oom,
    files: dispatcher.files,
    clock,
    expiryNowMs,
    log,
    trace,
    payloadGraceMs: config.payloadGrace,
    stageTimeoutMs: config.stageTimeout,
  }
  const trust = { site: credential.site, keys: importKeys(credential.keys), policy, expiryNowMs }
  const welcomed = Promise.withResolvers<void>()
  const living = new Session({
    link: world.link ?? dispatcher.connect(),
    clock,
    log,
    config,
    name,
    incarnation: run,
    software: SOFTWARE,
    facts,
    timeLeft,
    leases: new Leases(trust, log),
    outbox,
    around,
    banned,
    stopFile,
    onWelcome: (welcome) => {
      dispatcher.onWelcome(welcome.filesUrl)
      welcomed.resolve()
    },
    onResult: (result) => end.tally.add(result),
  })
  end.whenAsked((why) => living.drain('end', { code: 500, reason: `the site asks: ${why}` }))
  let offline: Offline | null = null
  let isOver = false
  log.info(
    { pilot: name, site: credential.site, credential: credentials[0], ...seen, timeLeftMs: timeLeft.leftMs },
    'pilot.started',
  )

  const testNode = async () => {
    const checks = await testScratch(home.folder)
    const found = await findRuntimes({
      ...{ config, batch, log, candidates, gpus, folder: join(home.folder, 'container') },
      ...{ own, kept: await unwritable(policy) },
      onLost: (detail) => living.drain('finish', { code: 500, reason: detail }),
    })
    if (isOver) found.offline?.close()
    else offline = found.offline
    runtimes.push(...found.runtimes)
    checks.push(...found.checks)
    isTested = true
    const bad = checks.find((check) => !check.ok)
    log.info({ pilot: name, checks, runtimes: runtimes.map((runtime) => runtime.name) }, 'node.tested')
    if (!bad) return living.nodeIsGood()
    await Promise.race([welcomed.promise, clock.sleep(WELCOME_WAIT_MS)])
    living.abandon({ code: 500, reason: `${bad.what}: ${bad.detail}` })
  }

  let isAbandoned = false
  let isWelcome = false
  /** Told to end by a signal. */
  let goneByMs = Number.POSITIVE_INFINITY
  void welcomed.promise.then(() => {
    isWelcome = true
  })
  const live = async (): Promise<number> => {
    const left = living.run()
    void testNode().catch((error) => living.abandon({ code: 500, reason: `node test: ${(error as Error).message}` }))
    const farewell = await left
    const { code, reason } = farewell
    isAbandoned = farewell.isGone === true
    watcher.close()
    isOver = true
    offline?.close()
    await guard.dismiss()
    const said = Promise.all([trace.close(), tellBatchSystem(batch, code, reason, log), end.tell({ code, reason })])
    await dispatcher.files().client.close()
    const leftMs = Math.max(EXIT_MS, goneByMs - clock.monotonicMs() - EXIT_MS)
    if (!(await isDoneWithin(Math.min(LAST_WORDS_MS, leftMs), said))) {
      log.error({ code, reason, waitedMs: Math.round(Math.min(LAST_WORDS_MS, leftMs)) }, 'end.notSaid')
      // Every disk may be out of reach by now: the next pilot of this node removes what is left.
      return code
    }
    // Unpacked images hold folders that not even their owner may write.
    await removeFolder((await outbox.isEmpty()) ? home.folder : home.blobsFolder, log)
    return code
  }
  const finished = live()
  return {
    name,
    finished,
    isAbandoned: () => isAbandoned,
    wasWelcomed: () => isWelcome,
    stop: (signal = 'SIGTERM') => {
      if (signal === 'SIGUSR1') living.drain('notice', { code: 200, reason: 'the batch system announced the end' })
      else {
        goneByMs = Math.min(goneByMs, clock.monotonicMs() + config.drainGrace)
        living.drain('end', { code: 200, reason: `${signal} was received` })
      }
      return finished
    },
  }
}

/** What a pilot needs on disk, and what dead ones left there. @throws IndraftError request.invalid | node.fault */
async function takeFolders(config: PilotConfig, name: string, run: string, log: Log) {
  try {
    const scratch = await takeScratch(resolve(config.scratch))
    const home = await takeHome(scratch, name, config.node, run, log)
    const outbox = await Outbox.open(home.outboxFolder, log)
    await adoptDead(scratch, home, config.node, outbox, log)
    return { scratch, home, outbox }
  } catch (cause) {
    if (cause instanceof IndraftError) throw cause
    throw new IndraftError('node.fault', `scratch ${config.scratch}: ${(cause as Error).message}`, { cause })
  }
}

/** Vac's way to say how a pilot ended: one line in the folder that the batch system named. */
async function tellBatchSystem(batch: BatchEnvironment, code: number, reason: string, log: Log): Promise<void> {
  if (!batch.jobOutputs) return
  const line = `${code} ${reason.replace(/\s+/g, ' ')}`
  await writeFile(join(batch.jobOutputs, 'shutdown_message'), line).catch((error) =>
    log.warn({ err: error }, 'shutdownMessage.notWritten'),
  )
}
