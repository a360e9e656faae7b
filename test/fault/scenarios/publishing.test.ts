/**
 * What is interrupted half-way is taken up again: a centre that dies between the outputs of a task, a relay that loses its
 * disk when central has accepted an output and the relay has not given it its name.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs'
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

/** One file that comes to lie where central is not, by its relay; a second step reads it there. */
const shared = (final: string) => `
indraft: 1
name: shared
group: /fault
defaults: {image: host}
steps:
  make:
    count: 1
    command: [sh, -c, 'echo made > out.txt']
    resources: {cores: 1, memory: 50MB, walltime: 3min}
    outputs: [{path: out.txt, url: "file://${final}/$(campaign_id)-$(index).txt"}]
  read:
    after: {step: make}
    count: 1
    command: [sh, -c, 'cat parts/0/out.txt > read.txt']
    resources: {cores: 1, memory: 50MB, walltime: 3min}
    inputs: [{from: make, path: parts/}]
    outputs: [{path: read.txt}]
`

test('fault - a relay loses its disk after the acceptance and before the rename: the output gets its final name', async () => {
  small = await startSmallWorld()
  const { world } = small
  const final = join(world.folder, 'final')
  mkdirSync(final, { recursive: true })
  small.arm('verdict.received', 'stop')
  await world.ask((client) => client.call('submitCampaign', { body: { source: shared(final) } }))
  await small.passed('verdict.received')
  const show = async () =>
    (await world.ask((client) => client.call('showCampaign', { params: { campaign: 'shared' } }))) as CampaignView
  const { id, steps } = await show()
  expect(steps.find(({ name }) => name === 'make')!.counts.done).toBe(1)
  expect(readdirSync(final)).toEqual([expect.stringMatching(/\.attempt-\d+-\d+$/)])
  const { state, join: joinAgain } = world.relays.get('alpha')!
  await world.part('relay-alpha').whileDown(async () => {
    for (const name of readdirSync(state)) rmSync(join(state, name), { recursive: true, force: true })
    await joinAgain()
  })
  const named = join(final, `${id}-0.txt`)
  await until('the output has its final name', () => existsSync(named), 60_000)
  expect(readFileSync(named, 'utf8')).toBe('made\n')
  await until('both steps are done', async () => (await show()).counts.done === 2)
  const read = join(world.centralState, 'outputs/published', id, 'read/0/read.txt')
  await until('what was read is published', () => existsSync(read))
  expect(readFileSync(read, 'utf8')).toBe('made\n')
  expect(readdirSync(final)).toEqual([`${id}-0.txt`])
  expect((await world.ask((client) => client.call('verify', {}))).findings).toEqual([])
}, 300_000)
