/**
 * Payloads that mean harm, or only behave badly, in real containers of the real product: what one can see of the pilot, of
 * the node and of other payloads is printed as a table, and what it must not see is asserted; what it does to its own
 * wrapper, folders and processes ends as its own failure and nothing else.
 */

import { createHash } from 'node:crypto'
import { copyFileSync, cpSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { addresses, type Centre, inside, startCentre } from './centre.ts'
import type { Daemon } from './daemon.ts'
import { type Product, paths, programs, startProduct } from './product.ts'
import { whyNoLab } from './roots.ts'

const { busybox, pilot: nodeImage } = inside.images
const scratch = '/tmp/h'
/** Of the victims, at most: they are cancelled when all was looked at. */
const STAY_S = 400

interface Step {
  image?: string
  /** A shell script. */
  run: string
  network?: 'none' | 'outgoing'
  env?: Record<string, string>
  output?: string
  /** Where the output is to be put; at the centre where not given. */
  outputUrl?: string
  input?: string
  resources?: string
  /** As JSON. */
  software?: object
}

/** What hostile-payload.mjs writes. */
interface Seen {
  [place: string]: unknown
  processes: string[]
  abstract: Record<string, string>
  ports: Record<string, string>
  writable: string[]
  gained: Record<string, boolean>
  environment: string[]
}

/** Answers by the first part of the path: never, half of what it promised, a redirect to the node's own side. */
const webServer = `require('node:http').createServer((request, response) => {
  if (request.url.startsWith('/half')) response.writeHead(200, {'content-length': 1000}).write('x', () => response.destroy())
  else if (request.url.startsWith('/private')) response.writeHead(302, {location: 'http://${addresses.edgeLan}:80/x.sif'}).end()
}).listen(8080, process.argv[1], () => console.log('listening'))`

/** The product's own container code on the node: a payload with two of three GPUs tries to read all of them. */
const coveredGpus = `
import { mkdirSync, openSync, readFileSync } from 'node:fs'
import { prepareControl } from '${inside.checkout}/pilot/container.ts'
import { probeContainer } from '${inside.checkout}/pilot/container-probe.ts'
import { silentLog } from '${inside.checkout}/shared/log.ts'
const [image, folder] = process.argv.slice(1)
const own = (name) => folder + '/' + name
mkdirSync(own('container'), { recursive: true })
const runtime = await probeContainer({
  binaries: ['/usr/bin/apptainer'], folder: own('container'), probeImage: null, binds: [], env: { PATH: process.env.PATH },
  log: silentLog, gpus: { vendor: 'nvidia', file: '/dev/nvidia0' },
})
for (const name of ['work', 'temporary', 'unpack']) mkdirSync(own(name))
await prepareControl(own('control'))
const read = (what, path) => 'echo "read ' + what + ': $(head -c 3 ' + path + ' 2>/dev/null | wc -c)"'
const script = [
  ...[0, 1, 2].map((minor) => read('/dev/nvidia' + minor, '/dev/nvidia' + minor)),
  "unshare -Urm sh -c '" + [
    'umount -l /dev/nvidia2', read('unmounted /dev/nvidia2', '/dev/nvidia2'),
    'mkdir dev; mount --rbind /dev dev', read('bound /dev/nvidia2', 'dev/nvidia2'),
    'mknod made c 1 5', read('made', 'made'),
  ].join('; ') + "' 2>&1",
].join('; ')
const gpus = { vendor: 'nvidia', ids: ['GPU-a', 'GPU-b'], covered: ['/dev/nvidia2'], isAlone: true }
const out = openSync(own('said'), 'w')
const paths = { work: own('work'), temporary: own('temporary'), control: own('control'), unpack: own('unpack') }
const launch = { image, argv: ['sh', '-c', script], env: {}, marker: {}, ...paths, gpus, stdout: out, stderr: out }
await runtime.start(launch).ended
console.log(JSON.stringify({ sealing: runtime.sealing(launch), said: readFileSync(own('said'), 'utf8') }))
`

describe.skipIf(whyNoLab() !== null)('hostile payloads', () => {
  let centre: Centre
  let product: Product
  let pilot: Daemon

  beforeAll(async () => {
    centre = await startCentre({ nodes: 1, slurm: false })
    product = await startProduct(centre, 0.1)
    mkdirSync(join(centre.shared, 'data'))
    copyFileSync(join(import.meta.dirname, 'hostile-payload.mjs'), join(centre.shared, 'data/hostile-payload.mjs'))
    await centre.check('edge', ['chown', 'alice:', `${inside.shared}/data`])
    symlinkSync('home/alice', join(centre.shared, 'also-home'))
    // What an account may have lying about: the pilot is to leave it alone, and to keep it from payloads.
    await centre.write('edge', `${inside.home}/.apptainer/remote.yaml`, 'not for pilots', '600', 'alice')
    await centre.check('edge', ['chown', 'alice:', `${inside.home}/.apptainer`])
    const words = ['--idle-before', '3min', '--idle-after', '3min', '--payload-grace', '1s', '--host-runtime', 'false']
    const site = ['--shared-folders', `${inside.shared}/data`, '--stop-file', `${inside.shared}/data/STOP`]
    const more = [...site, '--network', 'outgoing', '--scratch', scratch, '--cores', '8', '--stage-timeout', '15s']
    const argv = [...programs.pilot, 'run', '--credential', paths.pilotCredential, ...words, ...more]
    const env = {
      APPTAINER_BIND: '/shared',
      APPTAINER_BINDPATH: '/shared',
      APPTAINER_NO_HOME: '0',
      APPTAINERENV_LEAK: 'a',
      SINGULARITYENV_LEAK: 'b',
      APPTAINER_WRITABLE_TMPFS: '1',
      LEAK: 'c',
    }
    await mountRepositories()
    pilot = centre.spawn('n1', 'pilot', argv, { user: 'alice', env })
    await pilot.waitFor(/"msg":"node.tested"/)
  })
  afterAll(async () => {
    await centre?.stop()
  })

  /** Stand-ins for CVMFS repositories on the node: file systems of their own, mounted where CVMFS mounts them. */
  const mountRepositories = async () => {
    const stack = `software.eessi.io/versions/2025.06`
    const init = 'module() { echo "LOADED=$2" >&2; export LOADED=$2; }'
    const script = `cd /; mkdir -p cvmfs && mount -t tmpfs -o mode=755 cvmfs cvmfs && cd cvmfs
      for name in data.vo.example secret.vo.example gone.vo.example software.eessi.io; do
        mkdir $name && mount -t tmpfs -o mode=755 $name $name && echo "of $name" >$name/file
      done
      mkdir -p ${stack}/init ${stack}/compat/linux/$(uname -m) && printf '%s\\n' '${init}' >${stack}/init/bash`
    await centre.check('n1', ['sh', '-ec', script])
  }

  const submit = async (name: string, steps: Readonly<Record<string, Step>>) => {
    const text = Object.entries(steps).map(([step, { image = busybox, run, network = 'outgoing', ...more }]) => {
      const { output, outputUrl, input, env = {}, resources = 'memory: 200MB, walltime: 2min', software } = more
      const inputs = input ? `, inputs: [{url: "file://${input}", path: payload.mjs}]` : ''
      const place = outputUrl ? `, url: "file://${outputUrl}"` : ''
      const outputs = output ? `, outputs: [{path: ${output}${place}}]` : ''
      const command = JSON.stringify(['sh', '-c', run.replaceAll('$(', () => '$$(')])
      const needs = software ? `, software: ${JSON.stringify(software)}` : ''
      const rest = `resources: {cores: 1, ${resources}}${inputs}${outputs}${needs}`
      return `  ${step}: {image: ${JSON.stringify(image)}, network: ${network}, command: ${command}, env: ${JSON.stringify(env).replaceAll('$(', () => '$$(')}, ${rest}}`
    })
    const head = `indraft: 1\nname: ${name}\ngroup: /lab\ndefaults: {retries: {payload: 0, infrastructure: 0}}\nsteps:\n`
    await centre.write('outside', `/root/${name}.yaml`, `${head}${text.join('\n')}\n`)
    await product.indraft('campaign', 'submit', `/root/${name}.yaml`)
  }
  const tasksOf = async (name: string) =>
    (
      JSON.parse(await product.indraft('campaign', 'tasks', name, '--json')) as {
        tasks: { step: string; state: string; reason: string | null; detail?: string | null }[]
      }
    ).tasks
  /** `done`, or the reason, by step. */
  const outcome = async (name: string) => {
    for (const deadline = performance.now() + 400_000; ; await sleep(1000)) {
      const tasks = await tasksOf(name)
      const over = tasks.every(({ state }) => ['done', 'failed', 'skipped', 'cancelled'].includes(state))
      if (over) return Object.fromEntries(tasks.map(({ step, state, reason }) => [step, reason ?? state]))
      if (performance.now() > deadline) throw new Error(`${JSON.stringify(tasks)}\n${pilot.output.slice(-4000)}`)
    }
  }
  const fetched = async (name: string, step: string, file: string) => {
    await product.indraft('campaign', 'outputs', name, '--step', step, '--get', `/root/${name}`)
    return await centre.check('outside', ['cat', `/root/${name}/${step}/0/${file}`])
  }
  const portsOnNode = async (count: number): Promise<string[]> => {
    const look = ['sh', '-c', `cat ${scratch}/*/tasks/*/work/port 2>/dev/null | tr '\\n' ' '; true`]
    for (const deadline = performance.now() + 300_000; ; await sleep(300)) {
      // Without a newline in the files: five digits each.
      const ports = (await centre.check('n1', look)).match(/\d{5}/g) ?? []
      if (ports.length >= count) return ports
      if (performance.now() > deadline) throw new Error(`no victims: ${pilot.output.slice(-3000)}`)
    }
  }

  test('isolation - a payload sees nothing of the pilot, the account and other payloads', {
    timeout: 600_000,
  }, async () => {
    const program = `${inside.shared}/data/hostile-payload.mjs`
    const credential = JSON.parse(await centre.check('edge', ['cat', paths.pilotCredential], { user: 'alice' })) as {
      nats: { url: string; password: string }
      files: { token: string }
    }
    const decoy = centre.spawn(
      'n1',
      'decoy',
      ['sh', '-c', `mkdir -p /tmp/decoy && cd /tmp/decoy && exec node ${program} leave host`],
      {
        user: 'alice',
        env: { STAY_MS: String(STAY_S * 2000) },
      },
    )
    const hostPort = (await decoy.waitFor(/left (\d+)/))[1]!
    const leave = (name: string) => `tail -f /dev/null | node payload.mjs leave ${name}`
    const resources = 'memory: 200MB, walltime: 10min'
    const victim = { image: nodeImage, input: program, env: { STAY_MS: String(STAY_S * 1000) }, resources }
    await submit('victims', {
      near: { ...victim, run: leave('near') },
      sealed: { ...victim, run: leave('sealed'), network: 'none' },
    })
    const ports = await portsOnNode(2)
    const nats = new URL(credential.nats.url)
    const words = {
      marks: ['host', 'near', 'sealed'],
      ports: {
        'the host': ['127.0.0.1', Number(hostPort)],
        'payload 1': ['127.0.0.1', Number(ports[0])],
        'payload 2': ['127.0.0.1', Number(ports[1])],
        'relay NATS': [nats.hostname, Number(nats.port)],
        central: [addresses.outside, 8420],
      },
      paths: [
        inside.home,
        paths.pilotCredential,
        scratch,
        '/tmp/decoy',
        paths.relay,
        inside.checkout,
        '/images',
        program,
      ],
      secrets: [credential.nats.password, credential.files.token].map((text) => [...text].reverse().join('')),
    }
    const look = {
      image: nodeImage,
      input: program,
      output: 'seen.json',
      run: `node payload.mjs look '${JSON.stringify(words)}'`,
    }
    await submit('hostile', { alone: { ...look, network: 'none' }, open: look })
    expect(await outcome('hostile')).toEqual({ alone: 'done', open: 'done' })
    const alone = JSON.parse(await fetched('hostile', 'alone', 'seen.json')) as Seen
    const open = JSON.parse(await fetched('hostile', 'open', 'seen.json')) as Seen
    const shown = (value: unknown) => (value === undefined ? '' : JSON.stringify(value)).slice(0, 70)
    const rows = Object.keys(alone).map(
      (place) => `${place.padEnd(24)} ${shown(alone[place]).padEnd(72)} ${shown(open[place])}`,
    )
    console.log([`${'what it saw'.padEnd(24)} ${'network: none'.padEnd(72)} network: outgoing`, ...rows].join('\n'))

    for (const seen of [alone, open]) {
      expect(seen).toMatchObject({
        uid: 1000,
        marksInProcesses: 0,
        secretsInProcesses: 0,
        secretsInOwnEnvironment: false,
        secretsInFiles: [],
        marksInFolders: [],
        paths: [],
        descriptors: [],
        sysv: 0,
        sysvShm: 0,
        privileges: '0000000000000000',
        noNewPrivileges: '1',
        coreBytes: '0',
        gained: { hostRoot: false, kernelSetting: false, device: false, kernelTrigger: false, kernelLog: false },
      })
      expect(seen.processes.every((argv) => !/leave|indraft-pilot/.test(argv))).toBe(true)
      // /dev is a small file system of its own.
      expect(seen.writable.filter((folder) => folder !== '/dev')).toEqual([])
      expect(seen.environment).not.toContain('LEAK')
      expect(seen.environment.join(' ')).not.toMatch(/SLURM|TOKEN|PASSWORD|CAPABILITY/i)
      expect(seen.abstract.sealed).toBe('ECONNREFUSED')
      for (const heard of Object.values(seen.ports)) expect(heard).not.toMatch(/MSG|\+OK|PONG/)
    }
    expect(alone).toMatchObject({ interfaces: expect.any(Array), abstractNames: [] })
    for (const answer of [...Object.values(alone.abstract), ...Object.values(alone.ports)]) {
      expect(answer).not.toMatch(/^connected/)
    }
    // What the node's network shows to those who may use it, as docs/site/what-runs-at-a-site.md says.
    expect(open.abstract).toMatchObject({
      host: expect.stringMatching(/^connected/),
      near: expect.stringMatching(/^connected/),
    })
    expect(open.ports['the host']).toMatch(/^connected/)
    const sealings = pilot.output.match(/"sealing":\{[^}]*\}/g)
    expect(new Set(sealings)).toEqual(
      new Set(['"sealing":{"network":"own","processes":"own"}', '"sealing":{"network":"shared","processes":"own"}']),
    )
    await product.indraft('campaign', 'cancel', 'victims')
    await outcome('victims')
    await decoy.stop()
  })

  test('software - a step sees the repositories that it names and no others, and one that names none sees none', {
    timeout: 600_000,
  }, async () => {
    await centre.check('n1', ['umount', '/cvmfs/gone.vo.example'])
    const look = 'cat /cvmfs/*/file; ls /cvmfs; echo x 2>/dev/null >/cvmfs/data.vo.example/mine || echo not written'
    const software = (...cvmfs: string[]) => ({ cvmfs })
    await submit('software', {
      one: { run: `(${look}) >out`, output: 'out', software: software('data.vo.example'), network: 'none' },
      stack: {
        ...{ image: nodeImage, run: 'echo "$LOADED $(ls /cvmfs)" >out', output: 'out' },
        software: { eessi: { version: '2025.06', modules: ['ROOT/6.30'] } },
      },
      none: { run: '[ ! -e /cvmfs/data.vo.example ]' },
      gone: { run: 'true', software: software('gone.vo.example') },
    })
    expect(await outcome('software')).toEqual({ one: 'done', stack: 'done', none: 'done', gone: 'software.failed' })
    expect(await fetched('software', 'one', 'out')).toBe('of data.vo.example\ndata.vo.example\nnot written')
    expect(await fetched('software', 'stack', 'out')).toBe('ROOT/6.30 software.eessi.io')
  })

  test('files - what lies outside the shared folders, or is the site’s own, can be neither read nor written through a task', {
    timeout: 600_000,
  }, async () => {
    const home = inside.home
    const writes = {
      logIn: `${home}/.ssh/authorized_keys`,
      throughALink: `${inside.shared}/also-home/.bashrc`,
      stop: `${inside.shared}/data/STOP`,
      trace: `${scratch}/trace/n1-20260101.jsonl`,
    }
    const reads = {
      credential: paths.pilotCredential,
      credentialByDots: `${inside.shared}/data/../home/alice/.indraft/pilot.json`,
      passwords: '/etc/passwd',
      outbox: `${scratch}/x`,
    }
    const odd = 'files'
    await submit(odd, {
      fine: { run: 'echo yes >out', output: 'out', outputUrl: `${inside.shared}/data/fine` },
      ...Object.fromEntries(
        Object.entries(writes).map(([name, outputUrl]) => [name, { run: 'echo mine >out', output: 'out', outputUrl }]),
      ),
      ...Object.fromEntries(Object.entries(reads).map(([name, input]) => [name, { run: 'true', input }])),
    })
    const { fine, ...others } = await outcome(odd)
    expect(fine).toBe('done')
    const { outbox, ...refused } = others
    // Not there: nothing is told of what is.
    expect(['policy.refused', 'stage.inputMissing']).toContain(outbox)
    expect(new Set(Object.values(refused))).toEqual(new Set(['policy.refused']))
    expect(Object.keys(refused)).toHaveLength(7)
    expect(
      await centre.check('edge', ['sh', '-c', `cat ${home}/.bashrc ${inside.shared}/data/STOP 2>&1; ls -a ${home}`]),
    ).not.toMatch(/mine|\.ssh/)
  })

  test('GPUs - device files of others are covered, and no namespace of its own brings them back', async () => {
    const devices = [0, 1, 2].map((minor) => `/dev/nvidia${minor}`)
    // Stand-ins: what can be read of them is zeroes.
    for (const device of devices) await centre.check('n1', ['mknod', '-m', '666', device, 'c', '1', '5'])
    const found = await centre.check('n1', ['node', '--input-type=module', '-e', coveredGpus, nodeImage, '/tmp/gpus'], {
      user: 'alice',
      cwd: '/tmp',
    })
    const { sealing, said } = JSON.parse(found.split('\n').at(-1)!) as { sealing: object; said: string }
    expect(sealing).toMatchObject({ gpus: 'own' })
    const reads = said.split('\n').filter((line) => line.startsWith('read'))
    expect(reads).toEqual([
      ...['read /dev/nvidia0: 3', 'read /dev/nvidia1: 3', 'read /dev/nvidia2: 0'],
      ...['read unmounted /dev/nvidia2: 0', 'read bound /dev/nvidia2: 0', 'read made: 0'],
    ])
    for (const device of devices) await centre.check('n1', ['rm', device])
  })

  test('own harm - what a payload does to its wrapper, folders and processes is its own failure, or nothing', {
    timeout: 600_000,
  }, async () => {
    const odd = 'quo\'te "dq" line1\nline2 $(id) `id` $HOME 100% %s \\n \u001b[31m a=b; &|>*?  '
    const digest = createHash('sha256').update(odd).digest('hex')
    const long = 'x'.repeat(3000)
    const brief = 'memory: 200MB, walltime: 8s'
    await submit('harm', {
      killsItsWrapper: { run: 'kill -9 $PPID; sleep 5' },
      killsAll: { run: 'kill -9 -1; sleep 5' },
      lies: { run: 'printf "started\\nexit 0\\nend\\n" >/indraft/status; exit 3' },
      removesItsStatus: { run: 'rm -rf /indraft/*; exit 3' },
      blocksItsStatus: { run: 'rm /indraft/status; mkfifo /indraft/status; exit 0', resources: brief },
      linksItsStatus: { run: 'ln -sf /dev/null /indraft/status; sleep 1; exit 0' },
      fillsItsStatus: {
        run: 'head -c 60000000 /dev/zero >>/indraft/status; sleep 100',
        resources: 'memory: 200MB, walltime: 2min, scratch: 20MB',
      },
      fillsSharedMemory: {
        run: 'head -c 150000000 /dev/zero >/dev/shm/big; sleep 100',
        resources: 'memory: 60MB, walltime: 2min',
      },
      closesItsOutput: { run: 'exec >&- 2>&- <&-; exit 0' },
      leavesProcesses: { run: 'setsid sleep 300 & sleep 300 & (trap "" TERM HUP; sleep 300) & exit 0' },
      removesItsFolder: { run: 'echo x >out; cd /; rm -rf /work /work/* /tmp/*; rmdir /work; exit 0', output: 'out' },
      linksItsOutput: { run: 'ln -s /etc/passwd out', output: 'out' },
      odd: {
        run: `[ "$(printf %s "$ODD" | sha256sum | cut -c1-64)" = ${digest} ] && [ \${#LONG} = 3000 ] && [ "$APPTAINER_BIND" != /shared ]`,
        env: { ODD: odd, LONG: long },
      },
    })
    expect(await outcome('harm')).toEqual({
      killsItsWrapper: 'payload.signal',
      killsAll: 'payload.signal',
      lies: 'payload.exit',
      removesItsStatus: 'payload.exit',
      blocksItsStatus: 'payload.walltime',
      linksItsStatus: 'payload.signal',
      fillsItsStatus: 'payload.scratch',
      fillsSharedMemory: 'payload.memory',
      closesItsOutput: 'done',
      leavesProcesses: 'done',
      removesItsFolder: 'payload.outputMissing',
      linksItsOutput: 'payload.outputRefused',
      odd: 'done',
    })
    expect(
      await centre.check('n1', ['sh', '-c', 'cat /proc/[0-9]*/cmdline | tr "\\0" " " | grep -c "[s]leep 300"; true']),
    ).toBe('0')
  })

  test('images - odd names run, odd things in the place of images end as what they are', {
    timeout: 600_000,
  }, async () => {
    const folder = join(centre.shared, 'odd')
    const shell = join(centre.roots.site, 'usr/bin/busybox')
    const places = ['bin', 'dev', 'etc', 'proc', 'sys', 'tmp', 'var/tmp', 'work', 'indraft']
    for (const name of ['broken', 'bare'])
      for (const place of places) mkdirSync(join(folder, name, place), { recursive: true })
    // A dynamic program without what loads it; a program that may not be run.
    copyFileSync(join(centre.roots.site, 'usr/bin/true'), join(folder, 'broken/bin/sh'))
    copyFileSync(shell, join(folder, 'bare/bin/sh'))
    await centre.check('edge', ['chmod', '644', `${inside.shared}/odd/bare/bin/sh`])
    await centre.check('edge', ['mkfifo', '-m', '644', `${inside.shared}/odd/fifo.sif`])
    const oddName = `-a $(id) 'b' "c",d:e.sif`
    cpSync(centre.roots.busybox, join(folder, oddName))
    writeFileSync(join(folder, 'empty'), '')
    const web = centre.spawn('outside', 'web', ['node', '-e', webServer, addresses.outside])
    await web.waitFor(/listening/)
    const url = (path: string) => `http://${addresses.outside}:8080/${path}/x.sif#sha256:${'0'.repeat(64)}`
    const images = {
      odd: `${inside.shared}/odd/${oddName.replaceAll('$(', '$$(')}`,
      broken: `${inside.shared}/odd/broken`,
      bare: `${inside.shared}/odd/bare`,
      fifo: `${inside.shared}/odd/fifo.sif`,
      device: '/dev/zero',
      root: '/',
      processes: '/proc/self/root',
      account: inside.home,
      ofTheScratch: scratch,
      registry: `docker://registry.invalid/x@sha256:${'0'.repeat(64)}`,
      silent: url('silent'),
      half: url('half'),
      private: url('private'),
      elsewhere: `http://${addresses.edgeLan}:80/x.sif#sha256:${'0'.repeat(64)}`,
    }
    await submit(
      'odd',
      Object.fromEntries(Object.entries(images).map(([name, image]) => [name, { image, run: 'echo ran' }])),
    )
    expect(await outcome('odd')).toEqual({
      odd: 'done',
      broken: 'image.damaged',
      bare: 'image.damaged',
      fifo: 'image.damaged',
      device: 'policy.refused',
      root: 'policy.refused',
      processes: 'policy.refused',
      account: 'policy.refused',
      ofTheScratch: 'policy.refused',
      registry: 'image.missing',
      silent: 'stage.inFailed',
      half: 'stage.inFailed',
      private: 'policy.refused',
      elsewhere: 'policy.refused',
    })
    await web.stop()
  })

  test('isolation - where no network namespace can be made the node test says so, and containers run all the same', async () => {
    const deny = 'echo 0 >/proc/sys/user/max_net_namespaces; exec setpriv --ambient-caps -all --inh-caps -all -- "$@"'
    // The limit is that of a user namespace of its own: the machine's stays as it is.
    const without = ['unshare', '--user', '--map-current-user', '--keep-caps', 'sh', '-c', deny, 'sh']
    const words = ['--credential', paths.pilotCredential, '--scratch', '/tmp/h2', '--idle-before', '2min']
    const other = centre.spawn('n1', 'without', [...without, ...programs.pilot, 'run', ...words], { user: 'alice' })
    const found = await other.waitFor(/\{.*"msg":"container.found"\}/)
    expect(JSON.parse(found[0])).toMatchObject({
      isolation: ['--containall'],
      network: expect.stringMatching(/^shared: .*network namespace/),
    })
    await other.stop()
  })

  test('home - nothing is made or changed in it, and nothing is left in scratch', async () => {
    pilot.signal('SIGTERM')
    await pilot.exited
    const made = await centre.check('edge', ['sh', '-c', 'find . -type f | sort; cat .apptainer/remote.yaml'], {
      user: 'alice',
    })
    expect(made.split('\n')).toEqual([
      './.apptainer/remote.yaml',
      './.indraft/pilot.json',
      './mark-host',
      'not for pilots',
    ])
    expect(await centre.check('n1', ['find', scratch, '-mindepth', '1', '-maxdepth', '1', '-printf', '%f\\n'])).toMatch(
      /^(images|trace)?(\n(images|trace))?$/,
    )
  })
})
