/** `indraft central run` and `indraft relay run`: the two services as plain processes, until SIGTERM or SIGINT. */
import type { Command } from 'commander'
import type { Settings } from '../../shared/config.ts'
import { isIndraftError } from '../../shared/errors.ts'
import { type Log, type LogLevel, makeLog } from '../../shared/log.ts'
import { CENTRAL_SETTINGS, centralPaths, loadCentralConfig } from '../config.ts'
import { EXIT, type Options } from './command.ts'

/** @param relay the group that `relay run` belongs to */
export async function registerRun(program: Command, relay: Command): Promise<void> {
  const central = program.command('central').description('the centre')
  withSettings(central.command('run'), CENTRAL_SETTINGS)
    .description('run the centre until SIGTERM')
    .addHelpText(
      'after',
      `
Every setting may stand in the file of --config (name: value), in INDRAFT_<NAME>, or here; the last wins.

Examples:
  indraft central run --state /var/lib/indraft --redis redis://127.0.0.1:6379 --nats nats://127.0.0.1:4222
  indraft central run --config /etc/indraft/central.yaml`,
    )
    .action(async (options: Options) => {
      const { config: file, json: _json, ...args } = options
      const config = orUsage(() => loadCentralConfig({ args, file: file as string | undefined }))
      if (!config) return
      // The services are loaded only to run: every other command would wait for them.
      const { startCentral } = await import('../main.ts')
      await serve('central', config.logLevel as LogLevel, (log) => startCentral(config, log))
    })

  withSettings(central.command('nats-config'), {
    state: CENTRAL_SETTINGS.state,
    natsOperator: CENTRAL_SETTINGS.natsOperator,
  })
    .description("print what a nats-server of your own has to be told of the centre's accounts; made at the first call")
    .addHelpText('after', '\nExample:\n  indraft central nats-config --state /var/lib/indraft > /etc/nats/indraft.conf')
    .action(async (options: Options) => {
      const { config: file, json: _json, ...args } = options
      const config = orUsage(() => loadCentralConfig({ args, file: file as string | undefined }))
      if (!config) return
      const { prepareNatsAccount } = await import('../sites/nats-account.ts')
      const { configText } = await prepareNatsAccount(centralPaths(config).natsAccount)
      console.log(configText)
    })

  const { relaySettings, loadRelayConfig } = await import('../../edge-relay/config.ts')
  withSettings(relay.command('run'), relaySettings)
    .description('run the relay of a site until SIGTERM')
    .addHelpText(
      'after',
      `
Examples:
  indraft relay run --state /var/lib/indraft-relay --credential /var/lib/indraft-relay/relay.json
  indraft relay run --config /etc/indraft/relay.yaml
  */10 * * * * indraft relay run --state ~/relay --once --for 9min     (where no service is allowed: cron)

Signals:
  SIGTERM, SIGINT   stop; leases and results are kept for the next start
  SIGUSR1           drain: unstarted work goes back to the centre, results go up, then bye and exit
                    (also: indraft relay drain --state FOLDER)

Ends with 74 when its disk failed or cannot be written: started again it goes on where it was.`,
    )
    .action(async (options: Options) => {
      const { config: file, json: _json, ...args } = options
      const config = orUsage(() => loadRelayConfig(args, file as string | undefined))
      if (!config) return
      const { startRelay } = await import('../../edge-relay/main.ts')
      await serve('relay', config.logLevel as LogLevel, (log) => startRelay(config, log), config.once)
    })
}

function withSettings(command: Command, settings: Settings): Command {
  command.option('--config <file>', 'YAML file with settings')
  for (const [name, setting] of Object.entries(settings)) {
    if (setting.secret) {
      command.option(`--${kebab(name)} <value>`, `${setting.meaning} Others can see it here: prefer the environment.`)
    } else if (setting.type === 'flag') {
      command.option(`--${kebab(name)}`, setting.meaning)
    } else {
      const otherwise = setting.default === null ? '' : ` (default: ${String(setting.default) || 'none'})`
      command.option(`--${kebab(name)} <${setting.type}>`, setting.meaning + otherwise)
    }
  }
  return command
}

function kebab(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
}

/** A wrong setting is wrong usage. */
function orUsage<T>(load: () => T): T | undefined {
  try {
    return load()
  } catch (error) {
    if (!isIndraftError(error)) throw error
    console.error(`indraft: ${error.message}`)
    process.exitCode = EXIT.usage
    return undefined
  }
}

/** Ends in order at the first signal, at once at a second. */
async function serve(
  program: string,
  level: LogLevel,
  start: (log: Log) => Promise<{
    stop(): Promise<void>
    /** Its disk failed. */
    failed?: Promise<Error>
    /** It has ended by itself. */
    finished?: Promise<void>
    /** SIGUSR1: to get empty, and end. */
    drain?: () => Promise<void>
  }>,
  isOnce = false,
): Promise<void> {
  // What an administrator sees in ps, top and ss.
  process.title = `indraft-${program}`
  const log = makeLog(program, level)
  let stop: (() => Promise<void>) | undefined
  let drain: (() => Promise<void>) | undefined
  let isStopping = false
  const onSignal = (signal: NodeJS.Signals) => {
    if (isStopping) process.exit(EXIT.failed)
    isStopping = true
    log.info({ signal }, `${program}.stopping`)
    if (!stop) process.exit(EXIT.ok)
    stop().then(
      () => process.exit(EXIT.ok),
      (error: unknown) => {
        log.error({ err: error }, `${program}.stopFailed`)
        process.exit(EXIT.failed)
      },
    )
  }
  // Always handled: by default Node.js opens its debugger for whoever sends this.
  process.on('SIGUSR1', () => void drain?.())
  process.on('SIGTERM', onSignal)
  process.on('SIGINT', onSignal)
  try {
    const running = await start(log)
    stop = () => running.stop()
    // What it holds in memory may be ahead of its disk: whoever keeps it alive starts it again from the disk.
    void running.failed?.then(() => process.exit(EXIT.diskFailed))
    void running.finished?.then(() => process.exit(EXIT.ok))
    drain = running.drain
  } catch (error) {
    if (isIndraftError(error, 'state.taken') && isOnce) {
      // The one that the last tick started still works.
      log.info({ detail: error.message }, `${program}.alreadyRuns`)
      process.exit(EXIT.ok)
    }
    log.error({ err: error }, `${program}.startFailed`)
    console.error(`indraft: ${program} could not start: ${error instanceof Error ? error.message : String(error)}`)
    process.exit(isDiskError(error) ? EXIT.diskFailed : EXIT.failed)
  }
}

/** The disk refuses to be written, by its own words or by SQLite's: full, read-only, failing, not to be opened. */
function isDiskError(error: unknown): boolean {
  const { code, errcode } = error as { code?: unknown; errcode?: unknown }
  if (typeof errcode === 'number') return [8, 10, 13, 14].includes(errcode & 0xff)
  return typeof code === 'string' && ['ENOSPC', 'EROFS', 'EIO', 'EDQUOT'].includes(code)
}
