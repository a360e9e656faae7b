/** The commands `indraft-pilot start` and `indraft-pilot stop`: options in, one tick or many, words out. */
import { mkdir, rm, writeFile } from 'node:fs/promises'
import type { Command } from 'commander'
import { systemClock } from '../../shared/clock.ts'
import { IndraftError } from '../../shared/errors.ts'
import { type LogLevel, makeLog } from '../../shared/log.ts'
import { formatDuration, parseDuration } from '../../shared/quantity.ts'
import { inheritedEnvironment } from '../config.ts'
import { foldersOf, realPorts } from './files.ts'
import { readSiteFile, type SiteFile } from './site-file.ts'
import { type TickOutcome, tick } from './tick.ts'

type Print = (line: string) => void
type Options = { site: string; loop?: boolean; every: string; dryRun?: boolean; logLevel: string }

export function addStartCommands(
  program: Command,
  print: Print,
  orRefuse: (act: () => Promise<void>) => Promise<void>,
) {
  const site = ['--site <file>', 'the site file; deploy/slurm/site.yaml explains it'] as const
  program
    .command('start')
    .description('Start as many pilots as there is work for: one look, or again and again.')
    .requiredOption(...site)
    .option('--loop', 'again and again, until a signal')
    .option('--every <duration>', 'with --loop: time between two looks', '1min')
    .option('--dry-run', 'say what would be done and why; start nothing, change nothing')
    .option('--log-level <level>', 'debug, info, warn, error or silent', 'info')
    .addHelpText(
      'after',
      `
Examples:
  indraft-pilot start --site site.yaml --dry-run       what would happen now, and why
  * * * * * indraft-pilot start --site site.yaml       a line of a crontab
  indraft-pilot start --site site.yaml --loop          as a service

Ticks may overlap, and die anywhere: a lock lets one work, and the next one finds what was left.
Exit status: 0 also where nothing was to be done; 1 where a step failed (the next tick tries again), 2 for a bad site file.`,
    )
    .action((options: Options) => orRefuse(() => start(options, print)))
  program
    .command('stop')
    .description('Drain this site: a STOP file lets no pilot start, and running ones end after their tasks.')
    .requiredOption(...site)
    .option('--resume', 'take the STOP file away again')
    .addHelpText('after', '\nExample:\n  indraft-pilot stop --site site.yaml')
    .action((options: { site: string; resume?: boolean }) => orRefuse(() => stop(options, print)))
}

async function start(options: Options, print: Print): Promise<void> {
  const everyMs = parseDuration(options.every)
  if (!everyMs)
    throw new IndraftError('request.invalid', `--every: expected a duration such as 1min, found "${options.every}"`)
  if (!LEVELS.includes(options.logLevel))
    throw new IndraftError(
      'request.invalid',
      `--log-level: expected one of ${LEVELS.join(', ')}, found "${options.logLevel}"`,
    )
  if (options.loop && options.dryRun)
    throw new IndraftError('request.invalid', '--dry-run says what one look would do: leave --loop out')
  let site = readSiteFile(options.site)
  const log = makeLog('vacuum', (options.dryRun ? 'silent' : options.logLevel) as LogLevel)
  const once = () =>
    inFolder(site, () => tick(site, realPorts(site, inheritedEnvironment()), log, options.dryRun ?? false))
  if (!options.loop) {
    const outcome = await once()
    if (options.dryRun) for (const line of wordsOf(outcome, site)) print(line)
    if (outcome.outcome === 'done' && outcome.errors.length > 0) process.exitCode = 1
    return
  }
  const stopped = new AbortController()
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => stopped.abort())
  log.info({ site: options.site, everyMs }, 'vacuum.ready')
  while (!stopped.signal.aborted) {
    try {
      // As a crontab does: a change counts from the next look on; a mistake leaves what was there.
      site = readSiteFile(options.site)
    } catch (error) {
      log.error({ err: error }, 'vacuum.siteFileRefused')
    }
    await once().catch((error) => log.error({ err: error }, 'vacuum.tickFailed'))
    await systemClock.sleep(everyMs * (0.9 + 0.2 * Math.random()), stopped.signal)
  }
}

const LEVELS = ['debug', 'info', 'warn', 'error', 'silent']

/** What the file system refuses is said of the folder, and is no bug of ours. */
async function inFolder<T>(site: SiteFile, act: () => Promise<T>): Promise<T> {
  try {
    return await act()
  } catch (cause) {
    if (cause instanceof IndraftError || typeof (cause as NodeJS.ErrnoException).syscall !== 'string') throw cause
    const what = `folder ${site.folder}: ${(cause as Error).message}; it has to be this account's, to write and to lock in`
    throw new IndraftError('node.fault', what, { cause })
  }
}

/** What a dry run says. */
export function wordsOf(outcome: TickOutcome, site: SiteFile): string[] {
  if (outcome.outcome === 'busy') return ['another tick runs']
  const { decision, state, errors } = outcome
  const { demand } = state
  const answer = demand?.answer
  const asked = !site.ask.enabled
    ? 'the relay is not asked (ask.enabled)'
    : !answer
      ? `the relay did not answer what would fit${outcome.unanswered === null ? '' : `: ${outcome.unanswered}`}`
      : `the relay says: ${answer.fits.length === 0 ? (answer.reason ?? 'nothing') : answer.fits.map((fit) => `${fit.tasks} tasks of ${fit.work} (${fit.group})`).join(', ')}${answer.isWhole ? '' : '; the centre did not answer it'}`
  const pilots = Object.values(state.pilots).map(
    (one) => `  ${one.id}: ${one.nodes} nodes, ${one.state}${one.jobId ? `, job ${one.jobId}` : ''}, ${one.because}`,
  )
  const scopes = Object.entries(state.scopes).map(
    ([key, scope]) => `  ${key}: strike ${scope.strikes}, ${scope.code} ${scope.reason}`,
  )
  const latches = Object.entries(state.latches).map(
    ([node, latch]) => `  ${node}: latched ${formatDuration(Date.now() - latch.sinceMs)} ago: ${latch.reason}`,
  )
  return [
    asked,
    ...(pilots.length > 0 ? ['pilots known:', ...pilots] : ['no pilots known']),
    ...(scopes.length > 0 ? ['held against:', ...scopes] : []),
    ...(latches.length > 0 ? ['black holes:', ...latches] : []),
    ...decision.why,
    ...decision.starts.map((one) => `would start ${one.id}: ${one.nodes} nodes for ${formatDuration(one.timeMs)}`),
    ...decision.withdraw.map((one) => `would withdraw ${one.id} (job ${one.jobId})`),
    ...errors,
  ]
}

async function stop(options: { site: string; resume?: boolean }, print: Print): Promise<void> {
  const site = readSiteFile(options.site)
  const { stopFile } = foldersOf(site)
  if (options.resume) {
    await inFolder(site, () => rm(stopFile, { force: true }))
    return print(`${stopFile} is gone: the next tick may start pilots`)
  }
  await inFolder(site, async () => {
    await mkdir(site.folder, { recursive: true, mode: 0o700 })
    await writeFile(stopFile, 'made by `indraft-pilot stop`\n')
  })
  print(`${stopFile}: no pilot starts, running ones leave after their tasks; \`indraft-pilot stop --resume\` ends it`)
}
