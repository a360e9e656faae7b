/** The command `indraft-pilot`: options from the settings table, signals to the pilot, its code to an exit status. */
import { setFlagsFromString } from 'node:v8'
import { Command, CommanderError } from 'commander'
import { shownConfig } from '../shared/config.ts'
import { IndraftError } from '../shared/errors.ts'
import { type LogLevel, makeLog } from '../shared/log.ts'
import { loadPilotConfig, PILOT_SETTINGS } from './config.ts'
import { registerDoctor } from './doctor/command.ts'
import { leaveProcess } from './hanging.ts'
import { SOFTWARE } from './main.ts'
import { startAtRelays } from './relays.ts'
import { addStartCommands } from './start/command.ts'
import { titleOf } from './start/local.ts'
import { registerTrace } from './trace-command.ts'

function optionName(setting: string): string {
  return setting.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
}

function withSettings(command: Command): Command {
  command.option('--config <file>', 'YAML file with settings; INDRAFT_<NAME> and options win over it')
  for (const [name, setting] of Object.entries(PILOT_SETTINGS)) {
    const shown = Array.isArray(setting.default) ? setting.default.join(',') : setting.default
    const suffix = shown === null || shown === '' ? '' : ` (default: ${shown})`
    command.option(`--${optionName(name)} <${setting.type}>`, setting.meaning + suffix)
  }
  return command
}

/** Refusals as one line, with exit status 1 where the node is at fault and 2 where what was asked is; others are bugs. */
async function orRefuse(act: () => Promise<void>): Promise<void> {
  try {
    await act()
  } catch (error) {
    if (!(error instanceof IndraftError)) throw error
    console.error(`indraft-pilot: ${error.message}`)
    process.exitCode = error.code === 'node.fault' ? 1 : 2
  }
}

/** A pilot waits most of its life on a node that was paid for others: memory before speed. Saves 5 MB idle, 16 at work. */
function beSmall(): void {
  setFlagsFromString('--optimize-for-size')
}

async function runPilot({ config: file, ...args }: Record<string, unknown>): Promise<void> {
  const config = loadPilotConfig(args, file as string | undefined)
  beSmall()
  const log = makeLog('pilot', config.logLevel as LogLevel)
  log.info(shownConfig(PILOT_SETTINGS, config), 'pilot.configured')
  const pilot = await startAtRelays(config, log)
  process.title = titleOf(pilot.name, config.startId)
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGUSR1'] as const) process.on(signal, () => void pilot.stop(signal))
  const code = await pilot.finished
  // 2xx and 3xx are ends as they should be: batch systems count everything else as a failure.
  process.exitCode = code < 400 ? 0 : 1
}

const program = new Command('indraft-pilot')
  .description('Draws tasks from a relay (or the centre) and runs them on this node.')
  .version(SOFTWARE)
  .showHelpAfterError('(indraft-pilot --help says more)')
  .exitOverride()

withSettings(program.command('run').description('Be a pilot until there is no more work, the time is up, or a signal.'))
  .addHelpText(
    'after',
    `
Examples:
  indraft-pilot run --credential /shared/relay/pilot.json --scratch $TMPDIR
  indraft-pilot run --credential pilot.json --cores 16 --memory 64GiB --idle-after 1min
  srun --ntasks-per-node=1 indraft-pilot run --config site.yaml     one pilot on each node of a job

Signals: SIGTERM and SIGINT end payloads and leave within --drain-grace, a second one hurries;
SIGUSR1 announces the end --notice-time ahead. A file STOP in the scratch folder drains.
Exit status: 0 for codes 2xx (done) and 3xx (no work), 1 for 4xx (refused), 5xx (node), 6xx, 7xx, 2 for bad options.`,
  )
  .action(async (options) => {
    await orRefuse(() => runPilot(options))
    await leaveProcess()
  })

registerDoctor(withSettings(program.command('doctor')), orRefuse)

registerTrace(program, orRefuse)

addStartCommands(program, (line) => console.log(line), orRefuse)

try {
  await program.parseAsync(process.argv)
} catch (error) {
  // Commander has said what is wrong.
  if (!(error instanceof CommanderError)) throw error
  process.exitCode = error.exitCode === 0 ? 0 : 2
}
