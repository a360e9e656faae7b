/** Real namespaces, as the machine allows them; run as an ordinary user where the tests are root. */
import { readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { execa } from 'execa'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { hostRuntime } from './container.ts'
import { makeOffline, type Offline } from './offline.ts'
import { makeTemplate, PATH, TestSite } from './testbench.ts'

let site: TestSite
let offline: Offline | string
const lost: string[] = []
beforeEach(async () => {
  site = await new TestSite().open()
  offline = await makeOffline(PATH, () => lost.push('lost'))
})
afterEach(async () => {
  if (typeof offline !== 'string') offline.close()
  await site.close()
  lost.length = 0
})

/** Tries a port of the node's loopback and an abstract socket, and says which way it may go. */
const LOOK = `const net = require('node:net')
const tried = (options) => new Promise((done) => {
  const socket = net.connect(options, () => { socket.destroy(); done('connected') })
  socket.on('error', (error) => done(error.code))
})
const [port, name] = process.argv.slice(1)
const own = net.createServer().listen(0, '127.0.0.1', async () => {
  console.log(JSON.stringify({
    uid: process.getuid(),
    interfaces: require('node:fs').readdirSync('/proc/sys/net/ipv4/conf').filter((name) => !/^(all|default)$/.test(name)),
    port: await tried({ port: Number(port), host: '127.0.0.1' }),
    abstract: await tried({ path: '\\0' + name }),
    self: await tried({ port: own.address().port, host: '127.0.0.1' }),
  }))
  own.close()
})`

async function listening(where: string | number): Promise<ReturnType<typeof createServer>> {
  const server = createServer((socket) => socket.end())
  await new Promise<void>((done) =>
    typeof where === 'string' ? server.listen(where, done) : server.listen(where, '127.0.0.1', done),
  )
  return server
}

test('offline - a host payload without network has a loopback of its own and nothing of the node’s', async (context) => {
  if (typeof offline === 'string') return context.skip(`this machine makes no such namespace: ${offline}`)
  const name = `indraft-offline-${process.pid}`
  const [port, abstract] = [await listening(0), await listening(`\0${name}`)]
  const at = String((port.address() as { port: number }).port)
  const seen = async (network: 'none' | 'outgoing') => {
    const runtime = hostRuntime(PATH, offline as Offline)
    const needs = { ...makeTemplate().needs, network }
    const command = [process.execPath, '-e', LOOK, at, name]
    const result = await site.attempt({ command, needs }, {}, { runtimes: [runtime] }).run()
    expect(result).toMatchObject({ end: 'done', reason: null })
    return JSON.parse((await site.stored(result, '.log/stdout'))!)
  }
  const none = { port: 'ECONNREFUSED', abstract: 'ECONNREFUSED', interfaces: ['lo'], self: 'connected' }
  expect(await seen('none')).toMatchObject({ ...none, uid: process.getuid!() })
  expect(await seen('outgoing')).toMatchObject({ port: 'connected', abstract: 'connected' })
  port.close()
  abstract.close()
  await site.trace.close()
  const traced = readFileSync(site.tracePath, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  expect(traced.filter(({ event }) => event === 'started').map(({ network }) => network)).toEqual(['own', 'shared'])
})

test('offline - no variable of a payload runs anything before it is in there, and all of them reach it', async (context) => {
  if (typeof offline === 'string') return context.skip(`this machine makes no such namespace: ${offline}`)
  // The loader says which programs it was told this with.
  const env = { LD_DEBUG: 'files', LD_DEBUG_OUTPUT: './loaded', LD_LIBRARY_PATH: './a b;$$(touch evaluated);*' }
  const command = ['sh', '-c', 'printf "%s\\n" "$LD_LIBRARY_PATH"; ls; cat loaded.*']
  const runtimes = [hostRuntime(PATH, offline)]
  const result = await site.attempt({ command, env, logBytes: 2 ** 20 }, {}, { runtimes }).run()
  expect(result).toMatchObject({ end: 'done', reason: null })
  const said = (await site.stored(result, '.log/stdout'))!
  expect(said.split('\n')[0]).toBe('./a b;$(touch evaluated);*')
  expect(said).not.toMatch(/^evaluated$/m)
  const programs = [...said.matchAll(/initialize program: (\S+)/g)].map(([, program]) => program)
  expect(programs).toContain('/bin/sh')
  expect(programs.filter((program) => /nsenter|taskset/.test(program!))).toEqual([])
})

test('offline - what is started there by an ordinary user has no privilege in it', async (context) => {
  if (typeof offline === 'string') return context.skip(`this machine makes no such namespace: ${offline}`)
  const { stdout } = await execa(offline.words[0]!, [
    ...offline.words.slice(1),
    'grep',
    '-E',
    '^Cap(Prm|Eff|Amb)',
    '/proc/self/status',
  ])
  // Root stays root of the namespace, and of nothing else.
  if (process.getuid!() !== 0) expect(stdout).toMatch(/CapEff:\s+0+$/m)
  expect(stdout).toMatch(/CapAmb:\s+0+$/m)
})

test('offline - ends with its pilot, and says when it ended before', async (context) => {
  if (typeof offline === 'string') return context.skip(`this machine makes no such namespace: ${offline}`)
  const holder = Number(offline.words[2])
  const isThere = () => {
    try {
      process.kill(holder, 0)
      return true
    } catch {
      return false
    }
  }
  expect(isThere()).toBe(true)
  process.kill(holder, 'SIGKILL')
  await expect.poll(() => lost).toEqual(['lost'])
  const late = await site.attempt({ command: ['true'] }, {}, { runtimes: [hostRuntime(PATH, offline)] }).run()
  expect(late).toMatchObject({ end: 'failed', reason: 'node.fault', detail: expect.stringContaining('nsenter') })
  const next = (await makeOffline(PATH, () => lost.push('again'))) as Offline
  next.close()
  await expect
    .poll(() => execa('kill', ['-0', next.words[2]!], { reject: false }).then(({ exitCode }) => exitCode))
    .not.toBe(0)
  expect(lost).toEqual(['lost'])
})
