/** The command `indraft`: reads the words, runs one command, ends with its exit code. */
import { CommanderError } from 'commander'
import { explain } from './command.ts'
import { buildProgram } from './program.ts'

const program = await buildProgram()
// Output into a closed pipe (`| head`) is no error of ours.
process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1))
try {
  await program.parseAsync()
} catch (error) {
  const json = process.argv.includes('--json') && !(error instanceof CommanderError)
  process.exitCode = explain(error, json)
}
