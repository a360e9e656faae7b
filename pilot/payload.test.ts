import { spawnSync } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { digestOf } from '../shared/signing.ts'
import { makeTemplate, TestSite } from './testbench.ts'

const needs = makeTemplate().needs

let site: TestSite
beforeEach(async () => {
  site = await new TestSite().open()
})
afterEach(async () => {
  await site.close()
})

function output(path: string, more: { url?: string | null; optional?: boolean } = {}) {
  return { path, url: null, optional: false, ...more }
}

/** Processes whose environment carries this site's mark. */
function marked(): string[] {
  return readdirSync('/proc').filter((name) => {
    try {
      return /^\d+$/.test(name) && readFileSync(`/proc/${name}/environ`, 'latin1').includes(site.run)
    } catch {
      return false
    }
  })
}

describe('exit', () => {
  test('payload - a good end stores outputs and logs under the attempt', async () => {
    const result = await site.runScript('echo hello; echo oops >&2; echo 42 > out.txt', {
      outputs: [output('out.txt')],
    })
    expect(result).toMatchObject({ end: 'done', reason: null, exitCode: 0, signal: null, tail: null, stdoutBytes: 6 })
    expect(result.outputs.map(({ path }) => path)).toEqual(['out.txt', '.log/stdout', '.log/stderr'])
    const first = result.outputs[0]!
    expect(first).toMatchObject({ sizeBytes: 3, checksum: digestOf(Buffer.from('42\n')) })
    expect(first.url).toBe(`store:c0000000001/sim/0/${result.fences.join('.')}/out.txt`)
    expect(await site.stored(result, 'out.txt')).toBe('42\n')
    expect(await site.stored(result, '.log/stderr')).toBe('oops\n')
  })

  test.each([
    ['exit 3', { reason: 'payload.exit', exitCode: 3, signal: null }],
    ['exit 255', { reason: 'payload.exit', exitCode: 255, signal: null }],
    ['exit 127', { reason: 'payload.exit', exitCode: 127, signal: null }],
    ['kill -SEGV $$', { reason: 'payload.signal', exitCode: 139, signal: 'SIGSEGV' }],
    ['kill -KILL $PPID', { reason: 'payload.signal', exitCode: null, signal: 'SIGKILL' }],
  ])('payload - "%s" is told apart', async (script, expected) => {
    const result = await site.runScript(`echo sorry >&2; ${script}`)
    expect(result).toMatchObject({ end: 'failed', ...expected })
    expect(result.tail).toContain('sorry')
  })

  test.each([['no-such-program'], ['./not-there'], ['/etc/passwd'], ['eval'], ['']])(
    'payload - command "%s" does not exist',
    async (command) => {
      const result = await site.attempt({ command: [command, 'touch /tmp/x'] }).run()
      expect(result).toMatchObject({ end: 'failed', reason: 'payload.noCommand', wallMs: expect.any(Number) })
    },
  )

  test('payload - arguments reach the program as they are, and nothing of them is evaluated', async () => {
    const odd = ['$(touch evaluated)', '`id`', "it's", 'a b\nc', '*', '$HOME', '']
    const command = [
      'sh',
      '-c',
      'for a; do printf "[%s]" "$a"; done; ls',
      'sh',
      ...odd.map((a) => a.replace('$(', () => '$$(')),
    ]
    const result = await site.attempt({ command }).run()
    expect(result.end).toBe('done')
    expect(await site.stored(result, '.log/stdout')).toBe(odd.map((argument) => `[${argument}]`).join(''))
  })

  test('payload - a zero byte in the command ends that task alone', async () => {
    const result = await site.attempt({ command: ['echo', 'a\0b'] }).run()
    expect(result).toMatchObject({ end: 'failed', reason: 'campaign.invalid' })
  })

  test('payload - an unknown name in the command is said', async () => {
    const result = await site.attempt({ command: ['echo', '$(nothing)'] }).run()
    expect(result).toMatchObject({ reason: 'campaign.invalid', detail: expect.stringContaining('$(nothing)') })
  })

  test('payload - processor time of everything it waited for is counted', async () => {
    const result = await site.runScript('(i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done)')
    expect(result.cpuMs).toBeGreaterThan(5)
  })
})

describe('environment', () => {
  test('payload - gets a clean environment, its folder as HOME, and facts', async () => {
    vi.stubEnv('SECRET_OF_THE_PILOT', 'x')
    const template = {
      env: { GREETING: 'task $(index) of $(campaign)', INDRAFT_NODE: 'forged' },
      needs: { ...needs, cores: 2 },
    }
    const result = await site.runScript('env | sort; pwd; ls -la', template)
    const said = (await site.stored(result, '.log/stdout'))!
    expect(said).not.toContain('SECRET_OF_THE_PILOT')
    expect(said).toContain('GREETING=task 0 of bench')
    expect(said).toContain('OMP_NUM_THREADS=2')
    expect(said).toContain('INDRAFT_NODE=node1')
    const home = /^HOME=(.*)$/m.exec(said)![1]!
    expect(said.split('\n')).toContain(home)
    expect(/^TMPDIR=(.*)$/m.exec(said)![1]!.startsWith(site.folder)).toBe(true)
    expect(said).not.toMatch(/capability|secret/i)
  })

  test('payload - its folder is gone afterwards, also with locked folders in it', async () => {
    await site.runScript('mkdir -p deep/er && touch deep/er/file && chmod 0 deep')
    await expect.poll(() => readdirSync(join(site.folder, 'tasks'))).toEqual([])
  })

  test('payload - /dev/stdout and /dev/stderr can be opened', async () => {
    const result = await site.runScript('echo one > /dev/stdout; echo two | tee /dev/stderr > /dev/null')
    expect([await site.stored(result, '.log/stdout'), await site.stored(result, '.log/stderr')]).toEqual([
      'one\n',
      'two\n',
    ])
  })
})

describe('limits', () => {
  test('payload - longer than its walltime is ended', async () => {
    const result = await site.runScript('sleep 600', { needs: { ...needs, walltimeMs: 300 } })
    expect(result).toMatchObject({ end: 'failed', reason: 'payload.walltime' })
    await expect.poll(marked).toEqual([])
  })

  test('payload - that ignores SIGTERM is killed with all its children', async () => {
    const script = 'trap "" TERM; (trap "" TERM; sleep 601) & sleep 602; sleep 603'
    const result = await site.runScript(script, { needs: { ...needs, walltimeMs: 300 } })
    expect(result.reason).toBe('payload.walltime')
    await expect.poll(marked).toEqual([])
  })

  test('payload - that answers SIGTERM has its grace to write what it wants', async () => {
    const script = 'trap "echo saved; exit 0" TERM; sleep 600 & wait'
    // Time enough to set its trap.
    const late = { needs: { ...needs, walltimeMs: 2500 } }
    const result = await site.runScript(script, late, { payloadGraceMs: 30_000 })
    expect(result.reason).toBe('payload.walltime')
    expect(await site.stored(result, '.log/stdout')).toBe('saved\n')
  })

  test('payload - using more memory than asked for is ended, children included', async () => {
    const script = '({ head -c 60000000 /dev/zero; sleep 600; } | tail -n 1 > /dev/null) & wait'
    const result = await site.runScript(script, { needs: { ...needs, memoryBytes: 30 * 2 ** 20 } })
    expect(result).toMatchObject({ end: 'failed', reason: 'payload.memory' })
    expect(result.maxRssBytes).toBeGreaterThan(30 * 2 ** 20)
    await expect.poll(marked).toEqual([])
  })

  test('payload - writing more than its scratch space is ended', async () => {
    const script = 'mkdir d; i=0; while :; do head -c 1000000 /dev/zero > d/$i; i=$((i+1)); sleep 0.05; done'
    const result = await site.runScript(script, { needs: { ...needs, scratchBytes: 3_000_000 } })
    expect(result).toMatchObject({ end: 'failed', reason: 'payload.scratch' })
  })

  test('payload - more than its scratch space in no time is not done either', async () => {
    const result = await site.runScript('head -c 8000000 /dev/zero > out', {
      needs: { ...needs, scratchBytes: 3_000_000 },
      outputs: [output('out')],
    })
    expect(result).toMatchObject({ end: 'failed', reason: 'payload.scratch', exitCode: 0 })
    expect(await site.stored(result, 'out')).toBeNull()
  })

  test('payload - that neither computes nor writes is stalled; one that writes is not', async () => {
    const still = site.runScript('sleep 600', { stalledAfterMs: 500 })
    // Longer than it may be still: what stands still meanwhile for up to two seconds is the machine, and no payload's fault.
    const busy = site.runScript('for i in $(seq 20); do echo $i; sleep 0.2; done', { stalledAfterMs: 3000 })
    expect((await still).reason).toBe('payload.stalled')
    expect(await busy).toMatchObject({ end: 'done', reason: null, detail: null })
  })

  test('payload - a daemon that left its session and its parent is ended after the attempt', async () => {
    const result = await site.runScript('setsid sh -c "sleep 600 & exit 0" > /dev/null 2>&1 < /dev/null; echo well')
    expect(result.end).toBe('done')
    await expect.poll(marked).toEqual([])
  })

  test('payload - one that also threw its environment away is found by its folder', async () => {
    // A number that no other run of this test on the machine has.
    const seconds = 5_000_000 + process.pid
    const script = `env -i setsid sleep ${seconds} > /dev/null 2>&1 < /dev/null & sleep 0.03; exit 0`
    const result = await site.runScript(script)
    expect(result.end).toBe('done')
    const left = () => spawnSync('pgrep', ['-f', `sleep ${seconds}$`], { encoding: 'utf8' }).stdout
    await expect.poll(left).toBe('')
  })

  test('payload - a daemon that forked twice, left session, environment, folder and name, is found all the same', async () => {
    const seconds = 6_000_000 + process.pid
    const daemon = `(env -i setsid sh -c "cd /; exec $PWD/quiet ${seconds}" > /dev/null 2>&1 < /dev/null &)`
    const result = await site.runScript(`cp $(command -v sleep) quiet; ${daemon}; sleep 0.03; exit 0`)
    expect(result.end).toBe('done')
    const left = () => spawnSync('pgrep', ['-f', `quiet ${seconds}$`], { encoding: 'utf8' }).stdout
    await expect.poll(left).toBe('')
  })

  test('payload - a tree of processes that forks on and on ends with its attempt', async () => {
    const seconds = 7_000_000 + process.pid
    // Bounded, so that a failure of this test harms nobody.
    const bomb = `n=0; while [ $n -lt 3 ]; do (env -i setsid sleep ${seconds} &); sh bomb.sh $(($1 + 1)) & n=$((n+1)); done; sleep ${seconds}`
    const script = `echo '[ $1 -gt 2 ] && exec sleep ${seconds}; ${bomb}' > bomb.sh; exec sh bomb.sh 0`
    const result = await site.runScript(script, { needs: { ...needs, walltimeMs: 1000 } })
    expect(result.reason).toBe('payload.walltime')
    const left = () => spawnSync('pgrep', ['-f', `^sleep ${seconds}$`], { encoding: 'utf8' }).stdout
    await expect.poll(left).toBe('')
    await expect.poll(marked).toEqual([])
  })

  test('payload - cancelled while it runs, and before it starts', async () => {
    const running = site.attempt({ command: ['sleep', '600'] })
    const end = running.run()
    await expect.poll(() => running.state).toBe('running')
    running.end('attempt.cancelled', 'no longer wanted')
    running.end('node.ending', 'a second reason')
    expect(await end).toMatchObject({
      reason: 'attempt.cancelled',
      detail: 'no longer wanted',
      signal: expect.stringMatching(/^SIG(TERM|KILL)$/),
    })
    const early = site.attempt({ command: ['sleep', '60'] })
    early.end('attempt.cancelled', null)
    expect(await early.run()).toMatchObject({ reason: 'attempt.cancelled', wallMs: 0 })
  })

  test.each([
    ['makes the name that putting its log in order takes', '>../stdout.ordered', null],
    ['removes its whole folder', 'cd / && rm -rf "$(dirname "$OLDPWD")"', 'payload.signal'],
  ])('payload - that %s and says more than is kept is no fault of its node', async (_what, meddle, reason) => {
    const result = await site.runScript(`seq 1000; ${meddle}`, { logBytes: 100 })
    expect(result).toMatchObject({ end: reason === null ? 'done' : 'failed', reason })
    const kept = await site.stored(result, '.log/stdout')
    if (reason === null) expect(kept).toMatch(/^1\n2\n3\n[\s\S]*\n\[\.\.\. 3843 bytes left out \.\.\.\]\n$/)
    else expect(kept).toBeNull()
  })

  test('payload - printing a gigabyte costs neither memory nor disk', async () => {
    const before = process.memoryUsage.rss()
    const script = 'echo first; head -c 1000000000 /dev/zero; echo last'
    const slow = { ...needs, walltimeMs: 600_000 }
    const result = await site.runScript(script, { logBytes: 1000, needs: slow })
    expect(result).toMatchObject({ end: 'done', stdoutBytes: 1_000_000_011 })
    const kept = (await site.stored(result, '.log/stdout'))!
    expect(kept.startsWith('first\n')).toBe(true)
    expect(kept.endsWith('last\n')).toBe(true)
    expect(kept.length).toBeLessThan(1100)
    expect(process.memoryUsage.rss() - before).toBeLessThan(100 * 2 ** 20)
  }, 120_000)
})

describe('outputs', () => {
  test.each([
    ['a missing one', 'true', 'payload.outputMissing'],
    ['a symbolic link', 'ln -s /etc/passwd out', 'payload.outputRefused'],
    ['a dangling link', 'ln -s /nowhere out', 'payload.outputRefused'],
    ['a folder', 'mkdir out', 'payload.outputRefused'],
    ['a pipe', 'mkfifo out', 'payload.outputRefused'],
  ])('outputs - %s is refused', async (_what, script, reason) => {
    const result = await site.runScript(script, { outputs: [output('out')] })
    expect(result).toMatchObject({ end: 'failed', reason, outputs: [] })
  })

  test('outputs - a file behind a linked folder is not collected', async () => {
    mkdirSync(join(site.folder, 'elsewhere'))
    writeFileSync(join(site.folder, 'elsewhere', 'out'), 'not yours')
    const result = await site.runScript(`ln -s ${join(site.folder, 'elsewhere')} d`, { outputs: [output('d/out')] })
    expect(result.reason).toBe('payload.outputRefused')
  })

  test('outputs - a path that leaves the folder is refused before anything runs', async () => {
    const result = await site.runScript('echo ran', { outputs: [output('../../$(index)')] })
    expect(result).toMatchObject({ reason: 'payload.outputRefused', wallMs: 0 })
  })

  test.each([['.log/stdout'], ['.log/other'], ['.log']])('outputs - %s by a value is refused', async (value) => {
    const row = { name: value }
    const command = ['sh', '-c', 'mkdir .log; echo forged > .log/stdout']
    const attempt = site.attempt({ command, outputs: [output('$(name)')] }, { tasks: '0', rows: [row] })
    const result = await attempt.run()
    expect(result).toMatchObject({ end: 'failed', reason: 'payload.outputRefused', wallMs: 0, outputs: [] })
    const input = { url: 'file:///etc/hostname', from: null, output: null, path: '$(name)', list: null, checksum: null }
    const fetching = site.attempt({ inputs: [input] }, { tasks: '0', rows: [row] })
    expect(await fetching.run()).toMatchObject({ end: 'failed', reason: 'campaign.invalid', wallMs: 0 })
  })

  test('outputs - what lies outside the folder is left and not collected; an optional one may be missing', async () => {
    const stray = join(site.folder, 'stray')
    const result = await site.runScript(`echo x > ${stray}`, { outputs: [output('stray', { optional: true })] })
    expect(result).toMatchObject({ end: 'done', outputs: [] })
  })

  test('outputs - to a shared file system under a name of the attempt', async () => {
    const final = join(site.folder, 'shared', 'out-0.txt')
    const url = pathToFileURL(final).href.replace('out-0', 'out-$(index)')
    const result = await site.runScript('echo 7 > out', { outputs: [output('out', { url })] })
    const named = `${final}.attempt-${result.fences.join('-')}`
    expect(result.outputs[0]).toMatchObject({ path: 'out', url: pathToFileURL(named).href })
    expect(readFileSync(named, 'utf8')).toBe('7\n')
    expect(existsSync(final)).toBe(false)
  })
})

describe('inputs', () => {
  test('inputs - from a shared file system, with checksum', async () => {
    const path = join(site.folder, 'geometry.db')
    writeFileSync(path, 'geometry')
    const input = { url: pathToFileURL(path).href, from: null, output: null, path: 'in/g.db', list: null }
    const right = { ...input, checksum: digestOf(Buffer.from('geometry')) }
    const result = await site.runScript('cat in/g.db', { inputs: [right] })
    expect(await site.stored(result, '.log/stdout')).toBe('geometry')
    const wrong = await site.runScript('true', { inputs: [{ ...input, checksum: 'adler32:00000001' }] })
    expect(wrong).toMatchObject({ reason: 'stage.inputChecksum', wallMs: 0 })
    const gone = await site.runScript('true', { inputs: [{ ...input, url: 'file:///not/there', checksum: null }] })
    expect(gone.reason).toBe('stage.inputMissing')
  })

  test('inputs - a winner on a shared file system is found before and after it got its final name', async () => {
    const final = join(site.folder, 'winner.txt')
    const written = `${final}.attempt-7-8`
    const content = Buffer.from('winner')
    const urls = { url: pathToFileURL(final).href, written: pathToFileURL(written).href }
    const entry = { index: 0, output: 'o', ...urls, sizeBytes: content.length, checksum: digestOf(content) }
    const digest = site.addBlob(JSON.stringify({ step: 'before', entries: [entry] }))
    const input = { url: null, from: 'before', output: 'o', path: 'in', list: null, checksum: null }
    const read = async () => {
      const result = await site
        .attempt({ command: ['cat', 'in'], inputs: [input] }, { manifests: { '0': digest } })
        .run()
      return result.end === 'done' ? await site.stored(result, '.log/stdout') : result.reason
    }
    // What an earlier campaign left there is not what this one made.
    writeFileSync(final, 'older!')
    writeFileSync(written, content)
    expect(await read()).toBe('winner')
    renameSync(written, final)
    expect(await read()).toBe('winner')
    rmSync(final)
    expect(await read()).toBe('stage.inputMissing')
  })

  test("inputs - the pilot's own files are refused, also through a link", async () => {
    mkdirSync(join(site.folder, 'own'))
    writeFileSync(join(site.folder, 'own', 'pilot.json'), 'secret')
    symlinkSync(join(site.folder, 'own', 'pilot.json'), join(site.folder, 'innocent'))
    const url = pathToFileURL(join(site.folder, 'innocent')).href
    const input = { url, from: null, output: null, path: 'x', list: null, checksum: null }
    expect((await site.runScript('cat x', { inputs: [input] })).reason).toBe('policy.refused')
  })

  test('inputs - a file that the server does not have', async () => {
    const input = { url: 'store:c1/gen/0/1.1/x', from: null, output: null, path: 'x', list: null, checksum: null }
    expect((await site.runScript('true', { inputs: [input] })).reason).toBe('stage.inputMissing')
  })

  test('inputs - the winners of an earlier step, with a list', async () => {
    const entries = []
    for (const index of [0, 3]) {
      const attempt = { campaign: 'c0000000001', step: 'gen', index, fences: [5, 6] }
      const text = `result ${index}\n`
      const chunks = (async function* () {
        yield Buffer.from(text)
      })()
      const { sizeBytes, checksum } = await site.store.put(attempt, 'r.txt', chunks, null)
      entries.push({ index, output: 'r.txt', url: `store:c0000000001/gen/${index}/5.6/r.txt`, sizeBytes, checksum })
    }
    const digest = site.addBlob(JSON.stringify({ step: 'gen', entries }))
    const input = { url: null, from: 'gen', output: 'r.txt', path: 'in/', list: 'inputs.txt', checksum: null }
    const attempt = site.attempt(
      { command: ['sh', '-c', 'cat inputs.txt; xargs cat < inputs.txt'], inputs: [input] },
      { manifests: { '0': digest } },
    )
    const result = await attempt.run()
    expect(result).toMatchObject({ end: 'done' })
    expect(await site.stored(result, '.log/stdout')).toBe('in/0/r.txt\nin/3/r.txt\nresult 0\nresult 3\n')
    const single = site.attempt({ inputs: [{ ...input, path: 'one', list: null }] }, { manifests: { '0': digest } })
    expect((await single.run()).detail).toContain('has 2 such outputs')
  })
})

test('trace - says whose payload ran where and when', async () => {
  await site.runScript('exit 5')
  await site.trace.close()
  const lines = readFileSync(site.tracePath, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  expect(lines).toMatchObject([
    {
      event: 'started',
      campaign: 'bench',
      subject: 'someone',
      group: '/vo.example/prod',
      image: 'host',
      node: 'node1',
    },
    { event: 'ended', task: 'c0000000001/sim/0', exitCode: 5, at: expect.stringMatching(/^20/) },
  ])
})
