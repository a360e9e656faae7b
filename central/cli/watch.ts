/**
 * `indraft campaign watch`: a campaign until it is over. On a terminal one picture that is drawn again in place; else a
 * line whenever something changed; with --json one document a line. Ends with the campaign.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Command } from 'commander'
import { ERRORS, IndraftError } from '../../shared/errors.ts'
import { isCampaignOver } from '../../shared/lifecycle.ts'
import { type Client, Unreachable } from '../api/client.ts'
import { EXIT, type Options, withCentral, withClient } from './command.ts'
import { changeLine, drawCampaign, endLines, Progress, type Watched } from './watch-view.ts'

const EVERY_MS = 1000
/** The time of the end is written a moment after the last task's: so often it is looked for. */
const LOOKS_FOR_END = 5
const CLEAR_BELOW = '\x1b[0J'
const HIDE_CURSOR = '\x1b[?25l'
const SHOW_CURSOR = '\x1b[?25h'

export function registerWatch(campaign: Command): void {
  withClient(campaign.command('watch <campaign>'))
    .description('watch a campaign until it is over (exit code 4 where not everything was done)')
    .addHelpText(
      'after',
      '\nExamples:\n  indraft campaign watch ising\n  indraft campaign watch ising --json | jq .state',
    )
    .action((name: string, options: Options) => withCentral(options, (client) => watchCampaign(client, name, options)))
}

export async function watchCampaign(client: Client, name: string, options: Options): Promise<void> {
  const onTerminal = process.stdout.isTTY === true && !options.json
  const progress = new Progress()
  let drawnLines = 0
  let lastChange = ''
  let everSeen = false
  let looksForEnd = 0
  const draw = (lines: readonly string[]) => {
    const width = process.stdout.columns || 120
    const height = Math.max(5, (process.stdout.rows || 40) - 1)
    const shown = lines.slice(0, height).map((line) => line.slice(0, width - 1))
    process.stdout.write(`${drawnLines > 0 ? `\x1b[${drawnLines}A\r` : ''}${CLEAR_BELOW}${shown.join('\n')}\n`)
    drawnLines = shown.length
  }
  const restore = () => process.stdout.write(SHOW_CURSOR)
  if (onTerminal) {
    process.stdout.write(HIDE_CURSOR)
    process.once('exit', restore)
    process.once('SIGINT', () => process.exit(130))
  }
  for (;;) {
    const watched = await lookAt(client, name).catch((error: unknown) => {
      // A centre or a store that is started again is worth waiting for, one that was never there is not.
      if (everSeen && isPassing(error)) return undefined
      throw error
    })
    if (watched) {
      everSeen = true
      progress.saw(watched.campaign)
      const change = changeLine(watched.campaign)
      if (onTerminal) draw(drawCampaign(watched, progress, Date.now()))
      else if (change !== lastChange) {
        console.log(
          options.json ? JSON.stringify(watched.campaign) : `${new Date().toTimeString().slice(0, 8)}  ${change}`,
        )
      }
      lastChange = change
      const { state, endedAtMs } = watched.campaign
      if (isCampaignOver(state) && (endedAtMs !== null || ++looksForEnd > LOOKS_FOR_END)) {
        if (!options.json) for (const line of endLines(watched.campaign)) console.log(line)
        if (watched.campaign.state !== 'done') process.exitCode = EXIT.endedWithFailures
        return
      }
    } else if (onTerminal) {
      draw([`${name}: central does not answer; trying again`])
    }
    await sleep(EVERY_MS)
  }
}

function isPassing(error: unknown): boolean {
  return error instanceof Unreachable || (error instanceof IndraftError && ERRORS[error.code].retry)
}

async function lookAt(client: Client, name: string): Promise<Watched> {
  const [campaign, { holders }, { pilots }] = await Promise.all([
    client.call('showCampaign', { params: { campaign: name } }),
    client.call('listHolders', { query: {} }),
    client.call('listPilots', {}),
  ])
  return { campaign, holders, pilots }
}
