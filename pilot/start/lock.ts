/**
 * One tick at a time, also where cron runs on two login nodes: a lock file made by a hard link (which also NFS does in
 * one step), naming its owner. A dead owner on this machine is seen at once, one elsewhere by age.
 */
import { randomBytes } from 'node:crypto'
import { link, mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { startTicksOf } from '../processes.ts'

const ownerSchema = z.object({
  host: z.string(),
  pid: z.number(),
  startTicks: z.number(),
  takenAtMs: z.number(),
  token: z.string(),
})
type Owner = z.infer<typeof ownerSchema>

/** No tick takes so long: each of its steps has a timeout. */
const STALE_AFTER_MS = 15 * 60_000
const NAME = 'lock'

export interface Lock {
  /** Whether nobody took it over. */
  isHeld(): Promise<boolean>
  release(): Promise<void>
}

/** @returns null where somebody else has it */
export async function takeLock(folder: string, nowMs: number): Promise<Lock | null> {
  await mkdir(folder, { recursive: true, mode: 0o700 })
  const token = randomBytes(8).toString('hex')
  const owner: Owner = {
    host: hostname(),
    pid: process.pid,
    startTicks: startTicksOf(process.pid) ?? 0,
    takenAtMs: nowMs,
    token,
  }
  const path = join(folder, NAME)
  const own = join(folder, `.${NAME}.${token}`)
  await writeFile(own, `${JSON.stringify(owner)}\n`, { mode: 0o600, flush: true })
  try {
    if (!(await place(own, path))) {
      const before = await readOwner(path)
      if (before !== null && !isStale(before, nowMs)) return null
      if (!(await putAside(path, before, `${own}.stale`)) || !(await place(own, path))) return null
    }
  } finally {
    await rm(own, { force: true })
  }
  const isHeld = async () => (await readOwner(path))?.token === token
  return {
    isHeld,
    async release() {
      if (await isHeld()) await rm(path, { force: true })
    },
  }
}

async function place(own: string, path: string): Promise<boolean> {
  try {
    await link(own, path)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false
    throw error
  }
}

async function readOwner(path: string): Promise<Owner | null> {
  try {
    return ownerSchema.parse(JSON.parse(await readFile(path, 'utf8')))
  } catch {
    return null
  }
}

function isStale(owner: Owner, nowMs: number): boolean {
  if (owner.host === hostname()) return startTicksOf(owner.pid) !== owner.startTicks
  return nowMs - owner.takenAtMs > STALE_AFTER_MS
}

/** Of several that find the same stale lock one wins; who took a fresh one away by mistake puts it back. */
async function putAside(path: string, judged: Owner | null, aside: string): Promise<boolean> {
  try {
    await rename(path, aside)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return true
    throw error
  }
  const taken = await readOwner(aside)
  const isRight = taken?.token === judged?.token
  if (!isRight) await link(aside, path).catch(() => {})
  await rm(aside, { force: true })
  return isRight
}
