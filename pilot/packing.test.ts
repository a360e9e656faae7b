/** A pilot in this process on a node that tools of the test describe: whose GPUs are whose, the end of an allocation, bans. */
import { existsSync, readdirSync, readFileSync, renameSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { systemClock } from '../shared/clock.ts'
import { writeCredential } from '../shared/credentials.ts'
import { frameHandler } from '../shared/dispatcher.ts'
import { memoryLink } from '../shared/link.ts'
import { silentLog } from '../shared/log.ts'
import { loadPilotConfig, readBatchEnvironment } from './config.ts'
import type { Launch } from './container.ts'
import { GpuFiles } from './gpu-devices.ts'
import type { Gpus } from './gpus.ts'
import { type Pilot, type PilotWorld, startPilot } from './main.ts'
import { Attempt } from './payload.ts'
import { linuxProcesses } from './processes.ts'
import { ScriptedDispatcher } from './scripted-dispatcher.ts'
import { makeSkeletonSif } from './sif.ts'
import { makeTemplate, PATH, TestSite } from './testbench.ts'
import { readTrace } from './trace-reader.ts'

const TIMINGS = { beatMs: 50, lostAfterMs: 5000, leaseMs: 60_000, confirmMs: 1000, pullWaitMs: 300 }
const { needs } = makeTemplate()

let site: TestSite
let script: ScriptedDispatcher
let pilots: Pilot[]

beforeEach(async () => {
  site = await new TestSite().open()
  script = new ScriptedDispatcher(site, TIMINGS)
  pilots = []
})
afterEach(async () => {
  vi.restoreAllMocks()
  for (const pilot of pilots) {
    void pilot.stop()
    await pilot.stop()
  }
  await site.close()
})

async function start(
  args: Record<string, unknown> = {},
  env: Record<string, string> = {},
  world: PilotWorld = {},
): Promise<Pilot> {
  const credential = join(site.folder, 'pilot.json')
  const nats = { url: 'nats://unused', user: null, password: null, creds: null, ca: null, inboxPrefix: '_INBOX' }
  writeCredential(credential, {
    ...{ kind: 'pilot', site: 'here', nats, files: { token: 'secret', ca: null }, keys: site.signer.keys },
  })
  const settings = {
    ...{ credential, scratch: join(site.folder, 'scratch'), name: 'pilot1', node: 'node1', cores: 4 },
    ...{ memory: '4GiB', containerRuntime: 'none', watchEvery: '100ms', payloadGrace: '300ms', drainGrace: '60s' },
    ...{ cvmfs: join(site.folder, 'cvmfs'), ...args },
  }
  const batch = readBatchEnvironment({ PATH, ...env })
  const link = memoryLink({ site: 'here' }, frameHandler(script, silentLog))
  const pilot = await startPilot(loadPilotConfig(settings, undefined, {}), silentLog, {
    ...{ batch, link },
    ...world,
  })
  pilots.push(pilot)
  return pilot
}

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

const sh = (text: string) => ({ command: ['sh', '-c', text] })
const text = (path: string) => {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}

describe('the end of an allocation', () => {
  test('packing - what could not end any more is given back, and short work fills the tail', async () => {
    const endS = Math.floor(Date.now() / 1000) + 600
    await start({ endMargin: '60s' }, { SLURM_JOB_END_TIME: String(endS) })
    // The first runs; the clock says then that the rest would not end.
    script.give({ ...sh('true'), needs: { ...needs, walltimeMs: 2 * 3_600_000 } }, '0-2')
    const pull = await until(() => script.pulls.find(({ returned }) => returned.length > 0))
    expect(pull.returned).toMatchObject([{ tasks: '0-2' }])
    expect(script.results).toEqual([])
    expect(pull.offer[0]?.timeLeftMs ?? 0).toBeLessThanOrEqual(540_000)
    script.give({ ...sh('true'), needs: { ...needs, walltimeMs: 30_000 } }, '5-6')
    await until(() => script.results.length === 2)
    expect(script.results.map(({ index, end }) => `${index} ${end}`).sort()).toEqual(['5 done', '6 done'])
  })

  test('packing - with nothing that fits the time left the pilot leaves', async () => {
    const endS = Math.floor(Date.now() / 1000) + 600
    const pilot = await start({ idleBefore: '500ms' }, { SLURM_JOB_END_TIME: String(endS) })
    script.give({ ...sh('true'), needs: { ...needs, walltimeMs: 2 * 3_600_000 } }, '0')
    expect(await pilot.finished).toBe(300)
    expect(script.results).toEqual([])
  })
})

test('packing - an image that had to be unpacked takes scratch while it is in use, and is gone with its pilot', async () => {
  // A runtime that cannot mount image files and says so; what it unpacks is 3 MiB in a folder that nobody may write.
  const binary = join(site.folder, 'apptainer')
  const image = join(site.folder, 'a.sif')
  const make = 'mkdir -p "$4/locked" && head -c 3145728 /dev/urandom > "$4/locked/data" && chmod 500 "$4/locked"'
  writeFileSync(
    binary,
    `#!/bin/sh
[ "$1" = --version ] && { echo apptainer version 1.4.5; exit; }
[ "$2" = build ] && { ${make}; exit; }
for a; do case $a in *:/indraft) control=\${a%:/indraft} ;; *.sif) echo "INFO: Converting SIF file" ;; esac; done
[ -n "$control" ] || exit 0
while [ "$1" != /bin/sh ]; do shift; done; shift 3
exec /bin/sh "$control/run" "$control/status" "$@"
`,
    { mode: 0o755 },
  )
  writeFileSync(image, makeSkeletonSif())
  const space = 2 ** 30
  const pilot = await start({ containerRuntime: binary, scratchSpace: '1GiB' })
  const offered = () => script.pulls.at(-1)?.offer[0]?.shape.scratchBytes ?? 0
  await until(() => offered() === space)
  const end = join(site.folder, 'end')
  script.give({ ...sh(`while [ ! -e ${end} ]; do sleep 0.05; done`), image }, '0')
  await until(() => offered() > 0 && offered() <= space - 3 * 2 ** 20)
  writeFileSync(end, '')
  await until(() => script.results.length === 1 && offered() === space)
  expect(script.results[0]).toMatchObject({ end: 'done', reason: null })
  await pilot.stop()
  expect(existsSync(join(site.folder, 'scratch/pilot1'))).toBe(false)
})

test('packing - what is larger than the node is given back, however often it comes, and keeps no pilot', async () => {
  const pilot = await start({ idleBefore: '700ms' })
  script.give({ ...sh('true'), needs: { ...needs, cores: 5 } }, '0-2')
  expect(await pilot.finished).toBe(300)
  expect([...script.pulls, ...script.byes].flatMap(({ returned }) => returned)).toMatchObject([{ tasks: '0-2' }])
  expect(script.results).toEqual([])
})

describe("the site's own word", () => {
  const ran = (who: string) => join(site.folder, `ran-${who}`)
  const long = (who: string) => ({ ...sh(`echo >${join(site.folder, 'ran')}-${who}; sleep 60`), subject: who })

  test('ban - a subject in the ban file: what runs ends, what comes is refused, others go on, and it can be lifted', async () => {
    const banFile = join(site.folder, 'BANNED')
    await start({ banFile, banEvery: '100ms', traceLog: join(site.folder, 'trace-here') })
    script.give(long('eve'), '0')
    script.give(long('ada'), '1')
    await until(() => text(ran('eve')) && text(ran('ada')))
    writeFileSync(banFile, 'eve  # by phone\n')
    const ended = await until(() => script.results.find(({ index }) => index === 0))
    expect(ended).toMatchObject({ end: 'failed', reason: 'policy.refused' })
    script.give(long('eve'), '2')
    const refused = await until(() => script.results.find(({ index }) => index === 2))
    expect(refused).toMatchObject({
      end: 'failed',
      reason: 'policy.refused',
      detail: expect.stringContaining('banned'),
    })
    expect(script.results).toHaveLength(2)
    writeFileSync(banFile, '')
    script.give({ ...sh('true'), subject: 'eve' }, '3')
    expect(await until(() => script.results.find(({ index }) => index === 3 || index === 4))).toBeDefined()
    const traced = await readTrace(join(site.folder, 'trace-here'), { subject: 'eve', node: 'node1' })
    expect(traced[0]).toMatchObject({ subject: 'eve', reason: 'policy.refused', endedAt: expect.any(String) })
  })

  test('ban - a subject that the settings deny never starts', async () => {
    await start({ denySubjects: ['eve'] })
    script.give(long('eve'), '0')
    const refused = await until(() => script.results[0])
    expect(refused).toMatchObject({ reason: 'policy.refused' })
    expect(text(ran('eve'))).toBe('')
  })
})

describe('GPUs', () => {
  const gpus: Gpus = {
    vendor: 'nvidia',
    driver: '550.1',
    devices: ['GPU-a', 'GPU-b', 'GPU-c'].map((id) => ({ id, model: 'NVIDIA X', memoryBytes: 2 ** 34 })),
  }
  const tiny = { ...needs, memoryBytes: 2 ** 26, gpuMemoryBytes: 2 ** 34 }

  test('packing - a GPU is one payload`s own for as long as it runs, and nobody sees another`s', async () => {
    const log = join(site.folder, 'seen')
    const show = `echo "+ $CUDA_VISIBLE_DEVICES" >>${log}; sleep 0.$$((INDRAFT_INDEX % 3)); echo "- $CUDA_VISIBLE_DEVICES" >>${log}`
    await start({}, {}, { gpus })
    script.give({ ...sh(show), needs: { ...tiny, gpus: 1 } }, '0-8')
    script.give({ ...sh(show), needs: { ...tiny, gpus: 2 } }, '10-12')
    script.give({ ...sh(show), needs: { ...tiny, gpus: 0 } }, '20')
    await until(() => script.results.length === 13)
    expect(script.results.map(({ end }) => end)).toEqual(Array.from({ length: 13 }, () => 'done'))
    const held = new Set<string>()
    for (const line of text(log).trimEnd().split('\n')) {
      const ids = line.slice(2).split(',')
      for (const id of ids.filter((one) => one !== '')) {
        expect(held.has(id)).toBe(line.startsWith('-'))
        if (line.startsWith('+')) held.add(id)
        else held.delete(id)
      }
    }
    expect(held.size).toBe(0)
    expect(text(log)).toMatch(/^\+ $/m)
    expect(text(log)).toMatch(/^\+ GPU-.,GPU-.$/m)
  })

  test('packing - what is said of a payload’s GPUs names the device files of all others', async () => {
    const own = new Map(gpus.devices.map(({ id }, minor) => [id, [`/dev/nvidia${minor}`]]))
    const files = new GpuFiles(['/dev/nvidia0', '/dev/nvidia1', '/dev/nvidia2', '/dev/nvidia3'], own, new Set())
    const seen: Launch['gpus'][] = []
    const start_ = Attempt.prototype.run
    vi.spyOn(Attempt.prototype, 'run').mockImplementation(function (this: Attempt) {
      seen.push(this.work.gpus)
      return start_.call(this)
    })
    await start({}, {}, { gpus: { ...gpus, files } })
    script.give({ ...sh('true'), needs: { ...tiny, gpus: 2 } }, '0')
    await until(() => script.results.length === 1)
    expect(seen).toEqual([
      { vendor: 'nvidia', ids: ['GPU-a', 'GPU-b'], covered: ['/dev/nvidia2', '/dev/nvidia3'], isAlone: true },
    ])
  })

  test('packing - hello and offer say how many GPUs there are, of what kind, and with how much memory', async () => {
    await start({}, {}, { gpus })
    const node = (await until(() => script.hellos[0])).nodes[0]!
    expect(node).toMatchObject({ gpus: 3, gpuMemoryBytes: 2 ** 34, labels: { gpu: 'NVIDIA X', gpu_driver: '550.1' } })
    script.give({ ...sh('sleep 60'), needs: { ...tiny, gpus: 2 } }, '0')
    const pull = await until(() => script.pulls.find(({ offer }) => offer[0]?.shape.gpus === 1))
    expect(pull.offer[0]!.shape).toMatchObject({ gpuMemoryBytes: 2 ** 34 })
  })
})

test('packing - what a task left behind and SIGKILL does not end keeps its room and its GPUs from all others', async () => {
  const gpus: Gpus = {
    vendor: 'nvidia',
    driver: '550.1',
    devices: ['a', 'b', 'c'].map((id) => ({ id, model: 'NVIDIA X', memoryBytes: 2 ** 34 })),
  }
  const tiny = { ...needs, memoryBytes: 2 ** 26, gpuMemoryBytes: 2 ** 34 }
  const kernel = linuxProcesses()
  const refused: number[] = []
  const processes = { ...kernel, kill: (pid: number) => void refused.push(pid) }
  let jumpedMs = 0
  const clock = { ...systemClock, monotonicMs: () => systemClock.monotonicMs() + jumpedMs }
  await start({}, {}, { gpus, processes, clock })
  const left = join(site.folder, 'left')
  script.give({ ...sh(`sleep 600 >/dev/null 2>&1 & echo $! >${left}`), needs: { ...tiny, gpus: 2, cores: 2 } }, '0')
  await until(() => script.results.length === 1)
  const pid = Number(text(left))
  onTestFinished(() => kernel.kill(pid, 'SIGKILL'))
  await until(() => refused.includes(pid))
  const { length } = script.pulls
  jumpedMs = 11_000
  await until(() => script.pulls.slice(length).find(({ offer }) => offer[0]?.shape.gpus === 1))
  expect(script.pulls.at(-1)!.offer[0]!.shape).toMatchObject({ cores: 2, gpus: 1 })
  const log = join(site.folder, 'seen')
  script.give({ ...sh(`echo $CUDA_VISIBLE_DEVICES >>${log}`), needs: { ...tiny, gpus: 1 } }, '1-4')
  await until(() => script.results.length === 5)
  expect(text(log)).toBe('c\nc\nc\nc\n')
})

test('packing - what a task has written takes scratch until it is stored and removed', async () => {
  const storing = Promise.withResolvers<void>()
  const stored = Promise.withResolvers<void>()
  const put = site.store.put.bind(site.store)
  site.store.put = async (...file) => {
    storing.resolve()
    await stored.promise
    return await put(...file)
  }
  onTestFinished(() => stored.resolve())
  await start({ scratchSpace: '1GiB' })
  const tasks = join(site.folder, 'scratch/pilot1/tasks')
  /** At each start: the folders of others that are still there. */
  const others: string[][] = []
  const { run } = Attempt.prototype
  vi.spyOn(Attempt.prototype, 'run').mockImplementation(function (this: Attempt) {
    others.push(existsSync(tasks) ? readdirSync(tasks) : [])
    return run.call(this)
  })
  script.give(
    {
      // So many that it takes a while to remove them.
      ...sh('seq 3000 | xargs touch; echo here >out'),
      outputs: [{ path: 'out', url: null, optional: false }],
      needs: { ...needs, memoryBytes: 2 ** 26, scratchBytes: 600 * 2 ** 20 },
    },
    '0-1',
  )
  await storing.promise
  const { length } = script.beats
  const beat = await until(() => script.beats[length + 2])
  expect(beat).toMatchObject({ counters: { tasks_started: 1 }, gauges: { coresBusy: 0, waiting: 1 } })
  expect(readdirSync(tasks)).toHaveLength(1)
  stored.resolve()
  await until(() => script.results.length === 2)
  expect(script.results.map(({ end }) => end)).toEqual(['done', 'done'])
  expect(others).toEqual([[], []])
})

test('packing - a core that came free is offered with the scratch that comes free after it, and waits for no other pull', async () => {
  const storing = Promise.withResolvers<void>()
  const stored = Promise.withResolvers<void>()
  const put = site.store.put.bind(site.store)
  site.store.put = async (...file) => {
    storing.resolve()
    await stored.promise
    return await put(...file)
  }
  onTestFinished(() => stored.resolve())
  const space = 2 ** 30
  const work = {
    ...sh('echo here >out'),
    outputs: [{ path: 'out', url: null, optional: false }],
    needs: { ...needs, scratchBytes: 600 * 2 ** 20 },
  }
  // A dispatcher has one pull of a pilot at a time, and keeps one that it has nothing for.
  const onPull = script.onPull.bind(script)
  const over = Promise.withResolvers<void>()
  onTestFinished(() => over.resolve())
  const offered: number[] = []
  script.onPull = async (peer, pull) => {
    offered.push(pull.offer[0]!.shape.scratchBytes)
    if (offered.length > 2) await over.promise
    return await onPull(peer, pull)
  }
  script.give(work, '0')
  script.give(work, '1')
  await start({ cores: 1, scratchSpace: '1GiB' })
  await storing.promise
  await until(() => offered.length > 1)
  expect(offered).toEqual([space, space])
  const beat = await until(() => script.beats.find(({ gauges }) => gauges.coresBusy === 0 && gauges.waiting === 1))
  expect(beat).toMatchObject({ counters: { tasks_started: 1 } })
  stored.resolve()
  await until(() => script.results.length === 2)
  expect(script.results.map(({ index, end }) => `${index} ${end}`)).toEqual(['0 done', '1 done'])
})

test('packing - scratch whose files cannot be removed is offered no more, and what it leaves no room for is given back', async () => {
  const tasks = join(site.folder, 'scratch', 'pilot1', 'tasks')
  const put = site.store.put.bind(site.store)
  site.store.put = async (...file) => {
    // A payload of the same account could do so: no way leads to its files any more.
    renameSync(tasks, `${tasks}-aside`)
    symlinkSync('tasks', tasks)
    return await put(...file)
  }
  const [space, scratchBytes] = [2 ** 30, 600 * 2 ** 20]
  const outputs = [{ path: 'out', url: null, optional: false }]
  const work = { ...sh('echo here >out'), outputs, needs: { ...needs, scratchBytes } }
  script.give(work, '0')
  script.give(work, '1')
  await start({ cores: 1, scratchSpace: '1GiB' })
  const pull = await until(() => script.pulls.find(({ returned }) => returned.length > 0))
  expect(pull.returned).toMatchObject([{ tasks: '1' }])
  expect(pull.offer).toMatchObject([{ shape: { cores: 1, scratchBytes: space - scratchBytes } }])
  expect(await until(() => script.results[0])).toMatchObject({ index: 0, end: 'done' })
})

test('packing - bound payloads have processors of their own, each as many as it asked for', async () => {
  const log = join(site.folder, 'cpus')
  // Each stays until both are there: one after the other could have the same ones.
  const both = `[ $$(wc -l <${log}) -ge 2 ]`
  const show = `grep Cpus_allowed_list /proc/self/status >>${log}; until ${both}; do sleep 0.02; done`
  await start({ bindCores: true, cores: 2 })
  script.give({ ...sh(show), needs: { ...needs, memoryBytes: 2 ** 26 } }, '0-1')
  await until(() => script.results.length === 2)
  const lists = text(log).trim().split('\n')
  expect(lists).toHaveLength(2)
  for (const line of lists) expect(line).toMatch(/^Cpus_allowed_list:\s+\d+$/)
  expect(new Set(lists).size).toBe(2)
  script.give({ ...sh(show), needs: { ...needs, memoryBytes: 2 ** 26, cores: 2 } }, '2')
  await until(() => script.results.length === 3)
  expect(text(log).trim().split('\n').at(-1)).toMatch(/\d[-,]\d/)
})
