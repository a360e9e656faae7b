/** `indraft-pilot doctor`: which place is meant, whose settings, and how the findings are said. */
import type { Command } from 'commander'
import { IndraftError } from '../../shared/errors.ts'
import { makeLog } from '../../shared/log.ts'
import type { NodeFacts } from '../../shared/protocol/messages.ts'
import { formatBytes, formatDuration } from '../../shared/quantity.ts'
import { loadPilotConfig, type PilotConfig, readBatchEnvironment } from '../config.ts'
import { foldersOf } from '../start/files.ts'
import { pilotSettings, readSiteFile } from '../start/site-file.ts'
import { type Check, shown, summary } from './check.ts'
import { examineEdge } from './edge.ts'
import { examineNode } from './node.ts'

type Options = Record<string, unknown> & {
  config?: string
  edge?: boolean
  site?: string
  kind?: string
  relayState?: string
  json?: boolean
}

/**
 * @param command with an option for each setting of a pilot
 * @param act runs the command and turns refusals into words and an exit status
 */
export function registerDoctor(command: Command, act: (run: () => Promise<void>) => Promise<void>): void {
  command
    .description('What this node has, and whether a pilot could work here; with --edge, whether relay and ticks could.')
    .option('--site <file>', 'the site file: its settings for pilots; with --edge, the site file to be checked')
    .option('--kind <name>', 'with --site: which kind of node this is (default: the first)')
    .option('--edge', 'this is the edge or login node: check what --relay-state and --site name')
    .option('--relay-state <folder>', "with --edge: the relay's state folder")
    .option('--json', 'as JSON')
    .addHelpText(
      'after',
      `
Examples:
  srun --time=2 indraft-pilot doctor --credential .indraft/pilot.json --scratch /tmp/indraft-$USER
  srun --time=2 indraft-pilot doctor --site site.yaml --kind cpu
  indraft-pilot doctor --edge --relay-state /var/tmp/indraft-relay --site site.yaml

Each line is good, warn (works, but look at it) or BAD (could not work), with what to do. Nothing is changed, and nothing
but the scratch folder is left behind. Of Slurm one squeue is asked, with --edge.
Exit status: 0 where nothing is BAD, 1 where something is, 2 for bad options.`,
    )
    .action((options: Options) => act(() => examine(options)))
}

async function examine(options: Options): Promise<void> {
  const { config: file, json, edge, site, kind, relayState, ...args } = options
  if (relayState !== undefined && !edge) refuse('--relay-state belongs to --edge')
  if (kind !== undefined && (site === undefined || edge)) refuse('--kind belongs to --site, on a node')
  if (edge) {
    if (site === undefined && relayState === undefined) refuse('--edge: expected --relay-state, --site, or both')
    const { path } = readBatchEnvironment()
    const checks = await examineEdge({ ...(site ? { site } : {}), ...(relayState ? { relayState } : {}) }, path)
    return say({ place: 'edge', checks }, checks, [], json)
  }
  const config = site === undefined ? loadPilotConfig(args, file) : siteConfig(site, kind, args, file)
  const { facts, checks } = await examineNode(config, makeLog('pilot', 'silent'))
  say({ place: 'node', facts, checks }, checks, factLines(facts), json)
}

function refuse(what: string): never {
  throw new IndraftError('request.invalid', what)
}

function say(report: object, checks: readonly Check[], facts: readonly string[], json: boolean | undefined): void {
  if (checks.some(({ state }) => state === 'bad')) process.exitCode = 1
  const lines = json ? [JSON.stringify(report, null, 2)] : [...facts, ...shown(checks), summary(checks)]
  process.stdout.write(`${lines.join('\n')}\n`)
}

/** As `indraft-pilot start` would start a pilot of this kind; options of the command win. */
function siteConfig(
  file: string,
  kind: string | undefined,
  args: Record<string, unknown>,
  config?: string,
): PilotConfig {
  const site = readSiteFile(file)
  const name = kind ?? Object.keys(site.kinds)[0]!
  if (!Object.hasOwn(site.kinds, name)) refuse(`--kind ${name}: expected one of ${Object.keys(site.kinds).join(', ')}`)
  const { ends, stopFile } = foldersOf(site)
  const own = { credential: site.credential, endFolder: ends, stopFile }
  return loadPilotConfig({ ...pilotSettings(site, name), ...own, ...args }, config)
}

function factLines(facts: NodeFacts): string[] {
  const left = facts.timeLeftMs === null ? 'no end known' : `${formatDuration(facts.timeLeftMs)} left`
  const { gpu = 'GPU', gpu_driver: driver = 'not said', processor = 'processor not known', scratch } = facts.labels
  return [
    `node ${facts.node}: ${facts.cores} cores (${facts.arch}), ${formatBytes(facts.memoryBytes)} memory,`,
    `  ${formatBytes(facts.scratchBytes)} scratch, network ${facts.network}, ${left}`,
    ...(facts.gpus > 0
      ? [`  ${facts.gpus} GPUs: ${gpu}, ${formatBytes(facts.gpuMemoryBytes)} each, driver ${driver}`]
      : []),
    `  ${processor}${scratch === 'memory' ? ', scratch in memory' : ''}`,
    ...(facts.software ? [`  software ${facts.software.join(', ')}`] : []),
  ]
}
