/** `indraft admin ban`: people whom nobody is to serve any more. */
import type { Command } from 'commander'
import { columns, EXIT, type Options, print, withCentral, withClient } from './command.ts'

export function registerBans(admin: Command): void {
  const ban = admin.command('ban').description('people whom nobody is to serve any more')
  withClient(ban.command('add <subject>'))
    .description("refuse a person's tokens and cancel their campaigns; payloads end with the next beat of each site")
    .option('--reason <text>', 'why, for the log and for them', '')
    .addHelpText(
      'after',
      `
What is cancelled stays cancelled, also after a lift. A site bans by itself with the ban file of its pilots.

Examples:
  indraft admin ban add eve --reason "token found on a public page"`,
    )
    .action(async (subject: string, options: Options & { reason: string }) => {
      const body = { subject, reason: options.reason }
      const reply = await withCentral(options, (client) => client.call('addBan', { body }))
      print(options, reply, ({ cancelled }) => [
        `${subject} is banned; ${cancelled.length} campaigns cancelled`,
        ...cancelled.map((id) => `  ${id}`),
      ])
    })
  withClient(ban.command('list'))
    .description('who is banned')
    .addHelpText('after', '\nExamples:\n  indraft admin ban list')
    .action(async (options: Options) => {
      const reply = await withCentral(options, (client) => client.call('listBans', {}))
      print(options, reply, ({ bans }) => {
        if (bans.length === 0) return 'nobody is banned'
        const rows = bans.map(({ subject, atMs, by, reason }) => [subject, new Date(atMs).toISOString(), by, reason])
        return columns(['subject', 'since', 'by', 'reason'], rows)
      })
    })
  withClient(ban.command('lift <subject>'))
    .description('serve a person again')
    .addHelpText('after', '\nExamples:\n  indraft admin ban lift eve')
    .action(async (subject: string, options: Options) => {
      const reply = await withCentral(options, (client) => client.call('liftBan', { body: { subject } }))
      if (!reply.lifted) process.exitCode = EXIT.failed
      print(options, reply, ({ lifted }) => (lifted ? `${subject} may submit again` : `${subject} is not banned`))
    })
}
