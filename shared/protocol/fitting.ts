/**
 * Cuts lists so that the message around them stays below 48 kB. Their entries are counted by what they weigh, not by how
 * many they are: a name may have 200 characters, ranges with many gaps 16,000.
 */
import { pack } from './codec.ts'

/**
 * As many of the first as fit into so many bytes before they are deflated. An entry that is heavier than that by itself
 * is left out, and holds up none behind it.
 */
export function firstFitting<T>(items: readonly T[], mostBytes: number): T[] {
  const fitting: T[] = []
  let bytes = 0
  for (const item of items) {
    const size = pack(item).length
    if (size > mostBytes) continue
    bytes += size
    if (bytes > mostBytes) break
    fitting.push(item)
  }
  return fitting
}
