/** `indraft-pilot trace`: whose payload ran where and when, from the site's own files. */
import { join, resolve } from 'node:path'
import type { Command } from 'commander'
import { IndraftError } from '../shared/errors.ts'
import { loadPilotConfig } from './config.ts'
import { readSiteFile, traceFolders } from './start/site-file.ts'
import { readTrace, type TracedPayload, type TraceQuestion } from './trace-reader.ts'

interface Options {
  site?: string
  config?: string
  folder?: string
  node?: string
  at?: string
  subject?: string
  campaign?: string
  json?: boolean
}

/** @param act runs the command and turns refusals into words and an exit status */
export function registerTrace(program: Command, act: (run: () => Promise<void>) => Promise<void>): void {
  program
    .command('trace')
    .description('Whose payload ran on a node at a time, from the files of this site; works without any of the others.')
    .option('--site <file>', 'the site file of `indraft-pilot start`: the traces of all its kinds of pilots')
    .option('--folder <folder>', 'or the folder where the trace is')
    .option(
      '--config <file>',
      'or the settings of a pilot that was started by hand (default: those of the environment)',
    )
    .option('--node <name>', 'only this node')
    .option('--at <time>', 'what ran then: 2026-12-01T14:30Z, seconds since 1970, or now (default: all that is kept)')
    .option('--subject <name>', 'only what this person submitted')
    .option('--campaign <name or id>', 'only of this campaign')
    .option('--json', 'a JSON object a line')
    .addHelpText(
      'after',
      `
Examples:
  indraft-pilot trace --site site.yaml --node n0042 --at 2026-12-01T14:30Z
  indraft-pilot trace --folder /shared/indraft/trace --subject ada --json
Exit status: 0 where something was found, 1 where nothing was, 2 where the trace cannot be read.`,
    )
    .action((options: Options) => act(() => showTrace(options)))
}

async function showTrace(options: Options): Promise<void> {
  const folders = foldersOf(options)
  const { node, subject, campaign, json } = options
  const question = { node, subject, campaign, atMs: options.at === undefined ? undefined : timeOf(options.at) }
  const found = (await Promise.all(folders.map((folder) => readFolder(folder, question)))).flat()
  found.sort((a, b) => (a.startedAt < b.startedAt ? -1 : 1))
  if (found.length === 0) process.exitCode = 1
  const say = (line: string) => process.stdout.write(`${line}\n`)
  if (json) for (const payload of found) say(JSON.stringify(payload))
  else if (found.length === 0) say(`nothing in ${folders.join(', ')} fits`)
  else for (const payload of found) say(inWords(payload))
}

/** @throws IndraftError request.invalid: a folder that is not there is no answer to the question */
async function readFolder(folder: string, question: TraceQuestion): Promise<TracedPayload[]> {
  try {
    return await readTrace(folder, question)
  } catch (cause) {
    const message = `the trace in ${folder} cannot be read: ${(cause as Error).message}`
    throw new IndraftError('request.invalid', message, { cause })
  }
}

/** @throws IndraftError request.invalid */
function foldersOf({ site, folder, config }: Options): string[] {
  if ([site, folder, config].filter((one) => one !== undefined).length > 1)
    throw new IndraftError('request.invalid', 'expected one of --site, --folder and --config')
  if (folder !== undefined) return [resolve(folder)]
  if (site !== undefined) return traceFolders(readSiteFile(site))
  const { traceLog, scratch } = loadPilotConfig({}, config)
  return [traceLog ?? join(resolve(scratch), 'trace')]
}

/** @throws IndraftError request.invalid */
function timeOf(text: string): number {
  if (text === 'now') return Date.now()
  const atMs = /^\d{9,11}$/.test(text) ? Number(text) * 1000 : Date.parse(text)
  if (Number.isNaN(atMs))
    throw new IndraftError('request.invalid', `--at ${text}: expected a time such as 2026-12-01T14:30Z`)
  return atMs
}

function inWords(payload: TracedPayload): string {
  const { startedAt, endedAt, exitCode, reason } = payload
  const how = reason ?? (exitCode === null ? 'ended' : `exit ${exitCode}`)
  const end = endedAt === null ? 'no end written' : `until ${endedAt} (${how})`
  return [
    `${payload.node}  ${startedAt}  ${end}`,
    `  subject   ${plain(payload.subject)}   issuer ${plain(payload.issuer ?? 'not said')}`,
    `  campaign  ${plain(payload.campaign)} of ${plain(payload.group)}   task ${payload.task}   attempt ${payload.attempt}`,
    `  image     ${plain(payload.image)}   ${payload.digest ?? 'no digest'}`,
    `  pilot     ${payload.pilot}   pid ${payload.pid ?? '-'}`,
  ].join('\n')
}

/** Names were chosen by others: nothing of them steers a terminal. */
function plain(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, '?')
}
