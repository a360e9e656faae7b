/** `indraft up`: everything on this machine, in the foreground, until it is told to stop. */
import { homedir } from 'node:os'
import { join, resolve } from 'node:path'
import type { Command } from 'commander'
import { formatDuration } from '../../shared/quantity.ts'
import { loadUpConfig, UP_SETTINGS } from './up/config.ts'
import type { Service } from './up/service.ts'
import type { Stack } from './up/stack.ts'

/** Terminals send Ctrl-C to a launcher and to us: what comes this soon after the first is the same wish. */
const SAME_WISH_MS = 1_000

export function registerUp(program: Command): void {
  program
    .command('up')
    .description('run everything on this machine: redis, nats, central, a relay and pilots')
    .option('--home <folder>', meaning('home'))
    .option('--state <folder>', 'the same as --home')
    .option('--pilots <number>', meaning('pilots'))
    .option('--cores <number>', meaning('cores'))
    .option('--memory <size>', meaning('memory'))
    .option('--api-port <port>', meaning('apiPort'))
    .option('--redis-server <path>', meaning('redisServer'))
    .option('--nats-server <path>', meaning('natsServer'))
    .option('--log-level <level>', meaning('logLevel'))
    .option('--json', 'print one JSON object a line')
    .addHelpText(
      'after',
      '\nWhat it starts ends with it. Data stay in the home folder: the next `up` goes on from there.\n\nExamples:\n  indraft up\n  indraft up --pilots 4 --cores 2\n  indraft up --home /scratch/me/indraft',
    )
    .action(async (options: Record<string, unknown>, command: Command) => {
      const { json, state, home, ...rest } = { ...command.parent?.opts(), ...options } as Record<string, unknown>
      let config: ReturnType<typeof loadUpConfig>
      try {
        config = loadUpConfig({ ...picked(rest), home: home ?? state })
      } catch (error) {
        // With the exit code of wrong usage.
        return command.error(`error: ${(error as Error).message}`)
      }
      await runUp(config, json === true)
    })
}

function meaning(name: keyof typeof UP_SETTINGS): string {
  const setting = UP_SETTINGS[name]
  const text = setting.meaning.replace(/\.$/, '')
  return setting.default === null ? text : `${text} (default: ${String(setting.default).replace(homedir(), '~')})`
}

/** Only what this command has a setting for; the program's own options are others'. */
function picked(options: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(options).filter(([name]) => Object.hasOwn(UP_SETTINGS, name)))
}

async function runUp(config: ReturnType<typeof loadUpConfig>, json: boolean): Promise<void> {
  const startMs = performance.now()
  const tell = (line: string, fields: Record<string, unknown>) => console.log(json ? JSON.stringify(fields) : line)
  const stopping = stopSignal()
  if (!json) console.log(`indraft up   home ${shortPath(resolve(config.home))}   site ${config.site}\n`)
  // Loaded only here: no other command pays for what starts servers.
  const { startStack } = await import('./up/stack.ts')
  const started = startStack(config, {
    say: (line) => tell(`           ${line}`, { event: 'note', text: line }),
    onRunning: (service) => tell(stateLine(service), { event: 'running', ...facts(service) }),
    onDied: (service, how, againInMs) => {
      if (stopping.isOver()) return
      const again = againInMs > 0 ? `starting it again in ${formatDuration(againInMs)}` : 'starting it again'
      tell(`${service.name.padEnd(10)} ${how}: ${again}`, { event: 'died', name: service.name, how, againInMs })
    },
  })
  let stack: Stack
  try {
    stack = await started
  } catch (error) {
    stopping.done()
    throw error
  }
  if (!stopping.isOver()) {
    tell(nextSteps(stack, config.home, performance.now() - startMs), {
      event: 'ready',
      apiUrl: stack.apiUrl,
      client: stack.clientPath,
    })
    await stopping.wished
  }
  tell('\nstopping: pilots, relay, central, nats, redis', { event: 'stopping' })
  await stack.stop()
  tell('stopped. The data stay; "indraft up" goes on from here.', { event: 'stopped' })
  stopping.done()
}

/** The first SIGINT or SIGTERM asks for an end in order, a later one ends at once: the kernel takes the children along. */
export function stopSignal(): { wished: Promise<void>; isOver(): boolean; done(): void } {
  let wishedAtMs: number | undefined
  let resolveWish = () => {}
  const wished = new Promise<void>((done) => {
    resolveWish = done
  })
  const onSignal = () => {
    if (wishedAtMs !== undefined && performance.now() - wishedAtMs > SAME_WISH_MS) process.exit(130)
    wishedAtMs ??= performance.now()
    resolveWish()
  }
  process.on('SIGINT', onSignal)
  process.on('SIGTERM', onSignal)
  process.on('SIGHUP', onSignal)
  return {
    wished,
    isOver: () => wishedAtMs !== undefined,
    done() {
      for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.off(name, onSignal)
    },
  }
}

function facts({ name, part, starts }: Service): Record<string, unknown> {
  return { name, pid: part?.pid, address: part?.address, log: part?.logPath, starts }
}

function stateLine({ name, part }: Service): string {
  const columns = [name.padEnd(10), `process ${String(part?.pid).padEnd(8)}`, part?.address.padEnd(26)]
  return `${columns.join(' ')} log ${shortPath(part?.logPath ?? '')}`
}

function shortPath(path: string): string {
  return path.startsWith(`${homedir()}/`) ? `~${path.slice(homedir().length)}` : path
}

function nextSteps({ apiUrl, metricsUrl, clientPath }: Stack, home: string, tookMs: number): string {
  const isDefault = resolve(home) === join(homedir(), '.indraft')
  const prefix = isDefault ? 'npx indraft' : `INDRAFT_HOME=${resolve(home)} npx indraft`
  return [
    '',
    `ready after ${formatDuration(tookMs)}: ${apiUrl}   (token and authority: ${shortPath(clientPath)})`,
    `metrics: ${metricsUrl}/metrics`,
    '',
    'In another terminal:',
    `  ${prefix} campaign submit deploy/demo/ising.yaml`,
    `  ${prefix} campaign watch ising`,
    `  ${prefix} pilot list`,
    '',
    'Ctrl-C stops everything.',
  ].join('\n')
}
