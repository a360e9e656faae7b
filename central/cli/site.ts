/** `indraft site`: the sites that may take work, and the token by which each joins once. */
import type { Command } from 'commander'
import { InvalidArgumentError } from 'commander'
import { formatBytes, formatDuration, parseDuration } from '../../shared/quantity.ts'
import type { Reply } from '../api/routes.ts'
import { columns, type Options, print, withCentral, withClient } from './command.ts'

export function registerSite(program: Command): void {
  const site = program.command('site').description('sites that may take work')

  withClient(site.command('add <name>'))
    .description('add a site (or change one) and make a join token that works once')
    .option('--label <key=value>', 'what campaigns may ask for, as in jurisdiction=EU; may be repeated', readLabel)
    .option('--outage <duration>', "how long the link may be cut before the site's work goes to others", readDuration)
    .option('--direct', 'its pilots speak to central themselves: a site with outgoing network and no relay')
    .addHelpText('after', '\nExamples:\n  indraft site add CSC-LUMI --label jurisdiction=EU --outage 6h')
    .action(async (name: string, options: Options) => {
      const body = {
        name,
        ...(options.label ? { labels: options.label as Record<string, string> } : {}),
        ...(options.outage ? { outageMs: options.outage as number } : {}),
        ...(options.direct ? { direct: true } : {}),
      }
      print(options, await withCentral(options, (client) => client.call('addSite', { body })), addedText)
    })

  withClient(site.command('list'))
    .description('every site, with who speaks for it')
    .addHelpText('after', '\nExamples:\n  indraft site list')
    .action(async (options: Options) => {
      const reply = await withCentral(options, (client) => client.call('listSites', {}))
      print(options, reply, ({ sites }) => {
        if (sites.length === 0) return 'no site yet: "indraft site add NAME"'
        return columns(['site', 'state', 'relay', 'pilots', 'labels'], sites.map(siteCells))
      })
    })

  withClient(site.command('show <name>'))
    .description('one site')
    .addHelpText('after', '\nExamples:\n  indraft site show CSC-LUMI')
    .action(async (name: string, options: Options) => {
      const reply = await withCentral(options, (client) => client.call('showSite', { params: { site: name } }))
      print(options, reply, siteText)
    })
}

type SiteView = Reply<'showSite'>

function siteCells(site: SiteView): (string | number)[] {
  const relays = site.holders.filter(({ role }) => role === 'relay')
  // Of several the best counts: the site works as long as one does.
  const relay = relays.find(({ state }) => state === 'active') ?? relays[0]
  const labels = Object.entries(site.labels).map(([key, value]) => `${key}=${value}`)
  return [
    site.name,
    site.disabled ? 'disabled' : 'enabled',
    site.direct ? 'direct' : (relay?.state ?? 'none'),
    site.pilots,
    labels.join(' '),
  ]
}

function siteText(site: SiteView): string[] {
  const cells = siteCells(site)
  return [
    `${site.name}   ${cells[1]}   relay ${cells[2]}   ${site.pilots} pilots`,
    ...(cells[4] ? [`labels   ${cells[4]}`] : []),
    `outage   ${site.outageMs === null ? '2 h (default)' : formatDuration(site.outageMs)}`,
    ...site.shapes.map(
      (shape) => `shape    ${shape.cores} cores, ${formatBytes(shape.memoryBytes)}, ${shape.gpus} GPUs`,
    ),
    ...site.holders.map(
      ({ role, holder, state, software, lastSeenMs }) =>
        `${role.padEnd(8)} ${holder}   ${state}   ${software}   last heard ${formatDuration(Math.max(0, Date.now() - lastSeenMs))} ago`,
    ),
  ]
}

function addedText({ site, joinToken, validMs, url }: Reply<'addSite'>): string[] {
  const file = site.direct ? 'pilot.json' : 'relay.json'
  const ca = url.startsWith('https:') ? ' [--ca CENTRAL-CA.pem]' : ''
  return [
    `site ${site.name} may join within ${formatDuration(validMs)}, once. There:`,
    '',
    `  indraft relay join --url ${url} --state DIR${ca} --token ${joinToken}`,
    '',
    `It writes DIR/${file}. Then: ${site.direct ? 'indraft-pilot run --credential DIR/pilot.json' : 'indraft relay run --state DIR --credential DIR/relay.json'}`,
  ]
}

function readLabel(text: string, earlier: Record<string, string> = {}): Record<string, string> {
  const match = /^([A-Za-z0-9._-]+)=(.*)$/.exec(text)
  if (!match) throw new InvalidArgumentError('expected key=value')
  return { ...earlier, [match[1]!]: match[2]! }
}

function readDuration(text: string): number {
  const ms = parseDuration(text)
  if (ms === undefined) throw new InvalidArgumentError('expected a duration such as 2h')
  return ms
}
