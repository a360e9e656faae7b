/** `indraft relay join|list` and `indraft pilot list`: who speaks to the centre, and how a site begins to. */
import { chmodSync, existsSync, mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Command } from 'commander'
import { pilotCredentialSchema, relayCredentialSchema, writeCredential } from '../../shared/credentials.ts'
import { IndraftError } from '../../shared/errors.ts'
import { formatDuration } from '../../shared/quantity.ts'
import { makeClient } from '../api/client.ts'
import { columns, type Options, print, withCentral, withClient, withJson } from './command.ts'

export function registerRelay(program: Command): Command {
  const relay = program.command('relay').description("relays: a site's one process that talks to the centre")

  withJson(relay.command('join'))
    .description("exchange a join token for the site's credential")
    .requiredOption('--url <url>', "central's address, as `indraft site add` prints it")
    .requiredOption('--token <token>', 'the join token; it works once')
    .requiredOption('--state <folder>', "the relay's state folder; the credential goes there, mode 0600")
    .option('--ca <file>', "PEM of the authority that signed central's certificate")
    .addHelpText(
      'after',
      '\nExamples:\n  indraft relay join --url https://indraft.example:8420 --token indraft-join-... --state ~/relay',
    )
    .action(async (options: Options & { url: string; token: string; state: string; ca?: string }) => {
      const { url, token, state } = options
      const ca = options.ca === undefined ? null : readFileSync(options.ca, 'utf8')
      // Made first: a token is used up by the answer, which must have where to go.
      mkdirSync(state, { recursive: true, mode: 0o700 })
      chmodSync(state, 0o700)
      const client = makeClient({ url, token: null, ca })
      try {
        const { credential } = await client.call('joinSite', { body: { token } })
        const known =
          credential.kind === 'pilot'
            ? pilotCredentialSchema.parse(credential)
            : relayCredentialSchema.parse(credential)
        const path = join(state, `${known.kind}.json`)
        writeCredential(path, known)
        print(options, { site: known.site, kind: known.kind, path }, () => [
          `joined as ${known.site}: ${path}`,
          known.kind === 'relay'
            ? `next:  indraft relay run --state ${state} --credential ${path}`
            : `next:  indraft-pilot run --credential ${path} --scratch DIR`,
        ])
      } finally {
        await client.close()
      }
    })

  withJson(relay.command('drain'))
    .description('tell the relay that runs in a folder of this machine to get empty, say bye and end')
    .requiredOption('--state <folder>', "the relay's state folder")
    .addHelpText('after', '\nExample:\n  indraft relay drain --state ~/relay')
    .action(async (options: Options & { state: string }) => {
      const { runningRelay } = await import('../../edge-relay/state-lock.ts')
      const pid = existsSync(options.state) ? runningRelay(options.state) : null
      if (pid === null) throw new IndraftError('request.notFound', `no relay runs in ${options.state}`)
      process.kill(pid, 'SIGUSR1')
      print(options, { pid }, () => [`process ${pid} drains: it ends when its pilots have finished and results are up`])
    })

  withJson(relay.command('rotate'))
    .description('a new pilot.json: new passwords, in force when the relay of this folder is started again')
    .requiredOption('--state <folder>', "the relay's state folder")
    .addHelpText(
      'after',
      `
For a pilot.json that somebody else may have. Then stop the relay (SIGTERM) and start it; pilots that live follow when they
see the new file under the path they were started with, and lose nothing.

Example:
  indraft relay rotate --state ~/relay`,
    )
    .action(async (options: Options & { state: string }) => {
      const { rotateSecrets } = await import('../../edge-relay/identity.ts')
      const { runningRelay } = await import('../../edge-relay/state-lock.ts')
      rotateSecrets(options.state)
      const pid = runningRelay(options.state)
      const path = join(options.state, 'pilot.json')
      print(options, { pid, path }, () => [
        pid === null
          ? 'in force when the relay is started'
          : `in force when process ${pid} has ended and the relay is started again`,
        `then copy ${path} to where pilots read it`,
      ])
    })

  withClient(relay.command('list'))
    .description('relays, with the state of their link')
    .addHelpText('after', '\nExamples:\n  indraft relay list')
    .action(async (options: Options) => {
      const reply = await withCentral(options, (client) => client.call('listHolders', { query: { role: 'relay' } }))
      print(options, reply, ({ holders }) => {
        if (holders.length === 0) return 'no relay has come yet: "indraft site add NAME" says how one joins'
        const rows = holders.map(({ site, holder, state, gauges, software, lastSeenMs }) => [
          site,
          holder,
          stateShown(state, gauges, lastSeenMs),
          gauges.pilots ?? 0,
          gauges.running ?? 0,
          gauges.bufferTasks ?? 0,
          ago(lastSeenMs),
          software,
        ])
        return columns(['site', 'relay', 'state', 'pilots', 'running', 'in buffer', 'last heard', 'software'], rows)
      })
    })
  return relay
}

export function registerPilot(program: Command): void {
  const pilot = program.command('pilot').description('pilots: a process per node that draws work')
  withClient(pilot.command('list'))
    .description('pilots of every site')
    .option('--site <name>', 'only of this site')
    .option('--all', 'those too that are gone')
    .addHelpText('after', '\nExamples:\n  indraft pilot list\n  indraft pilot list --site CSC-LUMI --all')
    .action(async (options: Options) => {
      const all = (await withCentral(options, (client) => client.call('listPilots', {}))).pilots
      const pilots = all.filter(
        ({ site, state }) =>
          (options.site === undefined || options.site === site) &&
          (options.all === true || state === 'active' || state === 'draining'),
      )
      print(options, { pilots }, () => {
        if (pilots.length === 0)
          return all.length > 0 ? 'no pilot now (--all shows those that are gone)' : 'no pilot has come yet'
        const rows = pilots.map((one) => [
          one.site,
          one.pilot,
          one.node,
          one.code === null ? one.state : `${one.state} (${one.code})`,
          `${one.coresBusy}/${one.cores}`,
          one.running,
          formatDuration(one.upMs),
          one.relay ?? 'direct',
        ])
        return columns(['site', 'pilot', 'node', 'state', 'cores', 'running', 'up', 'by'], rows)
      })
    })
}

function ago(atMs: number): string {
  return `${formatDuration(Math.max(0, Date.now() - atMs))} ago`
}

/** Several beats without a word: its link is cut, or it was stopped; its work is its own until the site's outage time. */
const SILENT_AFTER_MS = 120_000

function stateShown(state: string, gauges: Record<string, number>, lastSeenMs: number): string {
  if (state !== 'active' && state !== 'draining') return state
  if (Date.now() - lastSeenMs > SILENT_AFTER_MS) return 'silent'
  return gauges.diskFull ? 'disk full' : state
}
