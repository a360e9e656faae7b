/** How a campaign is drawn as text. Pure: what is known goes in, lines come out. */
import { openTasks, TASK_STATES, type TaskState } from '../../shared/lifecycle.ts'
import { formatDuration } from '../../shared/quantity.ts'
import type { Reply } from '../api/routes.ts'

type Campaign = Reply<'showCampaign'>
export interface Watched {
  campaign: Campaign
  holders: Reply<'listHolders'>['holders']
  pilots: Reply<'listPilots'>['pilots']
}

const BAR = 20
const RATE_WINDOW_MS = 120_000
/** Columns after the bar; the order in which tasks pass through them. */
const SHOWN: readonly TaskState[] = TASK_STATES

const number = (value: number) => value.toLocaleString('en')

/** How fast tasks end, from what was seen while watching. */
export class Progress {
  #seen: { atMs: number; ended: number }[] = []

  saw(campaign: Campaign, atMs = performance.now()): void {
    const { done, failed, skipped, cancelled } = campaign.counts
    this.#seen.push({ atMs, ended: done + failed + skipped + cancelled })
    while (this.#seen.length > 2 && this.#seen[0]!.atMs < atMs - RATE_WINDOW_MS) this.#seen.shift()
  }

  /** Tasks a second; undefined until something has ended under our eyes. */
  get rate(): number | undefined {
    const [first, last] = [this.#seen[0], this.#seen.at(-1)]
    if (!first || !last || last.atMs - first.atMs < 2000 || last.ended <= first.ended) return undefined
    return (last.ended - first.ended) / ((last.atMs - first.atMs) / 1000)
  }
}

export function drawCampaign(watched: Watched, progress: Progress, nowMs: number): string[] {
  const { campaign } = watched
  const time = new Date(nowMs).toTimeString().slice(0, 8)
  const runFor = formatDuration(Math.max(0, (campaign.endedAtMs ?? nowMs) - campaign.createdAtMs))
  return [
    `${campaign.name}   ${campaign.group}   ${campaign.state} ${runFor}   priority ${campaign.priority}   ${time}`,
    etaLine(campaign, progress, nowMs),
    '',
    ...stepLines(campaign),
    '',
    ...siteLines(watched, nowMs),
    ...failureLines(campaign),
  ]
}

function etaLine(campaign: Campaign, progress: Progress, nowMs: number): string {
  const open = openTasks(campaign.counts)
  if (open === 0) return 'over'
  const { rate } = progress
  if (rate === undefined) return `${number(open)} tasks to go`
  const atMs = nowMs + (open / rate) * 1000
  const pace = rate >= 1 ? `${rate.toFixed(rate < 10 ? 1 : 0)} tasks/s` : `${number(Math.round(rate * 3600))} tasks/h`
  const sameDay = new Date(atMs).toDateString() === new Date(nowMs).toDateString()
  const clock = new Date(atMs).toTimeString().slice(0, 5)
  const day = sameDay ? '' : `${new Date(atMs).toLocaleDateString('en-GB', { day: 'numeric', month: 'short' })} `
  return `${number(open)} tasks to go, ends ~${day}${clock} (${pace})`
}

function stepLines({ steps }: Campaign): string[] {
  const nameWidth = Math.max(4, ...steps.map((step) => step.name.length))
  const sizeWidth = Math.max(5, ...steps.map((step) => number(step.size).length))
  const widths = SHOWN.map((state) => Math.max(state.length, ...steps.map((step) => number(step.counts[state]).length)))
  const header = [
    'step'.padEnd(nameWidth),
    'tasks'.padStart(sizeWidth),
    ' '.repeat(BAR + 2 + 6),
    ...SHOWN.map((state, i) => state.padStart(widths[i]!)),
  ].join(' ')
  return [
    header,
    ...steps.map((step) => {
      const share = step.size === 0 ? 1 : endedOf(step.counts) / step.size
      return [
        step.name.padEnd(nameWidth),
        number(step.size).padStart(sizeWidth),
        bar(step),
        `${Math.floor(share * 100)} %`.padStart(5),
        ...SHOWN.map((state, i) => number(step.counts[state]).padStart(widths[i]!)),
      ].join(' ')
    }),
  ]
}

function endedOf(counts: Campaign['counts']): number {
  return counts.done + counts.failed + counts.skipped + counts.cancelled
}

/** `#` ended, `>` at work, `.` still to come. */
export function bar({ size, counts }: Campaign['steps'][number]): string {
  const cells = (tasks: number) => (size === 0 ? BAR : Math.floor((tasks / size) * BAR))
  const ended = cells(endedOf(counts))
  const busy = cells(endedOf(counts) + counts.running + counts.assigned) - ended
  return `[${'#'.repeat(ended)}${'>'.repeat(busy)}${'.'.repeat(BAR - ended - busy)}]`
}

function siteLines({ holders, pilots }: Watched, nowMs: number): string[] {
  const isHere = (state: string) => state === 'active' || state === 'draining'
  const sites = [
    ...new Set([...holders, ...pilots].filter(({ state }) => state !== 'left').map(({ site }) => site)),
  ].sort()
  if (sites.length === 0) return ['no site has come yet: nothing can run (indraft site add, indraft up)', '']
  const rows = sites.map((site) => {
    const relays = holders.filter((holder) => holder.site === site && holder.role === 'relay')
    // The site is cut off when all of its relays are.
    const relay = relays.find(({ state }) => isHere(state)) ?? relays[0]
    const here = pilots.filter((pilot) => pilot.site === site && isHere(pilot.state))
    const link = !relay ? 'direct' : relay.state === 'lost' ? `CUT ${formatDuration(nowMs - relay.lastSeenMs)}` : 'up'
    const cores = here.reduce((sum, { cores: all }) => sum + all, 0)
    const busy = here.reduce((sum, { coresBusy }) => sum + coresBusy, 0)
    const running = here.reduce((sum, pilot) => sum + pilot.running, 0)
    return [
      site,
      link,
      number(here.length),
      number(running),
      `${number(busy)}/${number(cores)}`,
      number(relay?.gauges.bufferTasks ?? 0),
    ]
  })
  const header = ['site', 'relay link', 'pilots', 'running', 'cores busy', 'in buffer']
  const widths = header.map((word, i) => Math.max(word.length, ...rows.map((row) => row[i]!.length)))
  const line = (row: readonly string[]) =>
    row.map((cell, i) => (i < 2 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('  ')
  return [line(header), ...rows.map(line), '']
}

function failureLines({ failures }: Campaign): string[] {
  return failures
    .slice(0, 5)
    .map(({ step, reason, detail, count }, i) =>
      `${i === 0 ? 'failures' : '        '}   ${step}: ${number(count)} ${reason}  ${detail}`.trimEnd(),
    )
}

/** One line for logs; the same counts give the same line. */
export function changeLine(campaign: Campaign): string {
  const steps = campaign.steps.map(({ name, size, counts }) => {
    const others = SHOWN.filter(
      (state) => state !== 'done' && state !== 'blocked' && state !== 'queued' && counts[state] > 0,
    )
    const rest = others.map((state) => `, ${number(counts[state])} ${state}`).join('')
    return `${name} ${number(counts.done)}/${number(size)} done${rest}`
  })
  return `${campaign.name} ${campaign.state}: ${steps.join(' | ')}`
}

export function endLines(campaign: Campaign): string[] {
  const { done, failed, skipped, cancelled } = campaign.counts
  const lost = [
    failed && `${number(failed)} failed`,
    skipped && `${number(skipped)} skipped`,
    cancelled && `${number(cancelled)} cancelled`,
  ]
  // Both by the store's clock, which need not be this machine's; the end may not be written down yet.
  const tookMs = campaign.endedAtMs === null ? null : Math.max(0, campaign.endedAtMs - campaign.createdAtMs)
  const after = tookMs === null ? '' : ` after ${formatDuration(tookMs)}`
  const counts = [`${number(done)} done`, ...lost.filter(Boolean)].join(', ')
  const hint =
    failed > 0
      ? `indraft campaign tasks ${campaign.name} --state failed`
      : `indraft campaign outputs ${campaign.name} --get DIR`
  return [`${campaign.name}: ${campaign.state}${after} (${counts})`, `next:  ${hint}`]
}
