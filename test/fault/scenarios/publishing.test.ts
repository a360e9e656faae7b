/** What is interrupted half-way is taken up again: a centre that dies between the outputs of a task. */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, expect, test } from 'vitest'
import type { CampaignView } from '../../../central/campaigns/model.ts'
import { until } from '../world.ts'
import { type SmallWorld, startSmallWorld } from './lab.ts'

let small: SmallWorld
afterEach(async () => {
  await small?.stop()
})

/** Two outputs each: between the one and the other there is a half-published task. */
const TASKS = 12
const SOURCE = `
indraft: 1
name: halves
group: /fault
defaults: {image: host}
steps:
  run:
    count: ${TASKS}
    command: [sh, -c, 'echo a$(index) > a.txt; echo b$(index) > b.txt']
    resources: {cores: 1, memory: 50MB, walltime: 3min}
    outputs: [{path: a.txt}, {path: b.txt}]
`

test('fault - the centre dies half-way through publishing: what is there stays, the rest comes', async () => {
  small = await startSmallWorld()
  const { world } = small
  small.arm('output.published', 'kill')
  await world.ask((client) => client.call('submitCampaign', { body: { source: SOURCE } }))
  await small.passed('output.published')
  const show = async () =>
    (await world.ask((client) => client.call('showCampaign', { params: { campaign: 'halves' } }))) as CampaignView
  await until('all are done', async () => (await show()).counts.done === TASKS)
  const { id } = await show()
  const paths = Array.from({ length: TASKS }, (_, index) =>
    ['a', 'b'].map((name) => ({
      path: join(world.centralState, 'outputs/published', id, 'run', String(index), `${name}.txt`),
      text: `${name}${index}\n`,
    })),
  ).flat()
  await until('all are published', () => paths.every(({ path }) => existsSync(path)), 30_000)
  for (const { path, text } of paths) expect(readFileSync(path, 'utf8')).toBe(text)
  expect((await world.ask((client) => client.call('verify', {}))).findings).toEqual([])
}, 300_000)
