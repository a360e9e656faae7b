/**
 * Campaigns in the lab whose payloads keep a ledger outside the product: a line when they begin, are told to end, had time
 * left then, and end. What the product says of a campaign is held against it.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { expect } from 'vitest'
import { type Centre, inside } from './centre.ts'
import type { Product } from './product.ts'

/** For whatever has to come some time: a busy machine is no failure. */
export const PATIENCE_MS = 400_000
/** A busy machine needs no longer from a payload's end until the relay has its result. */
const TOLD_MS = 5000
const folder = `${inside.home}/ledgers`

export interface Line {
  what: 'begin' | 'told' | 'graced' | 'end'
  index: number
  attempt: number
  node: string
  atMs: number
}

export interface Plan {
  count: number
  /** Shell, between the lines of the begin and of the end. */
  work: string
  memory?: string
  payloadRetries?: number
}

/** Work that goes on for some seconds, and can be told to end meanwhile. */
export const sleeps = (seconds: string) => `sleep ${seconds} & wait $!`

/** What a payload does: writes down that it began, that it was told to end, that it had time left then, and its end. */
const payload = (ledger: string, work: string) =>
  [
    `say() { echo $1 $(index) $(attempt) $$(hostname) $$(date +%s%3N) >>${ledger}; }`,
    'say begin',
    `trap 'say told; sleep 1; say graced; exit 143' TERM`,
    work,
    'say end',
  ].join('\n')

/** How many payloads of a node ran at the same time, at most. */
export function fullest(lines: readonly Line[], node: string): number {
  let running = 0
  let most = 0
  for (const { what } of lines.filter((line) => line.node === node).sort((one, other) => one.atMs - other.atMs)) {
    running += what === 'begin' ? 1 : what === 'end' || what === 'graced' ? -1 : 0
    most = Math.max(most, running)
  }
  return most
}

export type Ledgers = Awaited<ReturnType<typeof keepLedgers>>

/** Submits such campaigns, and waits for and reads what became of them. Once in a centre. */
export async function keepLedgers(centre: Centre, product: Product) {
  await centre.check('edge', ['mkdir', folder], { user: 'alice' })

  const submit = async (name: string, { count, work, memory = '100MB', payloadRetries = 0 }: Plan) => {
    const command = JSON.stringify(['sh', '-c', payload(`${folder}/${name}`, work)])
    const text = `
indraft: 1
name: ${name}
group: /lab
defaults: {retries: {payload: ${payloadRetries}, infrastructure: 3}}
steps:
  run: {count: ${count}, image: host, command: ${command}, resources: {cores: 1, memory: ${memory}, walltime: 20min}}
`
    await centre.write('outside', `/root/${name}.yaml`, text)
    await product.indraft('campaign', 'submit', `/root/${name}.yaml`)
  }
  const ledger = async (name: string): Promise<Line[]> => {
    const { stdout } = await centre.run('edge', ['cat', `${folder}/${name}`])
    return stdout
      .split('\n')
      .filter(Boolean)
      .map((line) => {
        const [what, index, attempt, node, at] = line.split(' ')
        return {
          what: what as Line['what'],
          ...{ index: Number(index), attempt: Number(attempt), node: node!, atMs: Number(at) },
        }
      })
  }
  const until = async (what: string, holds: () => Promise<boolean>, act = async () => {}) => {
    for (const deadline = performance.now() + PATIENCE_MS; !(await holds()); await sleep(500)) {
      if (performance.now() > deadline) throw new Error(`${what} did not come\n${centre.logs()}`)
      await act()
    }
  }
  const ends = async (name: string) => (await ledger(name)).filter(({ what }) => what === 'end').length
  const isDone = async (name: string) => {
    const { state } = JSON.parse(await product.indraft('campaign', 'show', name, '--json')) as { state: string }
    expect(['running', 'done']).toContain(state)
    return state === 'done'
  }
  /**
   * All are done, each has one end in the ledger, none was charged to the payload, and the store's invariants hold. What
   * ended within the seconds before somebody ended the pilots may have run again: nobody had been told yet.
   */
  const nothingIsLost = async (name: string, count: number, event: string, endedAtMs: number) => {
    const { tasks } = JSON.parse(
      await product.indraft('campaign', 'tasks', name, '--limit', String(count), '--json'),
    ) as { tasks: { state: string; index: number; attempts: number }[] }
    expect(tasks.map(({ state }) => state)).toEqual(Array.from({ length: count }, () => 'done'))
    const lines = await ledger(name)
    const of = (what: Line['what'], index: number) => lines.filter((one) => one.what === what && one.index === index)
    const twice: number[] = []
    for (let index = 0; index < count; index++) {
      const ended = of('end', index)
      expect(ended.length, `task ${index}`).toBeGreaterThan(0)
      if (ended.length > 1) twice.push(ended[0]!.atMs)
    }
    for (const atMs of twice) expect(atMs).toBeGreaterThan(endedAtMs - TOLD_MS)
    const reasons: Record<string, number> = {}
    for (const { index, attempts } of tasks.filter((task) => task.attempts > 1)) {
      const said = await product.tryIndraft('campaign', 'tasks', `${name}/run/${index}`, '--json')
      expect(said.code, `${said.stderr}${product.central.output.slice(-3000)}`).toBe(0)
      const record = JSON.parse(said.stdout) as { history: { end: string; reason: string | null }[] }
      expect(record.history.at(-1)).toMatchObject({ end: 'done' })
      for (const { end, reason } of record.history)
        if (end !== 'done') reasons[reason ?? ''] = (reasons[reason ?? ''] ?? 0) + 1
      expect(attempts).toBeGreaterThanOrEqual(of('begin', index).length)
    }
    expect(await product.indraft('admin', 'verify')).toBe('every invariant holds')
    // Slurm tells all processes of a step, and the pilot those of its payloads: who is told twice counts once.
    const attemptsThat = (what: Line['what']) =>
      new Set(lines.filter((one) => one.what === what).map(({ index, attempt }) => `${index} ${attempt}`)).size
    const told = attemptsThat('told')
    const graced = attemptsThat('graced')
    console.log(
      `${event}: ${count} of ${count} tasks done; ${lines.filter(({ what }) => what === 'begin').length} payloads began, ` +
        `${told} were told to end, ${graced} had their grace, ${twice.length} ended twice; payload credit charged: 0; ` +
        `attempts that did not end well: ${JSON.stringify(reasons)}`,
    )
    return { lines, tasks, reasons, told, graced }
  }

  return { submit, ledger, until, ends, isDone, nothingIsLost }
}
