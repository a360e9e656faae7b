/** What `npm run fault` is told on its command line. */
import { Command, InvalidArgumentError } from 'commander'

export interface RunOptions {
  tasks: number
  faults: number
  seed: number
  json: boolean
  /** Longest that a run may take before it counts as one that does not end. */
  minutes: number
  keep: boolean
  /** Only print the schedule. */
  schedule: boolean
}

function whole(least: number): (text: string) => number {
  return (text) => {
    const number = Number(text)
    if (!Number.isInteger(number) || number < least)
      throw new InvalidArgumentError(`expected a whole number from ${least}`)
    return number
  }
}

export function readOptions(words: readonly string[]): RunOptions {
  const command = new Command('fault')
    .description('the whole product under faults, judged against the payloads own ledger')
    .option('--tasks <n>', 'tasks all in all', whole(60), 2000)
    .option('--faults <n>', 'faults all in all', whole(0), 60)
    .option('--seed <n>', 'the same seed is the same schedule; a fresh one by default', whole(0))
    .option('--minutes <n>', 'longest that it may take', whole(1), 15)
    .option('--json', 'the figures as one line of JSON on standard output', false)
    .option('--keep', 'keep the folder with logs, ledger and stores, also when nothing is wrong', false)
    .option('--schedule', 'only print the faults that would be made', false)
  command.parse([...words], { from: 'user' })
  const options = command.opts<RunOptions>()
  return { ...options, seed: options.seed ?? Math.floor(Math.random() * 1_000_000) }
}
