/**
 * Runs a program in name spaces of its own: mounts that nobody else sees, and processes that all end with the first of
 * them, whatever happens. As root, or as anybody where user name spaces are allowed.
 */
import { execFileSync } from 'node:child_process'
import { spawnTied } from '../../shared/servers/tied.ts'

const MARK = 'INDRAFT_FAULT_NAMESPACE'

/** Whether this process is in such name spaces already. */
export function isInside(): boolean {
  return process.env[MARK] === 'yes'
}

/** Runs this program again inside. @returns its exit status; null where the machine has no such name spaces */
export async function runInside(): Promise<number | null> {
  const words = [
    ...(process.getuid?.() === 0 ? [] : ['--user', '--map-root-user']),
    ...['--mount', '--pid', '--fork', '--kill-child', '--mount-proc'],
  ]
  try {
    execFileSync('unshare', [...words, 'true'], { stdio: 'pipe' })
  } catch {
    return null
  }
  // Tied: whoever ends this process ends everything within.
  const child = spawnTied('unshare', [...words, process.execPath, ...process.execArgv, ...process.argv.slice(1)], {
    stdio: 'inherit',
    env: { ...process.env, [MARK]: 'yes' },
  })
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => child.kill('SIGKILL'))
  return new Promise((resolve) => {
    child.once('exit', (code) => resolve(code ?? 1))
    child.once('error', () => resolve(1))
  })
}
