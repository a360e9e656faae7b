/**
 * Child processes that end with the process that started them, even when that one is killed with SIGKILL. Where
 * util-linux' setpriv is there, the kernel sees to it (prctl PR_SET_PDEATHSIG); elsewhere a watching `sh` of one
 * megabyte, which reads a pipe that only the parent holds open, and kills the child when the pipe ends.
 *
 * Each child leads its own session, so that Ctrl-C on a terminal reaches only the parent, which then decides the order.
 * IMPORTANT: the kernel ties a child to the thread that started it; start them from the main thread
 * (test/servers.test.ts "servers - end with their parent").
 */
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process'
import { accessSync, constants } from 'node:fs'
import { join } from 'node:path'
import { searchFolders } from './config.ts'

export interface TiedOptions extends Pick<SpawnOptions, 'cwd' | 'env' | 'stdio'> {
  /** Signal that the child gets when the parent dies. Default SIGKILL. */
  deathSignal?: 'SIGKILL' | 'SIGTERM'
  /** For tests: do as if setpriv were not there. */
  withoutSetpriv?: boolean
}

let setprivPath: string | null | undefined

/** As child_process.spawn: its pid is the program's own, and a program that is not there is an 'error' event. */
export function spawnTied(path: string, args: readonly string[], options: TiedOptions): ChildProcess {
  const { deathSignal = 'SIGKILL', withoutSetpriv = false, ...rest } = options
  const setpriv = withoutSetpriv ? null : findSetpriv()
  if (setpriv) {
    const words = ['--pdeathsig', deathSignal.slice(3), '--', path, ...args]
    return spawn(setpriv, words, { ...rest, detached: true })
  }
  const child = spawn(path, args, { ...rest, detached: true })
  if (child.pid !== undefined) watch(child, deathSignal)
  return child
}

/** `read` returns when the pipe ends, that is when this process is gone; a child that ends first ends its watcher. */
function watch(child: ChildProcess, signal: string): void {
  const script = 'read line; kill -s "$1" "$2"'
  const watcher = spawn('/bin/sh', ['-c', script, 'indraft-watch', signal.slice(3), String(child.pid)], {
    stdio: ['pipe', 'ignore', 'ignore'],
    detached: true,
    cwd: '/',
  })
  watcher.on('error', () => {})
  watcher.unref()
  ;(watcher.stdin as (NodeJS.WritableStream & { unref?: () => void }) | null)?.unref?.()
  // SIGKILL: the shell must not get as far as its kill, whose process id may be another's by then.
  child.once('exit', () => watcher.kill('SIGKILL'))
}

function findSetpriv(): string | null {
  if (setprivPath !== undefined) return setprivPath
  setprivPath = null
  for (const folder of searchFolders()) {
    const path = join(folder, 'setpriv')
    try {
      accessSync(path, constants.X_OK)
      setprivPath = path
      break
    } catch {
      // Not there.
    }
  }
  return setprivPath
}
