/** What kind of processor this is: the architecture that images are made for, and the level that programs are tuned to. */
import { readFile } from 'node:fs/promises'

const ARCHITECTURES: Readonly<Record<string, string>> = { x64: 'x86_64', arm64: 'aarch64' }

/** The psABI's levels of x86-64, by the names that Linux gives the features; each includes those before it. */
const X86_LEVELS: readonly (readonly [string, readonly string[]])[] = [
  ['x86-64-v2', ['cx16', 'lahf_lm', 'popcnt', 'sse4_1', 'sse4_2', 'ssse3']],
  ['x86-64-v3', ['avx', 'avx2', 'bmi1', 'bmi2', 'f16c', 'fma', 'abm', 'movbe', 'xsave']],
  ['x86-64-v4', ['avx512f', 'avx512bw', 'avx512cd', 'avx512dq', 'avx512vl']],
]

/** `x86_64`, `aarch64`. */
export function architecture(): string {
  return ARCHITECTURES[process.arch] ?? process.arch
}

/** `x86-64-v3`, `aarch64-sve2`; null where the features are not said. @param cpuinfo content of /proc/cpuinfo */
export function processorLevel(cpuinfo: string): string | null {
  const line = /^(flags|Features)\s*:\s*(.+)$/m.exec(cpuinfo)
  if (!line) return null
  const has = new Set(line[2]!.split(/\s+/))
  if (line[1] === 'Features') return has.has('sve2') ? 'aarch64-sve2' : has.has('sve') ? 'aarch64-sve' : 'aarch64'
  let level = 'x86-64-v1'
  for (const [name, features] of X86_LEVELS) {
    if (!features.every((feature) => has.has(feature))) break
    level = name
  }
  return level
}

export async function ownProcessorLevel(): Promise<string | null> {
  return processorLevel(await readFile('/proc/cpuinfo', 'utf8').catch(() => ''))
}
