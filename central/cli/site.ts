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

  for (const [name, state, about, after] of STATES) {
    withClient(site.command(`${name} <name>`))
      .description(about)
      .addHelpText('after', `\n${after}\n\nExamples:\n  indraft site ${name} CSC-LUMI`)
      .action(async (given: string, options: Options) => {
        const call = { params: { site: given }, body: { state } }
        print(options, await withCentral(options, (client) => client.call('setSiteState', call)), siteText)
      })
  }

  withClient(site.command('rotate <name>'))
    .description('make a join token for a new credential in the place of the old one; work goes on')
    .option('--keep-old <duration>', 'how long after the join the old one still opens anything (10min)', readDuration)
    .option(
      '--now',
      'the old one was stolen: it and open join tokens open nothing from now on, and the site is cut off until it joins',
    )
    .addHelpText(
      'after',
      `
A relay follows the new file by itself, and its pilots notice nothing. Of a site with several relays each needs a token of
its own: this one, and one by "indraft site add NAME" for each of the others.

Examples:
  indraft site rotate CSC-LUMI
  indraft site rotate CSC-LUMI --now`,
    )
    .action(async (name: string, options: Options) => {
      if (options.now && options.keepOld !== undefined)
        throw new InvalidArgumentError('--now keeps nothing: leave --keep-old out')
      const body = {
        now: options.now === true,
        ...(options.keepOld === undefined ? {} : { keepOldMs: options.keepOld as number }),
      }
      const reply = await withCentral(options, (client) => client.call('rotateSite', { params: { site: name }, body }))
      print(options, reply, (given) => [
        ...(body.now ? [`${given.ended} credentials of ${given.site.name} open nothing any more`] : []),
        ...addedText(given),
      ])
    })
}

/** Command, state, what it does, what follows. */
const STATES = [
  [
    'drain',
    'draining',
    'give a site nothing new; what runs there ends there',
    `Its relay gives back what no pilot has begun, and tells pilots to finish and leave; it stays and brings results.
"indraft site enable" ends it.`,
  ],
  [
    'disable',
    'disabled',
    'hear a site no more; what it had goes to others at once',
    `Its credential is refused with site.disabled. What runs there is not ended by this: its results wait at the relay, and
count where they are still wanted when the site is enabled again.`,
  ],
  ['enable', 'enabled', 'give a site work again', 'After drain and after disable. Relays notice by themselves.'],
] as const

type SiteView = Reply<'showSite'>

function siteCells(site: SiteView): (string | number)[] {
  const relays = site.holders.filter(({ role }) => role === 'relay')
  // Of several the best counts: the site works as long as one does.
  const relay = relays.find(({ state }) => state === 'active') ?? relays[0]
  const labels = Object.entries(site.labels).map(([key, value]) => `${key}=${value}`)
  return [site.name, site.state, site.direct ? 'direct' : (relay?.state ?? 'none'), site.pilots, labels.join(' ')]
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
