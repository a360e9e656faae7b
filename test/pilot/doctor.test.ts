/**
 * `indraft-pilot doctor` as administrators run it: at a relay as it runs, with TLS and passwords, and at what is wrong with
 * a place. What is broken here is really broken: the relay is stopped, the certificate is another's, the folder is full of
 * others' rights.
 */
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { createServer, type Server } from 'node:https'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { execa } from 'execa'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Check } from '../../pilot/doctor/check.ts'
import { type PilotCredential, readPilotCredential, writeCredential } from '../../shared/credentials.ts'
import { keptCertificate, makeAuthority } from '../../shared/tls.ts'
import { type RelayProcess, spawnRelay } from '../relay/relay-process.ts'

const PROGRAM = fileURLToPath(new URL('../../pilot/indraft-pilot.mjs', import.meta.url))

let folder: string
let relay: RelayProcess
/** Plays the centre's files, an hour ahead; its control does not listen. */
let centre: Server
const at = (...path: string[]) => join(folder, ...path)
const credential = () => at('relay', 'pilot.json')

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'indraft-doctor-'))
  const authority = await makeAuthority(at('centre'))
  const { certPath, keyPath } = await keptCertificate(authority, at('centre'), 'server', ['127.0.0.1'])
  centre = createServer({ cert: readFileSync(certPath), key: readFileSync(keyPath) }, (_request, response) => {
    response.setHeader('date', new Date(Date.now() + 3_600_000).toUTCString())
    response.end()
  })
  await new Promise<void>((resolve) => centre.listen(0, '127.0.0.1', resolve))
  const port = (centre.address() as { port: number }).port
  writeCredential(at('relay.json'), {
    kind: 'relay',
    site: 'HERE',
    nats: { url: 'tls://127.0.0.1:1', creds: 'none', ca: authority.ca },
    files: { url: `https://127.0.0.1:${port}`, token: 'none', ca: authority.ca },
    keys: {},
  })
  mkdirSync(at('relay'), { mode: 0o700 })
  copyFileSync(at('relay.json'), at('relay', 'relay.json'))
  relay = spawnRelay(['--state', at('relay')])
  await relay.said('relay.ready')
})
afterAll(async () => {
  relay?.kill('SIGTERM')
  await relay?.exited
  await new Promise((resolve) => centre?.close(resolve))
  rmSync(folder, { recursive: true, force: true })
})

async function doctor(args: string[], env: Record<string, string> = {}) {
  const { PATH = '' } = process.env
  const words = [PROGRAM, 'doctor', '--json', ...args]
  const { exitCode, stdout, stderr } = await execa(process.execPath, words, {
    reject: false,
    extendEnv: false,
    env: { PATH, ...env },
  })
  const checks: Check[] = stdout.startsWith('{') ? JSON.parse(stdout).checks : []
  const line = (name: string) => checks.find((check) => check.name === name)
  return { exitCode, stdout, stderr, checks, line }
}

/** A node without containers, and its scratch folder. */
const node = (scratch = at('scratch')) => ['--scratch', scratch, '--container-runtime', 'none']

function changed(name: string, change: (credential: PilotCredential) => PilotCredential): string {
  writeCredential(at(name), change(structuredClone(readPilotCredential(credential()))))
  return at(name)
}

describe('doctor - a node', () => {
  test('all good: scratch, limits, the credential, a relay that answers, its clock; nothing is left behind', async () => {
    const { exitCode, checks, line } = await doctor([...node(), '--credential', credential()])
    expect(checks.filter(({ state }) => state === 'bad')).toEqual([])
    expect(exitCode).toBe(0)
    for (const name of ['scratch is ours alone', 'scratch can be written', 'cgroup', 'credential', 'relay answers']) {
      expect(line(name), name).toMatchObject({ state: 'good', advice: null })
    }
    expect(line('clock against the relay')).toMatchObject({ state: 'good', found: 'within a second' })
    expect(line('work')).toMatchObject({ state: 'warn', found: 'the relay did not hear from the centre' })
    expect(readdirSync(at('scratch'))).toEqual([])
  })

  test('as text: a line for each, what to do below it, and the sum', async () => {
    const args = [PROGRAM, 'doctor', ...node(), '--credential', at('none.json')]
    const { exitCode, stdout } = await execa(process.execPath, args, { reject: false })
    expect(exitCode).toBe(1)
    expect(stdout).toMatch(/^good {2}scratch can be written +\S/m)
    expect(stdout).toMatch(/^BAD {3}credential .*there is no such file.*\n +-> copy pilot\.json/m)
    expect(stdout).toMatch(/\d+ good, 0 to look at, 1 bad$/)
  })

  test.each<[string, (credential: PilotCredential) => PilotCredential, RegExp, RegExp]>([
    [
      'a password that the relay does not know any more',
      (one) => ({ ...one, nats: { ...one.nats, password: 'old' } }),
      /refuses this credential/,
      /copy pilot.json out of its state folder again/,
    ],
    [
      'nobody who listens',
      (one) => ({ ...one, nats: { ...one.nats, url: 'tls://127.0.0.1:1' } }),
      /nobody listens there/,
      /does the relay run\?/,
    ],
    [
      'a name that nobody knows',
      (one) => ({ ...one, nats: { ...one.nats, url: 'tls://edge.invalid:4222' } }),
      /its name is not known on this machine/,
      /DNS/,
    ],
    [
      'a certificate of another authority',
      (one) => ({ ...one, nats: { ...one.nats, ca: readFileSync(at('centre', 'ca.pem'), 'utf8') } }),
      /certificate is not of the authority/,
      /set up anew/,
    ],
  ])('%s is told', async (_what, change, found, advice) => {
    const { exitCode, line } = await doctor([...node(), '--credential', changed('changed.json', change)])
    expect(line('relay answers')).toEqual({
      name: 'relay answers',
      state: 'bad',
      found: expect.stringMatching(found),
      advice: expect.stringMatching(advice),
    })
    expect(exitCode).toBe(1)
  })

  test('a credential that others may read is bad', async () => {
    const open = changed('open.json', (one) => one)
    chmodSync(open, 0o644)
    const { line } = await doctor([...node(), '--credential', open])
    expect(line('credential')).toMatchObject({ state: 'bad', advice: `chmod 600 ${open}` })
  })

  test('scratch in memory, a folder that others may write, STOP, a bind that is missing', async () => {
    const inMemory = mkdtempSync('/dev/shm/indraft-doctor-')
    try {
      const { line } = await doctor([...node(inMemory), '--credential', credential()])
      expect(line('scratch is ours alone')).toMatchObject({ state: 'warn', found: expect.stringContaining('tmpfs') })
    } finally {
      rmSync(inMemory, { recursive: true, force: true })
    }
    mkdirSync(at('open'))
    chmodSync(at('open'), 0o777)
    const words = [
      '--credential',
      credential(),
      '--stop-file',
      at('STOP'),
      '--binds',
      at('data'),
      '--end-folder',
      at('no'),
    ]
    writeFileSync(at('STOP'), '')
    const { line } = await doctor([...node(at('open')), ...words])
    expect(line('scratch is ours alone')).toMatchObject({ state: 'bad', found: expect.stringContaining('mode 777') })
    expect(line('STOP')).toMatchObject({ state: 'warn', advice: `rm ${at('STOP')}` })
    expect(line('binds')).toMatchObject({ state: 'bad', found: `${at('data')} is not there` })
    expect(line('end folder')).toMatchObject({ state: 'bad', found: expect.stringContaining('ENOENT') })
  })

  test('a bind through which payloads could change the images: bad, and what would mend it', async () => {
    mkdirSync(at('project'))
    writeFileSync(at('apptainer'), '#!/bin/sh\n', { mode: 0o755 })
    const images = ['--image-folder', at('project/images'), '--container-runtime', at('apptainer')]
    const words = ['--scratch', at('scratch'), ...images, '--binds']
    const { line } = await doctor([...words, `${at('project')}:/project`])
    expect(line('binds')).toMatchObject({ state: 'bad', advice: expect.stringContaining('add :ro') })
    expect(line('binds')?.found).toContain(at('project/images'))
    expect(line('containers start')).toMatchObject({ state: 'warn', advice: 'see binds' })
    expect((await doctor([...words, `${at('project')}:/project:ro`])).line('binds')).toBeUndefined()
  })

  test('without containers where the host is not allowed: bad', async () => {
    const { line } = await doctor([
      '--scratch',
      at('scratch'),
      '--host-runtime',
      'false',
      '--container-runtime',
      at('no'),
    ])
    expect(line('containers start')).toMatchObject({ state: 'bad' })
  })
})

const siteFile = (more = '') => `indraft: 1
folder: ${at('vacuum')}
credential: ${credential()}
starter: slurm
command: [${PROGRAM}]
pilots: {scratch: ${at('of-the-site')}, containerRuntime: none}
kinds:
  cpu: {time: 1h, shape: {cores: 2}}
  big: {time: 1h, shape: {cores: 8}, settings: {scratch: ${at('of-big')}}}
${more}`

/** Programs of Slurm that answer as told. */
function slurm(squeue: string): string {
  const programs = at(`slurm-${squeue.length}`)
  mkdirSync(programs)
  for (const program of ['sbatch', 'squeue', 'scancel']) {
    writeFileSync(join(programs, program), `#!/bin/sh\n${squeue}\n`, { mode: 0o755 })
  }
  return `${programs}:${process.env.PATH}`
}

describe('doctor - the site file', () => {
  test('on a node its settings count, those of the kind before those of all', async () => {
    writeFileSync(at('site.yaml'), siteFile())
    mkdirSync(at('vacuum', 'ends'), { recursive: true })
    const all = await doctor(['--site', at('site.yaml')])
    expect(all.line('scratch is ours alone')?.found).toContain('of-the-site')
    expect(all.line('end folder')).toMatchObject({
      state: 'warn',
      found: expect.stringContaining(at('vacuum', 'ends')),
    })
    expect(all.line('relay answers')).toMatchObject({ state: 'good' })
    const big = await doctor(['--site', at('site.yaml'), '--kind', 'big'])
    expect(big.line('scratch is ours alone')?.found).toContain('of-big')
    const none = await doctor(['--site', at('site.yaml'), '--kind', 'small'])
    expect(none).toMatchObject({ exitCode: 2, stderr: expect.stringContaining('expected one of cpu, big') })
  })

  test('on the edge it is checked with Slurm, its folder, ticks, accounts and the relay', async () => {
    const past = 'accounts: {old: {until: 2020-01-01T00:00:00Z}}'
    writeFileSync(at('edge.yaml'), siteFile(past))
    mkdirSync(at('vacuum'), { recursive: true })
    writeFileSync(at('vacuum', 'STOP'), '')
    const edge = ['--edge', '--site', at('edge.yaml')]
    const { line, exitCode } = await doctor(edge, { PATH: slurm('echo 17') })
    expect(line('Slurm')).toEqual({
      name: 'Slurm',
      state: 'good',
      found: 'squeue answers; 1 jobs of this account',
      advice: null,
    })
    expect(line("ticks' folder")).toMatchObject({
      state: 'warn',
      found: expect.stringContaining('on this machine alone'),
    })
    expect(line('ticks')).toMatchObject({ state: 'warn', found: 'none yet' })
    expect(line('accounts')).toMatchObject({ state: 'warn', found: expect.stringContaining('old ended 2020') })
    expect(line('STOP')).toMatchObject({ state: 'warn', advice: expect.stringContaining('--resume') })
    expect(line('relay answers')).toMatchObject({ state: 'good' })
    expect(exitCode).toBe(0)
    const refused = await doctor(edge, { PATH: slurm('echo "Invalid account" >&2; exit 1') })
    expect(refused.line('Slurm')).toMatchObject({ state: 'bad', found: 'squeue: Invalid account' })
    const without = await doctor(edge, { PATH: '/nowhere' })
    expect(without.line('Slurm')).toMatchObject({ state: 'bad', found: 'not on PATH: sbatch, squeue, scancel' })
  })

  test('a mistake in it is told with its line', async () => {
    writeFileSync(at('wrong.yaml'), siteFile('caps: {runing: 4}'))
    const { line, exitCode } = await doctor(['--edge', '--site', at('wrong.yaml')])
    expect(line('site file')).toMatchObject({
      state: 'bad',
      found: expect.stringMatching(/wrong\.yaml:10 caps\.runing/),
    })
    expect(exitCode).toBe(1)
  })
})

describe('doctor - the relay', () => {
  const edge = () => doctor(['--edge', '--relay-state', at('relay')])

  test('its folder, its disk, its process, the centre control and files, a clock an hour off', async () => {
    const { line, exitCode } = await edge()
    expect(exitCode).toBe(1)
    for (const name of [
      "relay's folder",
      "relay's disk",
      'nats-server',
      "relay's credential",
      'credential',
      'relay answers',
    ]) {
      expect(line(name), name).toMatchObject({ state: expect.stringMatching(/good|warn/) })
    }
    expect(line('relay runs')).toMatchObject({ state: 'good', found: `process ${relay.pid}` })
    expect(line('centre, control')).toMatchObject({ state: 'bad', found: 'tls://127.0.0.1:1: nobody listens there' })
    expect(line('centre, files')).toMatchObject({ state: 'good' })
    expect(line('clock against the centre')).toMatchObject({ state: 'bad', found: expect.stringMatching(/behind/) })
  })

  test('a folder that others may enter, one in memory, one without a relay', async () => {
    const inMemory = mkdtempSync('/dev/shm/indraft-doctor-')
    try {
      chmodSync(inMemory, 0o755)
      const { line } = await doctor(['--edge', '--relay-state', inMemory])
      expect(line("relay's folder")).toMatchObject({ state: 'warn', found: expect.stringContaining('tmpfs') })
      expect(line('folder is ours alone')).toMatchObject({ state: 'bad', advice: `chmod 700 ${inMemory}` })
      expect(line("relay's credential")).toMatchObject({ state: 'bad', advice: expect.stringContaining('relay join') })
      expect(line('relay runs')).toMatchObject({ state: 'warn', found: 'no' })
    } finally {
      rmSync(inMemory, { recursive: true, force: true })
    }
  })

  test('a relay that was killed is seen as gone, and nobody answers', async () => {
    const { port } = new URL(readPilotCredential(credential()).nats.url)
    relay.kill('SIGTERM')
    await relay.exited
    writeFileSync(at('relay', 'relay.pid'), `${relay.pid}\n`)
    expect(await listens(Number(port))).toBe(false)
    const { line } = await edge()
    expect(line('relay runs')).toMatchObject({ state: 'warn', found: expect.stringContaining('is gone') })
    expect(line('relay answers')).toMatchObject({ state: 'bad', found: expect.stringContaining('nobody listens') })
  })
})

function listens(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1')
    socket.once('connect', () => resolve(true))
    socket.once('error', () => resolve(false))
    socket.once('connect', () => socket.destroy())
  })
}

test('doctor - options that do not belong together are refused', async () => {
  for (const args of [['--edge'], ['--relay-state', at('relay')], ['--kind', 'cpu']]) {
    expect(await doctor(args)).toMatchObject({ exitCode: 2, stdout: '' })
  }
})
