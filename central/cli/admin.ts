/** `indraft whoami` and `indraft admin`: tokens, and the store held against its invariants. */
import { type Command, Option } from 'commander'
import { type Principal, ROLES, type Role } from '../people.ts'
import { registerBans } from './ban.ts'
import { columns, EXIT, type Options, print, withCentral, withClient } from './command.ts'

export function registerAdmin(program: Command): void {
  withClient(program.command('whoami'))
    .description('the person behind the token')
    .addHelpText('after', '\nExamples:\n  indraft whoami')
    .action(async (options: Options) => {
      const reply = await withCentral(options, (client, url) =>
        client.call('whoami', {}).then((who) => ({ ...who, url })),
      )
      print(options, reply, ({ url, ...who }) => [`${who.subject} at ${url}`, grantText(who)])
    })

  const admin = program.command('admin').description('what only administrators do')
  withClient(admin.command('verify'))
    .description('hold every invariant against the store; exit code 1 where one does not hold')
    .addHelpText('after', '\nExamples:\n  indraft admin verify\n  indraft admin verify --json | jq .findings')
    .action(async (options: Options) => {
      const reply = await withCentral(options, (client) => client.call('verify', {}))
      if (reply.findings.length > 0) process.exitCode = EXIT.failed
      print(options, reply, ({ findings }) => {
        if (findings.length === 0) return 'every invariant holds'
        const rows = findings.map(({ invariant, where, found, expected }) => [invariant, where, found, expected])
        return columns(['invariant', 'where', 'found', 'expected'], rows)
      })
    })
  withClient(admin.command('lift-halt'))
    .description('grant again after the store lost writes and the inventories were looked at')
    .addHelpText('after', '\nExamples:\n  indraft admin verify && indraft admin lift-halt')
    .action(async (options: Options) => {
      const reply = await withCentral(options, (client) => client.call('liftHalt', {}))
      print(options, reply, () => 'granting again')
    })

  registerBans(admin)

  const token = admin.command('token').description('bearer tokens of people and services')
  withClient(token.command('add <subject>'))
    .description('make a token; it is shown once')
    .requiredOption('--group <group...>', 'groups it may act for, as in /vo.example/prod; * for all')
    .addOption(new Option('--role <role>', 'what it may do').choices(ROLES).default('submit'))
    .addHelpText('after', '\nExamples:\n  indraft admin token add ada --group /vo.example/prod')
    .action(async (subject: string, options: Options & { group: string[]; role: Role }) => {
      const body = { subject, groups: options.group, roles: [options.role] }
      const reply = await withCentral(options, (client) => client.call('addToken', { body }))
      print(options, reply, (made) => made.token)
    })
  withClient(token.command('list'))
    .description('who has tokens')
    .addHelpText('after', '\nExamples:\n  indraft admin token list')
    .action(async (options: Options) => {
      const reply = await withCentral(options, (client) => client.call('listTokens', {}))
      const rows = reply.tokens.map(({ id, subject, roles, groups }) => [
        id,
        subject,
        roles.join(' '),
        groups.join(' '),
      ])
      print(options, reply, () => columns(['id', 'subject', 'roles', 'groups'], rows))
    })
  withClient(token.command('remove <id>'))
    .description('take a token back')
    .addHelpText('after', '\nExamples:\n  indraft admin token remove ID   (as "indraft admin token list" shows it)')
    .action(async (id: string, options: Options) => {
      const reply = await withCentral(options, (client) => client.call('removeToken', { params: { id } }))
      if (!reply.removed) process.exitCode = EXIT.failed
      print(options, reply, ({ removed }) => (removed ? 'removed' : `there is no token ${id}`))
    })
}

function grantText({ groups, roles }: Principal): string {
  return `groups ${groups.join(', ')}   roles ${roles.join(', ')}`
}
