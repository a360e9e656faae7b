/**
 * Quantities with units, as people write them: `2GiB`, `500MB`, `90s`, `1h30m`, `2d`. A number without a unit is an
 * error everywhere. Binary units are powers of 1024, decimal ones powers of 1000 (IEC 80000-13).
 */
const BYTES: Record<string, number> = {
  B: 1,
  kB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  TiB: 2 ** 40,
}
const MILLISECONDS: Record<string, number> = { ms: 1, s: 1000, min: 60_000, m: 60_000, h: 3_600_000, d: 86_400_000 }

/** Whole and exact, or undefined: no amount that programs cannot tell from the next one. */
function safe(amount: number): number | undefined {
  const rounded = Math.round(amount)
  return Number.isSafeInteger(rounded) ? rounded : undefined
}

/** Bytes, or undefined where the text is not an amount of bytes with a unit, or beyond 2^53. */
export function parseBytes(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*([kMGT]?B|[KMGT]iB)$/.exec(text.trim())
  return match ? safe(Number(match[1]) * BYTES[match[2]!]!) : undefined
}

/** Milliseconds, or undefined where the text is not a duration with units, or beyond 2^53. */
export function parseDuration(text: string): number | undefined {
  const trimmed = text.trim()
  if (!/^(\d+(?:\.\d+)?\s*(?:ms|s|min|m|h|d)\s*)+$/.test(trimmed)) return undefined
  let sum = 0
  for (const [, amount, unit] of trimmed.matchAll(/(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)/g)) {
    sum += Number(amount) * MILLISECONDS[unit!]!
  }
  return safe(sum)
}

/** `16 GiB`, `1.5 MiB`, `812 B`: at most three significant figures. */
export function formatBytes(bytes: number): string {
  for (const unit of ['TiB', 'GiB', 'MiB', 'KiB']) {
    const size = BYTES[unit]!
    if (bytes >= size) return `${Number((bytes / size).toPrecision(3))} ${unit}`
  }
  return `${bytes} B`
}

/** `2 d 3 h`, `5 min 10 s`, `850 ms`: the two largest units. */
export function formatDuration(ms: number): string {
  if (Math.round(ms) < 1000) return `${Math.round(ms)} ms`
  let rest = Math.round(ms / 1000)
  const parts: string[] = []
  for (const [unit, seconds] of [
    ['d', 86_400],
    ['h', 3600],
    ['min', 60],
    ['s', 1],
  ] as const) {
    const count = Math.floor(rest / seconds)
    if (count > 0) parts.push(`${count} ${unit}`)
    rest -= count * seconds
  }
  return parts.slice(0, 2).join(' ')
}
