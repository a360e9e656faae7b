/**
 * What a security officer would want to have written down of a host: every socket and every TCP connection that was there
 * while the witness watched, also those that ended soon, which programs ran in namespaces of their own and when, and every
 * name that appeared on the shared file system, also those that were gone soon. A program of its own on a host of the
 * lab: looks five times a second, and is told by the kernel of each connection that ends and of each file that begins.
 */
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync, readlinkSync, watch as watchFolder } from 'node:fs'
import { type AddressInfo, connect, createServer } from 'node:net'
import { join } from 'node:path'
import process from 'node:process'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Centre, Host } from './centre.ts'
import { inside } from './centre.ts'

export interface Seen {
  /** Listening sockets: protocol, address with port, program, and who runs it. */
  listening: { protocol: string; local: string; process: string; user: number }[]
  /** Connections that stood when the witness looked. */
  connections: { local: string; peer: string; process: string; user: number }[]
  /** The ends of every connection that ended, as the kernel told; whose it was only `connections` may know. */
  ended: { local: string; peer: string }[]
  /** Programs named to the witness: in which user namespace each ran. */
  programs: { pid: number; name: string; userNamespace: string; firstSeenMs: number; lastSeenMs: number }[]
  /** Paths below /shared that were made, renamed or removed. */
  files: string[]
  /** The host's own user namespace. */
  userNamespace: string
}

export interface Witness {
  /** Ends it. */
  tell(): Promise<Seen>
}

/** @param programs beginnings of names, as in /proc/PID/comm, to look for */
export async function startWitness(centre: Centre, on: Host, ...programs: string[]): Promise<Witness> {
  const daemon = centre.spawn(on, 'witness', ['node', `${inside.checkout}/test/lab/witness.ts`, ...programs])
  await daemon.waitFor(/^watching$/m)
  return {
    async tell() {
      daemon.stdin.end()
      const told = await daemon.waitFor(/^seen (\{.*\})$/m)
      await daemon.exited
      return JSON.parse(told[1]!) as Seen
    },
  }
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim()
  } catch {
    return ''
  }
}

function userNamespaceOf(pid: number | 'self'): string {
  try {
    return readlinkSync(`/proc/${pid}/ns/user`)
  } catch {
    return ''
  }
}

async function watch(programs: readonly string[]): Promise<void> {
  const listening = new Map<string, Seen['listening'][number]>()
  const connections = new Map<string, Seen['connections'][number]>()
  const ended = new Map<string, Seen['ended'][number]>()
  const found = new Map<number, Seen['programs'][number]>()

  const lookAtSockets = () => {
    const text = execFileSync('ss', ['-Htunape'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
    for (const line of text.split('\n').filter(Boolean)) {
      const [protocol = '', state = '', , , local = '', peer = ''] = line.trim().split(/\s+/)
      const name = /"([^"]+)"/.exec(line)?.[1] ?? ''
      const user = Number(/\buid:(\d+)/.exec(line)?.[1] ?? 0)
      if (state === 'LISTEN' || (state === 'UNCONN' && protocol === 'udp'))
        listening.set(`${protocol} ${local}`, { protocol, local, process: name, user })
      else if (name !== '') connections.set(`${local} ${peer}`, { local, peer, process: name, user })
    }
  }
  const lookAtPrograms = () => {
    for (const pid of readdirSync('/proc').map(Number).filter(Number.isInteger)) {
      const name = read(`/proc/${pid}/comm`)
      if (!programs.some((program) => name.startsWith(program))) continue
      // A container changes into its namespace after it has its name: the last look counts.
      const userNamespace = userNamespaceOf(pid)
      const nowMs = Date.now()
      const { firstSeenMs } = found.get(pid) ?? { firstSeenMs: nowMs }
      if (userNamespace !== '') found.set(pid, { pid, name, userNamespace, firstSeenMs, lastSeenMs: nowMs })
    }
  }

  // By the line: it would keep some kilobytes to itself, and take them along when it is ended.
  const events = spawn('stdbuf', ['-oL', 'ss', '-HtnE'], { stdio: ['ignore', 'pipe', 'ignore'] })
  let partial = ''
  events.stdout.setEncoding('utf8').on('data', (text: string) => {
    const lines = (partial + text).split('\n')
    partial = lines.pop()!
    for (const line of lines) {
      const [local, peer] = line.match(/\S+:\d+/g) ?? []
      if (local && peer) ended.set(`${local} ${peer}`, { local, peer })
    }
  })
  /** Makes connections of its own until the kernel's word of one is here: with it is that of all that ended before. */
  const hearOfOne = async () => {
    const server = createServer((socket) => socket.end()).listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    const isHeard = () => [...ended.values()].some(({ peer }) => peer === `127.0.0.1:${port}`)
    while (!isHeard()) {
      await once(connect(port, '127.0.0.1').resume(), 'close')
      await sleep(20)
    }
    await once(server.close(), 'close')
  }
  await hearOfOne()

  const files = new Set<string>()
  const folder = watchFolder(inside.shared, { recursive: true }, (event, path) => {
    if (event === 'rename' && path !== null) files.add(join(inside.shared, path))
  })
  const look = () => {
    lookAtSockets()
    lookAtPrograms()
  }
  look()
  const timer = setInterval(look, 200)
  process.stdin.resume().on('end', async () => {
    clearInterval(timer)
    look()
    await hearOfOne()
    events.kill()
    folder.close()
    const seen: Seen = {
      listening: [...listening.values()],
      connections: [...connections.values()],
      ended: [...ended.values()],
      programs: [...found.values()],
      files: [...files].sort(),
      userNamespace: userNamespaceOf('self'),
    }
    console.log(`seen ${JSON.stringify(seen)}`)
  })
  console.log('watching')
}

if (import.meta.main) await watch(process.argv.slice(2))
