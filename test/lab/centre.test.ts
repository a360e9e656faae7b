/** The lab itself, before anything of ours runs in it: what the site tests rely on. */
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import process from 'node:process'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { addresses, type Centre, inside, startCentre } from './centre.ts'
import { descendantsOf } from './daemon.ts'
import { denyFuse, makeBadImages, mountSmall, removePrograms, withoutUserNamespaces } from './faults.ts'
import { checkout, whyNoLab } from './roots.ts'
import { startLink } from './wan-proxy.ts'

const { busybox, lammps, pilot } = inside.images
const exec = ['apptainer', '--quiet', 'exec', '--userns', '--containall']

/** A server that answers each line with the same line; says `listening` and its port. */
const echoServer = `require('node:net').createServer((socket) => socket.on('error', () => {}).pipe(socket)).listen(Number(process.argv[1]),
  process.argv[2], function () { console.log('listening ' + this.address().port) })`

/** Connects, says hello, prints what comes back; a refusal's code, or "silence" after so many milliseconds. */
const echoClient = `const socket = require('node:net').connect(Number(process.argv[2]), process.argv[1])
  const end = (what) => { console.log(what); process.exit() }
  socket.on('connect', () => socket.write('hello')).on('data', (data) => end(String(data)))
  socket.on('error', (error) => end(error.code)).on('close', () => end('closed'))
  setTimeout(() => end('silence'), Number(process.argv[3] ?? 60_000))`
/** Where silence is expected. Elsewhere the client is patient: a busy machine may need long for an answer. */
const SILENCE_MS = 1500

describe.skipIf(whyNoLab() !== null)('lab', () => {
  let centre: Centre

  beforeAll(async () => {
    centre = await startCentre({ nodes: 2 })
  })
  afterAll(async () => {
    await centre?.stop()
  })

  const reach = async (
    from: 'edge' | 'n1' | 'n2' | 'outside',
    address: string,
    port: number,
    ...patienceMs: number[]
  ) => await centre.check(from, ['node', '-e', echoClient, address, String(port), ...patienceMs.map(String)])

  test('network - a node reaches the edge and nothing outside, whatever routes it makes itself', async () => {
    const outside = centre.spawn('outside', 'echo', ['node', '-e', echoServer, '7000', '0.0.0.0'])
    const edge = centre.spawn('edge', 'echo', ['node', '-e', echoServer, '7001', '0.0.0.0'])
    await Promise.all([outside.waitFor(/listening/), edge.waitFor(/listening/)])
    expect(await reach('edge', addresses.outside, 7000)).toBe('hello')
    expect(await reach('n1', addresses.edgeLan, 7001)).toBe('hello')
    for (const node of centre.nodes) {
      expect(await reach(node as 'n1', addresses.outside, 7000)).toBe('ENETUNREACH')
      expect(await reach(node as 'n1', addresses.edgeWan, 7001)).toBe('ENETUNREACH')
    }
    const routes = [
      ['n2', 'default', addresses.edgeLan],
      ['outside', '10.77.0.0/24', addresses.edgeWan],
    ] as const
    for (const [host, to, via] of routes) await centre.check(host, ['ip', 'route', 'add', to, 'via', via])
    try {
      expect(await reach('n2', addresses.outside, 7000, SILENCE_MS)).toBe('silence')
    } finally {
      for (const [host, to] of routes) await centre.check(host, ['ip', 'route', 'del', to])
    }
    expect(await reach('outside', addresses.edgeWan, 7001)).toBe('hello')
    await Promise.all([outside.stop(), edge.stop()])
  })

  test('hosts - each has its own name, processes and disk, and shares what is meant to be shared', async () => {
    await centre.write('n1', '/var/tmp/mine', 'only here')
    for (const node of centre.nodes) expect(await centre.check(node, ['hostname'])).toBe(node)
    expect((await centre.run('n2', ['test', '-e', '/var/tmp/mine'])).code).toBe(1)
    expect(await centre.check('n2', ['sh', '-c', 'cat /proc/[0-9]*/comm'])).not.toContain('slurmctld')
    await centre.check('edge', ['sh', '-c', 'echo shared >word'], { user: 'alice' })
    expect(await centre.check('n2', ['cat', 'word'], { user: 'alice' })).toBe('shared')
    expect((await centre.run('outside', ['test', '-e', inside.home])).code).toBe(1)
    expect(readFileSync(join(centre.shared, 'home/alice/word'), 'utf8')).toBe('shared\n')
    const { code, stderr } = await centre.run('edge', ['touch', `${inside.checkout}/package.json`])
    expect({ code, stderr }).toMatchObject({ code: 1, stderr: expect.stringContaining('Read-only file system') })
    expect((await centre.run('n1', ['touch', '/images/lammps/x'])).code).toBe(1)
    expect(await centre.check('n1', ['node', '--version'], { user: 'alice' })).toMatch(/^v2[4-9]/)
  })

  test('run - an exit status, a signal and a timeout are told apart, and a timeout leaves nothing running', async () => {
    expect((await centre.run('n1', ['sh', '-c', 'exit 7'])).code).toBe(7)
    expect((await centre.run('n1', ['sh', '-c', 'kill -9 $$'])).code).toBe(137)
    const endless = ['sh', '-c', 'sleep 7654 & sleep 7654']
    await expect(centre.run('n1', endless, { timeoutMs: 2000 })).rejects.toThrow('took more than 2000 ms')
    const commands = () => centre.check('n1', ['sh', '-c', 'cat /proc/[0-9]*/cmdline | tr "\\0" " "'])
    await expect.poll(commands).not.toContain('sleep 7654')
  })

  test('apptainer - alice runs a SIF and an unpacked folder on a node, in a job', async () => {
    const script = `cd /tmp
      ${exec.join(' ')} ${busybox} sh -c 'echo sif $(id -u) $(ls -a /shared/home/alice | wc -l)'
      ${exec.join(' ')} ${lammps} sh -c '. /etc/os-release; echo folder $(id -un) $VERSION_CODENAME'`
    const id = await centre.sbatch(script, ['-w', 'n2', '-o', 'images.out'])
    expect(await centre.waitForJob(id)).toMatchObject({ JobState: 'COMPLETED', NodeList: 'n2' })
    const said = await centre.check('edge', ['cat', 'images.out'], { user: 'alice' })
    // No word of unpacking: the SIF is mounted through /dev/fuse.
    expect(said).toBe('sif 1000 2\nfolder alice trixie')
  })

  test('apptainer - :ro of a bind does not reach a file system mounted below it', async () => {
    // Why the pilot refuses some binds that say it (pilot/binds.ts); once this fails they can be allowed.
    const script = `mkdir -p bound/below && mount -t tmpfs none bound/below
      exec ${exec.join(' ')} --bind "$PWD/bound:/bound:ro" ${busybox} sh -c 'touch /bound/x || touch /bound/below/x && echo written'`
    const mounted = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-ec', script]
    const { stdout, stderr } = await centre.run('n1', mounted, { user: 'alice', cwd: '/tmp' })
    expect(stderr).toContain('/bound/x: Read-only file system')
    expect(stdout).toBe('written\n')
  })

  test('apptainer - inside the pilot image another Apptainer starts a payload from SIF and from folder', async () => {
    const within = `export HOME=/tmp; ls /srv/indraft >/dev/null 2>&1 && echo leaked; node --version
      ${exec.join(' ')} ${busybox} sh -c 'echo nested sif $(id -u)'
      ${exec.join(' ')} ${lammps} sh -c 'echo nested folder $(id -un)'`
    const outer = ['apptainer', '--quiet', 'exec', '--userns', '--contain', '--bind', '/dev/fuse', '--bind', '/images']
    const { code, stdout, stderr } = await centre.run('n1', [...outer, pilot, 'sh', '-c', within], { user: 'alice' })
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toMatch(/^v2\d\.\S+\nnested sif 1000\nnested folder alice\n$/)
  })

  test('apptainer - a LAMMPS melt gives the same digits inside the pilot image as outside of it', async () => {
    const melt = (cells: number) =>
      ['lmp', '-in', `${inside.checkout}/deploy/examples/melt/melt.in`, '-log', 'none'].concat(
        ['-var', 'T', '1.44', '-var', 'seed', '87287', '-var', 'cells', String(cells)],
        ['-var', 'steps', '100'],
      )
    const bind = ['--bind', inside.checkout]
    const direct = await centre.check('n1', [...exec, ...bind, lammps, ...melt(5)], { user: 'alice' })
    const outer = ['apptainer', '--quiet', 'exec', '--userns', '--contain', '--bind', '/dev/fuse', '--bind', '/images']
    const nested = await centre.check('n2', [...outer, ...bind, pilot, ...exec, ...bind, lammps, ...melt(5)], {
      user: 'alice',
      env: { APPTAINERENV_HOME: '/tmp' },
    })
    const table = (text: string) => text.split('\n').filter((line) => /^\s+\d+0?\s+-?[\d.]+\s+-/.test(line))
    expect(table(direct)).toHaveLength(3)
    expect(table(direct)[0]).toMatch(/^\s+0\s+1\.44\s+-6\.77/)
    expect(table(nested)).toEqual(table(direct))
  })

  test('observing - new files on the shared file system and open sockets are told with their owners', async () => {
    const since = new Date()
    await centre.check('edge', ['sh', '-c', 'umask 077; mkdir -p new; echo 1234 >new/file'], { user: 'alice' })
    expect(await centre.filesCreated(inside.shared, since)).toEqual([
      { path: `${inside.home}/new/file`, owner: 'alice', mode: '600', sizeBytes: 5 },
    ])
    const listening = (await centre.sockets('edge')).filter((socket) => socket.state === 'LISTEN')
    expect(listening).toEqual([
      expect.objectContaining({ protocol: 'tcp', local: '0.0.0.0:6817', process: 'slurmctld' }),
    ])
  })

  describe('faults', () => {
    let faulty: Centre
    beforeAll(async () => {
      faulty = await startCentre({ nodes: 2, slurm: false })
    })
    afterAll(async () => {
      await faulty?.stop()
    })
    const attempt = async (argv: readonly string[], env = {}) => {
      const { code, stdout, stderr } = await faulty.run('n1', argv, { user: 'alice', env })
      return `${code} ${stdout}${stderr}`.trim()
    }
    const inImage = (image: string) => [...exec, image, 'sh', '-c', 'echo ran']

    test('images - each bad one fails for its own reason', async () => {
      const images = makeBadImages(faulty)
      const said = Object.fromEntries(
        await Promise.all(
          Object.entries(images).map(async ([name, path]) => [name, await attempt(inImage(path))] as const),
        ),
      )
      expect(said).toEqual({
        truncated: expect.stringMatching(/^255 .*trying to read the squashfs image/s),
        damaged: expect.stringMatching(/^255 .*(input\/output error|squashfs)/s),
        notAnImage: expect.stringMatching(/^255 .*image format not recognized/s),
        empty: expect.stringMatching(/^255 .*image format not recognized/s),
        unreadable: expect.stringMatching(/^255 .*not readable by the current user/s),
        otherArchitecture: expect.stringMatching(/^255 .*architecture .* could not run on the host/s),
        otherArchitectureFolder: expect.stringMatching(/^255 .*exec format error/s),
        missing: expect.stringMatching(/^255 .*no such file or directory/s),
      })
    })

    test('nodes - without user namespaces, without FUSE, without the tools, with a full scratch', async () => {
      expect(await attempt(inImage(busybox))).toBe('0 ran')
      // Not 255, as for its other failures.
      expect(await attempt(withoutUserNamespaces(inImage(busybox)))).toMatch(/^1 .*Failed to create user namespace/s)
      expect(await attempt(inImage(busybox))).toBe('0 ran')

      await denyFuse(faulty, 'n1')
      // Apptainer does not unpack of its own accord when only the device is missing; it has to be told.
      expect(await attempt(inImage(busybox))).toMatch(/^255 .*failed to open \/dev\/fuse/s)
      expect(await attempt([...exec, '--unsquash', busybox, 'echo', 'ran'])).toBe('0 ran')
      expect(await attempt(inImage(lammps))).toBe('0 ran')

      await mountSmall(faulty, 'n1', '/small', 200_000)
      const full = [...exec, '--unsquash', busybox, 'true']
      expect(await attempt(full, { APPTAINER_TMPDIR: '/small' })).toMatch(/^255 .*no space left on device/s)

      await removePrograms(faulty, 'n1', 'squashfuse', 'squashfuse_ll')
      expect(await attempt(inImage(busybox))).toBe('0 ran')
      await removePrograms(faulty, 'n1', 'unsquashfs')
      expect(await attempt(inImage(busybox))).toMatch(/^255 .*unsquashfs/s)
    })
  })

  describe('link', () => {
    test('delays both ways, counts, and stands again after a cut on the same port', async () => {
      const echo = centre.spawn('outside', 'echo', ['node', '-e', echoServer, '7010', '127.0.0.1'])
      await echo.waitFor(/listening/)
      const link = await startLink(centre, 'outside', `${addresses.outside}:0`, '127.0.0.1:7010')
      const ask = (...patienceMs: number[]) => reach('edge', addresses.outside, link.port, ...patienceMs)
      expect(await ask()).toBe('hello')
      expect(await link.state()).toMatchObject({ mode: 'open', accepted: 1, bytesUp: 5, bytesDown: 5 })

      // The client waits for SILENCE_MS: a delay of 1 s each way is too long for it.
      await link.set({ delayMs: 1000 })
      expect(await ask(SILENCE_MS)).toBe('silence')
      await link.set({ delayMs: 20 })
      expect(await ask()).toBe('hello')

      await link.set({ mode: 'cut' })
      expect(await ask()).toBe('ECONNREFUSED')
      await link.set({ mode: 'open' })
      expect(await ask()).toBe('hello')
      await Promise.all([link.stop(), echo.stop()])
    })

    test('half-open - accepts and passes nothing on, and delivers what was sent once it is open', async () => {
      const echo = centre.spawn('outside', 'echo', ['node', '-e', echoServer, '7011', '127.0.0.1'])
      await echo.waitFor(/listening/)
      const link = await startLink(centre, 'outside', `${addresses.outside}:0`, '127.0.0.1:7011')
      await link.set({ mode: 'half-open' })
      expect(await reach('edge', addresses.outside, link.port, SILENCE_MS)).toBe('silence')
      const late = echoClient.replace("socket.write('hello')", "socket.write('late')")
      const client = centre.spawn('edge', 'client', ['node', '-e', late, addresses.outside, String(link.port)])
      while ((await link.state()).accepted < 2) await new Promise((done) => setTimeout(done, 50))
      expect(client.output).toBe('')
      await link.set({ mode: 'open' })
      await client.waitFor(/^late$/m)
      await Promise.all([link.stop(), echo.stop()])
    })

    test('cut - resets the connections that stand', async () => {
      const echo = centre.spawn('outside', 'echo', ['node', '-e', echoServer, '7012', '127.0.0.1'])
      await echo.waitFor(/listening/)
      const link = await startLink(centre, 'outside', `${addresses.outside}:0`, '127.0.0.1:7012')
      await link.set({ mode: 'half-open' })
      const client = centre.spawn('edge', 'client', ['node', '-e', echoClient, addresses.outside, String(link.port)])
      while ((await link.state()).connections < 1) await new Promise((done) => setTimeout(done, 50))
      expect(await link.set({ mode: 'cut' })).toMatchObject({ connections: 0 })
      await client.waitFor(/ECONNRESET/)
      await Promise.all([link.stop(), echo.stop()])
    })

    test('bandwidth - is shared by all connections of a direction', async () => {
      const echo = centre.spawn('outside', 'echo', ['node', '-e', echoServer, '7013', '127.0.0.1'])
      await echo.waitFor(/listening/)
      const link = await startLink(centre, 'outside', `${addresses.outside}:0`, '127.0.0.1:7013')
      // 40 kB at 20 kB/s: two seconds there, and back meanwhile.
      await link.set({ bytesPerSecond: 20_000 })
      const bulk = `let got = 0; const socket = require('node:net').connect(Number(process.argv[2]), process.argv[1])
        socket.on('connect', () => socket.write(Buffer.alloc(40000)))
        socket.on('data', (data) => { got += data.length; if (got === 40000) { console.log('all', process.uptime()); process.exit() } })`
      const said = await centre.check('edge', ['node', '-e', bulk, addresses.outside, String(link.port)])
      expect(Number(/^all ([\d.]+)$/.exec(said)![1])).toBeGreaterThan(1.5)
      expect(await link.state()).toMatchObject({ bytesUp: 40_000, bytesDown: 40_000 })
      await Promise.all([link.stop(), echo.stop()])
    })
  })
})

describe.skipIf(whyNoLab() !== null)('lab - when the test process is killed', () => {
  let child: ChildProcess | undefined
  afterAll(() => void child?.kill('SIGKILL'))

  test('end - everything in the centre ends with it and its folder is removed by the next', async () => {
    const program = `import { startCentre } from ${JSON.stringify(join(checkout, 'test/lab/centre.ts'))}
      const centre = await startCentre({ nodes: 1 })
      console.log('up ' + centre.logFolder)
      setInterval(() => {}, 1000)`
    child = spawn(process.execPath, ['--input-type=module', '-e', program], { stdio: ['ignore', 'pipe', 'inherit'] })
    const folder = await new Promise<string>((done, fail) => {
      child!.stdout!.setEncoding('utf8').on('data', (text: string) => done(/up (\S+)/.exec(text)![1]!))
      child!.on('exit', (code) => fail(new Error(`ended with ${code}`)))
    })
    const all = descendantsOf(child.pid!)
    expect(all.length).toBeGreaterThan(8)
    child.removeAllListeners('exit')
    const gone = new Promise((done) => child!.on('exit', done))
    child.kill('SIGKILL')
    await gone
    while (all.some((pid) => existsSync(`/proc/${pid}`))) await new Promise((done) => setTimeout(done, 50))
    expect(readFileSync('/proc/mounts', 'utf8')).not.toContain('indraft-lab')
    const next = await startCentre({ nodes: 1, slurm: false })
    await next.stop()
    expect(existsSync(folder)).toBe(false)
    expect(existsSync(next.logFolder)).toBe(false)
  })
})
