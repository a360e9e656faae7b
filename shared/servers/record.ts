/**
 * Which process runs on a folder, so that a later start can recognise and end what an earlier one left behind. A
 * process is told by its id, its start time and the machine's boot: an id used again by somebody else is never ended.
 */
import { readFileSync, rmSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { writePrivately } from './private-file.ts'

export interface ProcessRecord {
  pid: number
  /** Clock ticks between boot and the process' start (field 22 of /proc/<pid>/stat). */
  startTicks: number
  boot: string
}

/** undefined where there is no such process, or it is a zombie. */
export function recordOf(pid: number): ProcessRecord | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The name in parentheses may itself hold spaces and parentheses: count fields after the last one.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    if (fields[0] === 'Z' || fields[0] === 'X') return undefined
    const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
    return { pid, startTicks: Number(fields[19]), boot }
  } catch {
    return undefined
  }
}

export function isAlive(record: ProcessRecord): boolean {
  const now = recordOf(record.pid)
  return now !== undefined && now.startTicks === record.startTicks && now.boot === record.boot
}

export function writeRecord(path: string, pid: number): void {
  const record = recordOf(pid)
  if (record) writePrivately(path, JSON.stringify(record))
}

export function readRecord(path: string): ProcessRecord | undefined {
  try {
    const record = JSON.parse(readFileSync(path, 'utf8')) as ProcessRecord
    return Number.isInteger(record.pid) ? record : undefined
  } catch {
    return undefined
  }
}

/**
 * Ends the recorded process if it still lives: SIGTERM, then SIGKILL after `graceMs`.
 * @returns its process id where there was something to end
 */
export async function endRecorded(path: string, graceMs = 5_000): Promise<number | undefined> {
  const record = readRecord(path)
  let ended: number | undefined
  if (record && isAlive(record)) {
    ended = record.pid
    signalRecorded(record, 'SIGTERM')
    const deadlineMs = performance.now() + graceMs
    while (isAlive(record)) {
      if (performance.now() > deadlineMs) signalRecorded(record, 'SIGKILL')
      await sleep(20)
    }
  }
  rmSync(path, { force: true })
  return ended
}

function signalRecorded(record: ProcessRecord, signal: NodeJS.Signals): void {
  try {
    if (isAlive(record)) process.kill(record.pid, signal)
  } catch {
    // Gone in between.
  }
}
