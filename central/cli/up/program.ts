/**
 * Starts one of our own programs (central, relay, pilot) as a child process with a log file, and waits for its
 * `<program>.ready` line in that log. The child ends with this process, whatever ends it.
 */
import { closeSync, existsSync, mkdirSync, openSync, readSync, renameSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { IndraftError } from '../../../shared/errors.ts'
import { endRecorded, writeRecord } from '../../../shared/servers/record.ts'
import { spawnTied } from '../../../shared/servers/tied.ts'
import { programEnvironment } from './config.ts'
import type { RunningPart } from './service.ts'

const LOG_LIMIT_BYTES = 20_000_000

export interface ProgramSpec {
  /** Names log and process record: `central`, `relay`, `local-1`. */
  name: string
  /** Path of the launcher and the words after it. */
  launcher: string
  words: readonly string[]
  /** Folder for the log and the process record. */
  runDir: string
  /** Settings by their environment names. They may hold secrets, which arguments would show to everybody. */
  env: Readonly<Record<string, string>>
  readyMessage: string
  /** What to show as its address, from the ready line. */
  address: (ready: Record<string, unknown>) => string
  /** Between SIGTERM and SIGKILL. */
  stopGraceMs: number
}

export interface RunningProgram extends RunningPart {
  /** The fields of its ready line. */
  ready: Record<string, unknown>
}

/**
 * @param stopping ends a program that has not said yet that it is ready: one that waits for others may never be
 * @throws IndraftError server.failed with the end of its log
 */
export async function startProgram(spec: ProgramSpec, stopping: AbortSignal): Promise<RunningProgram> {
  mkdirSync(spec.runDir, { recursive: true, mode: 0o700 })
  const recordPath = join(spec.runDir, `${spec.name}.pid`)
  await endRecorded(recordPath, spec.stopGraceMs)
  const logPath = join(spec.runDir, `${spec.name}.log`)
  if (existsSync(logPath) && statSync(logPath).size > LOG_LIMIT_BYTES) renameSync(logPath, `${logPath}.1`)
  const log = openSync(logPath, 'a', 0o600)
  const from = statSync(logPath).size
  const args = ['--disable-warning=ExperimentalWarning', spec.launcher, ...spec.words]
  const child = spawnTied(process.execPath, args, {
    cwd: spec.runDir,
    env: programEnvironment(spec.env),
    stdio: ['ignore', log, log],
  })
  closeSync(log)
  const exited = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve) => {
    child.once('exit', (code, signal) => resolve({ code, signal }))
    child.once('error', () => resolve({ code: 127, signal: null }))
  })
  void exited.then(() => rmSync(recordPath, { force: true }))
  if (child.pid !== undefined) writeRecord(recordPath, child.pid)
  const stop = async () => {
    child.kill('SIGTERM')
    const late = setTimeout(() => child.kill('SIGKILL'), spec.stopGraceMs)
    await exited
    clearTimeout(late)
  }
  if (stopping.aborted) void stop()
  stopping.addEventListener('abort', stop)
  const ready = await waitForLine(logPath, from, spec.readyMessage, exited)
  stopping.removeEventListener('abort', stop)
  if (!ready) {
    const { code, signal } = await exited
    const end = readFrom(logPath, from).trimEnd().split('\n').slice(-8).join('\n')
    throw new IndraftError(
      'server.failed',
      `${spec.name} ended at its start (${signal ?? code}); ${logPath} ends:\n${end}`,
    )
  }
  return {
    pid: child.pid!,
    address: spec.address(ready),
    logPath,
    ready,
    exited,
    kill: () => void child.kill('SIGKILL'),
    stop,
  }
}

/** undefined when the program ended without having said it. */
async function waitForLine(
  logPath: string,
  from: number,
  message: string,
  exited: Promise<unknown>,
): Promise<Record<string, unknown> | undefined> {
  let ended = false
  void exited.then(() => {
    ended = true
  })
  for (;;) {
    const isLastLook = ended
    for (const line of readFrom(logPath, from).split('\n')) {
      if (!line.includes(message)) continue
      try {
        const said = JSON.parse(line) as Record<string, unknown>
        if (said.msg === message) return said
      } catch {
        // Half a line: the next look has the whole.
      }
    }
    if (isLastLook) return undefined
    await Promise.race([sleep(25), exited])
  }
}

function readFrom(path: string, from: number): string {
  const size = statSync(path).size - from
  if (size <= 0) return ''
  const file = openSync(path, 'r')
  try {
    const bytes = Buffer.alloc(size)
    return bytes.subarray(0, readSync(file, bytes, 0, size, from)).toString('utf8')
  } finally {
    closeSync(file)
  }
}
