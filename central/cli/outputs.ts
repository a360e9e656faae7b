/** `indraft campaign outputs|logs`: files of tasks, listed and brought here, each checked against its checksum. */
import { createHash } from 'node:crypto'
import { createReadStream, createWriteStream, existsSync, mkdirSync, renameSync, rmSync, statSync } from 'node:fs'
import { dirname, join, resolve, sep } from 'node:path'
import { Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Command, InvalidArgumentError } from 'commander'
import { IndraftError } from '../../shared/errors.ts'
import { formatBytes, parseDuration } from '../../shared/quantity.ts'
import type { Client } from '../api/client.ts'
import type { Reply } from '../api/routes.ts'
import { readTaskPath } from './campaign.ts'
import { columns, EXIT, type Options, print, printable, withCentral, withClient } from './command.ts'

const PAGE = 500
const AT_A_TIME = 4

type Output = Reply<'listOutputs'>['outputs'][number]

export function registerOutputs(campaign: Command): void {
  withClient(campaign.command('outputs <campaign>'))
    .description('outputs of tasks that are done; with --get, bring them here')
    .option('--step <step>', 'only of this step')
    .option('--get <folder>', 'bring what the centre keeps to FOLDER/STEP/INDEX/PATH; what is there already stays')
    .addHelpText(
      'after',
      '\nExamples:\n  indraft campaign outputs ising\n  indraft campaign outputs ising --step merge --get results',
    )
    .action(async (name: string, options: Options & { step?: string; get?: string }) => {
      await withCentral(options, async (client) => {
        const outputs = await allOutputs(client, name, options.step)
        const folder = options.get
        if (folder === undefined) return print(options, { outputs }, outputsText)
        const fetched = await fetchAll(client, name, outputs, folder)
        print(options, { folder, ...fetched }, ({ files, bytes, elsewhere }) => [
          `${files} files, ${formatBytes(bytes)} in ${folder}`,
          ...elsewhere.map(({ step, index, path, url }) => `elsewhere  ${step}/${index}/${path}: ${url}`),
        ])
      })
    })

  withClient(campaign.command('logs').argument('<campaign/step/index>', '', readTask))
    .description("a task's standard output; the site is asked for it where it is not here yet")
    .option('--stderr', 'standard error instead')
    .option('--attempt <number>', 'which attempt, 1 is the first (default: the last)', readAttempt)
    .option('--raw', 'every byte as it is; on a terminal control characters are replaced without it')
    .option('--wait <duration>', 'how long to wait for the site', '60s')
    .addHelpText(
      'after',
      '\nExamples:\n  indraft campaign logs ising/simulate/17\n  indraft campaign logs ising/simulate/17 --stderr --attempt 1',
    )
    .action(async (task: Task, options: LogOptions) => {
      await withCentral(options, (client) => showLog(client, task, options))
    })
}

type Task = NonNullable<ReturnType<typeof readTaskPath>>
type LogOptions = Options & { stderr?: boolean; attempt?: number; raw?: boolean; wait: string }

function readTask(text: string): Task {
  const task = readTaskPath(text)
  if (!task) throw new InvalidArgumentError('expected CAMPAIGN/STEP/INDEX, as in ising/simulate/17')
  return task
}

function readAttempt(text: string): number {
  if (!/^[1-9]\d{0,8}$/.test(text)) throw new InvalidArgumentError('expected the number of an attempt, 1 is the first')
  return Number(text)
}

/** Text as UTF-8 over any cut of its bytes, with control characters replaced. */
function toPrintable(): Transform {
  const decoder = new TextDecoder()
  return new Transform({
    transform: (chunk: Buffer, _encoding, done) => done(null, printable(decoder.decode(chunk, { stream: true }))),
    flush: (done) => done(null, printable(decoder.decode())),
  })
}

async function allOutputs(client: Client, campaign: string, step: string | undefined): Promise<Output[]> {
  const outputs: Output[] = []
  let from: string | null = null
  do {
    const query = { limit: PAGE, ...(step && { step }), ...(from && { from }) }
    const page: Reply<'listOutputs'> = await client.call('listOutputs', { params: { campaign }, query })
    outputs.push(...page.outputs)
    from = page.next
  } while (from !== null)
  return outputs
}

function outputsText({ outputs }: { outputs: Output[] }): string[] | string {
  if (outputs.length === 0) return 'no outputs yet'
  const rows = outputs.map(({ step, index, path, sizeBytes, url }) => [
    `${step}/${index}`,
    path,
    formatBytes(sizeBytes),
    url.startsWith('store:') ? 'kept by the centre (--get)' : url,
  ])
  return columns(['task', 'output', 'size', 'where'], rows)
}

async function fetchAll(client: Client, campaign: string, outputs: readonly Output[], folder: string) {
  const kept = outputs.filter(({ url }) => url.startsWith('store:'))
  const elsewhere = outputs.filter(({ url }) => !url.startsWith('store:'))
  const waiting = [...kept]
  const fetchNext = async (): Promise<void> => {
    for (let output = waiting.shift(); output; output = waiting.shift())
      await fetchOne(client, campaign, output, folder)
  }
  await Promise.all(Array.from({ length: AT_A_TIME }, fetchNext))
  return { files: kept.length, bytes: kept.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0), elsewhere }
}

/** Complete under its name or not there at all. */
async function fetchOne(client: Client, campaign: string, output: Output, folder: string): Promise<void> {
  const { step, index, path, sizeBytes, checksum } = output
  const target = resolve(folder, step, String(index), path)
  // The name comes from the server: it must not lead out of the folder.
  if (!target.startsWith(resolve(folder) + sep))
    throw new IndraftError('request.invalid', `output path ${path} leaves ${folder}`)
  if (existsSync(target) && statSync(target).size === sizeBytes && (await sha256Of(target)) === checksum) return
  const params = { campaign, step, index, '*': path }
  const reply = await client.file('getOutput', { params })
  if ('retryAfterMs' in reply) throw new IndraftError('request.notFound', `${step}/${index}/${path} is not here yet`)
  mkdirSync(dirname(target), { recursive: true })
  const temporary = join(dirname(target), `.${process.pid}.${Math.random().toString(36).slice(2)}.part`)
  const hash = createHash('sha256')
  const hashing = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      hash.update(chunk)
      done(null, chunk)
    },
  })
  try {
    await pipeline(reply.body, hashing, createWriteStream(temporary))
    const received = `sha256:${hash.digest('hex')}`
    if (checksum.startsWith('sha256:') && received !== checksum) {
      throw new IndraftError('internal.error', `${step}/${index}/${path}: expected ${checksum}, received ${received}`)
    }
    renameSync(temporary, target)
  } finally {
    rmSync(temporary, { force: true })
  }
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256')
  for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer)
  return `sha256:${hash.digest('hex')}`
}

async function showLog(client: Client, task: Task, options: LogOptions): Promise<void> {
  const stream = options.stderr ? ('stderr' as const) : ('stdout' as const)
  const { attempt } = options
  const deadlineMs = performance.now() + (parseDuration(options.wait) ?? 60_000)
  const params = { ...task, stream }
  const query = attempt === undefined ? {} : { attempt }
  let hasSaid = false
  for (;;) {
    const reply = await client.file('taskLog', { params, query })
    if (!('retryAfterMs' in reply)) {
      if (options.json) console.log(JSON.stringify({ ...params, text: await reply.body.text() }))
      else if (process.stdout.isTTY && !options.raw)
        await pipeline(reply.body, toPrintable(), process.stdout, { end: false })
      else await pipeline(reply.body, process.stdout, { end: false })
      return
    }
    if (performance.now() > deadlineMs) break
    if (!hasSaid && !options.json) console.error('asking the site for it ...')
    hasSaid = true
    await sleep(Math.min(reply.retryAfterMs, 1000))
  }
  process.exitCode = EXIT.failed
  const { history } = await client.call('showTask', { params: task })
  const tail = (attempt === undefined ? history.at(-1) : history[attempt - 1])?.tail ?? null
  if (options.json) console.log(JSON.stringify({ ...params, text: null, tail }))
  else
    console.error(
      'the site has not sent it yet; try again later',
      tail ? `\nthe last it wrote:\n${printable(tail)}` : '',
    )
}
