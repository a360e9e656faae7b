/** Payloads that misbehave end by themselves and alone: a clear reason at the task, and everything else goes on. */
import { rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { CampaignView, Finding, TaskView } from '../../central/campaigns/model.ts'
import type { ErrorCode } from '../../shared/errors.ts'
import { startWholeProduct, type WholeProduct } from './stack.ts'

const OUTSIDE = join(tmpdir(), `indraft-e2e-outside-${process.pid}`)

interface Case {
  step: string
  /** YAML of the step, below the defaults. */
  does: string
  ends: ErrorCode | null
}

const CASES: Case[] = [
  { step: 'fine', does: 'command: [sh, -c, "echo good > out.txt"]\n    outputs: [{path: out.txt}]', ends: null },
  {
    step: 'input-gone',
    does: 'command: [cat, in.txt]\n    inputs: [{url: "file:///nowhere/at/all.txt", path: in.txt}]',
    ends: 'stage.inputMissing',
  },
  { step: 'output-missing', does: 'command: ["true"]\n    outputs: [{path: out.txt}]', ends: 'payload.outputMissing' },
  { step: 'no-command', does: 'command: [no-such-command-anywhere]', ends: 'payload.noCommand' },
  { step: 'exit-three', does: 'command: [sh, -c, "echo because >&2; exit 3"]', ends: 'payload.exit' },
  { step: 'exit-255', does: 'command: [sh, -c, "exit 255"]', ends: 'payload.exit' },
  { step: 'kills-itself', does: "command: [sh, -c, 'kill -SEGV $$']", ends: 'payload.signal' },
  { step: 'gigabyte', does: 'command: [sh, -c, "yes abcdefghijklmnopqrstuvwxyz | head -c 1000000000"]', ends: null },
  {
    step: 'too-long',
    does: 'command: [sleep, "600"]\n    resources: {cores: 1, memory: 50MB, walltime: 2s}',
    ends: 'payload.walltime',
  },
  {
    step: 'too-much-memory',
    does: 'command: [node, -e, "const all = []; setInterval(() => all.push(Buffer.alloc(2e7, 1)), 20)"]',
    ends: 'payload.memory',
  },
  {
    step: 'link-outside',
    does: 'command: [ln, -s, /etc/hostname, out.txt]\n    outputs: [{path: out.txt}]',
    ends: 'payload.outputRefused',
  },
  {
    step: 'writes-outside',
    does: `command: [sh, -c, "echo x > ${OUTSIDE}; ln ${OUTSIDE} ../other.txt; cd ..; echo x > out.txt"]\n    outputs: [{path: out.txt}]`,
    ends: 'payload.outputMissing',
  },
]

const CAMPAIGN = `
indraft: 1
name: bad-payloads
group: /demo
defaults:
  image: host
  retries: {payload: 0, infrastructure: 0}
  resources: {cores: 1, memory: 300MB, walltime: 1min}
steps:
${CASES.map(({ step, does }) => `  ${step}:\n    count: 1\n    ${does}`).join('\n')}
`

let product: WholeProduct
let campaign: CampaignView
beforeAll(async () => {
  product = await startWholeProduct({ pilots: 2, cores: 2 })
  const submitted = await product.submit('bad-payloads', CAMPAIGN)
  expect(submitted, submitted.stderr).toMatchObject({ code: 0 })
  await product.indraft('campaign', 'watch', 'bad-payloads')
  campaign = await product.ask<CampaignView>('campaign', 'show', 'bad-payloads')
}, 600_000)
afterAll(async () => {
  rmSync(OUTSIDE, { force: true })
  await product?.stop()
})

describe('bad payloads', () => {
  test('bad payloads - the campaign ends, with failures', () => {
    expect(campaign.state).toBe('done with failures')
  })

  test.each(CASES)('bad payloads - $step ends with $ends', async ({ step, ends }) => {
    const task = await product.ask<TaskView>('campaign', 'tasks', `bad-payloads/${step}/0`)
    expect(task.state).toBe(ends === null ? 'done' : 'failed')
    expect(task.history.at(-1)?.reason ?? null).toBe(ends)
  })

  test('bad payloads - what a failed command said is shown with its reason', async () => {
    const task = await product.ask<TaskView>('campaign', 'tasks', 'bad-payloads/exit-three/0')
    expect(task.history.at(-1)).toMatchObject({ exitCode: 3, tail: expect.stringContaining('because') })
  })

  test('bad payloads - a gigabyte of output is counted whole and kept in part', async () => {
    const task = await product.ask<TaskView>('campaign', 'tasks', 'bad-payloads/gigabyte/0')
    expect(task.history.at(-1)?.stdoutBytes).toBe(1_000_000_000)
    const logs = await product.indraft('campaign', 'logs', 'bad-payloads/gigabyte/0')
    expect(logs.stdout.length).toBeLessThan(11_000_000)
    expect(logs.stdout).toContain('abcdefghijklm')
  })

  test('bad payloads - no pilot died of it, and the counts are right', async () => {
    expect(product.stack.services.map(({ starts }) => starts)).toEqual(product.stack.services.map(() => 1))
    const { findings } = await product.ask<{ findings: Finding[] }>('admin', 'verify')
    expect(findings).toEqual([])
  })
})
