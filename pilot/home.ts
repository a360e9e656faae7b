/**
 * A pilot's own folder below the scratch folder, readable by nobody else, and what dead pilots of this node left beside
 * it: their payloads are ended, their undelivered results taken over, the rest removed. While a pilot lives a small
 * shell stands beside it that ends its payloads when it is killed.
 */
import { constants } from 'node:fs'
import { access, chmod, lstat, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { execa } from 'execa'
import { z } from 'zod'
import { IndraftError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import type { Outbox } from './outbox.ts'
import { linuxProcesses, type ProcessSource, RUN_VARIABLE, startTicksOf } from './processes.ts'
import { GUARD } from './wrapper.ts'

const ownerSchema = z.object({ pid: z.number(), startTicks: z.number(), node: z.string(), run: z.string() })
type Owner = z.infer<typeof ownerSchema>

const OWNER_NAME = 'pilot.json'

async function readOwner(folder: string): Promise<Owner | null> {
  try {
    return ownerSchema.parse(JSON.parse(await readFile(join(folder, OWNER_NAME), 'utf8')))
  } catch {
    return null
  }
}

function isAlive(owner: Owner): boolean {
  return startTicksOf(owner.pid) === owner.startTicks
}

export interface Home {
  folder: string
  outboxFolder: string
  tasksFolder: string
  blobsFolder: string
  pipesFolder: string
}

/**
 * The folder below which pilots of this user keep what is theirs, made where it is missing. It is the scratch folder itself
 * where nobody else may write there; in one for everybody (root's, or sticky, as /tmp is) it is a folder of our own below.
 * What others could have put there is never trusted: results, images and a dead pilot's folder are taken from it.
 * @throws IndraftError request.invalid where somebody else could change it under us; node.fault where it cannot be written
 */
export async function takeScratch(scratch: string): Promise<string> {
  const own = process.getuid?.() ?? 0
  try {
    await mkdir(scratch, { recursive: true, mode: 0o700 })
    const { uid, mode } = await stat(scratch)
    const isOpen = (mode & 0o022) !== 0
    if (uid === own && !isOpen) {
      await access(scratch, constants.W_OK)
      return scratch
    }
    if ((uid !== own && uid !== 0) || (isOpen && (mode & 0o1000) === 0)) refuseScratch(scratch, own, uid, mode)
    const below = join(scratch, `indraft-pilot-${own}`)
    await mkdir(below, { recursive: true, mode: 0o700 })
    const facts = await lstat(below)
    if (!facts.isDirectory() || facts.uid !== own || (facts.mode & 0o022) !== 0) {
      refuseScratch(below, own, facts.uid, facts.mode)
    }
    return below
  } catch (cause) {
    if (cause instanceof IndraftError) throw cause
    throw new IndraftError('node.fault', `scratch ${scratch}: ${(cause as Error).message}`, { cause })
  }
}

function refuseScratch(folder: string, own: number, uid: number, mode: number): never {
  const expected = `expected a folder of user ${own} that nobody else may write`
  const found = `found one of user ${uid} with mode ${(mode & 0o7777).toString(8)}`
  throw new IndraftError('request.invalid', `scratch ${folder}: ${expected}, ${found}`)
}

/**
 * Takes the folder `<scratch>/<name>`.
 * @throws IndraftError request.invalid where a living pilot has it
 */
export async function takeHome(scratch: string, name: string, node: string, run: string, log: Log): Promise<Home> {
  const folder = join(scratch, name)
  await mkdir(folder, { recursive: true, mode: 0o700 })
  await chmod(folder, 0o700)
  const before = await readOwner(folder)
  if (before && before.node === node && before.pid !== process.pid && isAlive(before)) {
    throw new IndraftError('request.invalid', `a pilot named ${name} runs already (process ${before.pid})`)
  }
  if (before) await endProcessesOf(before.run, log)
  for (const leftover of ['tasks', 'pipes', 'blobs']) await removeFolder(join(folder, leftover), log)
  const startTicks = startTicksOf(process.pid) ?? 0
  const owner: Owner = { pid: process.pid, startTicks, node, run }
  const temporary = join(folder, `${OWNER_NAME}.tmp`)
  await writeFile(temporary, JSON.stringify(owner), { mode: 0o600 })
  await rename(temporary, join(folder, OWNER_NAME))
  return {
    folder,
    outboxFolder: join(folder, 'outbox'),
    tasksFolder: join(folder, 'tasks'),
    blobsFolder: join(folder, 'blobs'),
    pipesFolder: join(folder, 'pipes'),
  }
}

/** What pilots of this node that are dead left in the same scratch folder; results that nobody could take stay. Bounded: one pass, no waiting. */
export async function adoptDead(scratch: string, own: Home, node: string, outbox: Outbox, log: Log): Promise<void> {
  for (const name of await readdir(scratch).catch(() => [])) {
    const folder = join(scratch, name)
    if (folder === own.folder) continue
    const owner = await readOwner(folder)
    if (!owner || owner.node !== node || isAlive(owner)) continue
    log.info({ folder, pid: owner.pid }, 'pilot.adopted')
    await endProcessesOf(owner.run, log)
    if (await outbox.adopt(join(folder, 'outbox'))) await removeFolder(folder, log)
    else for (const large of ['tasks', 'pipes', 'blobs', 'container']) await removeFolder(join(folder, large), log)
  }
}

/** Ends what carries the mark of a pilot that is dead. */
async function endProcessesOf(run: string, log: Log, source: ProcessSource = linuxProcesses()): Promise<void> {
  const mark = `${RUN_VARIABLE}=${run}`
  const found = source.list().filter(({ pid }) => source.environment(pid)?.includes(mark))
  for (const { pid } of found) source.kill(pid, 'SIGKILL')
  if (found.length > 0) log.warn({ processes: found.length, run }, 'payload.orphansEnded')
}

/**
 * Also where a payload left folders that nobody may enter, or that lie deeper than any path can say: the system's own
 * programs go down step by step. @returns whether it is gone; why not is logged
 */
export async function removeFolder(folder: string, log: Log): Promise<boolean> {
  const remove = () => rm(folder, { recursive: true, force: true, maxRetries: 3 })
  try {
    await remove().catch(async () => {
      await execa('chmod', ['-R', 'u+rwx', folder], { reject: false, stdio: 'ignore' })
      await execa('rm', ['-rf', folder], { reject: false, stdio: 'ignore' })
      // Says what is in the way still.
      await remove()
    })
    return true
  } catch (error) {
    log.warn({ err: error, folder }, 'folder.notRemoved')
    return false
  }
}

export interface Guard {
  /** The pilot ends well: nothing is to be ended. */
  dismiss(): Promise<void>
}

/** Starts the shell that ends this pilot's payloads should the pilot be killed; see GUARD. */
export async function startGuard(home: Home, run: string, path: string): Promise<Guard> {
  const script = join(home.folder, 'guard')
  await writeFile(script, GUARD, { mode: 0o500, flush: false }).catch(async (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EACCES') throw error
    await rm(script, { force: true })
    await writeFile(script, GUARD, { mode: 0o500 })
  })
  const guard = execa('/bin/sh', [script, `${RUN_VARIABLE}=${run}`], {
    stdin: 'pipe',
    stdout: 'ignore',
    stderr: 'ignore',
    env: { PATH: path },
    extendEnv: false,
    buffer: false,
    reject: false,
    cleanup: false,
    // Out of reach of a kill of the pilot's group, and of the terminal.
    detached: true,
  })
  guard.stdin.on('error', () => {})
  return {
    async dismiss() {
      guard.stdin.end('well\n')
      await guard
    },
  }
}
