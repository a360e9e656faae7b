/**
 * A network without a way out for payloads that run on the host: one network namespace for each pilot, in which only
 * loopback is up, made without privileges inside a user namespace of the same user. A small process holds it open for as
 * long as the pilot's end of its input is open; payloads are started into it.
 *
 * What always holds: what is started there reaches no host, no port and no abstract socket of the node, and holds no
 * privilege in it (unless the pilot itself is root). Payloads of one pilot share the loopback: on the host they could
 * reach each other anyway.
 */
import { spawn } from 'node:child_process'
import { isAbsolute } from 'node:path'

/** Both of util-linux, from 2.36 on. */
const UNSHARE = '/usr/bin/unshare'
const NSENTER = '/usr/bin/nsenter'
const NAMESPACES = ['--user', '--map-current-user', '--net', '--keep-caps', '--']
/** Loopback can only be brought up from inside. Then it waits for the end of its input. */
const HOLD = '{ ip link set lo up 2>&1 || ifconfig lo up 2>&1; } && echo up && exec cat >/dev/null'
const MAKE_MS = 10_000
const SAID_BYTES = 4096

export interface Offline {
  /** What a command is started with to be in there: the process stays the same. */
  readonly words: readonly string[]
  /** What is in there stays there; nothing more can be started. */
  close(): void
}

/**
 * @param path search path for `ip` or `ifconfig`
 * @param onLost the process that holds it has ended by itself: nothing can be started there any more
 * @returns why there is none, in a line, where the node cannot make one. Never throws
 */
export async function makeOffline(path: string, onLost: () => void = () => {}): Promise<Offline | string> {
  const env = { PATH: [...path.split(':').filter(isAbsolute), '/usr/sbin', '/sbin'].join(':') }
  // A session of its own: signals for the pilot's group are not for this.
  const holder = spawn(UNSHARE, [...NAMESPACES, '/bin/sh', '-c', HOLD], {
    env,
    stdio: ['pipe', 'pipe', 'pipe'],
    detached: true,
  })
  holder.unref()
  const made = Promise.withResolvers<string | null>()
  let said = ''
  for (const stream of [holder.stdout, holder.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      said = (said + text).slice(-SAID_BYTES)
      if (/^up$/m.test(said)) made.resolve(null)
    })
  }
  holder.stdin.on('error', () => {})
  holder.on('error', (error) => made.resolve(error.message))
  holder.on('close', (code, signal) => made.resolve(said.trim().split('\n').at(-1) || `ended with ${signal ?? code}`))
  const limit = setTimeout(() => made.resolve(`took longer than ${MAKE_MS / 1000} s`), MAKE_MS)
  const trouble = await made.promise
  clearTimeout(limit)
  let isOpen = true
  const close = () => {
    isOpen = false
    holder.stdin.destroy()
    if (trouble !== null && holder.pid !== undefined) holder.kill('SIGKILL')
  }
  if (trouble !== null) {
    close()
    return trouble.slice(0, 300)
  }
  holder.on('exit', () => {
    if (isOpen) onLost()
  })
  return { words: [NSENTER, '--target', String(holder.pid), '--user', '--net', '--preserve-credentials', '--'], close }
}
