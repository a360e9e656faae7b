/**
 * A small HPC centre on this machine, for tests: a host outside, an edge node, and compute nodes that reach the edge and
 * nothing else, with real Slurm and real Apptainer, one ordinary user and one shared file system. Every host is a set of
 * namespaces below one process that ends when this process does, so nothing is left mounted, running or listening.
 *
 * What the hosts see of this machine: the checkout, read-only, at /srv/indraft (with `node`, `indraft` and
 * `indraft-pilot` on the path), the images, read-only, and on edge and nodes the shared file system at /shared. All else
 * on their disks is private to each and in memory.
 */
import { type ChildProcess, spawn as spawnProcess } from 'node:child_process'
import { chownSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { Daemon, descendantsOf, killTree } from './daemon.ts'
import { alice, buildRoots, checkout, type Progress, type Roots, whyNoLab } from './roots.ts'
import { type JobFacts, jobFacts, type QueueEntry, queue, startSlurm, submit, waitForJob } from './slurm.ts'

export type Host = 'outside' | 'edge' | `n${number}`

/** Addresses as the hosts see them; the edge has one on each side. */
export const addresses = { outside: '10.78.0.1', edgeWan: '10.78.0.2', edgeLan: '10.77.0.1' } as const

/** Paths inside the hosts. */
export const inside = {
  checkout: '/srv/indraft',
  shared: '/shared',
  home: alice.home,
  /** The image folders and the SIF; on every host. */
  images: {
    lammps: '/images/lammps',
    pilot: '/images/pilot',
    relay: '/images/relay',
    busybox: '/images/busybox.sif',
    pilotByDefinition: '/images/pilot-by-definition',
    relayByDefinition: '/images/relay-by-definition',
  },
} as const

export interface RunOptions {
  /** 'root' unless told. */
  user?: 'root' | 'alice' | 'munge'
  /** Default: the user's home if it is there, else '/'. */
  cwd?: string
  /** Added to a small clean environment (PATH, HOME, USER, LANG). */
  env?: Readonly<Record<string, string>>
  /** The command and all it started is killed then, and the call throws. Default 5 min, for busy machines. */
  timeoutMs?: number
  /** Its standard input. */
  input?: string
}

export interface Outcome {
  /** Exit status; 128 + signal number when a signal ended it. */
  code: number
  stdout: string
  stderr: string
}

export interface Socket {
  protocol: string
  state: string
  local: string
  peer: string
  process: string
}

export interface CreatedFile {
  path: string
  owner: string
  /** Octal, as `600`. */
  mode: string
  sizeBytes: number
}

export interface CentreOptions {
  /** Compute nodes n1, n2, ...; default 2. */
  nodes?: number
  /** Without Slurm it stands in a second; default true. */
  slurm?: boolean
  progress?: Progress
}

/**
 * Builds what is missing of the roots, then starts hosts, cables and Slurm.
 * @throws Error saying why when the machine cannot hold a lab, or what did not come up, with the logs' ends
 */
export async function startCentre(options: CentreOptions = {}): Promise<Centre> {
  const reason = whyNoLab()
  if (reason) throw new Error(reason)
  const nodes = options.nodes ?? 2
  const roots = await buildRoots(options.progress)
  const centre = new Centre(roots, nodes, makeWorkFolder())
  try {
    await centre.boot()
    if (options.slurm !== false) await startSlurm(centre)
    return centre
  } catch (error) {
    const logs = centre.logs()
    await centre.stop()
    throw new Error(`the lab's centre did not start\n${logs}`, { cause: error })
  }
}

export class Centre {
  readonly roots: Roots
  readonly nodes: readonly Host[]
  readonly hosts: readonly Host[]
  /** On this machine: the folder that edge and nodes see as /shared. */
  readonly shared: string
  /** On this machine: `<host>-<name>.log` of each daemon. */
  readonly logFolder: string
  readonly #work: string
  readonly #daemons: Daemon[] = []
  /** The process on this machine that is each host's first. */
  readonly #first = new Map<Host, number>()
  #root: ChildProcess | undefined

  constructor(roots: Roots, nodes: number, work: string) {
    this.roots = roots
    this.nodes = Array.from({ length: nodes }, (_, at): Host => `n${at + 1}`)
    this.hosts = ['outside', 'edge', ...this.nodes]
    this.#work = work
    this.shared = join(work, 'shared')
    this.logFolder = join(work, 'logs')
  }

  /** Starts the hosts and their network. Called once, by startCentre. */
  async boot(): Promise<void> {
    const home = join(this.shared, alice.home.slice(inside.shared.length))
    mkdirSync(this.logFolder)
    mkdirSync(home, { recursive: true, mode: 0o755 })
    chownSync(home, alice.uid, alice.uid)
    const images = Object.entries(inside.images) as [keyof typeof inside.images, string][]
    const everywhere = [
      `${checkout} ${inside.checkout} ro`,
      ...images.map(([name, path]) => `${this.roots[name]} ${path} ro`),
    ]
    const namespaces = ['--mount', '--uts', '--net', '--ipc', '--pid', '--fork', '--kill-child', '--mount-proc']
    const root = spawnProcess('unshare', [...namespaces, join(import.meta.dirname, 'centre.sh')], {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: {
        PATH: '/usr/sbin:/usr/bin:/sbin:/bin',
        LAB_WORK: this.#work,
        LAB_ROOT: this.roots.site,
        LAB_NODES: String(this.nodes.length),
        LAB_OUTSIDE_BINDS: everywhere.join('\n'),
        LAB_SHARED_BINDS: [...everywhere, `${this.shared} ${inside.shared} rw`].join('\n'),
      },
    })
    this.#root = root
    await new Promise<void>((done, fail) => {
      let said = ''
      const take = (text: string) => {
        said += text
        if (said.includes('ready\n')) done()
      }
      root.stdout.setEncoding('utf8').on('data', take)
      root.stderr.setEncoding('utf8').on('data', take)
      root.on('error', fail)
      root.on('exit', (code) => fail(new Error(`centre.sh ended with ${code}: ${said}`)))
    })
    for (const pid of descendantsOf(root.pid!)) {
      const argv = commandLine(pid)
      const host = this.hosts.find((name) => argv.at(-1) === name)
      if (argv[0] === 'indraft-lab-host' && host) this.#first.set(host, pid)
    }
    for (const host of this.hosts) if (!this.#first.has(host)) throw new Error(`host ${host} has no process`)
  }

  /** Runs a command to its end. Throws when it runs into its timeout. */
  async run(host: Host, argv: readonly string[], options: RunOptions = {}): Promise<Outcome> {
    const child = this.#start(host, argv, options)
    const timeoutMs = options.timeoutMs ?? 300_000
    let stdout = ''
    let stderr = ''
    child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      stdout += text
    })
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      stderr += text
    })
    child.stdin!.on('error', () => {})
    child.stdin!.end(options.input ?? '')
    return await new Promise((done, fail) => {
      const timer = setTimeout(() => {
        killTree(child.pid!)
        fail(new Error(`${host}: ${argv.join(' ')} took more than ${timeoutMs} ms\n${stdout}${stderr}`))
      }, timeoutMs)
      child.on('error', fail)
      child.on('close', (code, signal) => {
        clearTimeout(timer)
        done({ code: code ?? (signal === 'SIGKILL' ? 137 : 143), stdout, stderr })
      })
    })
  }

  /** As run, and throws when the exit status is not 0. Returns standard output without the last newline. */
  async check(host: Host, argv: readonly string[], options: RunOptions = {}): Promise<string> {
    const { code, stdout, stderr } = await this.run(host, argv, options)
    if (code !== 0) throw new Error(`${host}: ${argv.join(' ')} ended with ${code}\n${stdout}${stderr}`)
    return stdout.replace(/\n$/, '')
  }

  /** Starts what stays: its output goes to `<logFolder>/<host>-<name>.log`. Ends with the centre at the latest. */
  spawn(host: Host, name: string, argv: readonly string[], options: RunOptions = {}): Daemon {
    const child = this.#start(host, argv, options)
    const daemon = new Daemon(`${host}-${name}`, child, join(this.logFolder, `${host}-${name}.log`))
    this.#daemons.push(daemon)
    return daemon
  }

  /** Puts a text into a file of a host. */
  async write(host: Host, path: string, text: string, mode = '644', owner = 'root'): Promise<void> {
    const script = 'umask 077; mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$2" "$1" && chown "$3:" "$1"'
    await this.check(host, ['sh', '-c', script, 'write', path, mode, owner], { input: text, cwd: '/' })
  }

  /**
   * Submits a batch script as alice from the edge node, in her home (which is where its output goes).
   * @param args of sbatch, before the script
   * @returns the job's id
   */
  sbatch(script: string, args: readonly string[] = [], options: RunOptions = {}): Promise<string> {
    return submit(this, script, args, options)
  }

  squeue(): Promise<QueueEntry[]> {
    return queue(this)
  }

  /** All that the controller says about a job. */
  job(id: string): Promise<JobFacts> {
    return jobFacts(this, id)
  }

  /** Waits until a job is in one of these states (default: any in which it has ended). */
  waitForJob(id: string, states?: readonly string[], timeoutMs = 400_000): Promise<JobFacts> {
    return waitForJob(this, id, states, timeoutMs)
  }

  /** Every TCP and UDP socket of a host, listening or not. */
  async sockets(host: Host): Promise<Socket[]> {
    const text = await this.check(host, ['ss', '-Htunap'])
    return text
      .split('\n')
      .filter(Boolean)
      .map((line) => {
        const [protocol = '', state = '', , , local = '', peer = '', ...users] = line.trim().split(/\s+/)
        return { protocol, state, local, peer, process: /"([^"]+)"/.exec(users.join(' '))?.[1] ?? '' }
      })
  }

  /** The files below a folder of the shared file system that were made or changed since then. */
  async filesCreated(folder: string, since: Date): Promise<CreatedFile[]> {
    const format = '%p\\t%u\\t%m\\t%s\\n'
    const newer = ['-newermt', `@${since.getTime() / 1000}`]
    const text = await this.check('edge', ['find', folder, '-xdev', '-type', 'f', ...newer, '-printf', format])
    return text
      .split('\n')
      .filter(Boolean)
      .map((line) => {
        const [path = '', owner = '', mode = '', size = '0'] = line.split('\t')
        return { path, owner, mode, sizeBytes: Number(size) }
      })
  }

  /** The ends of all daemons' logs, for the message of a failed test. */
  logs(lines = 15): string {
    if (!existsSync(this.logFolder)) return ''
    return readdirSync(this.logFolder)
      .map((file) => {
        const text = readFileSync(join(this.logFolder, file), 'utf8').trimEnd().split('\n').slice(-lines)
        return `--- ${file}\n${text.join('\n')}`
      })
      .join('\n')
  }

  /** Ends everything in the centre and removes its files. */
  async stop(): Promise<void> {
    const root = this.#root
    if (root && root.exitCode === null && root.signalCode === null) {
      const gone = new Promise((done) => root.once('exit', done))
      root.stdin?.end()
      const timer = setTimeout(() => root.kill('SIGKILL'), 10_000)
      await gone
      clearTimeout(timer)
    }
    await Promise.all(this.#daemons.map((daemon) => daemon.exited))
    rmSync(this.#work, { recursive: true, force: true })
  }

  #start(host: Host, argv: readonly string[], options: RunOptions): ChildProcess {
    const first = this.#first.get(host)
    if (!first) throw new Error(`the lab has no host ${host}`)
    const user = options.user ?? 'root'
    const home = user === 'alice' ? alice.home : user === 'root' ? '/root' : '/'
    const env = {
      PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
      HOME: home,
      USER: user,
      LOGNAME: user,
      LANG: 'C.UTF-8',
      ...options.env,
    }
    const cwd = options.cwd ?? (user === 'alice' && host === 'outside' ? '/' : home)
    // The command dies with nsenter, which dies with us at the latest; setpriv sets that after changing the user.
    const as = user === 'root' ? [] : ['--reuid', user, '--regid', user, '--init-groups']
    return spawnProcess(
      'nsenter',
      [
        ...['-t', String(first), '--mount', '--uts', '--ipc', '--net', '--pid', '--'],
        ...['/usr/bin/env', '-i', '-C', cwd, ...Object.entries(env).map(([name, value]) => `${name}=${value}`)],
        ...['setpriv', ...as, '--pdeathsig', 'KILL', '--', ...argv],
      ],
      { stdio: ['pipe', 'pipe', 'pipe'] },
    )
  }
}

function commandLine(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').slice(0, -1)
  } catch {
    return []
  }
}

/** A new folder for one centre; those of test processes that were killed are removed on the way. */
function makeWorkFolder(): string {
  for (const name of readdirSync(tmpdir())) {
    const owner = /^indraft-lab-(\d+)-/.exec(name)?.[1]
    if (owner && !existsSync(`/proc/${owner}`)) rmSync(join(tmpdir(), name), { recursive: true, force: true })
  }
  return mkdtempSync(join(tmpdir(), `indraft-lab-${process.pid}-`))
}
