/** Finding, fetching, starting and ending redis-server and nats-server, with the real programs. */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { chmodSync, chownSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'
import { connect as connectNats } from '@nats-io/transport-node'
import { Redis } from 'ioredis'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { locateServer } from '../shared/servers/locate.ts'
import { startNats } from '../shared/servers/nats.ts'
import { isAlive, recordOf } from '../shared/servers/record.ts'
import { startRedis } from '../shared/servers/redis.ts'

const run = promisify(execFile)
const fixture = (name: string) => join(import.meta.dirname, 'fixtures', name)
const isRoot = process.getuid?.() === 0
/** An account that owns nothing. */
const NOBODY = 54_321

let dir: string
const endings: (() => unknown)[] = []
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'indraft-servers-test-'))
})
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end()
  rmSync(dir, { recursive: true, force: true })
})

/** What the fixtures print. */
interface Said {
  child: number
  redis: number
  nats: number
  url: string
  natsUrl: string
}

/** Starts a fixture that prints one JSON line and stays. */
async function hold(name: string, ...args: string[]): Promise<{ parent: ChildProcess; said: Said }> {
  const parent = spawn(process.execPath, [fixture(name), ...args], { stdio: ['ignore', 'pipe', 'inherit'] })
  endings.push(() => parent.kill('SIGKILL'))
  for await (const line of createInterface({ input: parent.stdout! })) return { parent, said: JSON.parse(line) }
  throw new Error(`${name} ended without a word`)
}

async function killed(parent: ChildProcess): Promise<void> {
  const ended = new Promise((done) => parent.once('exit', done))
  parent.kill('SIGKILL')
  await ended
}

function isGone(pid: number): boolean {
  return recordOf(pid) === undefined
}

describe('servers', () => {
  test('servers - fetched into an empty cache by a user without rights, and found there offline afterwards', async () => {
    chmodSync(dir, 0o755)
    const cache = join(dir, 'cache')
    mkdirSync(cache, { mode: 0o700 })
    if (isRoot) chownSync(cache, NOBODY, NOBODY)
    const locate = async (name: string, ...mode: string[]) => {
      const words = [process.execPath, fixture('locate-server.ts'), name, cache, ...mode]
      const asUser = isRoot ? ['setpriv', '--reuid', `${NOBODY}`, '--regid', `${NOBODY}`, '--clear-groups'] : ['env']
      const { stdout } = await run(asUser[0]!, [...asUser.slice(1), ...words], {
        cwd: '/',
        env: { PATH: '/usr/bin:/bin' },
      })
      return JSON.parse(stdout)
    }
    for (const name of ['redis-server', 'nats-server']) {
      const fetched = await locate(name)
      expect(fetched, JSON.stringify(fetched)).toMatchObject({ how: 'fetched', ...(isRoot ? { uid: NOBODY } : {}) })
      expect(fetched.lines.join('\n')).toContain(`fetching ${name}`)
      const again = await locate(name, 'no-fetch')
      expect(again).toMatchObject({ how: 'cached', path: fetched.path, lines: [] })
    }
    expect(readdirSync(cache).filter((entry) => entry.startsWith('.'))).toEqual([])
  })

  test('servers - a broken one in the cache is thrown away and fetched again', async () => {
    const lines: string[] = []
    const options = { cacheDir: join(dir, 'cache'), folders: [], say: (line: string) => void lines.push(line) }
    const broken = join(options.cacheDir, `nats-server-${process.arch}-99.0.0`, 'usr/sbin')
    mkdirSync(broken, { recursive: true })
    writeFileSync(join(broken, 'nats-server'), 'half a prog', { mode: 0o755 })
    expect(await locateServer('nats-server', options)).toMatchObject({ how: 'fetched' })
    expect(lines[0]).toMatch(/thrown away/)
  })

  test('servers - one that is too old is passed over with a word; a missing one is said with the commands that help', async () => {
    const lines: string[] = []
    writeFileSync(join(dir, 'nats-server'), '#!/bin/sh\necho nats-server: v2.9.10\n', { mode: 0o755 })
    const options = { cacheDir: join(dir, 'cache'), folders: [dir], fetch: false }
    const missing = await locateServer('nats-server', { ...options, say: (line) => void lines.push(line) }).catch(
      (e) => e,
    )
    expect(lines).toEqual([expect.stringContaining('2.9.10 is too old, 2.10.0 or newer is needed')])
    expect(missing).toMatchObject({
      code: 'server.missing',
      message: expect.stringMatching(/apt install.*dnf install.*zypper.*conda/s),
    })
    const explicit = join(dir, 'nats-server')
    await expect(locateServer('nats-server', { explicit })).rejects.toMatchObject({ code: 'server.missing' })
  })

  test.each(['kernel', 'watcher'])('servers - end with their parent when it is killed (%s)', async (how) => {
    const { parent, said } = await hold('hold-child.ts', how)
    const child = recordOf(said.child)!
    expect(isAlive(child)).toBe(true)
    await killed(parent)
    await vi.waitUntil(() => !isAlive(child), 30_000)
  })

  test('servers - after SIGKILL of their parent the next start has data, password and ports again', async () => {
    const { parent, said } = await hold('hold-servers.ts', dir)
    const first = new Redis(said.url)
    await first.set('kept', 'yes')
    first.disconnect()
    await killed(parent)
    await vi.waitUntil(() => isGone(said.redis) && isGone(said.nats), 30_000)
    const redis = await startRedis({ dir: join(dir, 'redis') })
    endings.push(() => redis.stop())
    const nats = await startNats({ dir: join(dir, 'nats'), configText: '' })
    endings.push(() => nats.stop())
    expect([redis.url, nats.url]).toEqual([said.url, said.natsUrl])
    const second = new Redis(redis.url)
    expect(await second.get('kept')).toBe('yes')
    expect(await second.config('GET', 'appendfsync')).toEqual(['appendfsync', 'always'])
    second.disconnect()
  })

  test('servers - one that still lives on the folder is ended before another starts there', async () => {
    const { said } = await hold('hold-servers.ts', dir)
    const lines: string[] = []
    const redis = await startRedis({ dir: join(dir, 'redis'), say: (line) => void lines.push(line) })
    endings.push(() => redis.stop())
    expect(isGone(said.redis)).toBe(true)
    expect(redis.pid).not.toBe(said.redis)
    expect(lines).toEqual([expect.stringContaining(`process ${said.redis}`)])
  })

  test('servers - a record that names a process of somebody else ends nothing', async () => {
    const bystander = spawn('/bin/sleep', ['1000'], { stdio: 'ignore' })
    endings.push(() => bystander.kill('SIGKILL'))
    const record = recordOf(bystander.pid!)!
    mkdirSync(join(dir, 'redis'))
    // The same process id, as if it had been used again since.
    writeFileSync(join(dir, 'redis', 'redis.pid'), JSON.stringify({ ...record, startTicks: record.startTicks - 1 }))
    const redis = await startRedis({ dir: join(dir, 'redis') })
    endings.push(() => redis.stop())
    expect(isAlive(record)).toBe(true)
  })

  test('servers - a port that somebody else took meanwhile is left to them', async () => {
    const first = await startRedis({ dir })
    await first.stop()
    const somebody = createServer().listen(first.port, '127.0.0.1')
    endings.push(() => somebody.close())
    await new Promise((done) => somebody.once('listening', done))
    const second = await startRedis({ dir })
    endings.push(() => second.stop())
    expect(second.port).not.toBe(first.port)
  })

  test('servers - redis refuses who does not know its password', async () => {
    const redis = await startRedis({ dir })
    endings.push(() => redis.stop())
    const stranger = new Redis({ host: '127.0.0.1', port: redis.port, retryStrategy: () => null })
    stranger.on('error', () => {})
    await expect(stranger.get('x')).rejects.toThrow(/NOAUTH/)
    stranger.disconnect()
  })

  test('servers - one that cannot start says why', async () => {
    await expect(startNats({ dir, configText: 'no_such_setting: {' })).rejects.toMatchObject({
      code: 'server.failed',
      message: expect.stringMatching(/ended at its start.*Parse error/s),
    })
  })

  test('servers - nats takes over a changed configuration without a restart', async () => {
    const config = (password: string) => `authorization: { user: u, password: "${password}" }`
    const nats = await startNats({ dir, configText: config('first-password') })
    endings.push(() => nats.stop())
    nats.reload(config('second-password'))
    const enter = () => connectNats({ servers: nats.url, user: 'u', pass: 'second-password', reconnect: false })
    const connection = await vi.waitFor(enter, 30_000)
    await connection.close()
    expect(isGone(nats.pid)).toBe(false)
  })
})
