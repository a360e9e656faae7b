/** One line of a doctor's findings, in an administrator's words, and what all lines come to. */

export interface Check {
  /** What was looked at. */
  name: string
  /** bad: a pilot, a relay or a tick could not work here. warn: it works, and something will be less than it could be. */
  state: 'good' | 'warn' | 'bad'
  found: string
  /** What to do about it; null where nothing has to be done. */
  advice: string | null
}

export function good(name: string, found: string): Check {
  return { name, state: 'good', found, advice: null }
}

export function warn(name: string, found: string, advice: string): Check {
  return { name, state: 'warn', found, advice }
}

export function bad(name: string, found: string, advice: string): Check {
  return { name, state: 'bad', found, advice }
}

/** The message of whatever was thrown, as one line. */
export function wordsOf(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).replace(/\s+/g, ' ').slice(0, 300)
}

const NAME_WIDTH = 30

/** Lines for a terminal; bad in capitals, what to do below it. */
export function shown(checks: readonly Check[]): string[] {
  return checks.flatMap(({ name, state, found, advice }) => {
    const word = state === 'bad' ? 'BAD' : state
    const head = `${word.padEnd(4)}  ${name.padEnd(NAME_WIDTH)}  ${found}`
    return advice === null ? [head] : [head, `${' '.repeat(8 + NAME_WIDTH)}-> ${advice}`]
  })
}

export function summary(checks: readonly Check[]): string {
  const count = (state: Check['state']) => checks.filter((check) => check.state === state).length
  return `${count('good')} good, ${count('warn')} to look at, ${count('bad')} bad`
}
