/**
 * A clock for each process, which can be stepped while it runs: libfaketime, preloaded, with a file for each process that
 * holds the offset. Programs of ours only: libfaketime and Redis' allocator (jemalloc) cannot be in one process. Monotonic time stays the kernel's, as it does where an administrator or NTP steps a clock. The library
 * comes from the machine's Debian mirror into the same private folder as the servers; where it cannot be had clocks are
 * not stepped, and the run says so.
 */
import { mkdirSync, readdirSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

export interface Clocks {
  environment(name: string): Record<string, string>
  /** Seconds from the real time, from now on. */
  step(name: string, seconds: number): void
}

/** @param library path of libfaketime */
export function openClocks(folder: string, library: string): Clocks {
  mkdirSync(folder, { recursive: true })
  const fileOf = (name: string) => join(folder, name)
  const set = (name: string, seconds: number) => {
    // Read at any moment: whole or not at all.
    writeFileSync(`${fileOf(name)}.new`, `${seconds < 0 ? '' : '+'}${seconds}\n`)
    renameSync(`${fileOf(name)}.new`, fileOf(name))
  }
  return {
    environment(name) {
      if (!readdirSync(folder).includes(name)) set(name, 0)
      return {
        LD_PRELOAD: library,
        FAKETIME_TIMESTAMP_FILE: fileOf(name),
        FAKETIME_CACHE_DURATION: '1',
        FAKETIME_DONT_FAKE_MONOTONIC: '1',
      }
    },
    step: set,
  }
}
