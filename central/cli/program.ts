/** The command `indraft` with all its subcommands, one file per group. The reference page is made from it too. */
import { Command } from 'commander'
import { VERSION } from '../../shared/version.ts'
import { registerAdmin } from './admin.ts'
import { registerCampaign } from './campaign.ts'
import { EXIT_CODES_HELP } from './command.ts'
import { registerDemo } from './demo.ts'
import { registerDoctor } from './doctor.ts'
import { registerPilot, registerRelay } from './relay.ts'
import { registerRun } from './run.ts'
import { registerSite } from './site.ts'
import { registerUp } from './up.ts'

export async function buildProgram(): Promise<Command> {
  const program = new Command('indraft')
    .version(VERSION)
    .description('Campaigns of many tasks, drawn in by pilots at supercomputing sites.')
    .showHelpAfterError('(add --help for what can be said here)')
    .addHelpText(
      'after',
      `
First steps:
  indraft up                                  everything on this machine, until Ctrl-C
  indraft campaign submit sim.yaml            in another terminal
  indraft campaign watch NAME
${EXIT_CODES_HELP}`,
    )
  registerUp(program)
  registerDemo(program)
  registerCampaign(program)
  const relay = registerRelay(program)
  registerPilot(program)
  registerSite(program)
  await registerRun(program, relay)
  registerAdmin(program)
  registerDoctor(program)
  throwInsteadOfExit(program)
  return program
}

function throwInsteadOfExit(command: Command): void {
  command.exitOverride()
  for (const child of command.commands) throwInsteadOfExit(child)
}
