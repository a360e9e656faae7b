/**
 * Starts a redis-server (or valkey-server) of our own: on loopback, with a password, and so set that what it has
 * acknowledged is on disk. The same folder brings the same data, password and, if it is free, port.
 */
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join, resolve } from 'node:path'
import { locateServer } from './locate.ts'
import { writePrivately } from './private-file.ts'
import { type RunningServer, startServer } from './process.ts'

const HOST = '127.0.0.1'

export interface RedisOptions {
  /** Holds the data, the password (0600), the log and the record of the process. */
  dir: string
  /** From locateServer; found by it when left out. */
  path?: string | undefined
  env?: Readonly<Record<string, string>> | undefined
  port?: number | undefined
  /** Bytes; null: no limit. */
  maxmemory?: number | null | undefined
  say?: ((line: string) => void) | undefined
}

export interface RunningRedis extends RunningServer {
  /** With the password: do not log it. */
  url: string
}

/** Resolves when the data are loaded and commands are answered. @throws IndraftError server.missing | server.failed */
export async function startRedis(options: RedisOptions): Promise<RunningRedis> {
  const { say } = options
  const dir = resolve(options.dir)
  const place = options.path ? { path: options.path, env: options.env } : await locateServer('redis-server', { say })
  mkdirSync(dir, { recursive: true, mode: 0o700 })
  const password = keptPassword(join(dir, 'password'))
  const configPath = join(dir, 'redis.conf')
  const server = await startServer({
    name: 'redis',
    dir,
    path: place.path,
    env: place.env,
    host: HOST,
    port: options.port,
    say,
    prepare: (port) => {
      // In a file, because arguments can be read by everybody on the machine.
      writePrivately(configPath, configFor(dir, port, password, options.maxmemory ?? null))
      return [configPath]
    },
    probe: (port) => probe(port, password),
  })
  return { ...server, url: `redis://:${password}@${HOST}:${server.port}/0` }
}

function configFor(dir: string, port: number, password: string, maxmemory: number | null): string {
  const lines = [
    `bind ${HOST}`,
    `port ${port}`,
    'protected-mode yes',
    `requirepass ${password}`,
    `dir ${JSON.stringify(dir)}`,
    'daemonize no',
    'appendonly yes',
    'appendfsync always',
    'save ""',
    'maxmemory-policy noeviction',
    ...(maxmemory === null ? [] : [`maxmemory ${maxmemory}`]),
  ]
  return `${lines.join('\n')}\n`
}

function keptPassword(path: string): string {
  if (existsSync(path)) {
    const kept = readFileSync(path, 'utf8').trim()
    if (/^[0-9a-f]{48}$/.test(kept)) return kept
  }
  const password = randomBytes(24).toString('hex')
  writePrivately(path, `${password}\n`)
  return password
}

/** Inline commands need no client. Anybody else's server on this port would not know the password. */
function probe(port: number, password: string): Promise<'ready' | 'waiting'> {
  return new Promise((done) => {
    const socket = connect(port, HOST)
    let answer = ''
    const finish = (state: 'ready' | 'waiting') => {
      socket.destroy()
      done(state)
    }
    socket.setTimeout(2_000, () => finish('waiting'))
    socket.on('error', () => finish('waiting'))
    socket.on('close', () => finish('waiting'))
    socket.on('connect', () => socket.write(`AUTH ${password}\r\nPING\r\n`))
    socket.on('data', (data) => {
      answer += data
      if (answer.startsWith('+OK\r\n+PONG')) finish('ready')
      else if (answer.includes('-')) finish('waiting')
    })
  })
}
