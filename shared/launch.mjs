/**
 * Runs a program of this repository with a Node that can: TypeScript as it stands and node:sqlite need 22.18 or newer.
 * An older Node hands over to the one that `npm ci` put into node_modules. Plain JavaScript, because an old Node reads it.
 */
import { spawn } from 'node:child_process'
import { accessSync, constants } from 'node:fs'
import { constants as osConstants } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const OLDEST = [22, 18]
const FORWARDED = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2']
const root = join(dirname(fileURLToPath(import.meta.url)), '..')

/** Imports `entry` (a file URL), in this process where it can, else in a newer Node with the same arguments. */
export async function launch(entry) {
  if (isNewEnough()) {
    await import(entry)
    return
  }
  const node = packagedNode()
  if (!node) {
    console.error(
      `indraft needs Node ${OLDEST.join('.')} or newer; this is ${process.version}. Run "npm ci" in ${root} first.`,
    )
    process.exitCode = 1
    return
  }
  handOver(node, [process.argv[1], ...process.argv.slice(2)])
}

/** The Node that npm installed for this machine, or undefined. */
function packagedNode() {
  const path = join(root, 'node_modules', `node-linux-${process.arch}`, 'bin', 'node')
  return isExecutable(path) ? path : undefined
}

function isNewEnough() {
  const [major, minor] = process.versions.node.split('.').map(Number)
  return major > OLDEST[0] || (major === OLDEST[0] && minor >= OLDEST[1])
}

/**
 * An old Node cannot replace itself (process.execve came later), so it stays as a shell around the new one: passes on
 * signals, ends as it ends, and takes it along when it is killed itself.
 */
function handOver(node, args) {
  const setpriv = ['/usr/bin/setpriv', '/bin/setpriv'].find(isExecutable)
  const [path, words] = setpriv ? [setpriv, ['--pdeathsig', 'KILL', '--', node, ...args]] : [node, args]
  const child = spawn(path, words, { stdio: 'inherit' })
  for (const signal of FORWARDED) process.on(signal, () => child.kill(signal))
  child.on('error', (error) => {
    console.error(`${node} cannot be started: ${error.message}`)
    process.exitCode = 1
  })
  child.on('exit', (code, signal) => {
    process.exitCode = code ?? 128 + (osConstants.signals[signal] ?? 0)
    for (const name of FORWARDED) process.removeAllListeners(name)
    if (signal) process.kill(process.pid, signal)
  })
}

function isExecutable(path) {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}
