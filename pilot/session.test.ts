/** A pilot in this process against a scripted dispatcher: real codec, real signatures, real payload processes. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { type Clock, systemClock } from '../shared/clock.ts'
import { writeCredential } from '../shared/credentials.ts'
import { frameHandler } from '../shared/dispatcher.ts'
import { type ErrorCode, IndraftError } from '../shared/errors.ts'
import { memoryLink } from '../shared/link.ts'
import { silentLog } from '../shared/log.ts'
import { noResult } from '../shared/no-result.ts'
import type { Grant } from '../shared/protocol/messages.ts'
import type { BundleBody, Signed, TemplateBody } from '../shared/protocol/work.ts'
import { makeSigner, makeSigningKey } from '../shared/signing.ts'
import { loadPilotConfig, readBatchEnvironment } from './config.ts'
import { type Pilot, type PilotWorld, startPilot } from './main.ts'
import { linuxProcesses } from './processes.ts'
import { ScriptedDispatcher } from './scripted-dispatcher.ts'
import { makeTemplate, PATH, TestSite } from './testbench.ts'

const TIMINGS = { beatMs: 50, lostAfterMs: 2000, leaseMs: 60_000, confirmMs: 1000, pullWaitMs: 300 }
const BATCH = readBatchEnvironment({ PATH })

/** The world's own clock until it is moved on: as for a pilot that stood still. */
function jumpingClock(): { clock: Clock; jump: (ms: number) => void } {
  let jumpedMs = 0
  const clock = { ...systemClock, monotonicMs: () => systemClock.monotonicMs() + jumpedMs }
  const jump = (ms: number) => {
    jumpedMs += ms
  }
  return { clock, jump }
}

let site: TestSite
let script: ScriptedDispatcher
let pilots: Pilot[]
let lines: Record<string, unknown>[]

beforeEach(async () => {
  site = await new TestSite().open()
  script = new ScriptedDispatcher(site, TIMINGS)
  pilots = []
  lines = []
})
afterEach(async () => {
  script.isDeaf = false
  for (const pilot of pilots) {
    void pilot.stop()
    await pilot.stop()
  }
  await site.close()
})

async function start(args: Record<string, unknown> = {}, world: PilotWorld = {}): Promise<Pilot> {
  const credential = join(site.folder, 'pilot.json')
  const nats = { url: 'nats://unused', user: null, password: null, creds: null, ca: null, inboxPrefix: '_INBOX' }
  const keys = site.signer.keys
  writeCredential(credential, { kind: 'pilot', site: 'here', nats, files: { token: 'secret', ca: null }, keys })
  const settings = {
    ...{ credential, scratch: join(site.folder, 'scratch'), name: 'pilot1', node: 'node1', cores: 2 },
    ...{ memory: '2GiB', containerRuntime: 'none', watchEvery: '100ms', payloadGrace: '300ms', drainGrace: '60s' },
    ...args,
  }
  const log = pino({ level: 'debug' }, { write: (line: string) => void lines.push(JSON.parse(line)) })
  const link = memoryLink({ site: 'here' }, frameHandler(script, silentLog))
  const pilot = await startPilot(loadPilotConfig(settings, undefined, {}), log, { batch: BATCH, link, ...world })
  pilots.push(pilot)
  return pilot
}

function give(
  template: Partial<TemplateBody>,
  tasks: string,
  bundle: Partial<BundleBody> = {},
  signer = site.signer,
): Grant {
  return script.give(template, tasks, bundle, signer)
}

const sh = (text: string) => ({ command: ['sh', '-c', text] })
const flag = (name = 'go-on') => join(site.folder, name)
/** A payload that runs until the test has made its flag. */
const waits = (then = 'true') => sh(`while [ ! -e ${flag()} ]; do sleep 0.02; done; ${then}`)

async function until<T>(look: () => T | undefined | false | null): Promise<T> {
  return await vi.waitFor(
    () => {
      const found = look()
      if (!found) throw new Error(`not yet: ${look.toString().slice(0, 200)}`)
      return found
    },
    { timeout: 30_000, interval: 10 },
  )
}

describe('work', () => {
  test('session - runs a bundle, reports every task, holds nothing, leaves when there is no more', async () => {
    const pilot = await start({ idleAfter: '2s' })
    give(sh('echo $INDRAFT_INDEX'), '0-4')
    await until(() => script.results.length === 5)
    expect(script.results.map(({ index, end }) => `${index} ${end}`).sort()).toEqual(
      [0, 1, 2, 3, 4].map((i) => `${i} done`),
    )
    expect(script.results[0]).toMatchObject({ site: 'here', node: 'node1', pilot: 'pilot1' })
    expect(await pilot.finished).toBe(300)
    expect(script.byes).toMatchObject([{ code: 300, reason: 'no more work', returned: [] }])
    expect(script.beats.at(-1)).toMatchObject({ held: [], counters: { tasks_started: 5, tasks_done: 5 } })
    expect(existsSync(join(site.folder, 'scratch', 'pilot1'))).toBe(false)
  })

  test('session - says what it started and what it uses, under one attempt name everywhere', async () => {
    await start()
    give(sh('sleep 60'), '3')
    const beat = await until(() => script.beats.find(({ usage }) => usage.length > 0))
    expect(beat.usage[0]!.attempt).toMatchObject({ index: 3, bundle: `b${script.bundles}` })
    expect(beat.gauges).toMatchObject({ cores: 2, coresBusy: 1, running: 1 })
    await until(() => script.beats.some(({ started }) => started.some(({ tasks }) => tasks === '3')))
    expect(script.beats.at(-1)!.held).toMatchObject([{ bundle: `b${script.bundles}`, step: 'sim' }])
    const history = lines.filter((line) => line.campaign === 'c0000000001' && line.task === 3)
    expect(history.map(({ msg }) => msg)).toContain('attempt.started')
    expect(history.every((line) => line.pilot === 'pilot1' && line.step === 'sim' && line.attempt)).toBe(true)
  })

  test('session - never runs more than the cores hold, and starts on without any acknowledgement', async () => {
    script.isDeaf = true
    await start()
    const log = join(site.folder, 'order')
    // The first two see each other, however slowly they start.
    const isNotAlone = `[ $$(wc -l < ${log}) -ge 2 ]`
    give(sh(`echo + >> ${log}; until ${isNotAlone}; do sleep 0.02; done; sleep 0.1; echo - >> ${log}`), '0-7')
    await until(() => lines.filter(({ msg }) => msg === 'attempt.ended').length === 8)
    let running = 0
    let most = 0
    for (const sign of readFileSync(log, 'utf8').trim().split('\n')) {
      running += sign === '+' ? 1 : -1
      most = Math.max(most, running)
    }
    expect([most, running]).toEqual([2, 0])
    expect(script.results).toEqual([])
    script.isDeaf = false
    await until(() => script.results.length === 8)
  })

  test('session - asks for what is free beside what runs', async () => {
    await start()
    give({ ...sh('sleep 60'), needs: { ...makeTemplate().needs, memoryBytes: 2 ** 29 } }, '0')
    await until(() => script.beats.some(({ usage }) => usage.length > 0))
    const offer = await until(() => script.pulls.find(({ offer }) => offer[0]?.shape.cores === 1)?.offer[0])
    expect(offer).toMatchObject({ count: 1, node: 'node1', shape: { memoryBytes: 1.5 * 2 ** 30, runtimes: ['host'] } })
  })
})

describe('results that nobody takes', () => {
  test.each([
    ['a success', 'exit 0'],
    ['a failure', 'exit 4'],
    ['a fault of the node that the pilot before it wrote down', null],
  ])('results that nobody takes - %s, as it is or plainly, holds up no other and no pilot', async (_what, end) => {
    script.neverUnderstood.add(1)
    const outbox = join(site.folder, 'scratch', 'pilot1', 'outbox')
    if (end === null) {
      const fault = { ...noResult({ site: 'here', node: 'node1', pilot: 'pilot1' }), ...site.ref(1) }
      mkdirSync(outbox, { recursive: true })
      writeFileSync(join(outbox, 'a.json'), JSON.stringify([fault]))
    }
    const pilot = await start({ cores: 3 })
    give(sh(`[ $INDRAFT_INDEX != 1 ] || ${end}`), end === null ? '0,2' : '0-2')
    await until(() => script.results.length === 2)
    expect(script.results.map(({ index, end }) => `${index} ${end}`).sort()).toEqual(['0 done', '2 done'])
    await until(() => lines.some(({ msg }) => msg === 'result.setAside'))
    // Nothing of it is held, so that a dispatcher finds it missing.
    await until(
      () => JSON.stringify(script.beats.at(-1)!.held) === '[]' && script.beats.at(-1)!.gauges.undelivered === 0,
    )
    const [bad] = readdirSync(outbox).filter((name) => name.endsWith('.bad')) as [string]
    expect(JSON.parse(readFileSync(join(outbox, bad), 'utf8'))).toMatchObject([{ index: 1 }])
    give(sh('exit 3'), '7')
    await until(() => script.results.some(({ index, exitCode }) => index === 7 && exitCode === 3))
    expect(await pilot.stop('SIGTERM')).toBe(200)
    expect(script.byes).toMatchObject([{ code: 200 }])
  })
})

describe('words of its own', () => {
  const times = (children: string) => `0m0s 0m0s\\n${children}\\n`
  test.each([
    ['a time that is no number', `exit 1\\n${times('0m1.2.3s 0m0s')}`],
    ['a time without end', `exit 1\\n${times(`${'9'.repeat(400)}m0s 0m0s`)}`],
    ['more time than the node has', `exit 1\\n${times('99999999999999m0s 0m0s')}`],
    ['an exit status that is none', `exit 99999999999999999999\\n${times('0m0s 0m0s')}`],
  ])('words of its own - a payload that says %s in the wrapper’s place harms itself alone', async (_what, words) => {
    const pilot = await start()
    give(sh(`printf 'started\\n${words}end\\n' >../control/status; kill -9 $PPID`), '0')
    const result = await until(() => script.results.find(({ index }) => index === 0))
    expect(result.end).toBe('failed')
    expect(result.cpuMs).toBeLessThanOrEqual(result.wallMs * cpus().length)
    give(sh('exit 3'), '7')
    await until(() => script.results.some(({ index, exitCode }) => index === 7 && exitCode === 3))
    await until(() => script.beats.some(({ counters }) => counters.tasks_failed === 2))
    expect(script.byes).toEqual([])
    expect(await pilot.stop('SIGTERM')).toBe(200)
  })
})

describe('trust', () => {
  const other = makeSigner(makeSigningKey())
  const flip = (signed: Signed): Signed => {
    const bytes = Uint8Array.from(signed.bytes)
    bytes[bytes.length - 3]! ^= 1
    return { ...signed, bytes }
  }

  test.each<[string, ErrorCode, () => { grant: Grant; template: Signed }]>([
    [
      'a changed bundle',
      'signature.invalid',
      () => {
        const made = script.grantOf(sh('touch ran'), '0')
        return { ...made, grant: { ...made.grant, bundle: flip(made.grant.bundle) } }
      },
    ],
    [
      'a changed template',
      'signature.invalid',
      () => {
        const made = script.grantOf(sh('touch ran'), '0')
        return { ...made, template: flip(made.template) }
      },
    ],
    ['a key that is not in the credential', 'signature.invalid', () => script.grantOf(sh('touch ran'), '0', {}, other)],
    ['work for another site', 'signature.invalid', () => script.grantOf({}, '0', { site: 'elsewhere' })],
    ['work past its expiry', 'signature.expired', () => script.grantOf({}, '0', { expiresAtMs: Date.now() - 1 })],
    [
      'an envelope that names more tasks',
      'envelope.widened',
      () => {
        const made = script.grantOf({}, '0')
        return { ...made, grant: { ...made.grant, lease: { ...made.grant.lease, tasks: '0-1' } } }
      },
    ],
    ['a template of another bundle', 'signature.invalid', () => script.grantOf({ step: 'other' }, '0')],
    [
      'a group that the site does not allow',
      'policy.refused',
      () => script.grantOf({ group: '/vo.example/production' }, '0'),
    ],
    [
      'more network than the site gives',
      'policy.refused',
      () => script.grantOf({ needs: { ...makeTemplate().needs, network: 'outgoing' } }, '0'),
    ],
  ])('trust - %s is refused with %s and nothing runs', async (_what, reason, make) => {
    await start({ allowGroups: ['/vo.example/prod'] })
    const { grant, template } = make()
    script.ready.push({ grants: [grant], templates: [template] })
    const result = await until(() => script.results[0])
    expect(result).toMatchObject({ end: 'failed', reason, index: 0, wallMs: 0 })
    expect(lines.some(({ msg }) => msg === 'attempt.started')).toBe(false)
  })

  test('trust - a welcome cannot bring keys of its own', async () => {
    const welcome = script.onHello.bind(script)
    script.onHello = async (peer, hello) => ({ ...(await welcome(peer, hello)), keys: other.keys })
    await start()
    give(sh('true'), '0', {}, other)
    expect((await until(() => script.results[0])).reason).toBe('signature.invalid')
  })
})

describe('orders', () => {
  test('orders - a cancelled attempt ends, the rest of its bundle goes on', async () => {
    await start()
    const grant = give(sh('[ $INDRAFT_INDEX = 0 ] && exec sleep 30; true'), '0-1')
    await until(() => script.beats.some(({ usage }) => usage.some(({ attempt }) => attempt.index === 0)))
    script.orders.push({ kind: 'attempt.cancel', attempt: { ...grant.lease, index: 0 } })
    await until(() => script.results.length === 2)
    expect(Object.fromEntries(script.results.map(({ index, reason }) => [index, reason]))).toEqual({
      0: 'attempt.cancelled',
      1: null,
    })
  })

  test('orders - a cancelled campaign: running ends, unstarted is given back', async () => {
    await start()
    give(sh('sleep 30'), '0-5')
    await until(() => script.beats.some(({ usage }) => usage.length === 2))
    script.orders.push({ kind: 'campaign.cancel', campaign: 'c0000000001', version: 2 })
    await until(() => script.results.length === 2)
    expect(script.results.every(({ reason }) => reason === 'attempt.cancelled')).toBe(true)
    const returned = await until(() => script.pulls.flatMap((pull) => pull.returned)[0])
    expect(returned.tasks).toBe('2-5')
    await until(() => JSON.stringify(script.beats.at(-1)!.held) === '[]')
  })

  test('orders - told to drain: finishes what runs, gives back the rest, leaves with 200', async () => {
    const pilot = await start()
    give(waits(), '0-3')
    await until(() => script.beats.some(({ usage }) => usage.length === 2))
    script.orders.push({ kind: 'holder.drain' })
    await until(() => lines.some(({ msg }) => msg === 'pilot.draining'))
    writeFileSync(flag(), '')
    expect(await pilot.finished).toBe(200)
    expect(script.results.map(({ end }) => end)).toEqual(['done', 'done'])
    const given = [...script.pulls.flatMap((pull) => pull.returned), ...script.byes.flatMap((bye) => bye.returned)]
    expect(given.map(({ tasks }) => tasks)).toContain('2-3')
  })
})

describe('leaving', () => {
  test('leaving - SIGTERM: payloads are ended, results say so, unstarted is given back, bye 700', async () => {
    const pilot = await start()
    give(sh('trap "" TERM; sleep 30'), '0-3')
    await until(() => script.beats.some(({ usage }) => usage.length === 2))
    expect(await pilot.stop('SIGTERM')).toBe(700)
    expect(script.results.map(({ reason }) => reason)).toEqual(['node.ending', 'node.ending'])
    const given = [...script.pulls.flatMap((pull) => pull.returned), ...script.byes.flatMap((bye) => bye.returned)]
    expect(given.map(({ tasks }) => tasks)).toEqual(['2-3'])
    expect(script.byes[0]).toMatchObject({ code: 700, reason: expect.stringContaining('SIGTERM') })
  })

  test('leaving - SIGTERM from Slurm and from its srun at the same time is one: the payload has its grace', async () => {
    const { clock, jump } = jumpingClock()
    const kernel = linuxProcesses()
    const told: string[] = []
    // As on a node with many payloads: the first signal takes longer to be passed on than the second to come.
    const kill = (pid: number, signal: NodeJS.Signals) => {
      kernel.kill(pid, signal)
      told.push(signal)
      jump(1500)
    }
    const pilot = await start({ payloadGrace: '20s' }, { clock, processes: { ...kernel, kill } })
    const ready = join(site.folder, 'ready')
    give(sh(`trap 'sleep 0.5; exit 5' TERM; echo >${ready}; while :; do sleep 0.05; done`), '0')
    await until(() => existsSync(ready))
    void pilot.stop('SIGTERM')
    expect(await pilot.stop('SIGTERM')).toBe(700)
    expect(told).toContain('SIGTERM')
    expect(script.results).toMatchObject([{ reason: 'node.ending', exitCode: 5 }])
  })

  test('leaving - SIGTERM without work is 200', async () => {
    const pilot = await start()
    await until(() => script.pulls.length > 0)
    expect(await pilot.stop('SIGINT')).toBe(200)
  })

  test('leaving - SIGUSR1 lets payloads finish, and ends them when the announced end comes', async () => {
    const { clock, jump } = jumpingClock()
    const pilot = await start({ noticeTime: '10min' }, { clock })
    const needs = { ...makeTemplate().needs, walltimeMs: 3_600_000 }
    give({ ...waits('[ $INDRAFT_INDEX = 0 ] || exec sleep 600'), needs }, '0-1')
    await until(() => script.beats.some(({ usage }) => usage.length === 2))
    const left = pilot.stop('SIGUSR1')
    writeFileSync(flag(), '')
    await until(() => script.results.length === 1)
    expect(script.byes).toEqual([])
    jump(600_000)
    expect(await left).toBe(700)
    expect(Object.fromEntries(script.results.map(({ index, reason }) => [index, reason]))).toEqual({
      0: null,
      1: 'node.ending',
    })
  })

  test('leaving - no work from the start is 300', async () => {
    expect(await (await start({ idleBefore: '200ms' })).finished).toBe(300)
    expect(script.byes[0]).toMatchObject({ code: 300, reason: 'no work' })
  })

  test('leaving - one that is given nothing but what is refused here leaves like one that is given nothing', async () => {
    const pull = script.onPull.bind(script)
    script.onPull = async (peer, message) => {
      if (message.offer.length > 0) give({ group: '/others' }, '0')
      return await pull(peer, message)
    }
    const pilot = await start({ allowGroups: ['/vo.example/prod'], idleBefore: '1500ms' })
    expect(await pilot.finished).toBe(300)
    expect(script.results[0]).toMatchObject({ reason: 'policy.refused' })
    expect(script.beats.at(-1)).toMatchObject({ counters: { tasks_started: 0 } })
  })

  test('leaving - the time of the node test is not idle time: work is asked for after it all the same', async () => {
    // What the node test does first takes longer than the pilot has patience without work.
    const binary = join(site.folder, 'apptainer')
    writeFileSync(binary, '#!/bin/sh\nsleep 1.5\nexit 1\n', { mode: 0o755 })
    const pilot = await start({ containerRuntime: binary, idleBefore: '1s' })
    await until(() => script.pulls.some(({ offer }) => offer.length > 0))
    expect(lines.findIndex(({ msg }) => msg === 'node.tested')).toBeGreaterThan(0)
    expect(await pilot.finished).toBe(300)
    expect(script.byes).toMatchObject([{ code: 300, reason: 'no work' }])
  })

  test('leaving - too little time left is 300, and nothing is asked for', async () => {
    const batch = { ...BATCH, slurmEndTimeS: Math.round(Date.now() / 1000) + 100 }
    expect(await (await start({}, { batch })).finished).toBe(300)
    expect(script.hellos[0]!.nodes[0]!.timeLeftMs).toBeLessThan(41_000)
    expect(script.pulls).toEqual([])
  })

  test('leaving - a bad node is 500, said in the bye and where the batch system looks', async () => {
    const jobOutputs = join(site.folder, 'joboutputs')
    mkdirSync(jobOutputs)
    const pilot = await start({ hostRuntime: 'false' }, { batch: { ...BATCH, jobOutputs } })
    expect(await pilot.finished).toBe(500)
    expect(script.byes[0]).toMatchObject({ code: 500, reason: expect.stringContaining('runtime') })
    expect(readFileSync(join(jobOutputs, 'shutdown_message'), 'utf8')).toMatch(/^500 a runtime works: [^\n]+$/)
    expect(script.pulls).toEqual([])
  })

  test.each(['imageFolder', 'traceLog', 'endFolder', 'stopFile', 'banFile', 'allowImages', 'scratch'])(
    'leaving - containers alone, and a bind through which payloads could write %s: 500',
    async (setting) => {
      const project = join(site.folder, 'project')
      mkdirSync(project)
      const kept = join(project, 'kept')
      const more = { hostRuntime: 'false', containerRuntime: '/bin/true', binds: `/usr:/usr:ro,${project}:/project` }
      expect(await (await start({ ...more, [setting]: kept })).finished).toBe(500)
      expect(lines).toContainEqual(
        expect.objectContaining({ msg: 'container.bindRefused', bind: `${project}:/project` }),
      )
    },
  )

  test('leaving - a site that was disabled is 400', async () => {
    script.refuseHello = 'site.disabled'
    expect(await (await start()).finished).toBe(400)
  })

  test('leaving - a dispatcher that never answers is 700', async () => {
    const link = {
      isUp: false,
      request: () => Promise.reject(new IndraftError('link.noResponder')),
      close: async () => {},
    }
    expect(await (await start({ goneAfter: '300ms' }, { link })).finished).toBe(700)
  })

  test('leaving - a STOP file drains', async () => {
    const pilot = await start()
    await until(() => script.pulls.length > 0)
    writeFileSync(join(site.folder, 'scratch', 'STOP'), '')
    expect(await pilot.finished).toBe(200)
  })

  test('leaving - a second SIGTERM hurries, and what was not delivered waits for the next pilot', async () => {
    script.isDeaf = true
    const pilot = await start()
    give(sh('exit 4'), '0')
    await until(() => lines.some(({ msg }) => msg === 'attempt.ended'))
    void pilot.stop('SIGTERM')
    await systemClock.sleep(1100)
    const code = await pilot.stop('SIGTERM')
    expect([code, script.results]).toEqual([200, []])
    script.isDeaf = false
    script.session = 's2'
    await start({ name: 'pilot1' })
    expect(await until(() => script.results.find(({ exitCode }) => exitCode === 4))).toMatchObject({ pilot: 'pilot1' })
  })

  test('leaving - what is granted while the bye is under way starts no more, and goes back', async () => {
    const said = Promise.withResolvers<void>()
    const [pull, bye] = [script.onPull.bind(script), script.onBye.bind(script)]
    script.onPull = async (peer, message) => {
      await said.promise
      return await pull(peer, message)
    }
    script.onBye = async (peer, message) => {
      give(sh('sleep 600'), '0')
      said.resolve()
      await until(() => lines.some(({ msg }) => msg === 'work.granted'))
      // What starts says so within the same turn of the loop.
      return await bye(peer, message)
    }
    const pilot = await start({ idleBefore: '300ms' })
    expect(await pilot.finished).toBe(300)
    const history = lines.map(({ msg }) => msg)
    expect(history).toContain('attempt.givenBack')
    expect(history).not.toContain('attempt.fetching')
  })

  test('leaving - one whose results the dispatcher refuses for good lets its payloads end, then leaves; they wait for the next', async () => {
    const report = script.onReport.bind(script)
    script.onReport = async () => {
      throw new IndraftError('message.garbled')
    }
    const pilot = await start()
    give({ ...waits('exit 6'), needs: { ...makeTemplate().needs, memoryBytes: 2 ** 26 } }, '1')
    await until(() => script.beats.some(({ usage }) => usage.length === 1))
    give(sh('exit 4'), '0')
    await until(() => lines.some(({ msg }) => msg === 'session.refused'))
    expect(script.byes).toEqual([])
    writeFileSync(flag(), '')
    expect(await pilot.finished).toBe(600)
    expect(script.byes).toMatchObject([{ code: 600, reason: expect.stringContaining('message.garbled') }])
    script.onReport = report
    script.session = 's2'
    await start()
    await until(() => script.results.length === 2)
    expect(script.results.map(({ exitCode }) => exitCode).sort()).toEqual([4, 6])
  })
})

describe('trouble', () => {
  test('trouble - a lost session: what runs goes on and is reported in the new one, unstarted is dropped', async () => {
    await start()
    give(waits('exit 6'), '0-3')
    await until(() => script.beats.some(({ usage }) => usage.length === 2))
    script.dead.add('s1')
    script.session = 's2'
    await until(() => script.beats.some(({ session }) => session === 's2'))
    expect(script.beats.at(-1)!.held).toEqual([])
    writeFileSync(flag(), '')
    await until(() => script.results.length === 2)
    expect(script.results.map(({ exitCode }) => exitCode)).toEqual([6, 6])
    expect(lines.filter(({ msg }) => msg === 'attempt.started')).toHaveLength(2)
  })

  test('trouble - a pilot that stood still says so and blames no payload for it', async () => {
    const { clock, jump } = jumpingClock()
    await start({}, { clock })
    // Its walltime is less than the standstill, and more than this test takes.
    give({ ...waits(), needs: { ...makeTemplate().needs, walltimeMs: 60_000 } }, '0')
    // The limits count by now: this one has met its own.
    give({ ...sh('exec sleep 600'), needs: { ...makeTemplate().needs, walltimeMs: 300 } }, '1')
    expect((await until(() => script.results[0])).reason).toBe('payload.walltime')
    jump(120_000)
    await until(() => lines.some(({ msg }) => msg === 'pilot.suspended'))
    await until(() => script.beats.at(-1)!.counters.suspended! >= 1)
    writeFileSync(flag(), '')
    expect(await until(() => script.results[1])).toMatchObject({ index: 0, end: 'done' })
  })

  test('trouble - an idle pilot that stood still does not take its own silence for the dispatcher’s', async () => {
    const { clock, jump } = jumpingClock()
    // Held back until it has looked at its clock: with seconds between beats, as in truth, the look comes first.
    const held = Promise.withResolvers<void>()
    const [pull, beat] = [script.onPull.bind(script), script.onBeat.bind(script)]
    await start({ goneAfter: '10s' }, { clock })
    await until(() => script.pulls.length > 0)
    script.onPull = (peer, message) => held.promise.then(() => pull(peer, message))
    script.onBeat = (peer, message) => held.promise.then(() => beat(peer, message))
    jump(15_000)
    await until(() => lines.some(({ msg }) => msg === 'pilot.suspended'))
    held.resolve()
    const told = await until(() => script.beats.find(({ counters }) => counters.suspended_ms! > 14_000))
    expect(told.counters.suspended).toBeGreaterThanOrEqual(1)
    expect(script.byes).toEqual([])
  })

  test('trouble - two pilots of one name: the second is refused', async () => {
    await start()
    const owner = join(site.folder, 'scratch', 'pilot1', 'pilot.json')
    const { startTicksOf } = await import('./processes.ts')
    const record = JSON.parse(readFileSync(owner, 'utf8'))
    writeFileSync(owner, JSON.stringify({ ...record, pid: process.ppid, startTicks: startTicksOf(process.ppid) }))
    await expect(start()).rejects.toThrow('a pilot named pilot1 runs already')
  })
})
