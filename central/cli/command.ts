/**
 * How every subcommand is made: the options all share, a client that is closed at the end, one way to print (text, or
 * one JSON document with --json), and the exit codes.
 */
import { type Command, CommanderError } from 'commander'
import { IndraftError } from '../../shared/errors.ts'
import { ApiRefusal, type Client, makeClient, Unreachable } from '../api/client.ts'
import { problemLine } from '../campaigns/check.ts'
import { loadClientOptions } from './config.ts'

export const EXIT = {
  ok: 0,
  /** Refused by central, or failed. */
  failed: 1,
  /** The command line is not right. */
  usage: 2,
  /** Nobody answers at central's address. */
  unreachable: 3,
  /** `watch`: the campaign is over and not everything is done. */
  endedWithFailures: 4,
  /** `central run`, `relay run`: the disk under the state folder failed; started again it goes on from there. */
  diskFailed: 74,
} as const

export const EXIT_CODES_HELP = `
Exit codes:
  0 ok   1 refused or failed   2 wrong usage   3 central cannot be reached
  4 (watch, submit --wait) the campaign ended and not everything is done
  74 (relay run) the disk failed: what keeps it alive starts it again`

/** What went wrong with a file of the user's, to be shown line by line. */
export class FileProblems extends IndraftError {
  readonly lines: string[]
  readonly problems: unknown[]

  constructor(file: string, problems: ConstructorParameters<typeof ApiRefusal>[0]['problems'] & object) {
    super(
      'campaign.invalid',
      `${file} is not acceptable: ${problems.length} ${problems.length === 1 ? 'problem' : 'problems'}`,
    )
    this.lines = problems.map((problem) => problemLine(file, problem))
    this.problems = problems
  }
}

export type Options = Record<string, unknown> & { json?: boolean }

export function withJson(command: Command): Command {
  return command.option('--json', 'print JSON')
}

/** Options that say which central is meant. */
export function withClient(command: Command): Command {
  return withJson(command)
    .option('--home <folder>', 'folder with client.json (INDRAFT_HOME, default ~/.indraft)')
    .option('--url <url>', "central's address (INDRAFT_URL); the token is read from INDRAFT_TOKEN or client.json")
    .option('--ca <file>', "authority of central's certificate (INDRAFT_CA)")
}

/** Runs `act` with a client for the options given, and closes it. */
export async function withCentral<T>(options: Options, act: (client: Client, url: string) => Promise<T>): Promise<T> {
  const found = loadClientOptions(options)
  const client = makeClient(found)
  try {
    return await act(client, found.url)
  } finally {
    await client.close()
  }
}

/** One JSON document, or the text made of it. */
export function print<T>(options: Options, value: T, toText: (value: T) => string | readonly string[]): void {
  if (options.json) {
    console.log(JSON.stringify(value, null, 2))
    return
  }
  const text = toText(value)
  const whole = typeof text === 'string' ? text : text.join('\n')
  const shown = process.stdout.isTTY ? printable(whole) : whole
  if (shown !== '') console.log(shown)
}

/** What others wrote, for a terminal: no control character but newline and tab reaches it. */
export function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for.
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, '\ufffd')
}

/** Columns as wide as their widest cell; numbers to the right. */
export function columns(header: readonly string[], rows: readonly (readonly (string | number)[])[]): string[] {
  const cells = [header, ...rows.map((row) => row.map((cell) => printable(String(cell))))]
  const widths = header.map((_, i) => Math.max(...cells.map((row) => (row[i] ?? '').length)))
  const isRight = header.map((_, i) => rows.length > 0 && rows.every((row) => typeof row[i] === 'number'))
  return cells.map((row) =>
    row
      .map((cell, i) => (isRight[i] ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!)))
      .join('  ')
      .trimEnd(),
  )
}

/** Says what went wrong, on standard error (as JSON on standard output with --json), and which exit code it means. */
export function explain(error: unknown, json: boolean): number {
  if (error instanceof CommanderError) {
    return error.exitCode === 0 ? EXIT.ok : EXIT.usage
  }
  const [code, exit] =
    error instanceof Unreachable
      ? ['link.closed', EXIT.unreachable]
      : error instanceof IndraftError
        ? [error.code, EXIT.failed]
        : ['internal.error', EXIT.failed]
  const message = error instanceof Error ? error.message : String(error)
  if (json) {
    const problems = error instanceof FileProblems || error instanceof ApiRefusal ? { problems: error.problems } : {}
    const path = error instanceof IndraftError && error.path !== undefined ? { path: error.path } : {}
    console.log(JSON.stringify({ error: { code, message, ...path, ...problems } }, null, 2))
    return exit
  }
  if (error instanceof FileProblems) for (const line of error.lines) console.error(line)
  console.error(`indraft: ${message}`)
  if (code === 'auth.missing' || code === 'auth.invalid') {
    console.error('  give a token with INDRAFT_TOKEN; an administrator makes one with "indraft admin token add"')
  }
  if (code === 'internal.error' && error instanceof Error && error.stack) console.error(error.stack)
  return exit
}
