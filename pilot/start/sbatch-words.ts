/**
 * A site's own words for sbatch, and which of them it may not have: what `indraft-pilot start` says itself, because it
 * counts and finds jobs by it. Nodes to avoid are put together with its own.
 */

/** And why, or what sets them in the site file. */
const TAKEN: Readonly<Record<string, string>> = {
  ...{ '--job-name': 'jobs are found by their name', '-J': 'jobs are found by their name' },
  ...{ '--clusters': 'jobs are looked for in one cluster', '-M': 'jobs are looked for in one cluster' },
  ...{ '--array': 'one job of many would be counted', '-a': 'one job of many would be counted' },
  ...{ '--nodes': 'nodesPerJob says how many', '-N': 'nodesPerJob says how many' },
  ...{ '--time': 'set time', '-t': 'set time', '--account': 'set account', '-A': 'set account' },
  ...{ '--wait': 'a tick waits for no job', '-W': 'a tick waits for no job', '--test-only': 'nothing would start' },
}
/** Shorter beginnings of a long option sbatch would not know apart. */
const LEAST_BEGINNING = 5

/** @returns which words may not stand there and why, and files of nodes, which cannot be put together with names */
export function forbiddenWords(words: readonly string[]): { at: number; why: string }[] {
  const found = words.flatMap((word, at) => {
    const own = Object.keys(TAKEN).find((one) => isOption(word, one))
    return own === undefined ? [] : [{ at, why: `${own} is not for a kind's own words: ${TAKEN[own]}` }]
  })
  const excluded = excludedWords(words)
  const files = excluded.filter(({ nodes }) => nodes === '' || nodes.includes('/'))
  return [...found, ...files.map(({ at }) => ({ at, why: 'expected the names of nodes to exclude, and no file' }))]
}

/** Takes the nodes to avoid out of the words, as Slurm's node lists. */
export function takeExcluded(words: readonly string[]): { others: string[]; excluded: string[] } {
  const found = excludedWords(words)
  const taken = new Set(found.flatMap(({ at, length }) => [at, at + length - 1]))
  return { others: words.filter((_, at) => !taken.has(at)), excluded: found.map(({ nodes }) => nodes) }
}

function excludedWords(words: readonly string[]): { at: number; length: number; nodes: string }[] {
  return words.flatMap((word, at) => {
    if (!isOption(word, '--exclude') && !isOption(word, '-x')) return []
    const given = word.startsWith('--') ? word.split('=')[1] : word.slice(2) || undefined
    return [{ at, length: given === undefined ? 2 : 1, nodes: given ?? words[at + 1] ?? '' }]
  })
}

/** Short options may have their value behind them, long ones may be cut short. */
function isOption(word: string, option: string): boolean {
  if (!option.startsWith('--')) return word.startsWith(option)
  const [given = ''] = word.split('=')
  return option === given || (given.length >= LEAST_BEGINNING && option.startsWith(given))
}
