/** Against a stand-in for Apptainer that unpacks when it is told to and runs the command on the host. */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { type Clock, systemClock } from '../shared/clock.ts'
import { silentLog } from '../shared/log.ts'
import { manualClock } from '../test/manual-clock.ts'
import { containerRuntime, explainContainer } from './container.ts'
import { makeSkeletonSif } from './sif.ts'
import { PATH, TestSite } from './testbench.ts'
import { UnpackedImages } from './unpacked.ts'

let site: TestSite
let binary: string
beforeEach(async () => {
  site = await new TestSite().open()
  binary = join(site.folder, 'apptainer')
})
afterEach(async () => {
  await site.close()
})

/** @param build shell text that makes "$root" of "$image" @param before shell text, run before a payload's wrapper is */
function standIn(build: string, before = ''): void {
  const script = `#!/bin/sh
echo "$$ $*" >> ${site.folder}/calls
if [ "$2" = build ]; then root=$4 image=$5; ${build}; exit; fi
for a; do case $a in *:/indraft) control=\${a%:/indraft} ;; esac; done
${before}
while [ "$1" != /bin/sh ]; do shift; done; shift 3
exec /bin/sh "$control/run" "$control/status" "$@"
`
  writeFileSync(binary, script, { mode: 0o755 })
}

/** Lines of the stand-in's calls: its pid, then how it was called. */
const calls = (command: string) =>
  (existsSync(`${site.folder}/calls`) ? readFileSync(`${site.folder}/calls`, 'utf8') : '')
    .split('\n')
    .filter((line) => line.split(' ')[2] === command)

function sif(name: string): string {
  const path = join(site.folder, `${name}.sif`)
  writeFileSync(path, makeSkeletonSif())
  return path
}

/** An image that needs no unpacking. */
function imageFolder(): string {
  const path = join(site.folder, 'image')
  mkdirSync(join(path, 'bin'), { recursive: true })
  writeFileSync(join(path, 'bin/sh'), '', { mode: 0o755 })
  return path
}

const MAKE = 'mkdir "$root" && cp "$image" "$root/made-of" && echo aside > "$APPTAINER_TMPDIR/rest"'
const gate = () => join(site.folder, 'gate')
const BEHIND_GATE = () => `until [ -e ${gate()} ]; do sleep 0.02; done; ${MAKE}`

describe('unpacking', () => {
  const folder = () => join(site.folder, 'unpacked')
  const images = () => new UnpackedImages({ binary, env: { PATH }, explain: explainContainer })
  const order = (signal = new AbortController().signal, clock: Clock = systemClock) => ({
    ...{ folder: folder(), marker: {}, signal, limitMs: 60_000, clock, log: silentLog },
  })
  const isAlive = (pid: string) => existsSync(`/proc/${pid}`)
  const PATIENT = { timeout: 30_000 }
  /** Shell text that leaves a process in a session of its own, with the output in its hands. */
  const LEAVE_BEHIND = () => `setsid sh -c 'echo $$ > ${site.folder}/left; exec sleep 600' &`
  /** Its pid, once it is out of reach. */
  const leftBehind = () =>
    vi.waitFor(() => {
      const pid = Number(readFileSync(join(site.folder, 'left'), 'utf8'))
      // IMPORTANT: 0, as of an empty file, is everybody here.
      expect(pid).toBeGreaterThan(1)
      return pid
    }, PATIENT)

  test('unpacked - once for all who want an image at the same time or later; one that is changed anew', async () => {
    standIn(BEHIND_GATE())
    const kept = images()
    const image = sif('a')
    const both = [kept.take(image, order()), kept.take(image, order())]
    await expect.poll(() => calls('build')).toHaveLength(1)
    writeFileSync(gate(), '')
    const [one, two] = await Promise.all(both)
    expect(two!.path).toBe(one!.path)
    expect(readdirSync(one!.path)).toEqual(['made-of'])
    // What was put aside meanwhile is gone.
    expect(readdirSync(join(one!.path, '..'))).toEqual(['root'])
    await expect.poll(() => kept.bytes).toBeGreaterThan(4096)
    one!.release()
    two!.release()
    expect(kept.bytes).toBe(0)
    expect((await kept.take(image, order())).path).toBe(one!.path)
    expect(calls('build')).toHaveLength(1)
    writeFileSync(image, Buffer.concat([makeSkeletonSif(), Buffer.alloc(10)]))
    expect((await kept.take(image, order())).path).not.toBe(one!.path)
  })

  test('unpacked - who ends waits no longer and stops nobody else; without any it is not unpacked further', async () => {
    standIn(BEHIND_GATE())
    const kept = images()
    const [first, second] = [new AbortController(), new AbortController()]
    const one = kept.take(sif('a'), order(first.signal))
    const two = kept.take(join(site.folder, 'a.sif'), order(second.signal))
    await expect.poll(() => calls('build')).toHaveLength(1)
    const pid = calls('build')[0]!.split(' ')[0]!
    first.abort()
    await expect(one).rejects.toMatchObject({ code: 'link.closed' })
    expect(isAlive(pid)).toBe(true)
    second.abort()
    await expect(two).rejects.toMatchObject({ code: 'link.closed' })
    await expect.poll(() => isAlive(pid)).toBe(false)
    await expect.poll(() => readdirSync(folder())).toEqual([])
    // Whoever comes now is not told of the end of others.
    writeFileSync(gate(), '')
    expect(existsSync((await kept.take(join(site.folder, 'a.sif'), order())).path)).toBe(true)
  })

  test('unpacked - what nobody uses goes before another one is unpacked, or when room is needed', async () => {
    standIn(MAKE)
    const kept = images()
    const [used, unused] = [await kept.take(sif('used'), order()), await kept.take(sif('unused'), order())]
    unused.release()
    const other = await kept.take(sif('other'), order())
    expect([used, unused, other].map(({ path }) => existsSync(path))).toEqual([true, false, true])
    other.release()
    await kept.makeRoom(silentLog)
    expect([used, other].map(({ path }) => existsSync(path))).toEqual([true, false])
    expect(readdirSync(folder())).toHaveLength(1)
  })

  test.each([
    ['FATAL: ...: write /x: no space left on device', 'node.scratchFull'],
    ['FATAL ERROR: writer: failed to read file; gzip uncompress failed with error code -3', 'image.damaged'],
    ['FATAL: something else', 'container.failed'],
  ])('unpacked - "%s" is %s; nothing of it stays, and the next one tries anew', async (said, reason) => {
    standIn(`mkdir "$root"; echo "${said}" >&2; exit 255`)
    const kept = images()
    const image = sif('a')
    await expect(kept.take(image, order())).rejects.toMatchObject({ code: reason })
    expect(readdirSync(folder())).toEqual([])
    standIn(MAKE)
    expect(existsSync((await kept.take(image, order())).path)).toBe(true)
  })

  test('unpacked - one that takes too long is ended', async () => {
    standIn('sleep 600 & sleep 600')
    const clock = manualClock()
    const taking = images().take(sif('a'), order(undefined, clock))
    const late = { code: 'container.failed', message: expect.stringContaining('not unpacked after 1 min') }
    const failed = expect(taking).rejects.toMatchObject(late)
    await expect.poll(() => calls('build')).toHaveLength(1)
    await clock.advance(60_000)
    await failed
    expect(isAlive(calls('build')[0]!.split(' ')[0]!)).toBe(false)
  })

  test.each([
    ['and ends well', MAKE, null],
    ['and takes too long', 'sleep 600', 'container.failed'],
  ])('unpacked - one that leaves a process with its output behind %s keeps nobody waiting', async (_, after, code) => {
    standIn(`${LEAVE_BEHIND()} ${after}`)
    const clock = manualClock()
    const taking = images().take(sif('a'), order(undefined, clock))
    const ended =
      code === null
        ? taking.then(({ path }) => expect(existsSync(path)).toBe(true))
        : expect(taking).rejects.toMatchObject({ code })
    const left = await leftBehind()
    try {
      if (code !== null) await clock.advance(60_000)
      await ended
    } finally {
      process.kill(left, 'SIGKILL')
    }
  })

  test('unpacked - one whose last user leaves just when it has ended is not kept for ever', async () => {
    standIn(`${LEAVE_BEHIND()} ${MAKE}`)
    const kept = images()
    const ending = new AbortController()
    const taking = kept.take(sif('a'), order(ending.signal))
    const gone = taking.then(
      ({ release }) => release(),
      () => {},
    )
    const left = await leftBehind()
    try {
      // It has ended, and the process that it left keeps its output open: the pilot waits for that a little.
      await expect.poll(() => isAlive(calls('build')[0]!.split(' ')[0]!)).toBe(false)
      ending.abort()
      await gone
      // Where the user left too late for this it is one that nobody uses.
      await vi.waitFor(async () => {
        await kept.makeRoom(silentLog)
        expect(readdirSync(folder())).toEqual([])
      }, PATIENT)
    } finally {
      process.kill(left, 'SIGKILL')
    }
  })
})

describe('payloads', () => {
  const runtime = (how: 'mounted' | 'unpacked' | 'unsquash') =>
    containerRuntime({
      ...{ binary, version: 'apptainer version 1.4.5', isolation: [], offline: null, binds: [], registries: false },
      ...{ sif: { how, why: 'the test says so' }, env: { PATH } },
    })

  test.each([['unpacked'], ['unsquash']] as const)(
    'unpacked - payloads of one image run in one folder, where it is %s, and unpacking takes none of their time',
    async (how) => {
      standIn(`sleep 1; ${MAKE}`)
      const image = sif('a')
      const runtimes = [runtime(how)]
      const attempts = [0, 1].map(() => site.attempt({ image }, {}, { runtimes }))
      const results = await Promise.all(attempts.map((attempt) => attempt.run()))
      for (const result of results) {
        expect(result).toMatchObject({ end: 'done', reason: null })
        expect(result.stageInMs).toBeGreaterThanOrEqual(1000)
      }
      expect(calls('build')).toHaveLength(1)
      const root = join(site.folder, 'blobs/unpacked/0/root')
      expect(calls('exec')).toHaveLength(2)
      for (const call of calls('exec')) expect(call).toMatch(new RegExp(` ${root} /bin/sh /indraft/run`))
      for (const call of calls('exec')) expect(call).not.toContain('--unsquash')
      expect(runtimes[0]!.unpacked!.bytes).toBe(0)
    },
  )

  test('unpacked - where image files are mounted they are, and a folder is used as it is', async () => {
    standIn(MAKE)
    const image = sif('a')
    await site.attempt({ image }, {}, { runtimes: [runtime('mounted')] }).run()
    expect(calls('exec')[0]).toContain(` ${image} /bin/sh`)
    const folder = imageFolder()
    await site.attempt({ image: folder }, {}, { runtimes: [runtime('unpacked')] }).run()
    expect(calls('exec')[1]).toContain(` ${folder} /bin/sh`)
    expect(calls('build')).toEqual([])
  })

  test('unpacked - an attempt that is cancelled while its image is unpacked ends at once', async () => {
    standIn('sleep 600')
    const attempt = site.attempt({ image: sif('a') }, {}, { runtimes: [runtime('unpacked')] })
    const result = attempt.run()
    await expect.poll(() => calls('build')).toHaveLength(1)
    attempt.end('attempt.cancelled', null)
    expect(await result).toMatchObject({ reason: 'attempt.cancelled', wallMs: 0 })
    await expect.poll(() => existsSync(`/proc/${calls('build')[0]!.split(' ')[0]}`)).toBe(false)
  })

  test('unpacked - room that a task asked for and that nobody uses is made', async () => {
    standIn(MAKE)
    const runtimes = [runtime('unpacked')]
    await site.attempt({ image: sif('a') }, {}, { runtimes }).run()
    const unpacked = () => readdirSync(join(site.folder, 'blobs/unpacked'))
    expect(unpacked()).toHaveLength(1)
    await site.attempt({ image: imageFolder(), needs: { scratchBytes: 1 } as never }, {}, { runtimes }).run()
    expect(unpacked()).toHaveLength(1)
    await site.attempt({ image: imageFolder(), needs: { scratchBytes: 2 ** 60 } as never }, {}, { runtimes }).run()
    expect(unpacked()).toEqual([])
  })

  test('unpacked - an attempt that fails after its image was unpacked has no more use of it', async () => {
    standIn(`${MAKE}; rm -r ${site.folder}/tasks/*`)
    const runtimes = [runtime('unpacked')]
    const result = await site.attempt({ image: sif('a'), needs: { scratchBytes: 1 } as never }, {}, { runtimes }).run()
    expect(result).toMatchObject({ reason: 'node.fault', wallMs: 0 })
    await runtimes[0]!.unpacked!.makeRoom(silentLog)
    expect(readdirSync(join(site.folder, 'blobs/unpacked'))).toEqual([])
  })

  test('walltime - counts from when the payload has started: how long its container takes is the site’s', async () => {
    standIn(MAKE, 'sleep 4')
    const late = { image: sif('a'), needs: { walltimeMs: 3000 } as never }
    const around = { runtimes: [runtime('mounted')], stageTimeoutMs: 60_000 }
    expect(await site.attempt(late, {}, around).run()).toMatchObject({ end: 'done', reason: null })
    standIn(MAKE)
    const long = { ...late, needs: { walltimeMs: 300 } as never, command: ['sleep', '60'] }
    expect(await site.attempt(long, {}, around).run()).toMatchObject({ reason: 'payload.walltime' })
  })

  const spoiling = ['rm "$d/status"', ': > "$d/status"', 'rm "$d/status"; : > "$d/status"']
  // A folder that may not be entered stops everybody but root, whom a loop stops too.
  const barring = ['mv "$d" "$d.x"; : > "$d"', 'mv "$d" "$d.x"; ln -s "$d" "$d"', 'chmod 0 "$d"']
  const tried = [...spoiling, ...barring].map((script) => [script] as const)

  /** One that does this to its control folder `$d` first. */
  const meddling = (script: string, after: string) => {
    standIn(MAKE, `echo "$control" > ${site.folder}/control`)
    const command = ['sh', '-c', `d=$$(cat ${site.folder}/control); ${script}; ${after}`]
    return { image: sif('a'), command }
  }
  const patient = () => ({ runtimes: [runtime('mounted')], stageTimeoutMs: 60_000 })

  test.each(tried)('walltime - a payload that does `%s` to the word of its start is held to it', async (script) => {
    const template = { ...meddling(script, 'exec sleep 60'), needs: { walltimeMs: 300 } as never }
    expect(await site.attempt(template, {}, patient()).run()).toMatchObject({ reason: 'payload.walltime' })
  })

  test.each(tried)('blame - a payload that does `%s` and fails is to blame for it itself', async (script) => {
    const result = await site.attempt(meddling(script, 'echo so it is; kill -9 $PPID'), {}, patient()).run()
    expect(result).toMatchObject({ end: 'failed', reason: 'payload.signal', signal: 'SIGKILL' })
    expect(result.stdoutBytes).toBe('so it is\n'.length)
  })
})
