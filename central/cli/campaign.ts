/** `indraft campaign`: send one in, look at it, steer it. Watching is watch.ts, files are outputs.ts. */
import { randomUUID } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { IndraftError } from '../../shared/errors.ts'
import { type DesiredState, TASK_STATES, type TaskState } from '../../shared/lifecycle.ts'
import { formatBytes, formatDuration } from '../../shared/quantity.ts'
import { ApiRefusal, type Client } from '../api/client.ts'
import type { Reply } from '../api/routes.ts'
import { checkCampaign, tablesNamed } from '../campaigns/check.ts'
import type { CampaignPlan } from '../campaigns/model.ts'
import { formatPath } from '../campaigns/source.ts'
import { columns, FileProblems, type Options, print, withCentral, withClient, withJson } from './command.ts'
import { resolveFileUrls } from './file-urls.ts'
import { registerOutputs } from './outputs.ts'
import { registerWatch, watchCampaign } from './watch.ts'

export function registerCampaign(program: Command): void {
  const campaign = program.command('campaign').description('campaigns: many tasks from one file')
  registerSubmit(campaign)
  registerViews(campaign)
  registerWatch(campaign)
  registerOutputs(campaign)
  registerSteering(campaign)
}

function registerSubmit(campaign: Command): void {
  withJson(campaign.command('validate <file>'))
    .description('check a campaign file without asking anybody')
    .addHelpText('after', '\nExamples:\n  indraft campaign validate sim.yaml')
    .action((file: string, options: Options) => {
      const { source, tables } = readCampaign(file)
      const checked = checkCampaign(source, tables, 'nobody')
      if ('problems' in checked) throw new FileProblems(file, checked.problems)
      const { plan } = checked
      const warnings = missingInputs(plan)
      const steps = plan.steps.map(({ name, size }) => ({ name, tasks: size }))
      print(options, { valid: true, name: plan.name, group: plan.group, steps, warnings }, () => [
        `${file}: ${plan.name} in ${plan.group}, ${stepsText(steps)}`,
        ...warnings.map(({ path, message }) => `warning  ${path}: ${message}`),
      ])
    })

  withClient(campaign.command('submit <file>'))
    .description('send a campaign in; sending the same one again changes nothing')
    .option('--dry-run', 'check everything, take nothing in')
    .option('--strict', 'refuse what no registered site can run, instead of warning')
    .option('--wait', 'watch it until it is over')
    .addHelpText(
      'after',
      '\nExamples:\n  indraft campaign submit sim.yaml\n  indraft campaign submit sim.yaml --strict --wait',
    )
    .action(async (file: string, options: Options) => {
      const { source, tables } = readCampaign(file)
      await withCentral(options, async (client) => {
        const body = { source, tables, dryRun: options.dryRun === true, strict: options.strict === true }
        const reply = await client.call('submitCampaign', { body }).catch((error: unknown) => {
          if (error instanceof ApiRefusal && error.problems.length > 0) throw new FileProblems(file, error.problems)
          throw error
        })
        const checked = checkCampaign(source, tables, 'nobody')
        const warnings = [...reply.warnings, ...('plan' in checked ? missingInputs(checked.plan) : [])]
        const isStreamed = options.wait === true && options.json === true
        if (isStreamed) console.log(JSON.stringify({ ...reply, warnings }))
        else print(options, { ...reply, warnings }, submittedText)
        if (options.wait === true && !body.dryRun) await watchCampaign(client, reply.id, options)
      })
    })
}

/** The file, and the tables it names, read from beside it. @throws IndraftError request.invalid */
function readCampaign(file: string): { source: string; tables: Record<string, string> } {
  const source = resolveFileUrls(readText(file), file)
  const tables: Record<string, string> = {}
  for (const table of tablesNamed(source)) {
    const path = resolve(dirname(file), table)
    if (!existsSync(path)) {
      throw new IndraftError('request.invalid', `${file} names the table ${table}, but there is no ${path}`, {
        path: table,
      })
    }
    tables[table] = readText(path)
  }
  return { source, tables }
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code
    const why = code === 'ENOENT' ? 'there is no such file' : code === 'EISDIR' ? 'it is a folder' : String(code)
    throw new IndraftError('request.invalid', `${path}: ${why}`, { path, cause })
  }
}

/** Local files that a task will look for and that are not here; a warning, because sites may see other files. */
function missingInputs(plan: CampaignPlan): { path: string; message: string }[] {
  return plan.steps.flatMap((step) =>
    step.template.inputs.flatMap(({ url }, i) => {
      if (url === null || !url.startsWith('file:///') || url.includes('$(')) return []
      const local = fileURLToPath(url)
      if (existsSync(local)) return []
      return [
        {
          path: formatPath(['steps', step.name, 'inputs', i, 'url']),
          message: `${local} is not there (on this machine)`,
        },
      ]
    }),
  )
}

function stepsText(steps: readonly { name: string; tasks: number }[]): string {
  const total = steps.reduce((sum, step) => sum + step.tasks, 0)
  return `${count(total, 'task')} (${steps.map(({ name, tasks }) => `${name} ${tasks.toLocaleString('en')}`).join(', ')})`
}

function submittedText({ name, group, id, created, dryRun, steps, warnings }: Reply<'submitCampaign'>): string[] {
  const head = dryRun
    ? `${name} would be taken in`
    : created
      ? `${name} submitted`
      : `${name} was there already, unchanged`
  return [
    `${head}: ${stepsText(steps)} for ${group}${dryRun ? '' : `   id ${id}`}`,
    ...warnings.map(({ path, message }) => `warning  ${path}: ${message}`),
    ...(dryRun ? [] : [`next:  indraft campaign watch ${name}`]),
  ]
}

function count(amount: number, word: string): string {
  return `${amount.toLocaleString('en')} ${word}${amount === 1 ? '' : 's'}`
}

function registerViews(campaign: Command): void {
  withClient(campaign.command('list'))
    .description('campaigns of your groups, newest first')
    .addHelpText('after', '\nExamples:\n  indraft campaign list')
    .action(async (options: Options) => {
      const reply = await withCentral(options, (client) => client.call('listCampaigns', {}))
      print(options, reply, ({ campaigns }) => {
        if (campaigns.length === 0) return 'no campaign yet: "indraft campaign submit FILE"'
        const rows = campaigns.map((one) => {
          const total = one.steps.reduce((sum, step) => sum + step.size, 0)
          const { done, failed, held } = one.counts
          return [
            one.name,
            one.group,
            one.state,
            total,
            done,
            failed,
            held,
            `${formatDuration(Math.max(0, Date.now() - one.createdAtMs))} ago`,
          ]
        })
        return columns(['campaign', 'group', 'state', 'tasks', 'done', 'failed', 'held', 'submitted'], rows)
      })
    })

  withClient(campaign.command('show <campaign>'))
    .description('one campaign: steps, counts, what they need, why attempts failed')
    .option('--source', 'the file as it was submitted')
    .addHelpText('after', '\nExamples:\n  indraft campaign show ising\n  indraft campaign show /demo/ising --source')
    .action(async (name: string, options: Options) => {
      const params = { campaign: name }
      if (options.source) {
        const reply = await withCentral(options, (client) => client.call('campaignSource', { params }))
        print(options, reply, ({ source }) => source.trimEnd())
        return
      }
      print(options, await withCentral(options, (client) => client.call('showCampaign', { params })), campaignText)
    })

  withClient(campaign.command('tasks <campaign>'))
    .description('tasks by step, state and site; or one task with all its attempts')
    .option('--step <step>', 'only of this step')
    .addOption(new Option('--state <state>', 'only in this state').choices(TASK_STATES))
    .option('--site <site>', 'only at this site')
    .option('--limit <number>', 'at most so many', readLimit, 50)
    .option('--from <step/index>', 'go on where an earlier list ended')
    .addHelpText(
      'after',
      '\nExamples:\n  indraft campaign tasks ising --state failed\n  indraft campaign tasks ising/simulate/17      every attempt of one task',
    )
    .action(async (name: string, options: Options) => {
      const one = readTaskPath(name)
      if (one) {
        print(options, await withCentral(options, (client) => client.call('showTask', { params: one })), taskText)
        return
      }
      const reply = await withCentral(options, (client) => listTasks(client, name, options as Options & TaskFilter))
      print(options, reply, ({ tasks, next }) => [
        ...columns(
          ['task', 'state', 'attempts', 'site', 'node', 'reason'],
          tasks.map((task) => [
            `${task.step}/${task.index}`,
            task.state,
            task.attempts,
            task.site ?? '',
            task.node ?? '',
            task.reason ?? '',
          ]),
        ),
        ...(next ? [`more:  --from ${next}`] : []),
      ])
    })
}

/** As many as are wanted, of as many pages as that takes: the centre looks at so many tasks only for each. */
async function listTasks(client: Client, campaign: string, { step, state, site, from, limit }: TaskFilter) {
  const filter = { ...(step && { step }), ...(state && { state }), ...(site && { site }) }
  const tasks: Reply<'listTasks'>['tasks'] = []
  let next = from ?? null
  do {
    const query = { ...filter, ...(next && { from: next }), limit: limit - tasks.length }
    const page: Reply<'listTasks'> = await client.call('listTasks', { params: { campaign }, query })
    tasks.push(...page.tasks)
    next = page.next
  } while (next !== null && tasks.length < limit)
  return { tasks, next }
}

type TaskFilter = Partial<Record<'step' | 'site' | 'from', string>> & { state?: TaskState; limit: number }

function readLimit(text: string): number {
  const limit = Number(text)
  if (!Number.isInteger(limit) || limit < 1 || limit > 1000)
    throw new InvalidArgumentError('expected a number from 1 to 1000')
  return limit
}

/** `campaign/step/index`, or undefined. */
export function readTaskPath(text: string): { campaign: string; step: string; index: number } | undefined {
  const match = /^(.+)\/([^/]+)\/(\d+)$/.exec(text)
  return match ? { campaign: match[1]!, step: match[2]!, index: Number(match[3]) } : undefined
}

function campaignText(view: Reply<'showCampaign'>): string[] {
  const lines = [
    `${view.name}   ${view.group}   ${view.state}   priority ${view.priority}   ${view.activity}   id ${view.id}`,
    `submitted by ${view.subject} ${formatDuration(Math.max(0, Date.now() - view.createdAtMs))} ago`,
    '',
    ...columns(
      ['step', 'tasks', ...TASK_STATES, 'mean time'],
      view.steps.map((step) => [
        step.name,
        step.size,
        ...TASK_STATES.map((state) => step.counts[state]),
        step.meanWallMs === null ? '-' : formatDuration(step.meanWallMs),
      ]),
    ),
    '',
    ...view.steps.map(({ name, needs }) => {
      const gpus = needs.gpus > 0 ? `, ${needs.gpus} GPUs` : ''
      const scratch = needs.scratchBytes > 0 ? `, scratch ${formatBytes(needs.scratchBytes)}` : ''
      return `${name} needs ${count(needs.cores, 'core')}, ${formatBytes(needs.memoryBytes)}${gpus}${scratch}, ${formatDuration(needs.walltimeMs)}`
    }),
  ]
  if (view.failures.length > 0) lines.push('', 'failed attempts')
  for (const { step, reason, detail, count: times } of view.failures)
    lines.push(`  ${step}: ${times} x ${reason}  ${detail}`)
  return lines
}

function taskText(task: Reply<'showTask'>): string[] {
  const lines = [`${task.campaign}/${task.step}/${task.index}   ${task.state}   ${count(task.attempts, 'attempt')}`]
  for (const [i, attempt] of task.history.entries()) {
    const end = attempt.end === 'done' ? 'done' : `${attempt.reason}${attempt.detail ? `: ${attempt.detail}` : ''}`
    const place = `${attempt.site} ${attempt.node} (${attempt.pilot})`
    lines.push(
      `attempt ${i + 1}  ${place}  ${formatDuration(attempt.wallMs)}, ${formatBytes(attempt.maxRssBytes)}  ${end}`,
    )
    if (attempt.tail)
      lines.push(
        ...attempt.tail
          .trimEnd()
          .split('\n')
          .map((line) => `           | ${line}`),
      )
  }
  for (const { path, sizeBytes, url } of task.outputs)
    lines.push(`output     ${path}  ${formatBytes(sizeBytes)}  ${url}`)
  return lines
}

function registerSteering(campaign: Command): void {
  const orders: [string, DesiredState, string][] = [
    ['pause', 'paused', 'start nothing more; what runs goes on'],
    ['resume', 'run', 'go on with a paused campaign'],
    ['cancel', 'cancelled', 'end what runs and start nothing more, for ever'],
  ]
  for (const [word, desired, description] of orders) {
    withClient(campaign.command(`${word} <campaign>`))
      .description(description)
      .addHelpText('after', `\nExamples:\n  indraft campaign ${word} ising`)
      .action(async (name: string, options: Options) => {
        const reply = await withCentral(options, (client) =>
          client.call('setDesired', { params: { campaign: name }, body: { desired } }),
        )
        print(options, reply, (view) => `${view.name} is ${view.state}`)
      })
  }

  withClient(campaign.command('retry <campaign>'))
    .description('try failed and held tasks again, with fresh credit; steps that were skipped for them wait again')
    .option('--failed', 'only failed ones')
    .option('--held', 'only held ones')
    .option('--step <step>', 'only of this step')
    .addHelpText('after', '\nExamples:\n  indraft campaign retry ising --failed --step simulate')
    .action(async (name: string, options: Options & { failed?: boolean; held?: boolean; step?: string }) => {
      const states: ('failed' | 'held')[] = []
      if (options.failed || !options.held) states.push('failed')
      if (options.held || !options.failed) states.push('held')
      const body = { states, request: randomUUID(), ...(options.step ? { step: options.step } : {}) }
      const reply = await withCentral(options, (client) =>
        client.call('retryTasks', { params: { campaign: name }, body }),
      )
      print(options, reply, ({ tasks }) =>
        tasks === 0 ? `nothing is ${states.join(' or ')}` : `${count(tasks, 'task')} queued again`,
      )
    })
}
