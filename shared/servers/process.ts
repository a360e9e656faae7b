/**
 * One server process on one folder: a free port that is kept, a record of the process, its log, readiness, a clean end.
 *
 * What always holds: a folder never has two servers (one left over from an earlier run is ended first, by its recorded
 * process); the server ends with this process, and with a start that fails; a port that somebody else holds by now is left to them and another one
 * is taken. redis.ts and nats.ts say what is particular to each server.
 */
import type { ChildProcess } from 'node:child_process'
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { IndraftError } from '../errors.ts'
import { serverEnvironment } from './config.ts'
import { writePrivately } from './private-file.ts'
import { endRecorded, writeRecord } from './record.ts'
import { spawnTied } from './tied.ts'

const STOP_GRACE_MS = 15_000
const PORT_TRIES = 5
const LOG_LIMIT_BYTES = 10_000_000

export interface ServerExit {
  code: number | null
  signal: NodeJS.Signals | null
}

export interface RunningServer {
  port: number
  pid: number
  /** Where the server's own log is. */
  logPath: string
  /** SIGTERM, and SIGKILL after 15 s. Resolves when the process is gone. */
  stop(): Promise<ServerExit>
  signal(signal: NodeJS.Signals): void
  /** Resolves, never rejects, when the process ends, whoever ended it. */
  exited: Promise<ServerExit>
}

export interface ServerSpec {
  /** `redis` or `nats`: names the log and the record in `dir`. */
  name: string
  dir: string
  path: string
  env?: Readonly<Record<string, string>> | undefined
  host: string
  /** 0 or undefined: the port of the last time if it is free, else any. */
  port?: number | undefined
  /** Called with the port before each start; returns the arguments. */
  prepare: (port: number) => string[]
  /** Asks the server once. `waiting` keeps asking (starting, loading its data). */
  probe: (port: number) => Promise<'ready' | 'waiting'>
  say?: ((line: string) => void) | undefined
}

/** @throws IndraftError server.failed with the end of the server's log */
export async function startServer(spec: ServerSpec): Promise<RunningServer> {
  mkdirSync(spec.dir, { recursive: true, mode: 0o700 })
  const say = spec.say ?? (() => {})
  const recordPath = join(spec.dir, `${spec.name}.pid`)
  const leftOver = await endRecorded(recordPath, STOP_GRACE_MS)
  if (leftOver !== undefined) say(`ended a ${spec.name} server of an earlier run on ${spec.dir} (process ${leftOver})`)
  const logPath = rotatedLog(join(spec.dir, `${spec.name}.log`))
  for (let tries = 1; ; tries++) {
    const port = await choosePort(spec)
    const logStart = existsSync(logPath) ? statSync(logPath).size : 0
    const { child, exited } = launch(spec, port, logPath)
    try {
      if (child.pid !== undefined) writeRecord(recordPath, child.pid)
      if (child.pid !== undefined && (await becomesReady(spec, port, exited))) {
        writePrivately(join(spec.dir, `${spec.name}.port`), `${port}\n`)
        void exited.then(() => rmSync(recordPath, { force: true }))
        return running(child, port, logPath, exited)
      }
    } catch (cause) {
      // IMPORTANT: nobody else knows this child, and it would hold its parent alive
      // (process.test.ts "servers - a start that fails leaves no process").
      child.kill('SIGKILL')
      if (child.pid !== undefined) await exited
      rmSync(recordPath, { force: true })
      throw new IndraftError('server.failed', `${spec.dir} cannot be written: ${(cause as Error).message}`, { cause })
    }
    const { code, signal } = await exited
    const said = readFileSync(logPath).subarray(logStart).toString('utf8')
    const portWasTaken = /address already in use/i.test(said)
    if (portWasTaken && !spec.port && tries < PORT_TRIES) {
      rmSync(join(spec.dir, `${spec.name}.port`), { force: true })
      continue
    }
    const end = said.trim().split('\n').slice(-5).join('\n')
    throw new IndraftError('server.failed', `${spec.path} ended at its start (${signal ?? code}):\n${end}`)
  }
}

function launch(spec: ServerSpec, port: number, logPath: string): { child: ChildProcess; exited: Promise<ServerExit> } {
  const args = spec.prepare(port)
  const log = openSync(logPath, 'a', 0o600)
  const child = spawnTied(spec.path, args, {
    cwd: spec.dir,
    env: serverEnvironment(spec.env),
    stdio: ['ignore', log, log],
  })
  closeSync(log)
  const exited = new Promise<ServerExit>((resolve) => {
    child.once('exit', (code, signal) => resolve({ code, signal }))
    child.once('error', () => resolve({ code: 127, signal: null }))
  })
  return { child, exited }
}

/** false when the process ended first. Loading much data takes as long as it takes. */
async function becomesReady(spec: ServerSpec, port: number, exited: Promise<ServerExit>): Promise<boolean> {
  let ended = false
  void exited.then(() => {
    ended = true
  })
  while (!ended) {
    if ((await spec.probe(port).catch(() => 'waiting')) === 'ready' && !ended) return true
    await Promise.race([sleep(15), exited])
  }
  return false
}

function running(child: ChildProcess, port: number, logPath: string, exited: Promise<ServerExit>): RunningServer {
  return {
    port,
    pid: child.pid!,
    logPath,
    exited,
    signal: (signal) => void child.kill(signal),
    async stop() {
      child.kill('SIGTERM')
      const late = setTimeout(() => child.kill('SIGKILL'), STOP_GRACE_MS)
      const exit = await exited
      clearTimeout(late)
      return exit
    },
  }
}

async function choosePort(spec: ServerSpec): Promise<number> {
  return spec.port || freePort(spec.host, keptPort(join(spec.dir, `${spec.name}.port`)))
}

function keptPort(path: string): number | undefined {
  const port = existsSync(path) ? Number(readFileSync(path, 'utf8')) : Number.NaN
  return port > 0 && port < 65_536 ? port : undefined
}

/**
 * A port that nobody listens on now, the preferred one if it can be had. Another program may be quicker, so a start must
 * be ready to choose again.
 */
export async function freePort(host = '127.0.0.1', preferred?: number): Promise<number> {
  return (preferred ? await listenOnce(host, preferred) : undefined) ?? (await listenOnce(host, 0))!
}

function listenOnce(host: string, port: number): Promise<number | undefined> {
  return new Promise((resolve, reject) => {
    const server = createServer()
    server.once('error', (error: NodeJS.ErrnoException) =>
      error.code === 'EADDRINUSE' || error.code === 'EACCES' ? resolve(undefined) : reject(error),
    )
    server.listen({ host, port, exclusive: true }, () => {
      const address = server.address()
      server.close(() => resolve(typeof address === 'object' && address ? address.port : undefined))
    })
  })
}

/** One earlier log is kept. */
function rotatedLog(path: string): string {
  if (existsSync(path) && statSync(path).size > LOG_LIMIT_BYTES) renameSync(path, `${path}.1`)
  return path
}
