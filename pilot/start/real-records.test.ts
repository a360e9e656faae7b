/** The rule of speed over what real payloads took, from their results through pilots' records on disk to a tick. */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { silentLog } from '../../shared/log.ts'
import { type CountedSlurm, countedSlurm } from '../../test/counted-slurm.ts'
import { makeTemplate, TestSite } from '../testbench.ts'
import { endTeller } from './end-record.ts'
import { foldersOf, readState } from './files.ts'
import { folderTag } from './site-file.ts'
import { emptyState } from './state.ts'
import { tick } from './tick.ts'

const TASKS = 5
/** Of what the slowest of the quick ones took, whatever the machine is like. */
const LONGER = 4

let site: TestSite
let slurm: CountedSlurm
let folder: string
beforeEach(async () => {
  site = await new TestSite().open()
  slurm = countedSlurm('/none', 'ask: {enabled: false}, nodes: {timesFaster: 2},')
  folder = mkdtempSync(join(tmpdir(), 'indraft-records-'))
})
afterEach(async () => {
  slurm.close()
  await site.close()
  rmSync(folder, { recursive: true, force: true })
})

it('black holes - a node whose payloads end in no time is latched by what real ones took elsewhere', async () => {
  const { ends } = foldersOf(slurm.site)
  const tellerOf = (node: string) =>
    endTeller(
      { endFolder: ends, startId: `cpu.${folderTag(slurm.site)}${node}`, node },
      { name: node, job: '1', livedMs: () => 900_000 },
      silentLog,
    )
  const go = join(folder, 'go')
  const waits = ['sh', '-c', `while [ ! -e ${go} ]; do sleep 0.05; done`]
  // The slow ones run as long as this machine makes them.
  const needs = { ...makeTemplate().needs, walltimeMs: 3_600_000 }
  const run = (command: string[]) =>
    Promise.all(Array.from({ length: TASKS }, () => site.attempt({ command, needs }).run()))
  const beganMs = performance.now()
  const slow = [run(waits), run(waits)]
  const quick = await run(['true'])
  const longestMs = Math.max(...quick.map(({ wallMs }) => wallMs), performance.now() - beganMs)
  await new Promise((resolve) => setTimeout(resolve, LONGER * longestMs))
  writeFileSync(go, '')
  const all = [quick, ...(await Promise.all(slow))]
  for (const [at, results] of all.entries()) {
    const teller = tellerOf(`n${at}`)
    for (const result of results) {
      expect(result.end).toBe('done')
      teller.tally.add(result)
    }
    await teller.tell({ code: 300, reason: 'no more work' })
  }
  expect(existsSync(ends)).toBe(true)
  await tick(slurm.site, slurm.ports(), silentLog)
  const { latches } = { ...emptyState(), ...(await readState(foldersOf(slurm.site).state)) }
  expect(latches).toMatchObject({
    n0: { reason: expect.stringMatching(/^tasks end after \d+ ms here, after \d+ ms elsewhere$/) },
  })
  expect(Object.keys(latches)).toEqual(['n0'])
}, 120_000)
