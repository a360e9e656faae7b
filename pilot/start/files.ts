/**
 * The vacuum's folder on disk: state, end records, logs, lock, STOP. Every file is written under a temporary name and
 * renamed. Puts real files, real Slurm and a real relay behind a tick's ports.
 */
import { randomBytes } from 'node:crypto'
import { access, mkdir, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { IndraftError } from '../../shared/errors.ts'
import { askDispatcher } from './ask.ts'
import { askToLeave, readEndRecords, readProgress, removeEndRecords } from './end-record.ts'
import { localStarter } from './local.ts'
import { takeLock } from './lock.ts'
import { folderTag, type SiteFile } from './site-file.ts'
import { slurmStarter } from './slurm.ts'
import { emptyState, type State, stateSchema } from './state.ts'
import type { Ports } from './tick.ts'

export interface Folders {
  state: string
  ends: string
  logs: string
  stopFile: string
}

export function foldersOf(site: SiteFile): Folders {
  const { folder } = site
  return {
    state: join(folder, 'state.json'),
    ends: join(folder, 'ends'),
    logs: join(folder, 'logs'),
    stopFile: join(folder, 'STOP'),
  }
}

/** @throws IndraftError request.invalid where the file is there and cannot be understood: then nothing may be started */
export async function readState(path: string): Promise<State> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return emptyState()
    throw error
  }
  try {
    return stateSchema.parse(JSON.parse(text))
  } catch (cause) {
    const what = 'is not a state file of this version; remove it, and running pilots are found again in the queue'
    throw new IndraftError('request.invalid', `${path}: ${what}`, { cause, path })
  }
}

export async function writeState(path: string, state: State): Promise<void> {
  const temporary = `${path}.${randomBytes(4).toString('hex')}`
  try {
    const handle = await open(temporary, 'w', 0o600)
    try {
      await handle.writeFile(`${JSON.stringify(state)}\n`)
      await handle.sync()
    } finally {
      await handle.close()
    }
    await rename(temporary, path)
  } catch (error) {
    await rm(temporary, { force: true })
    throw error
  }
}

/** @param env for Slurm's commands, or for pilots that are processes of this machine */
export function realPorts(site: SiteFile, env: Record<string, string>): Ports {
  const folders = foldersOf(site)
  const startPilots = site.starter === 'slurm' ? slurmStarter(site, folders, env) : localStarter(site, folders, env)
  return {
    async lock() {
      await mkdir(folders.logs, { recursive: true, mode: 0o700 })
      return takeLock(site.folder, Date.now())
    },
    readState: () => readState(folders.state),
    writeState: (state) => writeState(folders.state, state),
    endRecords: () => readEndRecords(folders.ends),
    progress: () => readProgress(folders.ends),
    askToLeave: (alive, why) => askToLeave(folders.ends, alive, why),
    removeEndRecords: (files) => removeEndRecords(folders.ends, files),
    ask: (offer) => askDispatcher(site.credential, offer, site.ask.patience),
    isStopped: () =>
      access(folders.stopFile).then(
        () => true,
        () => false,
      ),
    tidy: async () => {
      await removeOld(folders.logs, site.keepLogs, /^indraft:/)
      // What ticks and pilots left that were killed in the middle of writing.
      await removeOld(site.folder, HALF_WRITTEN_MS, /^(state\.json\.|\.lock\.)/)
      await removeOld(folders.ends, HALF_WRITTEN_MS, /\.(tmp|leave)$/)
    },
    starter: startPilots,
    nowMs: () => Date.now(),
    random: () => Math.random(),
    newId: () => folderTag(site) + randomBytes(4).toString('hex'),
  }
}

/** Longer than any of them is needed; a pilot that was asked to end has done so by then. */
const HALF_WRITTEN_MS = 3_600_000

async function removeOld(folder: string, keepMs: number, names: RegExp): Promise<void> {
  for (const name of (await readdir(folder).catch(() => [])).filter((one) => names.test(one))) {
    const path = join(folder, name)
    // Another one may have been quicker.
    const facts = await stat(path).catch(() => null)
    if (facts && Date.now() - facts.mtimeMs > keepMs) await rm(path, { force: true })
  }
}
