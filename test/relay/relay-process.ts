/** A relay as a process of its own, in a folder that may lie on a file system of its own; and what it logs. */
import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync, mkdirSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

const PROGRAM = fileURLToPath(new URL('../../central/cli/main.ts', import.meta.url))

type Line = Record<string, unknown> & { msg: string }

export interface RelayProcess {
  pid: number
  lines: Line[]
  /** The next line of this name, or one that came already. @throws when the process ends without it */
  said(msg: string): Promise<Line>
  exited: Promise<number | null>
  kill(signal: NodeJS.Signals): void
}

/** A mount namespace with a tmpfs at `folder`, for as long as it is not closed. */
export interface SmallDisk {
  /** Before a command: runs it where the tmpfs is. */
  enter: string[]
  /** A path below `folder`, as this process reaches it. */
  path(inside?: string): string
  remount(option: 'ro' | 'rw'): Promise<void>
  /** Takes all room but so many bytes; what it returns makes room again. */
  fill(freeBytes: number): () => void
  close(): void
}

export async function smallDisk(folder: string, size: string): Promise<SmallDisk> {
  mkdirSync(folder, { recursive: true })
  const script = 'mount -t tmpfs -o size="$2" indraft "$1" && echo mounted && exec sleep 3600'
  const keeper = spawn('unshare', ['--mount', '--propagation', 'private', 'sh', '-c', script, 'sh', folder, size], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const mounted = await new Promise<boolean>((resolve) => {
    keeper.stdout!.once('data', () => resolve(true))
    keeper.once('exit', () => resolve(false))
  })
  if (!mounted) throw new Error('no tmpfs could be mounted')
  const enter = ['nsenter', '-t', String(keeper.pid), '-m']
  return {
    enter,
    path: (inside = '') => `/proc/${keeper.pid}/root${folder}/${inside}`,
    async remount(option) {
      const [program, ...args] = [...enter, 'mount', '-o', `remount,${option}`, folder]
      const code = await new Promise((resolve) => spawn(program!, args, { stdio: 'inherit' }).once('exit', resolve))
      if (code !== 0) throw new Error(`remount ${option} ended with ${code}`)
    },
    fill(freeBytes) {
      const ballast = `/proc/${keeper.pid}/root${folder}/ballast`
      const file = openSync(ballast, 'w')
      const chunk = Buffer.alloc(64 * 1024, 1)
      let written = 0
      try {
        for (;;) written += writeSync(file, chunk)
      } catch {
        // Full.
      }
      closeSync(file)
      if (freeBytes > 0) writeFileSync(ballast, Buffer.alloc(Math.max(0, written - freeBytes), 1))
      return () => rmSync(ballast, { force: true })
    },
    close: () => void keeper.kill('SIGKILL'),
  }
}

/** @param args of `indraft relay run` */
export function spawnRelay(args: string[], enter: string[] = [], env: Record<string, string> = {}): RelayProcess {
  return spawnIndraft(['relay', 'run', ...args], enter, env)
}

/** Any of the services. */
export function spawnIndraft(words: string[], enter: string[] = [], env: Record<string, string> = {}): RelayProcess {
  const node = [process.execPath, '--disable-warning=ExperimentalWarning', PROGRAM, ...words]
  const [program, ...rest] = [...enter, ...node]
  const child: ChildProcess = spawn(program!, rest, {
    stdio: ['ignore', 'inherit', 'pipe'],
    env: { ...inherited('PATH', 'HOME', 'NODE_COMPILE_CACHE'), ...env },
  })
  const lines: Line[] = []
  const waiting: { msg: string; resolve: (line: Line) => void; reject: (error: Error) => void }[] = []
  createInterface({ input: child.stderr! }).on('line', (text) => {
    if (!text.startsWith('{')) return
    const line = JSON.parse(text) as Line
    lines.push(line)
    for (const one of waiting.filter(({ msg }) => msg === line.msg)) one.resolve(line)
  })
  const exited = new Promise<number | null>((resolve) => child.once('exit', (code) => resolve(code)))
  void exited.then((code) => {
    const last = lines.slice(-3).map((line) => JSON.stringify(line))
    for (const { msg, reject } of waiting) reject(new Error(`ended with ${code} without ${msg}: ${last.join('\n')}`))
  })
  return {
    pid: child.pid!,
    lines,
    exited,
    said: (msg) =>
      new Promise((resolve, reject) => {
        const known = lines.find((line) => line.msg === msg)
        if (known) resolve(known)
        else waiting.push({ msg, resolve, reject })
      }),
    kill: (signal) => void child.kill(signal),
  }
}

function inherited(...names: string[]): Record<string, string> {
  return Object.fromEntries(names.flatMap((name) => (process.env[name] ? [[name, process.env[name]]] : [])))
}
