import { beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { silentLog } from '../shared/log.ts'
import { Membership, type ProcessFacts, type ProcessSource, parseStat } from './processes.ts'
import { Watcher } from './watch.ts'
import { parseStatus } from './wrapper.ts'

const RUN = 'run-1'

/** A kernel that says what the test wants. */
class ScriptedKernel implements ProcessSource {
  processes: ProcessFacts[] = []
  environments = new Map<number, string[] | null>()
  readonly killed: string[] = []
  readonly limits = new Map<number, number>()

  add(pid: number, more: Partial<ProcessFacts> = {}, environment: string[] | null = ['A=b']): void {
    const base = {
      pid,
      parent: 1,
      group: pid,
      session: pid,
      startTicks: pid,
      cpuMs: 0,
      rssBytes: 4096,
      isZombie: false,
    }
    this.processes.push({ ...base, ...more })
    this.environments.set(pid, environment)
  }
  list() {
    return this.processes
  }
  environment(pid: number) {
    return this.environments.get(pid) ?? null
  }
  pssBytes() {
    return null
  }
  fileLimit(pid: number) {
    return this.limits.get(pid) ?? null
  }
  kill(pid: number, signal: string) {
    this.killed.push(`${pid} ${signal}`)
  }
}

let kernel: ScriptedKernel
beforeEach(() => {
  kernel = new ScriptedKernel()
})

function membersOf(membership: Membership, attempt = 'a'): number[] {
  return (membership.assign(new Map([[100, 'a']])).get(attempt) ?? []).map(({ pid }) => pid)
}

describe('membership', () => {
  test('watch - session, group, children and marked processes belong to the attempt, others do not', () => {
    const mark = [`INDRAFT_PILOT_RUN=${RUN}`, 'INDRAFT_ATTEMPT=a']
    kernel.add(100)
    kernel.add(101, { session: 100 })
    kernel.add(102, { parent: 101, session: 102 })
    kernel.add(103, {}, mark)
    kernel.add(104, {}, ['INDRAFT_PILOT_RUN=another', 'INDRAFT_ATTEMPT=a'])
    kernel.add(105, {}, null)
    kernel.add(106, { session: 100, isZombie: true })
    expect(membersOf(new Membership(kernel, RUN), 'a')).toEqual([100, 101, 102, 103])
  })

  test('watch - what a first process left in its session before any scan is its own, until its pid is given out again', () => {
    kernel.add(201, { session: 200, group: 201 }, null)
    const left = () => new Membership(kernel, RUN).assign(new Map(), new Map([[200, 'a']])).get('a')
    expect(left()?.map(({ pid }) => pid)).toEqual([201])
    kernel.add(200)
    expect(left()).toBeUndefined()
  })

  test('watch - a process that was known stays known after it left its parent, until its pid is reused', () => {
    const membership = new Membership(kernel, RUN)
    kernel.add(100)
    kernel.add(200, { parent: 100 }, [])
    expect(membersOf(membership)).toEqual([100, 200])
    kernel.processes = []
    kernel.add(200, { parent: 1 }, [])
    expect(membersOf(membership)).toEqual([200])
    kernel.processes = []
    kernel.add(200, { parent: 1, startTicks: 9 })
    expect(membersOf(membership)).toEqual([])
  })

  test('watch - a daemon without session, parent, environment or folder is known by the limit it inherited', () => {
    const blocks = 2 ** 40 + 100
    kernel.add(300)
    kernel.add(301)
    kernel.add(302)
    kernel.limits
      .set(300, blocks * 512)
      .set(301, blocks * 1024)
      .set(302, (blocks + 1) * 512)
    expect(membersOf(new Membership(kernel, RUN))).toEqual([300, 301])
    const ended = new Membership(kernel, RUN).assign(new Map(), new Map([[100, 'a']])).get('a')
    expect(ended?.map(({ pid }) => pid)).toEqual([300, 301])
  })

  test('watch - a process that is just being loaded is asked again', () => {
    const membership = new Membership(kernel, RUN)
    kernel.add(300, {}, [])
    expect(membersOf(membership)).toEqual([])
    kernel.environments.set(300, [`INDRAFT_PILOT_RUN=${RUN}`, 'INDRAFT_ATTEMPT=a'])
    expect(membersOf(membership)).toEqual([300])
  })
})

test('watch - a process that survives SIGKILL is told once, and its attempt need not wait for it', async () => {
  const told: string[] = []
  let nowMs = 0
  const clock = {
    wallMs: () => nowMs,
    monotonicMs: () => nowMs,
    sleep: async (ms: number) => {
      nowMs += ms
    },
  }
  const watcher = new Watcher({ source: kernel, clock, log: silentLog, run: RUN, everyMs: 5 })
  kernel.add(100)
  kernel.add(150, { parent: 100 })
  const limits = { walltimeMs: 1, memoryBytes: 0, scratchBytes: 0, stalledAfterMs: null }
  const watched = watcher.watch({
    attempt: 'a',
    pid: 100,
    folders: [],
    limits,
    outputBytes: () => 0,
    onViolated: () => {},
    onUnkillable: () => void told.push('a'),
  })
  await watcher.end(watched, 1000, new AbortController().signal)
  expect(told).toEqual(['a'])
  expect(kernel.killed.slice(0, 4)).toEqual(['-100 SIGTERM', '150 SIGTERM', '-100 SIGKILL', '150 SIGKILL'])
  expect(nowMs).toBeGreaterThanOrEqual(11_000)
  watcher.release(watched)
  for (let look = 0; look < 3; look++) {
    const killed = kernel.killed.length
    await vi.waitFor(() => expect(kernel.killed.length).toBeGreaterThan(killed), 30_000)
    nowMs += 11_000
  }
  expect(told).toEqual(['a'])
  watcher.close()
})

describe('a standstill of the pilot', () => {
  const STOOD_STILL_MS = 3_600_000
  const limits = { walltimeMs: 1e9, memoryBytes: 0, scratchBytes: 0, stalledAfterMs: null }
  const told = { attempt: 'a', pid: 100, folders: [], limits, outputBytes: () => 0, onViolated: () => {} }

  test('watch - one that fell between a kill and the word of its end makes nothing unkillable', async () => {
    const exited = new AbortController()
    let nowMs = 0
    const clock = {
      wallMs: () => nowMs,
      monotonicMs: () => nowMs,
      // The first pause lasts long, and is over before the end is heard of; the second is long enough to hear.
      sleep: async () => {
        if (nowMs > 0) exited.abort()
        nowMs += STOOD_STILL_MS
      },
    }
    const watcher = new Watcher({ source: kernel, clock, log: silentLog, run: RUN, everyMs: 1e6 })
    const onUnkillable = vi.fn()
    await watcher.end(watcher.watch({ ...told, onUnkillable }), 0, exited.signal)
    expect(kernel.killed).toEqual(['-100 SIGKILL', '-100 SIGKILL'])
    expect(onUnkillable).not.toHaveBeenCalled()
    watcher.close()
  })

  test('watch - a leftover is unkillable after many looks, however long one of them was put off', async () => {
    let nowMs = 0
    const clock = { wallMs: () => nowMs, monotonicMs: () => nowMs, sleep: async () => {} }
    const watcher = new Watcher({ source: kernel, clock, log: silentLog, run: RUN, everyMs: 5 })
    onTestFinished(() => watcher.close())
    const onUnkillable = vi.fn()
    kernel.add(101, { session: 100 })
    watcher.release(watcher.watch({ ...told, onUnkillable }))
    const killedAgain = async () => {
      const killed = kernel.killed.length
      await vi.waitFor(() => expect(kernel.killed.length).toBeGreaterThan(killed), 30_000)
    }
    await killedAgain()
    nowMs += STOOD_STILL_MS
    await killedAgain()
    expect(onUnkillable).not.toHaveBeenCalled()
    for (let look = 0; look < 10; look++) {
      nowMs += 1000
      await killedAgain()
    }
    expect(onUnkillable).toHaveBeenCalledOnce()
  })
})

test('watch - attempts that are told to end in one turn share a look, later ones have their own', async () => {
  const looked = vi.spyOn(kernel, 'list')
  const clock = { wallMs: () => 0, monotonicMs: () => 0, sleep: () => new Promise<void>(() => {}) }
  const watcher = new Watcher({ source: kernel, clock, log: silentLog, run: RUN, everyMs: 1e6 })
  const limits = { walltimeMs: 1e6, memoryBytes: 0, scratchBytes: 0, stalledAfterMs: null }
  const told = { folders: [], limits, outputBytes: () => 0, onViolated: () => {}, onUnkillable: () => {} }
  const pids = Array.from({ length: 100 }, (_, index) => 100 + index)
  const all = pids.map((pid) => {
    kernel.add(pid)
    kernel.add(1000 + pid, { session: pid })
    return watcher.watch({ attempt: `a${pid}`, pid, ...told })
  })
  for (const watched of all) void watcher.end(watched, 1000, new AbortController().signal)
  expect(looked).toHaveBeenCalledTimes(1)
  expect(kernel.killed).toEqual(pids.flatMap((pid) => [`-${pid} SIGTERM`, `${1000 + pid} SIGTERM`]))
  await new Promise(setImmediate)
  void watcher.end(all[0]!, 1000, new AbortController().signal)
  expect(looked).toHaveBeenCalledTimes(2)
  watcher.close()
})

test('watch - what starts while its pilot leaves is killed once though nobody watches any more', async () => {
  const clock = { wallMs: () => 0, monotonicMs: () => 0, sleep: () => new Promise<void>(() => {}) }
  const watcher = new Watcher({ source: kernel, clock, log: silentLog, run: RUN, everyMs: 1e6 })
  const limits = { walltimeMs: 1e6, memoryBytes: 0, scratchBytes: 0, stalledAfterMs: null }
  const told = { folders: [], limits, outputBytes: () => 0, onViolated: () => {}, onUnkillable: () => {} }
  watcher.close()
  kernel.add(100)
  await watcher.end(watcher.watch({ attempt: 'a', pid: 100, ...told }), 0, new AbortController().signal)
  expect(kernel.killed).toEqual(['-100 SIGKILL'])
})

test('watch - neither time nor memory is the payload’s before its own program is reached', async () => {
  const MIB = 2 ** 20
  let nowMs = 0
  let scans = 0
  const source: ProcessSource = Object.assign(kernel, {
    list: () => {
      scans++
      return kernel.processes
    },
  })
  const clock = { wallMs: () => nowMs, monotonicMs: () => nowMs, sleep: async () => {} }
  const watcher = new Watcher({ source, clock, log: silentLog, run: RUN, everyMs: 5 })
  const told: string[] = []
  const start = (attempt: string, pid: number) => {
    kernel.add(pid, { rssBytes: 50 * MIB })
    const limits = { walltimeMs: 1000, memoryBytes: 40 * MIB, scratchBytes: 0, stalledAfterMs: 2000 }
    const onViolated = (reason: string) => void told.push(`${attempt} ${reason}`)
    return watcher.watch({
      attempt,
      pid,
      folders: [],
      limits,
      outputBytes: () => 0,
      onViolated,
      onUnkillable: () => {},
    })
  }
  /** Long enough that everything known by now was looked at. */
  const looked = async () => {
    const before = scans
    await vi.waitFor(() => expect(scans).toBeGreaterThan(before + 1), 30_000)
  }
  const small = start('small', 100)
  const large = start('large', 200)
  nowMs += 1500
  await looked()
  expect(small.usage.maxRssBytes).toBe(50 * MIB)
  expect(told).toEqual([])
  expect(watcher.overMemory('other')).toBeNull()
  const quick = start('quick', 300)
  await looked()
  watcher.begin(quick)
  watcher.release(quick)
  expect(quick.usage.maxRssBytes).toBe(50 * MIB)
  kernel.processes[0]!.rssBytes = MIB
  watcher.begin(small)
  watcher.begin(large)
  await looked()
  expect(told).toEqual(['large payload.memory'])
  expect(small.usage.maxRssBytes).toBe(MIB)
  expect(watcher.overMemory('other')).toBe('large')
  nowMs += 1001
  await looked()
  expect(told).toEqual(['large payload.memory', 'small payload.walltime'])
  for (const watched of [small, large]) watcher.release(watched)
  watcher.close()
})

test('watch - a stat line with an odd name is read', () => {
  const rest = 'S 7 8 9 0 -1 0 0 0 0 0 10 20 30 40 20 0 1 0 777 1000 5 0'
  expect(parseStat(`42 (a) b (c) ${rest}`, 4096)).toEqual({
    ...{ pid: 42, parent: 7, group: 8, session: 9, startTicks: 777 },
    ...{ cpuMs: 1000, rssBytes: 5 * 4096, isZombie: false },
  })
})

test.each([
  ['', { started: false, noCommand: false, exitCode: null, cpuMs: 0 }],
  ['started\n', { started: true, noCommand: false, exitCode: null, cpuMs: 0 }],
  ['started\nexit 0\n', { started: true, noCommand: false, exitCode: null, cpuMs: 0 }],
  ['started\nnone\nend\n', { started: true, noCommand: true, exitCode: null, cpuMs: 0 }],
  [
    'started\nexit 255\n0m0.00s 0m0.00s\n1m1.50s 0m0.25s\nend\n',
    { started: true, noCommand: false, exitCode: 255, cpuMs: 61_750 },
  ],
  [
    'started\nexit 1\n0m0,00s 0m0,00s\n0m0,50s 0m0,00s\nend\n',
    { started: true, noCommand: false, exitCode: 1, cpuMs: 500 },
  ],
  // What a payload wrote before the wrapper's own word, and a file that it had removed.
  ['started\nexit 0\nend\nexit 3\nend\n', { started: true, exitCode: 3 }],
  ['exit 3\nend\n', { started: true, exitCode: 3 }],
  ['exit nonsense\nend\n', { started: true, exitCode: null }],
  ['exit 3\nexit 256\nend\n', { exitCode: 3 }],
  ['exit 99999999999999999999\nend\n', { exitCode: null }],
  ['exit 0\n0m0s 0m0s\n0m1.2.3s 0m0s\nend\n', { exitCode: 0, cpuMs: 0 }],
  [`exit 0\n0m0s 0m0s\n${'9'.repeat(400)}m0s 0m0s\nend\n`, { exitCode: 0, cpuMs: 0 }],
])('wrapper - status %j', (text, expected) => {
  expect(parseStatus(text)).toMatchObject(expected)
})
