/**
 * Sets of task indices, written as `0-9,12,20-29`: short in Redis, in messages and in logs, and readable by people.
 * Always sorted, never overlapping. The Lua scripts read and write the same text.
 */
export type Span = readonly [first: number, last: number]

/** Parses `0-9,12`; the empty string is the empty set. @throws RangeError where the text is malformed. */
export function parseRanges(text: string): Span[] {
  if (text === '') return []
  let previous = -1
  return text.split(',').map((part) => {
    const match = /^(\d{1,10})(?:-(\d{1,10}))?$/.exec(part)
    const first = Number(match?.[1])
    const last = Number(match?.[2] ?? match?.[1])
    if (!match || last < first || first <= previous)
      throw new RangeError(`not a set of indices: "${text.slice(0, 80)}"`)
    previous = last
    return [first, last] as const
  })
}

export function formatRanges(spans: Iterable<Span>): string {
  return [...spans].map(([a, b]) => (a === b ? `${a}` : `${a}-${b}`)).join(',')
}

export function countRanges(spans: Iterable<Span>): number {
  let count = 0
  for (const [a, b] of spans) count += b - a + 1
  return count
}

/** Every index, ascending. */
export function* indices(spans: Iterable<Span>): Generator<number> {
  for (const [a, b] of spans) for (let i = a; i <= b; i++) yield i
}

/** The set of any indices, in any order, repeated or not. */
export function rangesOf(values: Iterable<number>): Span[] {
  const sorted = [...new Set(values)].sort((x, y) => x - y)
  const spans: [number, number][] = []
  for (const value of sorted) {
    const last = spans.at(-1)
    if (last && value === last[1] + 1) last[1] = value
    else spans.push([value, value])
  }
  return spans
}

/** `all` without `gone`. */
export function subtractRanges(all: Iterable<Span>, gone: Iterable<Span>): Span[] {
  const holes = [...gone]
  const result: Span[] = []
  for (const [a, b] of all) {
    let from = a
    for (const [x, y] of holes) {
      if (y < from || x > b) continue
      if (x > from) result.push([from, x - 1])
      from = Math.max(from, y + 1)
    }
    if (from <= b) result.push([from, b])
  }
  return result
}

/** What both have. */
export function intersectRanges(one: Iterable<Span>, other: Iterable<Span>): Span[] {
  const all = [...one]
  return subtractRanges(all, subtractRanges(all, other))
}

/** Both sets, neighbours joined. */
export function uniteRanges(one: Iterable<Span>, other: Iterable<Span>): Span[] {
  const joined: [number, number][] = []
  for (const [a, b] of [...one, ...other].sort((x, y) => x[0] - y[0])) {
    const last = joined.at(-1)
    if (last && a <= last[1] + 1) last[1] = Math.max(last[1], b)
    else joined.push([a, b])
  }
  return joined
}

/** The first `count` indices and the rest. */
export function takeFirst(spans: Iterable<Span>, count: number): { taken: Span[]; rest: Span[] } {
  const taken: Span[] = []
  const rest: Span[] = []
  let left = count
  for (const [a, b] of spans) {
    const size = b - a + 1
    if (left >= size) taken.push([a, b])
    else if (left > 0) {
      taken.push([a, a + left - 1])
      rest.push([a + left, b])
    } else rest.push([a, b])
    left = Math.max(0, left - size)
  }
  return { taken, rest }
}

export function containsIndex(spans: Iterable<Span>, index: number): boolean {
  for (const [a, b] of spans) if (index >= a && index <= b) return true
  return false
}
