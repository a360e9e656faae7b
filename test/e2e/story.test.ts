/**
 * The story of a task, told once through the whole product: submitted, drawn in by a pilot, running, its pilot killed,
 * drawn in again, done; and the counts, the outputs and the history agree.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { CampaignView, Finding, PilotView, TaskView } from '../../central/campaigns/model.ts'
import { eventually, startWholeProduct, type WholeProduct } from './stack.ts'

const STORY = `
indraft: 1
name: story
group: /demo
defaults: {image: host}
steps:
  write:
    count: 6
    # The first attempt at task 0 waits for ever: only the death of its pilot ends it.
    command: [sh, -c, 'if [ "$1" = 0 ] && [ "$2" = 1 ]; then touch started; exec sleep 1000; fi; echo "task $1" | tee line.txt', sh, $(index), $(attempt)]
    resources: {cores: 1, memory: 50MB, walltime: 5min}
    outputs: [{path: line.txt}]
  join:
    after: {step: write}
    command: [sh, -c, 'cat $$(cat list.txt) > all.txt']
    inputs: [{from: write, output: line.txt, path: parts/, list: list.txt}]
    resources: {cores: 1, memory: 50MB, walltime: 1min}
    outputs: [{path: all.txt}]
`

let product: WholeProduct
beforeAll(async () => {
  product = await startWholeProduct({ pilots: 2, cores: 1 })
})
afterAll(async () => {
  await product?.stop()
})

test('story - a task whose pilot is killed runs again elsewhere or again, and counts once', async () => {
  const submitted = await product.submit('story', STORY)
  expect(submitted, submitted.stderr).toMatchObject({ code: 0 })

  // The other five are done on whichever pilot; the one that is busy then runs the first attempt at task 0.
  const busy = await eventually('only task 0 is left, and runs', async () => {
    const { counts } = await product.ask<CampaignView>('campaign', 'show', 'story')
    if (counts.done !== 5 || counts.running !== 1) return undefined
    const { pilots } = await product.ask<{ pilots: PilotView[] }>('pilot', 'list')
    const running = pilots.filter((pilot) => pilot.state === 'active' && pilot.running > 0)
    return running.length === 1 ? running[0] : undefined
  })
  product.stack.service(busy.node).part!.kill()

  const watched = await product.indraft('campaign', 'watch', 'story')
  expect(watched, watched.stderr).toMatchObject({ code: 0 })
  const campaign = await product.ask<CampaignView>('campaign', 'show', 'story')
  expect(campaign.state).toBe('done')
  expect(campaign.counts).toMatchObject({ done: 7, failed: 0, held: 0, queued: 0, running: 0 })

  const { tasks } = await product.ask<{ tasks: TaskView[] }>('campaign', 'tasks', 'story', '--step', 'write')
  const first = tasks.find((task) => task.index === 0)!
  expect(first).toMatchObject({ state: 'done', attempts: 2 })

  const got = join(product.folder, 'got')
  expect(await product.indraft('campaign', 'outputs', 'story', '--step', 'join', '--get', got)).toMatchObject({
    code: 0,
  })
  const all = readdirSync(got, { recursive: true, encoding: 'utf8' }).find((path) => path.endsWith('all.txt'))!
  expect(readFileSync(join(got, all), 'utf8').trim().split('\n').sort()).toEqual(
    [0, 1, 2, 3, 4, 5].map((i) => `task ${i}`),
  )

  const logs = await product.indraft('campaign', 'logs', 'story/write/3')
  expect(logs, logs.stderr).toMatchObject({ code: 0 })
  expect(logs.stdout).toContain('task 3')

  const { findings } = await product.ask<{ findings: Finding[] }>('admin', 'verify')
  expect(findings).toEqual([])
}, 600_000)

test('story - the killed attempt leaves no process behind', async () => {
  await eventually('the first attempt is gone', async () => {
    const left = readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .filter((pid) => environmentOf(pid).includes('/write/0/') && environmentOf(pid).includes(product.folder))
    return left.length === 0 ? true : undefined
  })
}, 600_000)

test('story - the same campaign again changes nothing, other content under its name is refused', async () => {
  const again = await product.submit('again', STORY, '--json')
  expect(JSON.parse(again.stdout)).toMatchObject({ created: false })
  const other = await product.submit('other', STORY.replace('count: 6', 'count: 7'))
  expect(other.code).toBe(1)
  expect(other.stderr).toContain('exists in /demo with other content')
})

function environmentOf(pid: string): string {
  try {
    return existsSync(`/proc/${pid}/environ`) ? readFileSync(`/proc/${pid}/environ`, 'utf8') : ''
  } catch {
    return '' // The process ended while we looked.
  }
}
